"""Who on a segment answers for an address: ARP (RFC 826), neighbour discovery (RFC 4861).

Decides: the questions, which frames are answers to them, and that the kernel hands us no others.
Refuses to know: why somebody asks, and who ought to answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailbalancer.host.arp import BROADCAST, ETH_ARP, ETH_IPV6, ICMPV6, icmpv6_checksum
from mailbalancer.host.commands import HostError

_ETH_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_ARP_REQUEST, _ARP_REPLY = 1, 2
_FRAME = 256
_HEADER = 14  # Ethernet
#: Classic BPF over an Ethernet frame (code, jump if true, jump if false, k): ARP replies and neighbour advertisements.
_ANSWERS = (
    (0x28, 0, 0, 12),  # the type of the frame
    (0x15, 0, 2, ETH_ARP),
    (0x28, 0, 0, _HEADER + 6),  # ARP's operation
    (0x15, 5, 6, _ARP_REPLY),
    (0x15, 0, 5, ETH_IPV6),
    (0x30, 0, 0, _HEADER + 6),  # IPv6's next header
    (0x15, 0, 3, ICMPV6),
    (0x30, 0, 0, _HEADER + 40),  # ICMPv6's type
    (0x15, 0, 1, _NEIGHBOUR_ADVERTISEMENT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)


class _Filter(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody says that an address is at this hardware address."""

    address: str
    mac: str


class Segment:
    """Asks on one interface, and collects the answers.

    Args:
        mac: of the interface; our own answers are none.

    Raises:
        HostError: CAP_NET_RAW is missing, or the interface is gone.
    """

    def __init__(self, device: str, mac: str) -> None:
        self._device = device
        self._mac = mac
        try:
            self._wire = open_wire(device, _ANSWERS)
        except OSError as error:
            raise HostError(f"{device} cannot be listened on: {error.strerror}", "CAP_NET_RAW is needed") from error

    def ask(self, address: str, from_address: str = "") -> None:
        """Who has `address`? `from_address` empty: asked as one who has no address yet, so nobody remembers us."""
        try:
            self._wire.send(question(address, self._mac, from_address))
        except OSError as error:
            raise HostError(f"nothing can be sent on {self._device}: {error.strerror}") from error

    def claims(self) -> list[Claim]:
        """The answers of others since the last call; waits for none."""
        found: list[Claim] = []
        while True:
            try:
                claim = claim_in(self._wire.recv(_FRAME))
            except OSError:  # nothing more is there, or the interface has gone
                return found
            if claim is not None and claim.mac != self._mac:
                found.append(claim)

    def wait(self, for_s: float) -> None:
        """Until something is there, or the time is over."""
        self._wire.settimeout(for_s)
        try:
            self._wire.recv(1, socket.MSG_PEEK)
        except OSError:
            pass
        finally:
            self._wire.setblocking(False)

    def close(self) -> None:
        self._wire.close()


def claimed(device: str, mac: str, addresses: Iterable[str], wait_s: float) -> dict[str, str]:
    """Which of these addresses others on the segment have already, and at which hardware address.

    Takes the whole time unless all are taken.

    Raises:
        HostError: nobody can be asked.
    """
    wanted = set(addresses)
    found: dict[str, str] = {}
    segment = Segment(device, mac)
    try:
        for address in wanted:
            segment.ask(address)
        ends_at = time.monotonic() + wait_s
        while wanted - found.keys() and (left := ends_at - time.monotonic()) > 0:
            segment.wait(left)
            found |= {claim.address: claim.mac for claim in segment.claims() if claim.address in wanted}
    finally:
        segment.close()
    return found


def open_wire(
    device: str, steps: Sequence[tuple[int, int, int, int]], kind: socket.SocketKind = socket.SOCK_RAW
) -> socket.socket:
    """A socket for frames of an interface that gets only what the filter lets through; it does not wait.

    It sees frames before any rule of nftables does. With an empty `device`: those of all interfaces. With SOCK_DGRAM
    they are without the header of the link.

    Raises:
        OSError: CAP_NET_RAW is missing, or there is no such interface.
    """
    wire = socket.socket(socket.AF_PACKET, kind, 0 if device else socket.htons(_ETH_ALL))
    wire.setblocking(False)
    try:
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        wire.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(_Filter(len(steps), ctypes.addressof(code))))
        if device:
            wire.bind((device, _ETH_ALL))
        else:
            _forget(wire)
    except BaseException:
        wire.close()
        raise
    return wire


def _forget(wire: socket.socket) -> None:
    """What came before the filter was there."""
    with contextlib.suppress(BlockingIOError):
        while wire.recv(1):
            pass


def question(address: str, mac: str, from_address: str = "") -> bytes:
    """The whole frame that asks who has an address."""
    wanted, hardware = ipaddress.ip_address(address).packed, bytes.fromhex(mac.replace(":", ""))
    ours = ipaddress.ip_address(from_address).packed if from_address else bytes(len(wanted))
    return _request(wanted, hardware, ours) if len(wanted) == 4 else _solicitation(wanted, hardware, ours)


def claim_in(frame: bytes) -> Claim | None:
    """What an answer says; None: it is none, or is cut short."""
    kind = frame[12:14]
    if kind == struct.pack("!H", ETH_ARP) and len(frame) >= _HEADER + 28:
        mac, address = struct.unpack_from("!6s4s", frame, _HEADER + 8)
        return Claim(str(ipaddress.IPv4Address(address)), mac.hex(":"))
    if kind == struct.pack("!H", ETH_IPV6) and len(frame) >= _HEADER + 64:
        return Claim(str(ipaddress.IPv6Address(frame[_HEADER + 48 : _HEADER + 64])), frame[6:12].hex(":"))
    return None


def _request(wanted: bytes, mac: bytes, ours: bytes) -> bytes:
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _ARP_REQUEST) + mac + ours + bytes(6) + wanted
    return BROADCAST + mac + struct.pack("!H", ETH_ARP) + body


def _solicitation(wanted: bytes, mac: bytes, ours: bytes) -> bytes:
    """To the group that everybody with such an address listens to (RFC 4291 section 2.7.1)."""
    group = ipaddress.ip_address("ff02::1:ff00:0").packed[:13] + wanted[13:]
    # who has no address yet must not name its hardware address (RFC 4861 section 4.3)
    option = struct.pack("!BB", 1, 1) + mac if any(ours) else b""
    body = struct.pack("!BBHI", _NEIGHBOUR_SOLICITATION, 0, 0, 0) + wanted + option
    body = body[:2] + struct.pack("!H", icmpv6_checksum(ours, group, body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + ours + group
    return b"\x33\x33" + group[12:] + mac + struct.pack("!H", ETH_IPV6) + header + body
