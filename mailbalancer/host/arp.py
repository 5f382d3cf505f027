"""Tells the segment that an address is here now: gratuitous ARP (RFC 5227 section 3), unsolicited neighbour
advertisement (RFC 4861 section 7.2.6).

Decides: the frames.
Refuses to know: when an address has moved.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from mailbalancer.host.commands import HostError

ETH_ARP, ETH_IPV6 = 0x0806, 0x86DD
BROADCAST = b"\xff" * 6
_ALL_NODES = ipaddress.ip_address("ff02::1").packed
_ALL_NODES_MAC = bytes.fromhex("333300000001")
ICMPV6 = 58
#: Override: what others remember is replaced (RFC 4861 section 4.4).
_OVERRIDE = 0x20000000


def announce(address: str, device: str, mac: str) -> None:
    """Send the frame once.

    Raises:
        HostError: the interface is gone, or CAP_NET_RAW is missing.
    """
    frame = announcement(address, mac)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.sendto(frame, (device, 0))
    except OSError as error:
        raise HostError(f"{address} cannot be announced on {device}: {error.strerror}") from error


def announcement(address: str, mac: str) -> bytes:
    """The whole Ethernet frame."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    packed = ipaddress.ip_address(address).packed
    return _gratuitous(hardware, packed) if len(packed) == 4 else _unsolicited(hardware, packed)


def _gratuitous(mac: bytes, address: bytes) -> bytes:
    """A request for one's own address: hosts update what they know, and nobody has to answer."""
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    return BROADCAST + mac + struct.pack("!H", ETH_ARP) + body


def _unsolicited(mac: bytes, address: bytes) -> bytes:
    body = struct.pack("!BBHI", 136, 0, 0, _OVERRIDE) + address + struct.pack("!BB", 2, 1) + mac
    body = body[:2] + struct.pack("!H", icmpv6_checksum(address, _ALL_NODES, body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + address + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", ETH_IPV6) + header + body


def icmpv6_checksum(source: bytes, destination: bytes, body: bytes) -> int:
    """Over the pseudo-header too (RFC 4443 section 2.3); the body's own checksum is zero."""
    return internet_checksum(source + destination + struct.pack("!II", len(body), ICMPV6) + body)


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
