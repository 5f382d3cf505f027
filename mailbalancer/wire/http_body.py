"""The body of an HTTP/1.1 message: how it is framed, and its bytes as they stream through.

Decides: from a head alone, how its body ends (RFC 9112 section 6.3), and while the body streams, which bytes belong to
it. Framing that two parsers could read differently is refused: Content-Length beside Transfer-Encoding, either of them
twice (also with equal values, also as the list "5, 5": nobody honest sends it), any coding but exactly `chunked`,
Transfer-Encoding with HTTP/1.0, numbers that are not plain digits.
Refuses to know: what the bytes mean, sockets, time. Nothing is gathered: what comes in goes out in the same call, but
for a chunk header or trailer line that is not complete, and those are bounded.

A body takes `feed(data)` and gives the pieces to pass on and how many bytes of `data` were its own; bytes behind them
begin the next message. Pieces are views of `data` wherever nothing had to change: write them before reusing it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple, Protocol

from mailbalancer.wire.hop_by_hop import read_connection
from mailbalancer.wire.http_head import BadMessage, Head, RequestHead, ResponseHead

#: Longest chunk header line and its share that may be extensions, over a whole body. Extensions mean nothing to anybody
#: and are dropped; unbounded they are a way to send for ever without sending anything.
MAX_CHUNK_LINE_BYTES: Final = 256
MAX_EXTENSION_BYTES: Final = 4096
#: All trailer lines of one body together.
MAX_TRAILER_BYTES: Final = 8192

# 18 digits stay below 2**63, which every server behind can count to. A leading zero is octal to some.
_LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,17}")
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
# 15 digits stay below 2**60. Some servers pad with zeros, none pads with blanks any more.
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})((?:;%b(?:=(?:%b|%b))?)*+)" % (_TOKEN, _TOKEN, _QUOTED))
#: A chunk header that needs no rewriting, of a chunk that is not the last.
_PLAIN_CHUNK_LINE: Final = re.compile(rb"([1-9A-Fa-f][0-9A-Fa-f]{0,14})\r\n")
_TRAILER_LINE: Final = re.compile(rb"(%b):[\t\x20-\x7e\x80-\xff]*+" % _TOKEN)

# RFC 9110 section 6.5.1: what frames, routes, authenticates, modifies the request or says how to read the content may
# not come after it. Dropped, because a server that merges trailers into the head would believe them.
_FORBIDDEN_TRAILERS: Final = re.compile(
    rb"transfer-encoding|te|trailer|connection|keep-alive|proxy-.*|upgrade|http2-settings"  # framing, hop by hop
    rb"|host|forwarded|x-forwarded-.*|x-real-ip|via|max-forwards"  # routing, identity
    rb"|authorization|authentication-info|www-authenticate|persistent-auth|cookie2?|set-cookie2?"  # authentication
    rb"|expect|range|cache-control|pragma|if-.*|accept|accept-.*|origin|referer|sec-.*"  # request modifiers
    rb"|content-(?:length|type|encoding|range|location|disposition|language|security-policy)"  # how to read it
    rb"|age|date|expires|location|retry-after|vary|warning|refresh|access-control-.*|strict-transport-security",
    re.IGNORECASE,
)


class Kind(Enum):
    """How a body ends."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"
    TUNNEL = "tunnel"  # after 101, or 2xx to CONNECT: bytes in both directions, HTTP is over


class Framing(NamedTuple):
    """How a body ends, and its length where that is known."""

    kind: Kind
    length: int = 0


NO_BODY: Final = Framing(Kind.NONE)
CHUNKED: Final = Framing(Kind.CHUNKED)
UNTIL_CLOSE: Final = Framing(Kind.UNTIL_CLOSE)
TUNNEL: Final = Framing(Kind.TUNNEL)


def request_framing(head: RequestHead) -> Framing:
    """How the body of a request ends.

    Raises:
        BadMessage: status 400, for framing that could be read in two ways; 417 for an expectation nobody has.
    """
    expects_continue(head)
    framing = _declared(head, 400)
    if framing is not None and head.method == b"CONNECT":
        raise BadMessage(400, "CONNECT with a body, which no two servers read alike (RFC 9110 section 9.3.6)")
    return framing or NO_BODY


def expects_continue(head: RequestHead) -> bool:
    """Whether the client holds its body back until a 100 (RFC 9110 section 10.1.1; HTTP/1.0 clients cannot).

    Raises:
        BadMessage: status 417. A server that does not see `100-continue` in a misspelt one waits for a body that never
            comes, or reads the body as the next request.
    """
    values = head.values.get(b"expect")
    if values is None:
        return False
    if len(values) != 1 or values[0].lower() != b"100-continue":
        raise BadMessage(417, f"Expect {b', '.join(values)[:60]!r}; only '100-continue' exists")
    return head.minor == 1


