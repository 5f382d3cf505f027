"""The gateway probe: connects to real servers as a client from far away would, and sees whether the answer comes back.

Decides: from where a real server is tried.
Refuses to know: what follows from what was met (`l4.way_back`).

The source address is borrowed with IP_TRANSPARENT. How an answer came in is written down by a rule of ours, before the
rules of others see it: its hardware address tells the server from a router that stands between.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Sequence

from mailbalancer.control.events import Events
from mailbalancer.control.members import Record
from mailbalancer.control.prober import Prober
from mailbalancer.host.commands import HostError
from mailbalancer.host.nft import Nft
from mailbalancer.l4.way_back import Met, Probe, WayBack, judge
from mailbalancer.model import Endpoint, MemberKey
from mailbalancer.network import Network

#: Documentation networks (RFC 5737, RFC 3849, RFC 9637): nobody is there, and nobody should have a route to them.
FAR = {4: ("192.0.2.1", "198.51.100.1", "203.0.113.1"), 6: ("2001:db8::1", "3fff::1")}
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75


class GatewayProbe(Prober):
    """Probes the members whose answers must come back through us.

    Args:
        named: the addresses that the operator wants a member's service to be probed from.
    """

    what = "way back"

    def __init__(
        self,
        events: Events,
        wanted: Callable[[], Iterable[Record]],
        network: Callable[[], Network],
        told: Callable[[MemberKey], None],
        nft: Nft,
        named: Callable[[MemberKey], Sequence[str]],
    ) -> None:
        super().__init__(events, wanted, network, told)
        self._nft = nft
        self._named = named

    async def judge(self, record: Record) -> WayBack:
        """Probe once."""
        endpoint = Endpoint(record.member.endpoint.host, record.pool.check.port or record.member.endpoint.port)
        timeout_s = record.pool.check.timeout_s
        network = self.network()
        source = far_address(network, 6 if endpoint.is_ipv6 else 4, self._named(record.key))
        far = await self._met(endpoint, source, timeout_s, borrowed=True)
        near = None
        if far.met is Met.SILENCE:
            own = other_arm(network, endpoint.host)
            near = await self._met(endpoint, own, timeout_s, borrowed=False) if own else None
        return judge(endpoint.host, expected_sender(network, endpoint.host), far, near)

    async def _met(self, endpoint: Endpoint, source: str, timeout_s: float, borrowed: bool) -> Probe:
        ipv6 = endpoint.is_ipv6
        with socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                if borrowed:
                    level, option = (41, _IPV6_TRANSPARENT) if ipv6 else (socket.IPPROTO_IP, _IP_TRANSPARENT)
                    sock.setsockopt(level, option, 1)
                sock.bind((source, 0))
                port = sock.getsockname()[1]
                async with asyncio.timeout(timeout_s):
                    await asyncio.get_running_loop().sock_connect(sock, (endpoint.host, endpoint.port))
            except TimeoutError:
                return Probe(source, Met.SILENCE)
            except ConnectionRefusedError:
                return Probe(source, Met.REFUSED)
            except OSError as error:
                if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET):
                    return Probe(source, Met.SILENCE)
                return Probe(source, Met.LOCAL, error=os.strerror(error.errno or 0).lower())
            return Probe(source, Met.ANSWERED, self._handed_by(endpoint.host, port))

    def _handed_by(self, server: str, port: int) -> str:
        """Hardware address of whoever handed us the server's answer to this port."""
        name = "answers_6" if ":" in server else "answers_4"
        with contextlib.suppress(HostError):
            for element in self._nft.elements("inet", name):
                value = element["elem"]["val"] if "elem" in element else element
                address, to, mac = value["concat"]
                if to == port and ipaddress.ip_address(address) == ipaddress.ip_address(server):
                    return str(mac)
        return ""


def far_address(network: Network, version: int, named: Sequence[str] = ()) -> str:
    """The address that was named, else one that is in no network of this machine."""
    for address in named:
        if (":" in address) == (version == 6):
            return address
    return next((a for a in FAR[version] if network.segment_of(ipaddress.ip_address(a)) is None), FAR[version][0])


def other_arm(network: Network, server: str) -> str:
    """An address of ours outside the server's network, on another interface; empty: there is none."""
    address = ipaddress.ip_address(server)
    route = network.route_to(address)
    for interface, own in network.addresses():
        usable = own.version == address.version and not own.ip.is_link_local and not own.ip.is_loopback
        if route and usable and interface.name != route.device and own.network.prefixlen < own.max_prefixlen:
            return str(own.ip)
    return ""


def expected_sender(network: Network, server: str) -> str:
    """Whose hardware address the server's answers carry when they come the way that ours go."""
    address = ipaddress.ip_address(server)
    segment = network.segment_of(address)
    route = network.route_to(address)
    hop = address if segment is not None or route is None or route.via is None else route.via
    found = network.neighbour(hop)
    return found.mac if found else ""
