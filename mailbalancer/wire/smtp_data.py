r"""The message behind DATA on its way through: bytes in, bytes to pass on out (RFC 5321 section 4.1.1.4).

Decides: where the message ends. Only CRLF.CRLF ends it (the CRLF behind DATA counts as the first), at every cut; LF.LF,
CRLF.LF, CR.CR and all others never do. And, by policy, what becomes of bytes that a server behind might take for a line
end: a bare CR, a bare LF, a NUL.
Refuses to know: what a message is, what is answered, and the server's view of it.

`reject`: nothing is passed on from the first such byte on, and never the end of the message. Earlier bytes are with the
server already, because nothing is gathered here. So the caller must see to it that the server never sees an end:

    when `refused` is set, close the connection to the server, with a reset, without writing another byte to it; keep
    feeding until `done`, because clients listen only then; answer (`refused` is the answer), and close the client.

What was passed on has CR and LF only as CRLF, so it contains no end of a message in anybody's reading.

`normalise`: as if a client had meant a line end with its bare LF: it becomes CRLF. A bare CR and a NUL become a blank,
as Postfix does with stray bytes: no replacement depends on its neighbours, so none can make a new line end. A line with
nothing but a dot that did not end the message by the strict rule gets a second dot, so that it stays a line.

`pass`: bytes go through as they are, and are counted. A server behind that ends messages elsewhere is on its own.

Lines longer than RFC 5321 section 4.5.3.1.6 allows are passed on: servers cope, or say so themselves.
"""

from __future__ import annotations

import re
from enum import Enum
from io import IncrementalNewlineDecoder
from typing import Final, NamedTuple

from mailbalancer.wire.smtp_answers import Answer

_END: Final = b"\r\n.\r\n"
_END_AT_LINE_START: Final = b".\r\n"
#: A stray byte, or a dot at the start of a line that one follows.
_STRAY_OR_DOT: Final = re.compile(rb"(?<=\n)\.(?=[\r\n\0])|\r(?!\n)|(?<!\r)\n|\0")
_REPLACEMENTS: Final = {b".": b"..", b"\r": b" ", b"\n": b"\r\n", b"\0": b" "}
_CLEAN: Final = (None, "\r\n")
#: Notes what line ends it has seen; of no memory between two texts.
_NEWLINES: Final = IncrementalNewlineDecoder(None, translate=False)
_DOT, _LF = 0x2E, 0x0A


class BareNewlines(Enum):
    """What becomes of a bare CR, a bare LF and a NUL in a message."""

    REJECT = "reject"
    NORMALISE = "normalise"
    PASS = "pass"  # noqa: S105 - a policy, no password


class Fed(NamedTuple):
    """What one `feed` gave: the pieces to pass on, and how many bytes of the input were the message's."""

    pieces: list[bytes | memoryview]
    taken: int


class _Before(Enum):
    """What stands in front of the next byte."""

    CRLF = "crlf"  # a real line end: a dot may end the message
    BARE_LF = "bare lf"
    TEXT = "text"


# Looking a member of an enum up costs more than what is done with it here.
_REJECT, _NORMALISE, _PASS = BareNewlines
_CRLF, _BARE_LF, _TEXT = _Before


