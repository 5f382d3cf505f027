"""The machine under the bench: which core does what, processes pinned to cores, and the memory they hold.

Decides: the cores of proxies and of everything else, and that a process started here ends with the bench.
Refuses to know: what is measured.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TERM_S = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cores a proxy has, and which are left for load and backend together."""

    proxy: tuple[int, ...]
    load: tuple[int, ...]

    def words(self) -> str:
        shared = " (shared: too few cores)" if set(self.proxy) & set(self.load) else ""
        return f"proxy on {_list(self.proxy)}, load and backend on {_list(self.load)}{shared}"


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where, on the cores this process may use.

    The scaling compares one worker with two under the same load, so it has plans of its own: with the load of
    `alone`, one worker would be driven harder than two.
    """

    alone: Plan
    scaling_one: Plan
    scaling_two: Plan

    def words(self) -> str:
        """For the head of the report."""
        return f"{self.alone.words()}; scaling: {self.scaling_one.words()}, then {self.scaling_two.words()}"


def plan_cores() -> Cores:
    """Proxies get the first cores, on different physical ones; load and backend get the rest."""
    cores = tuple(_spread(sorted(os.sched_getaffinity(0))))
    first, rest = cores[:1], cores[1:] or cores
    load = cores[2:] if len(cores) >= 4 else rest
    return Cores(Plan(first, rest), Plan(first, load), Plan(cores[:2], load))


def describe() -> str:
    """Processor, kernel and what else the machine was busy with, for the head of the report."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )


@contextlib.contextmanager
def running(command: Sequence[str], cores: Sequence[int], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process (and what it starts) on these cores; gone when the block ends, however it ends."""

    def pin() -> None:
        os.sched_setaffinity(0, cores)

    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=pin,
        )
    try:
        yield process
    finally:
        _end(process)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(") ")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that the tree under `pid` has used so far (proc(5) `stat`, user and system)."""
    ticks = 0
    for member in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes held by a process tree: resident, and with shared pages divided among those who share them."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """What the tree under `pid` holds now (proc(5), smaps_rollup). Socket buffers in the kernel are not in it."""
    sums = {"Rss": 0, "Pss": 0}
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in sums:
                    sums[name] += int(value.split()[0]) * 1024
    return Memory(sums["Rss"], sums["Pss"])


def _spread(cores: list[int]) -> list[int]:
    """One hardware thread of each physical core first, then their siblings."""
    first: list[int] = []
    siblings: list[int] = []
    seen: set[str] = set()
    for core in cores:
        file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        physical = file.read_text().strip() if file.exists() else str(core)
        (siblings if physical in seen else first).append(core)
        seen.add(physical)
    return first + siblings


def _list(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask, then make: the whole session the process leads."""
    for asked in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, asked)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_S)
            break
    with contextlib.suppress(ProcessLookupError):  # whoever is left of its session after it went
        os.killpg(process.pid, signal.SIGKILL)
