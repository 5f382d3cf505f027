"""Frames that knock at one real server for an address which is not its own alone, and what is answered.

Decides: the frames (RFC 791, 8200, 9293, 768, 792, 4443), and which answer belongs to which knock. The kernel cannot
send them: for it the address is this machine's own. Nothing is ever completed: a SYN that is answered is reset.
Refuses to know: when to knock, and what an answer means.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from mailbalancer.host.arp import ICMPV6, internet_checksum
from mailbalancer.host.commands import HostError
from mailbalancer.host.segment import open_wire

_ICMP, _TCP, _UDP = 1, 6, 17
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_ECHO, _ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
#: Offsets from here are into the IP header (linux/filter.h).
_NETWORK = 0xFFF00000
_PACKET = 2048


class Heard(StrEnum):
    """What came back."""

    ANSWER = "answer"
    REFUSAL = "refusal"


@dataclass(frozen=True, slots=True)
class Knock:
    """At `address` and `port` of whoever has the hardware address that the frame goes to.

    Attributes:
        protocol: `tcp` (a SYN), `udp` (a datagram with `question`) or `echo` (ICMP).
        source, from_port: an address and a port of ours; the answer goes there. No other knock is to be under way from
            this port, and none to have been for a minute: a server may still speak of it.
    """

    protocol: str
    source: str
    from_port: int
    address: str
    port: int
    question: bytes = b""

    @property
    def version(self) -> int:
        return 6 if ":" in self.address else 4

    def packet(self) -> bytes:
        """From the IP header on."""
        match self.protocol:
            case "tcp":
                return self._ip(_TCP, self._segment(_SYN, 1, 0))
            case "udp":
                header = struct.pack("!HHHH", self.from_port, self.port, 8 + len(self.question), 0)
                return self._ip(_UDP, self._checked(_UDP, header + self.question, 6))
        body = struct.pack("!BBHHH", _ECHO[self.version], 0, 0, self.from_port, 1) + bytes(24)
        return self._ip(*self._icmp(body))

    def end(self, answer: bytes) -> bytes:
        """What closes the half-open connection that an answer speaks of; empty: there is none."""
        segment = _payload(answer)
        if self.protocol != "tcp" or len(segment) < 20 or segment[13] & _RST:
            return b""
        return self._ip(_TCP, self._segment(_RST, struct.unpack_from("!I", segment, 8)[0], 0))

    def abandon(self) -> bytes:
        """What closes a half-open connection whose answer went elsewhere; empty: there can be none."""
        return self._ip(_TCP, self._segment(_RST, 2, 0)) if self.protocol == "tcp" else b""

    def heard(self, packet: bytes) -> Heard | None:
        """What a packet from `address` to `source` says about this knock."""
        payload = _payload(packet)
        kind = packet[9] if self.version == 4 else packet[6]
        if self.protocol == "echo":
            mine = kind in (_ICMP, ICMPV6) and payload[4:6] == struct.pack("!H", self.from_port)
            return Heard.ANSWER if mine and payload[0] == _ECHO_REPLY[self.version] else None
        wanted = _TCP if self.protocol == "tcp" else _UDP
        if kind != wanted or payload[:4] != struct.pack("!HH", self.port, self.from_port):
            return None
        refused = kind == _TCP and len(payload) >= 14 and payload[13] & _RST
        return Heard.REFUSAL if refused else Heard.ANSWER

    def _segment(self, flags: int, sequence: int, acknowledged: int) -> bytes:
        option = struct.pack("!BBH", 2, 4, 1220) if flags & _SYN else b""
        offset = (20 + len(option)) // 4 << 4
        header = struct.pack("!HHIIBBHHH", self.from_port, self.port, sequence, acknowledged, offset, flags, 1024, 0, 0)
        return self._checked(_TCP, header + option, 16)

    def _icmp(self, body: bytes) -> tuple[int, bytes]:
        if self.version == 6:
            return ICMPV6, self._checked(ICMPV6, body, 2)
        return _ICMP, body[:2] + struct.pack("!H", internet_checksum(body)) + body[4:]

    def _checked(self, kind: int, body: bytes, at: int) -> bytes:
        """With the checksum over the pseudo-header, which lies at this offset."""
        source, destination = (ipaddress.ip_address(text).packed for text in (self.source, self.address))
        total = internet_checksum(source + destination + struct.pack("!II", len(body), kind) + body)
        return body[:at] + struct.pack("!H", total or 0xFFFF) + body[at + 2 :]

    def _ip(self, kind: int, body: bytes) -> bytes:
        source, destination = (ipaddress.ip_address(text).packed for text in (self.source, self.address))
        if self.version == 6:
            return struct.pack("!IHBB", 6 << 28, len(body), kind, 64) + source + destination + body
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, kind, 0) + source + destination
        return header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + body


class Ear:
    """Hears what `address` says to `source`, on every interface, before any rule drops it.

    Raises:
        HostError: CAP_NET_RAW is missing.
    """

    def __init__(self, source: str, address: str) -> None:
        steps = _from_to(ipaddress.ip_address(address).packed, ipaddress.ip_address(source).packed)
        try:
            self.socket = open_wire("", steps, socket.SOCK_DGRAM)
        except OSError as error:
            raise HostError(f"nobody can be listened to: {error.strerror}", "CAP_NET_RAW is needed") from error

    def packet(self) -> bytes | None:
        """The next one, from the IP header on; None: there is none now."""
        try:
            return self.socket.recv(_PACKET)
        except OSError:
            return None

    def close(self) -> None:
        self.socket.close()


def send(packet: bytes, device: str, mac: str, to_mac: str) -> None:
    """One packet in a frame of its own; without hardware addresses as it is, into a device that has none.

    Raises:
        HostError: the interface is gone, or CAP_NET_RAW is missing.
    """
    ethertype = _ETHERTYPE[packet[0] >> 4]
    header = bytes.fromhex(to_mac.replace(":", "") + mac.replace(":", "")) + struct.pack("!H", ethertype)
    try:
        if to_mac:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
                wire.sendto(header + packet, (device, 0))
        else:
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as wire:
                wire.sendto(packet, (device, ethertype))
    except OSError as error:
        raise HostError(f"nothing can be sent on {device}: {error.strerror}", "CAP_NET_RAW is needed") from error


def _payload(packet: bytes) -> bytes:
    """What follows the IP header; answers to knocks carry no options of IPv6."""
    return packet[40:] if packet[0] >> 4 == 6 else packet[4 * (packet[0] & 15) :]


def _from_to(source: bytes, destination: bytes) -> list[tuple[int, int, int, int]]:
    """Classic BPF: only IP packets of this version with these two addresses."""
    words = struct.unpack(f"!{2 * len(source) // 4}I", source + destination)
    at = 12 if len(source) == 4 else 8  # both addresses follow each other (RFC 791 section 3.1, RFC 8200 section 3)
    left = 2 * len(words) + 1  # steps from here to the last one, which refuses
    version = 0x40 if len(source) == 4 else 0x60
    steps = [(0x30, 0, 0, _NETWORK), (0x54, 0, 0, 0xF0), (0x15, 0, left, version)]
    for number, word in enumerate(words):
        left -= 2
        steps += [(0x20, 0, 0, _NETWORK + at + 4 * number), (0x15, 0, left, word)]
    return [*steps, (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
