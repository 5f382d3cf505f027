"""Ethernet frames for tests, made by hand (RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443)."""

from __future__ import annotations

import ipaddress
import struct

from mailbalancer.l4.pcap import ICMP, ICMP6, TCP, UDP, Packet, Record, packet

MACS = {"client": "02:00:00:00:00:05", "us": "02:00:00:00:00:01", "s1": "02:00:00:00:00:11"}


def ip(source: str, destination: str, protocol: int, body: bytes, fragment: int = 0) -> bytes:
    """An IP packet of the family of its addresses; checksums are nobody's concern here."""
    packed = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if len(packed) == 8:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 7, fragment, 64, protocol, 0)
        return head + packed + body
    if fragment:
        body = struct.pack("!BBHI", protocol, 0, fragment, 7) + body
        protocol = 44
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + packed + body


def tcp(ports: tuple[int, int], flags: int, payload: bytes = b"", sequence: int = 1, mss: int = 0) -> bytes:
    options = struct.pack("!BBHBBBB", 2, 4, mss, 1, 1, 1, 0) if mss else b""
    length = (20 + len(options)) // 4
    return struct.pack("!HHIIBBHHH", *ports, sequence, 0, length << 4, flags, 1000, 0, 0) + options + payload


def udp(ports: tuple[int, int], payload: bytes) -> bytes:
    return struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload


def icmp(kind: int, code: int, about: bytes, mtu: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, 0, mtu) + about


def icmp6(kind: int, code: int, about: bytes, mtu: int = 0) -> bytes:
    return struct.pack("!BBHI", kind, code, 0, mtu) + about


def framed(inner: bytes, from_: str = "client", to: str = "us", vlan: int = 0) -> bytes:
    kind = b"\x86\xdd" if inner[0] >> 4 == 6 else b"\x08\x00"
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return bytes.fromhex((MACS[to] + MACS[from_]).replace(":", "")) + tag + kind + inner


def seen(at: float, frame: bytes) -> Packet:
    found = packet(Record(at, len(frame), frame))
    assert found is not None
    return found


class Wire:
    """Packets one after another, a tenth of a second apart."""

    def __init__(self) -> None:
        self.packets: list[Packet] = []

    def put(self, inner: bytes, from_: str = "client", to: str = "us") -> None:
        self.packets.append(seen(len(self.packets) / 10, framed(inner, from_, to)))

    def segment(
        self,
        source: tuple[str, int],
        target: tuple[str, int],
        flags: int,
        size: int = 0,
        sequence: int = 1,
        macs: tuple[str, str] = ("client", "us"),
    ) -> None:
        body = tcp((source[1], target[1]), flags, bytes(size), sequence)
        self.put(ip(source[0], target[0], TCP, body), *macs)

    def datagram(
        self, source: tuple[str, int], target: tuple[str, int], macs: tuple[str, str] = ("client", "us")
    ) -> None:
        self.put(ip(source[0], target[0], UDP, udp((source[1], target[1]), b"question")), *macs)

    def error(self, sender: str, about: tuple[str, str], kind: int, code: int, mtu: int = 0) -> None:
        inner = ip(*about, TCP, tcp((1, 2), 0x10))
        if ":" in sender:
            self.put(ip(sender, about[0], ICMP6, icmp6(kind, code, inner, mtu)))
        else:
            self.put(ip(sender, about[0], ICMP, icmp(kind, code, inner, mtu)))
