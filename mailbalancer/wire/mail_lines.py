"""Lines of SMTP, IMAP and POP3 as they come in: ended by CRLF and by nothing else.

Decides: where a line ends, and which lines no two servers need read alike: a bare CR, a bare LF, NUL or another control
byte inside, or more bytes than allowed.
Refuses to know: what a line says, and what is answered to a bad one.

Memory is bounded by the caller's reads: at most what was fed last and one line that is not complete. Bytes behind a
line stay here until they are asked for, as further lines or, when a message or a relay begins, all at once (`take`).
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_LINE_BREAKING: Final = re.compile(rb"[\0\r\n]")
_CR, _SPACE = 0x0D, 0x20


class LineFault(Enum):
    """What is wrong with a line; the value says it to a person."""

    TOO_LONG = "line too long"
    BARE_LF = "bare <LF> in a line"
    BARE_CR = "bare <CR> in a line"
    NUL = "NUL byte in a line"
    CONTROL = "control byte in a line"


_FAULTS: Final = {b"\n": LineFault.BARE_LF, b"\r": LineFault.BARE_CR, b"\0": LineFault.NUL}


class BadLine(ValueError):
    """A line that is not passed on. The stream cannot be trusted after it: answer and close."""

    def __init__(self, fault: LineFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Lines:
    """Cuts bytes into lines.

    Attributes:
        held: bytes that are here and were not given out; to be looked at, not changed.
        max_bytes: longest line, CRLF included; may be changed between lines (an AUTH answer may be longer).
    """

    __slots__ = ("_forbidden", "_searched", "held", "max_bytes")

    def __init__(self, max_bytes: int, *, controls: bool = False) -> None:
        """`controls`: control bytes other than CR, LF and NUL may stand inside a line, as in an IMAP password."""
        self.max_bytes = max_bytes
        self._forbidden = _LINE_BREAKING if controls else _CONTROL
        self.held = bytearray()
        self._searched = 0  # no LF before this index

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self.held)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add what arrived."""
        self.held += data

    def next(self) -> bytes | None:
        """The next line without its CRLF; None: it is not complete.

        Raises:
            BadLine: it must not be passed on.
        """
        buffer = self.held
        if not buffer:
            return None
        end = buffer.find(b"\n", self._searched, self.max_bytes)
        if end < 0:
            self._searched = len(buffer)
            self._check_incomplete()
            return None
        line = bytes(buffer[: end - 1]) if end else b""
        if not end or buffer[end - 1] != _CR:
            raise BadLine(self._fault(bytes(buffer[: end + 1])))
        if self._forbidden.search(line):
            raise BadLine(self._fault(line))
        del buffer[: end + 1]
        self._searched = 0
        return line

    def take(self) -> bytes:
        """Everything that is left, for a reader that does not read lines."""
        rest = bytes(self.held)
        self.held.clear()
        self._searched = 0
        return rest

    def _check_incomplete(self) -> None:
        """A TLS handshake on a plain port shows in its first byte; it may never contain an LF."""
        buffer = self.held
        if buffer and buffer[0] < _SPACE and buffer[0] != _CR:
            raise BadLine(LineFault.NUL if not buffer[0] else LineFault.CONTROL)
        if len(buffer) >= self.max_bytes:
            raise BadLine(LineFault.TOO_LONG)

    def _fault(self, data: bytes) -> LineFault:
        """The first forbidden byte of a line decides what it is called."""
        found = self._forbidden.search(data)
        assert found is not None
        return _FAULTS.get(found[0], LineFault.CONTROL)
