"""The PROXY protocol header, versions 1 and 2: who the client is, told by the proxy in front of us.

Decides: where the header ends, which addresses it names, and whether it follows the grammar to the letter. Whatever
another receiver could read in a second way is refused, because the address found here is what relay rights, allow lists
and persistence go by.
Refuses to know: sockets, whether the peer may be believed (the worker asks before it calls), and time.

Facts: haproxy's proxy-protocol.txt, sections 2.1 (version 1), 2.2 (version 2) and 2.2.3 (CRC32c).
Whatever the split of the bytes, the answer is the same: a prefix of a valid header gives None, and a prefix that cannot
become one is refused as soon as the byte that spoils it is there.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from mailbalancer.model import Endpoint

SIGNATURE_V1: Final = b"PROXY "
SIGNATURE_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_BEGINNINGS: Final = (SIGNATURE_V1[0], SIGNATURE_V2[0])

#: Longest version 1 header with its CRLF: the worst case the specification works out (UNKNOWN with two full IPv6).
MAX_V1_BYTES: Final = 107
#: Longest version 2 header we read. The specification counts on 536 bytes (one segment everywhere), but says that TLVs
#: may exceed it, and a sender that passes on a client certificate (TLV 0x28) does. No header anybody sends is longer
#: than this, and a stranger's 64 KiB would be held for every connection until the header is complete.
MAX_V2_BYTES: Final = 4096

_V2_FIXED: Final = 16  # signature, version and command, family, length
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = 0, 1, 2, 3
_ADDRESS_BYTES: Final = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_TLV_CRC32C: Final = 0x03
_PORT: Final = re.compile(rb"0|[1-9][0-9]{0,4}")
_UNKNOWN_REST: Final = re.compile(rb"(?: [ -~]*)?")


class BadProxyHeader(ValueError):
    """What the peer sent is not a PROXY header; the text says which part, for the log. The connection is closed."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """One header, read.

    Attributes:
        source: the client; None when the header names none (LOCAL, UNKNOWN, UNSPEC, UNIX): the addresses of the
            connection itself count then.
        destination: the address the client had connected to; None exactly when `source` is None.
        local: the proxy speaks for itself (version 2 LOCAL), typically a health check.
        version: 1 or 2.
        length: bytes of the header; what the client itself sent starts there.
    """

    source: Endpoint | None
    destination: Endpoint | None
    local: bool
    version: int
    length: int


def looks_like(data: bytes) -> bool | None:
    """Whether `data` begins a PROXY header of either version; None when it is too short to tell."""
    if data and data[0] not in _BEGINNINGS:  # nearly always
        return False
    head = bytes(data[: len(SIGNATURE_V2)])
    if head.startswith((SIGNATURE_V1, SIGNATURE_V2)):
        return True
    return None if SIGNATURE_V1.startswith(head) or SIGNATURE_V2.startswith(head) else False


def parse(data: bytes | bytearray | memoryview) -> ProxyHeader | None:
    """Read the header at the start of `data`; None when more bytes are needed (never more than `MAX_V2_BYTES`).

    Raises:
        BadProxyHeader: the bytes are not, and cannot become, a header.
    """
    head = bytes(data[:MAX_V2_BYTES])
    begins = looks_like(head)
    if begins is None:
        return None
    if not begins:
        raise BadProxyHeader(f"expected a PROXY header, got {head[:12]!r}; does this proxy send PROXY v1 or v2?")
    return _parse_v1(head) if head.startswith(SIGNATURE_V1) else _parse_v2(head)


def encode(version: str, source: Endpoint, destination: Endpoint) -> bytes:
    """The header of `version` ("v1" or "v2") that tells a server who its client is.

    A pair of one IPv4 and one IPv6 address has no family of its own: the IPv4 one is written as mapped.
    """
    addresses = _same_family(source.host, destination.host)
    family = "TCP4" if addresses[0].version == 4 else "TCP6"
    if version == "v1":
        words = f"PROXY {family} {addresses[0]} {addresses[1]} {source.port} {destination.port}\r\n"
        return words.encode("ascii")
    _require_v2(version)
    block = addresses[0].packed + addresses[1].packed
    block += source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    stream = ((_INET if family == "TCP4" else _INET6) << 4) | 1
    return SIGNATURE_V2 + bytes((0x20 | _PROXY, stream)) + len(block).to_bytes(2, "big") + block


def encode_local(version: str, own: Endpoint, server: Endpoint) -> bytes:
    """The header for a connection of our own (a health check), from `own` to `server`.

    Version 2 says LOCAL. Version 1 has no word for it that everybody understands: Postfix refuses `PROXY UNKNOWN` with
    a 421, so there our own address stands as the client's.
    """
    if version == "v1":
        return encode(version, own, server)
    _require_v2(version)
    return SIGNATURE_V2 + bytes((0x20 | _LOCAL, _UNSPEC, 0, 0))


def _require_v2(version: str) -> None:
    if version != "v2":
        raise ValueError(f"PROXY protocol {version!r} does not exist; use 'v1' or 'v2'")


def _same_family(source: str, destination: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    pair = (ipaddress.ip_address(source), ipaddress.ip_address(destination))
    if pair[0].version == pair[1].version == 4:
        return pair
    # Rebuilt from its 16 bytes an address loses a zone (fe80::1%eth0), which means nothing on another machine.
    return tuple(
        ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + a.packed if a.version == 4 else a.packed) for a in pair
    )


# --- version 1 -------------------------------------------------------------------------------------------------------


def _parse_v1(head: bytes) -> ProxyHeader | None:
    line_feed = head.find(b"\n", 0, MAX_V1_BYTES)
    if line_feed < 0:
        if len(head) < MAX_V1_BYTES:
            return None
        raise BadProxyHeader(f"PROXY v1 line does not end within {MAX_V1_BYTES} bytes: {head[:MAX_V1_BYTES]!r}")
    line = head[: line_feed + 1]
    if not line.endswith(b"\r\n"):
        raise BadProxyHeader(f"PROXY v1 line ends in LF without CR: {line!r}")
    source, destination = _v1_endpoints(line[len(SIGNATURE_V1) : -2], line)
    return ProxyHeader(source, destination, local=False, version=1, length=len(line))


def _v1_endpoints(words: bytes, line: bytes) -> tuple[Endpoint, Endpoint] | tuple[None, None]:
    if words.startswith(b"UNKNOWN") and _UNKNOWN_REST.fullmatch(words, len(b"UNKNOWN")):
        return None, None
    fields = words.split(b" ")
    if fields[0] not in (b"TCP4", b"TCP6"):
        raise BadProxyHeader(f"PROXY v1 protocol {fields[0]!r} is none of TCP4, TCP6, UNKNOWN: {line!r}")
    if len(fields) != 5:
        raise BadProxyHeader(f"PROXY v1 needs two addresses and two ports with one space between each: {line!r}")
    family, source, destination, source_port, destination_port = fields
    return (
        Endpoint(_v1_address(family, source, line), _v1_port(source_port, line)),
        Endpoint(_v1_address(family, destination, line), _v1_port(destination_port, line)),
    )


def _v1_address(family: bytes, word: bytes, line: bytes) -> str:
    try:
        text = word.decode("ascii")
        if "%" in text:
            raise ValueError("zone")
        return str(ipaddress.IPv4Address(text)) if family == b"TCP4" else _plain(ipaddress.IPv6Address(text))
    except ValueError:
        kind = "IPv4" if family == b"TCP4" else "IPv6"
        raise BadProxyHeader(f"PROXY v1 address {word!r} is not an {kind} address: {line!r}") from None


def _v1_port(word: bytes, line: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) > 65535:
        raise BadProxyHeader(f"PROXY v1 port {word!r} is not a number from 0 to 65535 without leading zeros: {line!r}")
    return int(word)


def _plain(address: ipaddress.IPv6Address) -> str:
    """One client, one spelling: a mapped address is the IPv4 address it carries, or it would dodge IPv4 lists."""
    return str(address.ipv4_mapped or address)


# --- version 2 -------------------------------------------------------------------------------------------------------


def _parse_v2(head: bytes) -> ProxyHeader | None:
    _check_v2_codes(head)
    if len(head) < _V2_FIXED:
        return None
    length = _V2_FIXED + int.from_bytes(head[14:16], "big")
    if length > MAX_V2_BYTES:
        raise BadProxyHeader(f"PROXY v2 header announces {length} bytes; at most {MAX_V2_BYTES} are accepted")
    local, family = head[12] & 15 == _LOCAL, head[13] >> 4
    # LOCAL and UNSPEC: the receiver discards the block whatever it holds, so its layout is not judged either.
    judged = not local and family != _UNSPEC
    if judged and length < _V2_FIXED + _ADDRESS_BYTES[family]:
        raise BadProxyHeader(
            f"PROXY v2 header announces {length - _V2_FIXED} bytes of addresses; "
            f"this address family needs {_ADDRESS_BYTES[family]}"
        )
    if len(head) < length:
        return None
    source, destination = None, None
    if judged:
        _check_tlvs(head[:length], _V2_FIXED + _ADDRESS_BYTES[family])
        source, destination = _v2_endpoints(family, head[_V2_FIXED:length])
    return ProxyHeader(source, destination, local, version=2, length=length)


def _check_v2_codes(head: bytes) -> None:
    """Judge byte 13 and byte 14 as soon as each is there."""
    if len(head) >= 13:
        version, command = head[12] >> 4, head[12] & 15
        if version != 2 or command not in (_LOCAL, _PROXY):
            raise BadProxyHeader(f"PROXY v2 header has version {version}, command {command}; known are 2 and 0 or 1")
    if len(head) >= 14 and head[12] & 15 == _PROXY:
        family, transport = head[13] >> 4, head[13] & 15
        known = transport in (1, 2) if family else transport == 0
        if family not in _ADDRESS_BYTES or not known:
            raise BadProxyHeader(f"PROXY v2 address family and protocol 0x{head[13]:02x} is not an assigned one")


def _v2_endpoints(family: int, block: bytes) -> tuple[Endpoint, Endpoint] | tuple[None, None]:
    if family == _INET:
        source, destination = str(ipaddress.IPv4Address(block[:4])), str(ipaddress.IPv4Address(block[4:8]))
        ports = block[8:12]
    elif family == _INET6:
        source, destination = _plain(ipaddress.IPv6Address(block[:16])), _plain(ipaddress.IPv6Address(block[16:32]))
        ports = block[32:36]
    else:
        return None, None
    return (
        Endpoint(source, int.from_bytes(ports[:2], "big")),
        Endpoint(destination, int.from_bytes(ports[2:], "big")),
    )


def _check_tlvs(header: bytes, start: int) -> None:
    """Walk the TLVs from `start`: each must end inside the header; a checksum, if there is one, must be right."""
    position, checksums = start, 0
    while position < len(header):
        value = position + 3
        end = value + int.from_bytes(header[position + 1 : value], "big")
        if value > len(header) or end > len(header):
            raise BadProxyHeader(f"PROXY v2 field at byte {position} reaches beyond the header of {len(header)} bytes")
        if header[position] == _TLV_CRC32C:
            checksums += 1
            _check_crc32c(header, value, end, checksums)
        position = end


def _check_crc32c(header: bytes, value: int, end: int, seen: int) -> None:
    if end - value != 4 or seen > 1:
        raise BadProxyHeader("PROXY v2 header must carry at most one CRC32c field, of 4 bytes")
    told = int.from_bytes(header[value:end], "big")
    found = crc32c(header[:value] + bytes(4) + header[end:])
    if told != found:
        raise BadProxyHeader(f"PROXY v2 header is damaged: its CRC32c says {told:08x}, its bytes give {found:08x}")


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for remainder in range(256):
        for _ in range(8):
            # 0x82F63B78: the Castagnoli polynomial, bits reversed (RFC 3720 appendix B.4)
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


_CRC32C: Final = _crc32c_table()


def crc32c(data: bytes) -> int:
    """The CRC32c checksum of `data` (RFC 3720 appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC32C[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
