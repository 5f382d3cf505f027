"""Whether a worker that does not beat is hung, or only waits for a processor.

Decides: when a silent worker is given up. Killing one ends all of its sessions, so silence alone is not enough: on a
busy machine, or one whose hypervisor takes the processor away, a healthy worker is late too. What the kernel says
about the process decides:

    stopped (T)         nothing but a signal ends this: hung after STOPPED_S
    asleep (S)          its timer has passed and it did not wake up, so it waits inside something else: after SILENT_S
    running (R)         hung after SILENT_S only if it was really given SPUN_S of processor time since its last beat
    disk, traced (D, t) the machine's or a debugger's doing: after PATIENT_S

The answer comes within half a second of the last beat where it can. While a worker starts or applies a configuration
it may be busy for longer; then all but a stopped one have PATIENT_S.
Refuses to know: what happens to a hung worker, and where beats are written.
"""

from __future__ import annotations

from pathlib import Path

#: The owner asks this often; a worker beats every 50 ms.
BEAT_CHECK_S = 0.05
STOPPED_S = 0.15
SILENT_S = 0.4
SPUN_S = 0.3
PATIENT_S = 10.0
#: From this age of the last beat on, the processor time used is counted.
LATE_S = 0.1
#: A check that comes so much too late says that this process was delayed itself; nobody is judged by that.
DELAYED_S = 0.15


class Pulse:
    """The beats of one process, as seen from outside."""

    def __init__(self, pid: int, now: float) -> None:
        self._proc = Path("/proc") / str(pid)
        self._seen_at = now  # last beat, or the instant from which silence counts
        self._late_cpu_s: float | None = None

    def excuse(self, now: float) -> None:
        """The observer was delayed: silence until now proves nothing."""
        self._seen_at = max(self._seen_at, now)
        self._late_cpu_s = None

    def silence(self, beat_at: float, now: float, *, patient: bool) -> str:
        """Why the process counts as hung, in words; empty while it does not.

        Args:
            beat_at: the last beat it wrote (monotonic); 0.0 before the first.
            patient: it starts, or applies a configuration.
        """
        if beat_at > self._seen_at:
            self._seen_at, self._late_cpu_s = beat_at, None
        age = now - self._seen_at
        if age < LATE_S:
            return ""
        state, cpu_s = self._ask_kernel()
        if self._late_cpu_s is None:
            self._late_cpu_s = cpu_s
        spun_s = cpu_s - self._late_cpu_s
        if judge(state, age, spun_s, patient=patient):
            return f"no sign of life for {age:.2f} s ({_STATES.get(state, state)})"
        return ""

    def _ask_kernel(self) -> tuple[str, float]:
        """Process state letter and processor time used so far (proc(5)); a vanished process is somebody else's news."""
        try:
            state = (self._proc / "stat").read_bytes().rpartition(b") ")[2][:1].decode()
            cpu_ns = int((self._proc / "schedstat").read_bytes().split()[0])
        except (OSError, ValueError, IndexError):
            return "?", 0.0
        return state, cpu_ns / 1e9


_STATES = {"T": "stopped by a signal", "S": "asleep", "R": "busy", "D": "waits for a disk", "t": "held by a debugger"}


def judge(state: str, age_s: float, spun_s: float, *, patient: bool) -> bool:
    """The table at the head of this module."""
    if state == "T":
        return age_s >= STOPPED_S
    if state in "SR" and not patient:
        return age_s >= SILENT_S and (state == "S" or spun_s >= SPUN_S)
    return state in "SRDt" and age_s >= PATIENT_S and (state != "R" or spun_s >= SPUN_S)
