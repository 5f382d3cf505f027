"""The log: one line per event, text or JSON, to stderr or syslog, from the supervisor and from every worker.

Decides: what a line looks like, that a value from a stranger can never make a second line, and that a reader who does
not read (a full pipe, a stopped journal) never stops mail: lines wait in a bounded buffer; then they are dropped, and
counted.
Refuses to know: who reads. There is no thread here, because the supervisor forks.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import time
from collections import deque

from mailbalancer.model import Logging

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
#: RFC 5424 severities for syslog, facility mail (2).
_SEVERITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}
_FACILITY_MAIL = 2
BUFFER_BYTES = 1024 * 1024
_PLAIN = re.compile(r"[!#-<>-~]+\Z")  # printable ASCII without space, quote and equals sign

Value = str | int | float | bool | None


def text_value(value: Value) -> str:
    """A field's value as it stands in a text line: quoted and escaped when it is not plain printable ASCII."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.match(text) else json.dumps(text)


def one_line(text: str) -> str:
    """Text with every control and non-ASCII character escaped, so that it stays on its line and on its terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if (c.isprintable() and c.isascii()) else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


class Log:
    """Writes lines. One per process; a worker goes on using the one it inherited.

    `flush` is called by the owner's event loop; a line is also written at once when nothing waits.
    """

    def __init__(self, settings: Logging | None = None) -> None:
        self.dropped = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._fd = -1
        self._socket: socket.socket | None = None
        self.configure(settings or Logging())

    def configure(self, settings: Logging) -> None:
        """Use these settings from now on. A syslog that cannot be reached is said on stderr, and stderr is used."""
        self._json = settings.format == "json"
        self._threshold = LEVELS[settings.level]
        self.sessions = settings.sessions
        self._close()
        self._syslog = settings.to == "syslog"
        if self._syslog:
            try:
                self._socket = sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                sock.setblocking(False)
                sock.connect(settings.syslog_address)
            except OSError as error:
                self._close()
                self._syslog = False
                self._open_stderr()
                self.warning(
                    f"syslog at {settings.syslog_address} cannot be used ({error.strerror}): logging to stderr"
                )
        else:
            self._open_stderr()

    def says(self, level: str) -> bool:
        """Whether lines of this level are written, for those who would have to work to make one."""
        return LEVELS[level] >= self._threshold

    def debug(self, text: str, **fields: Value) -> None:
        self._event("debug", text, fields)

    def info(self, text: str, **fields: Value) -> None:
        self._event("info", text, fields)

    def warning(self, text: str, **fields: Value) -> None:
        self._event("warning", text, fields)

    def error(self, text: str, **fields: Value) -> None:
        self._event("error", text, fields)

    def session(self, **fields: Value) -> None:
        """One finished session."""
        if self.sessions:
            self._event("info", "session", fields)

    def request(self, **fields: Value) -> None:
        """One finished HTTP request."""
        if self.sessions:
            self._event("info", "request", fields)

    def _event(self, level: str, text: str, fields: dict[str, Value]) -> None:
        if LEVELS[level] < self._threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if self._json:
            line = json.dumps({"time": stamp, "level": level, "message": text, **fields})
        else:
            pairs = "".join(f" {key}={text_value(value)}" for key, value in fields.items())
            line = f"{stamp} {level:<7} {one_line(text)}{pairs}"
        if self._syslog:
            priority = _FACILITY_MAIL * 8 + _SEVERITY[level]
            data = f"<{priority}>mailbalancer[{os.getpid()}]: {line}".encode()
        else:
            data = line.encode() + b"\n"
        if self._waiting_bytes + len(data) > BUFFER_BYTES:
            self.dropped += 1
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if len(self._waiting) == 1 or self._waiting_bytes > 32768:
            self.flush()

    def flush(self) -> None:
        """Write what the reader takes now. Never blocks, never raises."""
        while self._waiting:
            if self._syslog:
                data = self._waiting[0]
            else:
                data = b"".join(self._waiting) if self._waiting_bytes <= 65536 else self._waiting[0]
            try:
                sent = self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self._fd, data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the reader is gone or the disk is full: nothing can be said, so the line is counted
                sent = len(data)
                self.dropped += 1
            self._taken(sent)

    def descriptors(self) -> list[int]:
        """What must stay open over a fork."""
        return [self._socket.fileno()] if self._socket is not None else [self._fd]

    def forget_waiting(self) -> None:
        """In a forked child: the lines that wait belong to the parent, which writes them."""
        self._waiting.clear()
        self._waiting_bytes = self.dropped = 0

    def _taken(self, sent: int) -> None:
        self._waiting_bytes -= sent
        while sent and self._waiting:
            first = self._waiting[0]
            if len(first) > sent:
                self._waiting[0] = first[sent:]
                return
            sent -= len(first)
            self._waiting.popleft()

    def _open_stderr(self) -> None:
        """A way to write to stderr that never blocks and leaves other users of the same terminal or pipe alone."""
        mode = os.fstat(2).st_mode
        if stat.S_ISSOCK(mode):  # systemd's journal
            self._socket = socket.socket(fileno=os.dup(2))
            return
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:  # an open of its own: O_NONBLOCK on descriptor 2 itself would change the terminal for the shell
                self._fd = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
                return
            except OSError:
                pass
        self._fd = os.dup(2)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._fd, self._socket = -1, None