def response_framing(head: ResponseHead, method: bytes, upgrading: bool = False) -> Framing:
    """How the body of the answer to a `method` request ends; `upgrading`: that request was sent on with Upgrade.

    A body that ends with the connection cannot be told from one that was cut; the client has to be closed after it.

    Raises:
        BadMessage: status 502, for framing that could be read in two ways, and for a 101 nobody asked for, or to
            another protocol.
    """
    framing = _declared(head, 502)
    status = head.status
    if status == 101 and not upgrading:
        raise BadMessage(502, "the server switched protocols (101), which nobody had asked for")
    if status == 101 and not read_connection(head, 502).upgrade:
        raise BadMessage(502, "the server switched protocols (101), but not to the one that was asked for")
    if status < 200 or status == 204:
        if framing is not None and framing != (Kind.LENGTH, 0):
            raise BadMessage(502, f"the server announced a body with status {status}, which has none")
        return TUNNEL if status == 101 else NO_BODY
    if method == b"CONNECT" and status < 300:
        return TUNNEL
    if method == b"HEAD" or status == 304:
        return NO_BODY
    return UNTIL_CLOSE if framing is None else framing


def _declared(head: Head, status: int) -> Framing | None:
    """What Content-Length and Transfer-Encoding say; None when neither is there."""
    lengths = head.values.get(b"content-length")
    codings = head.values.get(b"transfer-encoding")
    if codings is None:
        return None if lengths is None else Framing(Kind.LENGTH, _content_length(lengths, status))
    if lengths is not None:
        raise BadMessage(status, "Content-Length beside Transfer-Encoding")
    if len(codings) != 1 or codings[0].lower() != b"chunked":
        raise BadMessage(status, f"Transfer-Encoding {b', '.join(codings)[:60]!r}; only 'chunked' is understood")
    if head.minor == 0:
        raise BadMessage(status, "Transfer-Encoding with HTTP/1.0, which does not know it")
    return CHUNKED


def _content_length(values: Sequence[bytes], status: int) -> int:
    if len(values) != 1:
        raise BadMessage(status, f"{len(values)} Content-Length fields")
    if not _LENGTH.fullmatch(values[0]):
        raise BadMessage(status, f"Content-Length {values[0][:60]!r} is not a plain number of at most 18 digits")
    return int(values[0])


# --- bodies ----------------------------------------------------------------------------------------------------------

Piece = bytes | memoryview


class Fed(NamedTuple):
    """What one `feed` gave: the pieces to pass on, and how many bytes of the input were the body's."""

    pieces: list[Piece]
    taken: int


class Body(Protocol):
    """One body on its way through.

    Attributes:
        done: it is complete; every further byte belongs to the next message.
        ends_at_close: the connection's end would complete it now. Where it is false and `done` is, an end means that
            the message was cut, and nothing that looks complete may be passed on.
    """

    @property
    def done(self) -> bool: ...

    @property
    def ends_at_close(self) -> bool: ...

    def feed(self, data: bytes | bytearray | memoryview) -> Fed: ...


def open_body(framing: Framing, decode: bool = False, status: int = 400) -> Body:
    """The body that reads this framing.

    Args:
        decode: pass on the content of chunks without their framing, and no trailers: for an HTTP/1.0 client.
        status: what a malformed chunk is answered with: 400 on the client side, 502 on the server side.
    """
    if framing.kind is Kind.CHUNKED:
        return ChunkedBody(decode, status)
    if framing.kind in (Kind.UNTIL_CLOSE, Kind.TUNNEL):
        return EndlessBody()
    return LengthBody(framing.length)


class LengthBody:
    """A body of known length; `remaining` bytes of it are still to come (and may be moved past Python)."""

    __slots__ = ("remaining",)
    ends_at_close: Final = False

    def __init__(self, length: int) -> None:
        self.remaining = length

    @property
    def done(self) -> bool:
        return self.remaining == 0

    def feed(self, data: bytes | bytearray | memoryview) -> Fed:
        taken = min(self.remaining, len(data))
        self.remaining -= taken
        return Fed([memoryview(data)[:taken]] if taken else [], taken)


class EndlessBody:
    """A body that ends with its connection."""

    __slots__ = ()
    done: Final = False
    ends_at_close: Final = True

    def feed(self, data: bytes | bytearray | memoryview) -> Fed:
        return Fed([memoryview(data)] if len(data) else [], len(data))


class _At(Enum):
    """What the next byte of a chunked body is part of."""

    SIZE = "chunk header"
    DATA = "chunk"
    DATA_END = "CRLF after a chunk"
    TRAILER = "trailer"
    END = "end"


_TOO_LONG: Final = {
    _At.SIZE: f"chunk header of more than {MAX_CHUNK_LINE_BYTES} bytes",
    _At.DATA_END: "chunk longer than its size",
    _At.TRAILER: f"trailers of more than {MAX_TRAILER_BYTES} bytes",
}


