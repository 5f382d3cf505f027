"""Replies of an SMTP server: bytes in, whole replies out (RFC 5321 section 4.2).

Decides: where a reply ends, and its code and enhanced status code (RFC 2034, 3463). The grammar is strict: every line
has the same code, `-` continues, a blank or nothing ends. A server that writes anything else is out of step with us,
and what it says next could be taken for the answer to another command.
Refuses to know: which command is answered, and what follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mailbalancer.wire.mail_lines import BadLine, LineFault, Lines

#: RFC 5321 says 512; lists of extensions and long explanations of filters exceed it in the wild.
MAX_LINE_BYTES: Final = 2048
MAX_LINES: Final = 256
MAX_REPLY_BYTES: Final = 65536

_LINE: Final = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*))?", re.DOTALL)
#: A whole reply of one line, as `Lines` and `_LINE` would take it; servers answer most commands in the same few words.
_WHOLE: Final = re.compile(rb"([2-5][0-5][0-9])(?: ([^\x00-\x1f\x7f]*+))?\r\n")
_UNPRINTABLE: Final = re.compile(rb"[^\x20-\x7e]")
_ADDRESS: Final = re.compile(rb"[^\s<>()\[\]\",;:=]*@[^\s<>()\",;=]*")
_ENHANCED: Final = re.compile(rb"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ ]|\Z)")


class BadReply(ValueError):
    """The server does not speak SMTP, or not any more; its connection is of no further use."""


@dataclass(slots=True)
class Reply:
    """One reply, of one or more lines. Nothing of it changes; it is not frozen, because that makes it dearer.

    Attributes:
        code: 200 to 559.
        lines: the texts behind the code, enhanced status code included.
        raw: the bytes as they came, to be passed on.
    """

    code: int
    lines: tuple[bytes, ...]
    raw: bytes

    @property
    def enhanced(self) -> str:
        """The enhanced status code, such as "4.3.2"; empty when there is none, or of another class than the code."""
        found = _ENHANCED.match(self.lines[-1])
        if found is None or found[1][:1] != b"%d" % (self.code // 100):
            return ""
        return found[1].decode("ascii")

    @property
    def positive(self) -> bool:
        """2xx: the command was carried out."""
        return self.code < 300

    @property
    def inactive(self) -> bool:
        """421 4.3.2: the server takes no mail for now (Exchange: component inactive, maintenance)."""
        return self.code == 421 and self.enhanced == "4.3.2"

    @property
    def overloaded(self) -> bool:
        """452 4.3.1: the server is short of resources (Exchange: back pressure)."""
        return self.code == 452 and self.enhanced == "4.3.1"

    def words(self) -> str:
        """The reply on one line, for a log: printable ASCII, at most 200 characters. Servers repeat mail addresses in
        their refusals, and these are left out; what looks like one in an acceptance is the name of the message."""
        text = b" ".join((b"%d" % self.code, *self.lines))[:400]
        if self.code >= 400 and b"@" in text:
            text = _ADDRESS.sub(b"(address)", text)
        return _UNPRINTABLE.sub(b"?", text[:200]).decode("ascii")


class Replies:
    """Reads the replies of one server connection."""

    __slots__ = ("_code", "_lines", "_raw", "_texts")

    def __init__(self) -> None:
        self._lines = Lines(MAX_LINE_BYTES)
        self._code = b""
        self._texts: list[bytes] = []
        self._raw = bytearray()

    @property
    def clean(self) -> bool:
        """Nothing is half read: bytes that are here before a TLS handshake would have been injected (RFC 3207)."""
        return not self._lines.held and not self._texts

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add what the server sent."""
        self._lines.feed(data)

    def only(self, data: bytes) -> Reply | None:
        """The reply in `data`, where nothing waits and it is one reply of one line, and taken: the short way through
        `feed` and `next`. None: nothing has happened, take the long way."""
        if self._lines.held or self._texts or len(data) > MAX_LINE_BYTES:
            return None
        return _whole(data)

    def next(self) -> Reply | None:
        """The next reply; None: it is not complete.

        Raises:
            BadReply: the server broke the grammar or a limit.
        """
        try:
            while (line := self._lines.next()) is not None:
                if self._add(line):
                    return self._finish()
        except BadLine as error:
            raise BadReply(f"server reply: {error.fault.value}{_limit(error.fault)}") from error
        return None

    def __iter__(self) -> Iterator[Reply]:
        """Every reply that is complete."""
        while (reply := self.next()) is not None:
            yield reply

    def take(self) -> bytes:
        """Everything not read as a reply, when the connection becomes a plain relay."""
        return bytes(self._raw) + self._lines.take()

    def _add(self, line: bytes) -> bool:
        """Take a line of the reply; whether it was the last."""
        match = _LINE.fullmatch(line)
        if match is None or (self._code and match[1] != self._code):
            raise BadReply(f"server reply {line[:60]!r} where {self._code.decode() or 'a reply code'} was expected")
        self._code = match[1]
        self._texts.append(match[3] or b"")
        self._raw += line + b"\r\n"
        if len(self._texts) > MAX_LINES or len(self._raw) > MAX_REPLY_BYTES:
            raise BadReply(f"server reply of more than {MAX_LINES} lines or {MAX_REPLY_BYTES} bytes")
        return match[2] != b"-"

    def _finish(self) -> Reply:
        reply = Reply(int(self._code), tuple(self._texts), bytes(self._raw))
        self._code = b""
        self._texts.clear()
        self._raw.clear()
        return reply


@lru_cache(maxsize=256)
def _whole(data: bytes) -> Reply | None:
    match = _WHOLE.fullmatch(data)
    return Reply(int(match[1]), (match[2] or b"",), data) if match is not None else None


def _limit(fault: LineFault) -> str:
    return f" (over {MAX_LINE_BYTES} bytes)" if fault is LineFault.TOO_LONG else ""