class DataBody:
    """One message.

    Attributes:
        done: CRLF.CRLF was seen; further bytes are the next command's.
        refused: the answer when the message is not passed on any more (see the head of this module); else None.
        size: bytes of the message so far as the client sent them, stuffed dots counted, without the final dot.
        bare_cr, bare_lf, nul: how many of each were seen, up to the refusal.
    """

    __slots__ = (
        "_before",
        "_held",
        "_max_bytes",
        "_policy",
        "bare_cr",
        "bare_lf",
        "done",
        "nul",
        "refused",
        "size",
    )

    def __init__(self, policy: BareNewlines, max_bytes: int = 0) -> None:
        """`max_bytes`: largest message; 0: no limit but the server's."""
        self._policy = policy
        self._max_bytes = max_bytes
        self._held = b""  # of the last bytes, those whose meaning the next byte decides: at most `.` and CR
        self._before = _CRLF
        self.done = False
        self.refused: Answer | None = None
        self.size = self.bare_cr = self.bare_lf = self.nul = 0

    @property
    def strays(self) -> int:
        """Bytes that are no part of a line or of CRLF."""
        return self.bare_cr + self.bare_lf + self.nul

    def feed(self, data: bytes | bytearray | memoryview) -> Fed:
        """Take bytes of the message. Pieces may be views of `data` (when it is `bytes`); none once it is refused."""
        held = len(self._held)
        known = self._held + data if held else bytes(data)
        end = self._find_end(known)
        length = end
        if end < 0:
            length = len(known) - self._undecided(known)
            self._held = known[length:]
        else:
            self.done = True
            self._held = b""
        pieces = self._pass_on(known, length)
        if length:
            self._before = _what_ends(known, length)
        return Fed(pieces, end + len(_END_AT_LINE_START) - held if self.done else len(data))

    def _find_end(self, known: bytes) -> int:
        """Where the final dot stands; -1: not here."""
        if self._before is _CRLF and known.startswith(_END_AT_LINE_START):
            return 0
        dot = known.find(b".")  # an attachment has none at all, and one byte is found ten times as fast as five
        found = known.find(_END, max(0, dot - 2)) if dot >= 0 else -1
        return found + 2 if found >= 0 else -1

    def _undecided(self, known: bytes) -> int:
        """How many of the last bytes have to wait: a CR, a dot that begins a line, both."""
        keep = 1 if known.endswith(b"\r") else 0
        dot = len(known) - keep - 1
        if dot >= 0 and known[dot] == _DOT:
            begins_line = known[dot - 1] == _LF if dot else self._before is not _TEXT
            keep += begins_line
        return keep

    def _pass_on(self, known: bytes, length: int) -> list[bytes | memoryview]:
        """What of the next `length` bytes, and the final dot when they are the last, the server shall see."""
        self.size += length
        if self.refused is None and self._max_bytes and self.size > self._max_bytes:
            self.refused = Answer.TOO_BIG_CONTENT
        if self.refused is not None:
            return []
        whole = length + len(_END_AT_LINE_START) if self.done else length
        if not whole:
            return []
        piece = self._by_policy(known, length, whole)
        if piece is None:
            self.refused = Answer.BARE_NEWLINE
            return []
        return [piece]

    def _by_policy(self, known: bytes, length: int, whole: int) -> bytes | memoryview | None:
        """The first `whole` bytes as the server shall see them, of which `length` are content; None: not at all."""
        stray = 0 if _is_clean(known, whole) else self._count_strays(known, length)
        if self._policy is _PASS or not (stray or self._before is _BARE_LF):
            return known if whole == len(known) else memoryview(known)[:whole]
        if self._policy is _REJECT:
            return None
        return _normalise(known[:length], self._before) + known[length:whole]

    def _count_strays(self, known: bytes, length: int) -> int:
        """How many strays are in these bytes."""
        pairs = known.count(b"\r\n", 0, length)
        cr = known.count(b"\r", 0, length) - pairs
        lf = known.count(b"\n", 0, length) - pairs
        nul = 0 if known.find(b"\0", 0, length) < 0 else known.count(b"\0", 0, length)
        self.bare_cr += cr
        self.bare_lf += lf
        self.nul += nul
        return cr + lf + nul


def _is_clean(known: bytes, length: int) -> bool:
    """No NUL, and no line end but CRLF. Nearly all mail is: one pass of the decoder that Python reads text files with,
    which notes what line ends it has seen, takes a quarter of the time of counting CR, LF and CRLF."""
    _NEWLINES.reset()
    _NEWLINES.decode(str(known if length == len(known) else memoryview(known)[:length], "latin-1"), True)
    return _NEWLINES.newlines in _CLEAN and known.find(b"\0", 0, length) < 0


def _what_ends(known: bytes, length: int) -> _Before:
    if known[length - 1] != _LF:
        return _TEXT
    # a CR never ends what was passed on before, so one byte alone is a bare LF
    return _CRLF if known[max(length - 2, 0) : length] == b"\r\n" else _BARE_LF


def _normalise(body: bytes, before: _Before) -> bytes:
    """Replace strays; `before` is what stands in front of the body."""
    if before is _TEXT:
        return _STRAY_OR_DOT.sub(_replacement, body)
    return _STRAY_OR_DOT.sub(_replacement, b"\r\n" + body)[2:]


def _replacement(found: re.Match[bytes]) -> bytes:
    return _REPLACEMENTS[found[0]]