class ChunkedBody:
    """A chunked body (RFC 9112 section 7.1), passed on in the same chunks.

    A chunk header that is more than a number is written anew, without extensions and padding, so that the server
    behind reads exactly what was read here. Trailers are passed on but for those RFC 9110 section 6.5.1 forbids.
    """

    __slots__ = ("_at", "_decode", "_extension_bytes", "_held", "_remaining", "_status", "_trailer_bytes")
    ends_at_close: Final = False

    def __init__(self, decode: bool = False, status: int = 400) -> None:
        self._at = _At.SIZE
        self._decode = decode
        self._status = status
        self._held = b""  # the beginning of a line whose end has not arrived
        self._remaining = 0
        self._extension_bytes = 0
        self._trailer_bytes = 0

    @property
    def done(self) -> bool:
        return self._at is _At.END

    def feed(self, data: bytes | bytearray | memoryview) -> Fed:
        """Take what belongs to this body.

        Raises:
            BadMessage: the chunks are not well-formed. Nothing of this `data` may be passed on.
        """
        view = memoryview(data)
        pieces: list[Piece] = []
        place = 0
        while place < len(view) and self._at is not _At.END:
            if self._at is _At.DATA:
                place = self._take_data(view, place, pieces)
            else:
                place = self._take_line(view, self._take_whole_chunks(view, place, pieces), pieces)
        return Fed(pieces, place)

    def _take_whole_chunks(self, view: memoryview, place: int, pieces: list[Piece]) -> int:
        """Take the run of plain chunks that are here from header to CRLF: they go on as one piece, untouched.

        Not for speed alone: a body of one byte chunks would cost the slow way 5 µs a byte.
        """
        if self._at is not _At.SIZE or self._held:
            return place
        start = place
        while (match := _PLAIN_CHUNK_LINE.match(view, place)) is not None:
            end = match.end() + int(match[1], 16)
            if bytes(view[end : end + 2]) != b"\r\n":
                break
            if self._decode:
                pieces.append(view[match.end() : end])
            place = end + 2
        if place > start and not self._decode:
            pieces.append(view[start:place])
        return place

    def _take_data(self, view: memoryview, place: int, pieces: list[Piece]) -> int:
        end = min(place + self._remaining, len(view))
        pieces.append(view[place:end])
        self._remaining -= end - place
        if not self._remaining:
            self._at = _At.DATA_END
        return end

    def _take_line(self, view: memoryview, place: int, pieces: list[Piece]) -> int:
        """Take one line, or its beginning; where it began in an earlier call, that part was held."""
        limit = self._line_limit()
        window = self._held + bytes(view[place : place + limit + 2 - len(self._held)])
        line_feed = window.find(b"\n")
        line = window if line_feed < 0 else window[: line_feed + 1]
        self._judge_ends(line, limit)
        place += len(line) - len(self._held)
        if line_feed < 0:
            self._held = line
            return place
        self._held = b""
        self._act_on(line[:-2], pieces)
        return place

    def _line_limit(self) -> int:
        """Bytes the line at hand may have, without its CRLF."""
        if self._at is _At.DATA_END:
            return 0
        return MAX_CHUNK_LINE_BYTES if self._at is _At.SIZE else max(0, MAX_TRAILER_BYTES - self._trailer_bytes)

    def _judge_ends(self, line: bytes, limit: int) -> None:
        """A line ends in CRLF, has neither CR nor LF before that, and is not too long; judged before it is complete."""
        carriage_return = line.find(b"\r")
        ends_well = line.endswith(b"\r\n") if line.endswith(b"\n") else True
        if not ends_well or 0 <= carriage_return < len(line) - (2 if line.endswith(b"\n") else 1):
            raise self._bad(f"{self._at.value} with a bare CR or LF")
        if len(line.rstrip(b"\r\n")) > limit:
            raise self._bad(_TOO_LONG[self._at])

    def _act_on(self, line: bytes, pieces: list[Piece]) -> None:
        if self._at is _At.DATA_END:
            self._at = _At.SIZE
            if not self._decode:
                pieces.append(b"\r\n")
        elif self._at is _At.SIZE:
            self._begin_chunk(line, pieces)
        else:
            self._take_trailer(line, pieces)

    def _begin_chunk(self, line: bytes, pieces: list[Piece]) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise self._bad(f"chunk header {line[:60]!r}")
        self._extension_bytes += len(match[2])
        if self._extension_bytes > MAX_EXTENSION_BYTES:
            raise self._bad(f"chunk extensions of more than {MAX_EXTENSION_BYTES} bytes")
        self._remaining = int(match[1], 16)
        self._at = _At.DATA if self._remaining else _At.TRAILER
        if not self._decode:
            pieces.append(b"%x\r\n" % self._remaining)

    def _take_trailer(self, line: bytes, pieces: list[Piece]) -> None:
        if not line:
            self._at = _At.END
            if not self._decode:
                pieces.append(b"\r\n")
            return
        match = _TRAILER_LINE.fullmatch(line)
        if match is None:
            raise self._bad(f"trailer {line[:60]!r} is not a header field")
        self._trailer_bytes += len(line) + 2
        if not self._decode and not _FORBIDDEN_TRAILERS.fullmatch(match[1].replace(b"_", b"-")):
            pieces.append(line + b"\r\n")

    def _bad(self, words: str) -> BadMessage:
        whose = "the server's body: " if self._status == 502 else ""
        return BadMessage(self._status, f"{whose}{words}")
