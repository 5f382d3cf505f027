"""Packets out of capture files, and capture files out of packets.

Decides: what of a frame counts: addresses, ports, TCP flags, sizes, and what an ICMP error speaks of.
Refuses to know: who captured, and what follows from the packets (`seen`).

The file format is libpcap's classic one (draft-ietf-opsawg-pcap): a header of 24 bytes, then for each packet 16 bytes
and its frame. Only Ethernet is read (RFC 894, RFC 2464). A file that ends in the middle of a packet is normal: the
capture was ended.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ETHERNET = 1

_HEADER_BYTES, _RECORD_BYTES = 24, 16
_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLANS = (0x8100, 0x88A8)
#: IPv6 extension headers that may stand before the transport header (RFC 8200 section 4).
_EXTENSIONS = {0, 43, 60}
_FRAGMENT = 44
_UNREACHABLE, _TOO_BIG_CODE = 3, 4


class BadCapture(ValueError):
    """This is no capture file of Ethernet frames."""


class Record(NamedTuple):
    """One frame as it was captured; `length` is its size on the wire."""

    at: float
    length: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Packet:
    """What counts of a frame.

    Attributes:
        payload: bytes behind the transport header, on the wire.
        mss: of a SYN: the largest segment its sender takes; 0: it does not say.
        error: of an ICMP error: what it says, in words.
        mtu: of "fragmentation needed" and "packet too big": the size that fits.
        about: of an ICMP error: source and destination of the packet that it speaks of.
    """

    at: float
    from_mac: str
    to_mac: str
    source: str
    destination: str
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    flags: int = 0
    sequence: int = 0
    payload: int = 0
    mss: int = 0
    fragment: bool = False
    error: str = ""
    mtu: int = 0
    about: tuple[str, str] = ("", "")


def records(data: bytes) -> Iterator[Record]:
    """The frames of a capture file, up to its end or to where it was cut.

    Raises:
        BadCapture: the file does not begin as one, or its frames are not Ethernet.
    """
    if len(data) < _HEADER_BYTES:
        if data:
            raise BadCapture("the capture ends in its header")
        return
    order, fraction = _format(data)
    (kind,) = struct.unpack_from(f"{order}I", data, 20)
    if kind & 0xFFFF != ETHERNET:
        raise BadCapture(f"frames are of link type {kind & 0xFFFF}, not Ethernet")
    at = _HEADER_BYTES
    while at + _RECORD_BYTES <= len(data):
        seconds, part, kept, length = struct.unpack_from(f"{order}IIII", data, at)
        at += _RECORD_BYTES
        if at + kept > len(data):
            return
        yield Record(seconds + part / fraction, length, data[at : at + kept])
        at += kept


def _format(data: bytes) -> tuple[str, float]:
    """Byte order, and into how many parts a second is divided."""
    for order in "<>":
        (magic,) = struct.unpack_from(f"{order}I", data)
        if magic == _MICROSECONDS:
            return order, 1e6
        if magic == _NANOSECONDS:
            return order, 1e9
    raise BadCapture("the capture does not begin with the number that capture files begin with")


def written(found: Iterable[Record]) -> bytes:
    """A capture file of these frames."""
    parts = [struct.pack("<IHHiIII", _MICROSECONDS, 2, 4, 0, 0, 262144, ETHERNET)]
    for record in found:
        seconds = int(record.at)
        part = min(999_999, round((record.at - seconds) * 1e6))
        parts += [struct.pack("<IIII", seconds, part, len(record.frame), record.length), record.frame]
    return b"".join(parts)


def packet(record: Record) -> Packet | None:
    """What counts of a frame; None: it carries no IP, or too little of it was kept."""
    frame = record.frame
    if len(frame) < 14:
        return None
    to_mac, from_mac = frame[:6].hex(":"), frame[6:12].hex(":")
    (kind,) = struct.unpack_from("!H", frame, 12)
    at = 14
    while kind in _VLANS and at + 4 <= len(frame):
        (kind,) = struct.unpack_from("!H", frame, at + 2)
        at += 4
    inner = _network(frame, at, kind)
    return _transport(record.at, from_mac, to_mac, frame, inner) if inner is not None else None


class _Inner(NamedTuple):
    """An IP packet inside a frame: its addresses, and where its transport header begins and its bytes end."""

    source: str
    destination: str
    protocol: int
    at: int
    end: int
    first: bool  # the first fragment, or the whole packet
    fragment: bool


def _network(frame: bytes, at: int, kind: int) -> _Inner | None:
    if kind == _IPV4 and at + 20 <= len(frame):
        return _ipv4(frame, at)
    if kind == _IPV6 and at + 40 <= len(frame):
        return _ipv6(frame, at)
    return None


def _ipv4(frame: bytes, at: int) -> _Inner:
    length, protocol = 4 * (frame[at] & 0x0F), frame[at + 9]
    total, _, place = struct.unpack_from("!HHH", frame, at + 2)
    source, destination = (str(ipaddress.IPv4Address(frame[at + b : at + b + 4])) for b in (12, 16))
    end = at + max(total, length)
    return _Inner(source, destination, protocol, at + length, end, not place & 0x1FFF, bool(place & 0x3FFF))


def _ipv6(frame: bytes, at: int) -> _Inner:
    size, following = struct.unpack_from("!HB", frame, at + 4)
    source, destination = (str(ipaddress.IPv6Address(frame[at + b : at + b + 16])) for b in (8, 24))
    end, here, first, fragment = at + 40 + size, at + 40, True, False
    while here + 8 <= len(frame) and (following in _EXTENSIONS or following == _FRAGMENT):
        if following == _FRAGMENT:
            (place,) = struct.unpack_from("!H", frame, here + 2)
            first, fragment, length = not place & 0xFFF8, True, 8
        else:
            length = 8 + 8 * frame[here + 1]
        following, here = frame[here], here + length
    return _Inner(source, destination, following, here, end, first, fragment)


def _transport(when: float, from_mac: str, to_mac: str, frame: bytes, inner: _Inner) -> Packet:
    base = Packet(when, from_mac, to_mac, inner.source, inner.destination, inner.protocol, fragment=inner.fragment)
    rest = frame[inner.at :]
    if not inner.first:
        return base
    if inner.protocol == TCP and len(rest) >= 20:
        one, other, sequence = struct.unpack_from("!HHI", rest)
        length, flags = 4 * (rest[12] >> 4), rest[13]
        return replace(
            base,
            source_port=one,
            destination_port=other,
            sequence=sequence,
            flags=flags,
            payload=max(0, inner.end - inner.at - length),
            mss=_mss(rest[20:length]) if flags & SYN else 0,
        )
    if inner.protocol == UDP and len(rest) >= 8:
        one, other, length = struct.unpack_from("!HHH", rest)
        return replace(base, source_port=one, destination_port=other, payload=max(0, length - 8))
    if inner.protocol in (ICMP, ICMP6) and len(rest) >= 8:
        return _error(base, rest)
    return base


def _mss(options: bytes) -> int:
    """RFC 9293 section 3.7.1."""
    at = 0
    while at < len(options):
        if options[at] in (0, 1):
            at += 1
            continue
        if at + 1 >= len(options) or options[at + 1] < 2:
            return 0
        if options[at] == 2 and at + 4 <= len(options):
            return int.from_bytes(options[at + 2 : at + 4], "big")
        at += options[at + 1]
    return 0


#: RFC 792 and RFC 1122 section 3.2.2.1; RFC 4443 section 3.1.
_WORDS4 = {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 4: "fragmentation needed"}
_WORDS4 |= dict.fromkeys((9, 10, 13), "forbidden by a firewall")
_WORDS6 = {0: "no route", 3: "address unreachable", 4: "port unreachable"}
_WORDS6 |= dict.fromkeys((1, 5, 6), "forbidden by a firewall")


def _error(base: Packet, rest: bytes) -> Packet:
    """What an ICMP message says, if it is an error; it carries the beginning of the packet that it speaks of."""
    kind, code, ipv4 = rest[0], rest[1], base.protocol == ICMP
    words, mtu = "", 0
    if ipv4 and kind == _UNREACHABLE:
        words = _WORDS4.get(code, f"unreachable, code {code}")
        mtu = int.from_bytes(rest[6:8], "big") if code == _TOO_BIG_CODE else 0
    elif (base.protocol, kind) in ((ICMP, 11), (ICMP6, 3)):
        words = "goes round in a loop (time exceeded)"
    elif ipv4 and kind == 5:
        words = "there is a shorter way (redirect)"
    elif not ipv4 and kind == 1:
        words = _WORDS6.get(code, f"unreachable, code {code}")
    elif not ipv4 and kind == 2:
        words, mtu = "packet too big", int.from_bytes(rest[4:8], "big")
    if not words:
        return base
    inner = _network(rest, 8, _IPV4 if ipv4 else _IPV6)
    return replace(base, error=words, mtu=mtu, about=(inner.source, inner.destination) if inner else ("", ""))
