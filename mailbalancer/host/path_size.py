"""How large a packet may be to reach a machine in one piece: pings of several sizes that nobody may fragment.

Decides: the pings (RFC 792, RFC 4443), and which answers are ours.
Refuses to know: which size would be right.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import time
from collections.abc import Sequence

from mailbalancer.host.arp import internet_checksum
from mailbalancer.host.commands import HostError

_TRIES = 2
# ip(7), ipv6(7): not to be fragmented, whatever the kernel believes of the path
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3
_ECHO, _ECHO_REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
#: Headers of IP and ICMP around what a ping carries.
_HEADERS = {4: 28, 6: 48}
_LEAST = 128


def largest(address: str, sizes: Sequence[int], wait_s: float) -> int | None:
    """The largest of these sizes (of whole IP packets, in bytes) that is answered; None: no ping at all is.

    Raises:
        HostError: CAP_NET_RAW is missing.
    """
    version = 6 if ":" in address else 4
    try:
        with _opened(version) as pings:
            if not _is_answered(pings, address, version, _LEAST, wait_s):
                return None
            return next(
                (s for s in sorted(sizes, reverse=True) if _is_answered(pings, address, version, s, wait_s)), _LEAST
            )
    except PermissionError as error:
        raise HostError("no ping can be sent", "CAP_NET_RAW is needed") from error


def _opened(version: int) -> socket.socket:
    family, kind = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if version == 6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    pings = socket.socket(family, socket.SOCK_RAW, kind)
    level, option = (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER) if version == 6 else (socket.IPPROTO_IP, _IP_MTU_DISCOVER)
    pings.setsockopt(level, option, _PROBE)
    return pings


def _is_answered(pings: socket.socket, address: str, version: int, size: int, wait_s: float) -> bool:
    for _ in range(_TRIES):
        mark = secrets.token_bytes(4)
        try:
            pings.sendto(_ping(version, mark, size - _HEADERS[version]), (address, 0))
        except PermissionError:
            raise
        except OSError:  # larger than our own interface takes, or no way there
            return False
        if _comes(pings, version, mark, wait_s):
            return True
    return False


def _ping(version: int, mark: bytes, payload: int) -> bytes:
    body = struct.pack("!BBH", _ECHO[version], 0, 0) + mark + bytes(payload)
    # the kernel fills in the checksum of ICMPv6, and leaves that of ICMP to us
    return body if version == 6 else body[:2] + struct.pack("!H", internet_checksum(body)) + body[4:]


def _comes(pings: socket.socket, version: int, mark: bytes, wait_s: float) -> bool:
    ends_at = time.monotonic() + wait_s
    while (left_s := ends_at - time.monotonic()) > 0:
        pings.settimeout(left_s)
        with contextlib.suppress(TimeoutError):
            packet = pings.recv(65535)
            message = packet[4 * (packet[0] & 15) :] if version == 4 else packet
            if message[:1] == bytes([_ECHO_REPLY[version]]) and message[4:8] == mark:
                return True
    return False
