"""Captures frames with tcpdump, on several interfaces at once.

Decides: that a capture has begun before anybody relies on it, that it is bounded, and that it always ends: with the
block, also at Ctrl-C.
Refuses to know: what is looked for, and what the frames say.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mailbalancer.host.commands import HostError

#: Of each frame so much is kept: every header, and hardly any mail.
HEADERS_BYTES = 128
WHOLE_BYTES = 65535
#: A capture on one interface ends after so many frames, so that it fits into memory.
MOST_FRAMES = 200_000
BEGIN_S = 10.0
END_S = 5.0
#: A capture has caught up when so long nothing was written; it is given so long for that.
QUIET_S = 0.3
CATCH_UP_S = 3.0
_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_DROPPED = re.compile(r"^([0-9]+) packets? dropped by kernel", re.M)


@dataclass(slots=True)
class Capture:
    """What one interface has shown so far, as a capture file; `dropped`: frames that the kernel had no room for."""

    device: str
    data: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)

    @property
    def dropped(self) -> int:
        found = _DROPPED.search(self.said.decode(errors="replace"))
        return int(found.group(1)) if found else 0


class Captures:
    """Captures that run at the same time."""

    def __init__(self, devices: Sequence[str], expression: str, kept_bytes: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._processes: list[tuple[Capture, subprocess.Popen[bytes]]] = []
        for device in devices:
            self._start(Capture(device), expression, kept_bytes)

    @property
    def captures(self) -> list[Capture]:
        return [capture for capture, _ in self._processes]

    def _start(self, capture: Capture, expression: str, kept_bytes: int) -> None:
        path = shutil.which("tcpdump", path=_FOLDERS)
        if path is None:
            raise HostError("tcpdump is not installed", "apt-get install tcpdump")
        options = ["-n", "-U", "--immediate-mode", "-c", str(MOST_FRAMES), "-s", str(kept_bytes), "-w", "-"]
        process = subprocess.Popen(  # noqa: S603 - no shell; the expression is made of addresses and numbers
            [path, "-i", capture.device, *options, expression],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us: we end it when we have read everything
            env={"PATH": _FOLDERS, "LC_ALL": "C"},
        )
        self._processes.append((capture, process))
        assert process.stdout is not None
        assert process.stderr is not None
        for pipe, into in ((process.stdout, capture.data), (process.stderr, capture.said)):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, into)

    def begin(self) -> None:
        """Wait until every one of them sees frames.

        Raises:
            HostError: one cannot.
        """
        ends_at = time.monotonic() + BEGIN_S
        while any(b"listening on" not in capture.said for capture in self.captures):
            for capture, process in self._processes:
                if process.poll() is not None:
                    self.read(QUIET_S)  # its last words
                    raise _explained(capture)
            if time.monotonic() >= ends_at:
                raise HostError(f"tcpdump did not begin within {BEGIN_S:.0f} s")
            self.read(0.1)

    def run(self, seconds: float, now_and_then: Callable[[], None], pause_s: float) -> None:
        """Capture for so long, or until every one of them has ended by itself."""
        ends_at = time.monotonic() + seconds
        while (left_s := ends_at - time.monotonic()) > 0 and self._selector.get_map():
            now_and_then()
            self.read(min(left_s, pause_s))

    def read(self, longest_s: float) -> None:
        """Take what has come, for as long."""
        ends_at = time.monotonic() + longest_s
        while self._selector.get_map() and (left_s := ends_at - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                self._take(key)

    def _catch_up(self) -> None:
        """tcpdump throws away what it has not read when it is asked to end: wait until nothing comes any more."""
        ends_at, before, size = time.monotonic() + CATCH_UP_S, -1, 0
        while time.monotonic() < ends_at and size != before:
            before = size
            self.read(QUIET_S)
            size = sum(len(one.data) for one in self.captures)

    def _take(self, key: selectors.SelectorKey) -> None:
        try:
            data = os.read(key.fd, 1 << 20)
        except BlockingIOError:
            return
        if data:
            key.data.extend(data)
        else:
            self._selector.unregister(key.fileobj)

    def end(self) -> None:
        """Ask each to write down what it has, and take that."""
        self._catch_up()
        for _, process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGINT)
        self.read(END_S)
        for _, process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._selector.close()


@contextlib.contextmanager
def capturing(devices: Sequence[str], expression: str, kept_bytes: int = HEADERS_BYTES) -> Iterator[Captures]:
    """Captures on these interfaces; they have begun, and end with the block.

    Raises:
        HostError: tcpdump is missing, or may not capture.
    """
    captures = Captures(devices, expression, kept_bytes)
    try:
        captures.begin()
        yield captures
    finally:
        captures.end()


def _explained(capture: Capture) -> HostError:
    said = [line for line in capture.said.decode(errors="replace").splitlines() if line.strip()]
    words = said[-1].removeprefix("tcpdump: ") if said else "it ended at once"
    denied = any("permission" in line.lower() or "not permitted" in line.lower() for line in said)
    remedy = "capturing needs root, or CAP_NET_RAW" if denied else ""
    return HostError(f"tcpdump on {capture.device}: {words}", remedy)
