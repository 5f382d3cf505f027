"""The first handshake message of one TLS direction, put together from its plaintext records.

Decides: where the first handshake message ends, over any number of records, and how much of it may wait in memory.
Refuses to know: what the message says (`client_hello`, `server_hello`), and anything encrypted.

Facts: RFC 5246 section 6.2.1 and RFC 8446 section 5.1 (records), RFC 8446 section 4 (handshake messages).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HANDSHAKE: Final = 22
SUPPORTED_VERSIONS: Final = 43
TLS_1_0: Final = 0x0301
TLS_1_3: Final = 0x0304

#: Longest hello that is put together. Real ones have 0.2 to 2 KiB, with post-quantum key shares up to 16 KiB.
MAX_HELLO_BYTES: Final = 65536
#: Records one hello may be cut into. Five full ones hold the longest; the rest is for odd middle boxes that cut small.
#: Without a bound a hello in one-byte records costs six times its size and is walked again at every arrival.
MAX_RECORDS: Final = 64
_MAX_RECORD_BYTES: Final = 16384
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4


class BadTls(ValueError):
    """The bytes are not the beginning of a TLS handshake; the text says where they leave it."""


@dataclass(frozen=True, slots=True)
class FirstMessage:
    """A whole handshake message.

    Attributes:
        body: the message without its four byte header.
        length: bytes on the wire up to its end, record headers included.
        ends_record: nothing more follows in the record in which it ends.
    """

    body: bytes
    length: int
    ends_record: bool


def first_message(data: bytes | bytearray | memoryview, message_type: int) -> FirstMessage | None:
    """The handshake message of `message_type` at the start of `data`; None when more bytes are needed.

    The answer never depends on how the bytes arrived: each check uses bytes up to its own place only.

    Raises:
        BadTls: the bytes are something else, or exceed the bounds above.
    """
    gathered = bytearray()
    position = 0
    for _ in range(MAX_RECORDS):
        fragment_bytes = _record_length(data, position)
        if fragment_bytes is None:
            return None
        start = position + _RECORD_HEADER
        position = start + fragment_bytes
        gathered += data[start:position]
        wanted = _message_length(gathered, message_type)
        if wanted is not None and len(gathered) >= wanted:
            surplus = len(gathered) - wanted
            length = min(position, len(data)) - surplus
            return FirstMessage(bytes(gathered[_MESSAGE_HEADER:wanted]), length, ends_record=length == position)
        if len(data) < position:
            return None
    raise BadTls(f"the TLS hello is cut into more than {MAX_RECORDS} records")


def _record_length(data: bytes | bytearray | memoryview, start: int) -> int | None:
    """Check the record header at `start`; the length of its fragment, None when the header is not complete."""
    if len(data) > start and data[start] != HANDSHAKE:
        raise BadTls(_not_a_handshake(data[start], first=start == 0))
    if len(data) > start + 1 and data[start + 1] != 3:
        raise BadTls(f"TLS record of version {data[start + 1]}.x; only 3.x (SSL 3.0 to TLS 1.3) exists")
    if len(data) < start + _RECORD_HEADER:
        return None
    length = int.from_bytes(data[start + 3 : start + _RECORD_HEADER], "big")
    if not 1 <= length <= _MAX_RECORD_BYTES:
        raise BadTls(f"TLS record of {length} bytes; a handshake record has 1 to {_MAX_RECORD_BYTES}")
    return length


def _not_a_handshake(record_type: int, first: bool) -> str:
    if not first:
        return f"TLS record of type {record_type} in the middle of a hello"
    if record_type & 0x80:
        return f"not TLS: first byte 0x{record_type:02x}, perhaps an SSL 2.0 hello, which is refused (RFC 6176)"
    if 0x20 < record_type < 0x7F:
        return f"not TLS: first byte {chr(record_type)!r}, perhaps a plain-text client on a TLS port"
    return f"not a TLS handshake: first record type {record_type}, expected {HANDSHAKE}"


def _message_length(gathered: bytearray, message_type: int) -> int | None:
    """Bytes of the first message with its header; None while the header is not complete."""
    if gathered and gathered[0] != message_type:
        raise BadTls(f"the TLS handshake starts with message type {gathered[0]}, expected {message_type}")
    if len(gathered) < _MESSAGE_HEADER:
        return None
    length = int.from_bytes(gathered[1:_MESSAGE_HEADER], "big")
    if length > MAX_HELLO_BYTES:
        raise BadTls(f"the TLS hello announces {length} bytes; at most {MAX_HELLO_BYTES} are accepted")
    return _MESSAGE_HEADER + length


class Fields:
    """Takes the fields of a message from left to right; every length that leads outside raises BadTls."""

    __slots__ = ("_data", "_place", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._place = 0
        self._what = what

    def __bool__(self) -> bool:
        return self._place < len(self._data)

    def take(self, length: int) -> bytes:
        end = self._place + length
        if end > len(self._data):
            raise BadTls(f"{self._what}: a field of {length} bytes reaches beyond its end")
        taken = self._data[self._place : end]
        self._place = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        """A vector with its length, in `length_size` bytes, before it (RFC 8446 section 3.4)."""
        return self.take(self.number(length_size))

    def end(self) -> None:
        if self:
            raise BadTls(f"{self._what}: {len(self._data) - self._place} bytes too many")


def read_extensions(block: bytes) -> dict[int, bytes]:
    """Extension type to data. Raises BadTls for a type that is there twice (RFC 8446 section 4.2)."""
    fields = Fields(block, "TLS extensions")
    found: dict[int, bytes] = {}
    while fields:
        kind = fields.number(2)
        if kind in found:
            raise BadTls(f"TLS extension {kind} is there twice")
        found[kind] = fields.vector(2)
    return found
