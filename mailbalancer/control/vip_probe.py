"""The probe through the service's address: knocks at a real server of a dsr or tunnel service the way traffic comes.

The frame has the service's address as destination and the server's hardware address (or goes into its tunnel), so a
server without the address on its loopback is found: up on its own address, a black hole for clients.

Then it knocks as from far away: that answer must not pass here, or the server's gateway is the balancer, and clients of
other networks get no answer.

Decides: what is sent to a service of which kind, how often until silence counts, and what silence says.
Refuses to know: frames (`host.knock`), and what becomes of a server that does not answer (`l4_engine`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import ClassVar

from mailbalancer.control.checks.dns import asked_in_one_datagram
from mailbalancer.control.events import Events
from mailbalancer.control.gateway_probe import far_address
from mailbalancer.control.host_plan import IP_TUNNELS, tunnel_device, tunnel_mac
from mailbalancer.control.members import Record
from mailbalancer.control.prober import Prober
from mailbalancer.host.commands import HostError
from mailbalancer.host.knock import Ear, Heard, Knock, send
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import DnsCheck, Forward, MemberKey, Service
from mailbalancer.network import KNOCK_PORTS, IPAddress, Network

#: A frame can be lost: so often is knocked before silence counts.
KNOCKS = 3


class VipProbe(Prober):
    """Probes the members that answer clients themselves.

    Args:
        service: the service that runs under a name.
    """

    what: ClassVar[str] = "answers with the service's address"

    def __init__(
        self,
        events: Events,
        wanted: Callable[[], Iterable[Record]],
        network: Callable[[], Network],
        told: Callable[[MemberKey], None],
        service: Callable[[str], Service | None],
    ) -> None:
        super().__init__(events, wanted, network, told)
        self._service = service
        self._ports = cycle(KNOCK_PORTS)

    async def judge(self, record: Record) -> WayBack:
        """Every address of the service that this server serves; the first that is not well decides."""
        service, network = self._service(record.key.service), self.network()
        way = WayBack(Verdict.UNKNOWN, "the service has no address of this server's IP version")
        for vip in _addresses(service, record) if service else ():
            way = await self._one(service, record, vip, network)
            if way.verdict is not Verdict.GOOD:
                break
        return way

    async def _one(self, service: Service | None, record: Record, vip: str, network: Network) -> WayBack:
        assert service is not None
        server = record.member.endpoint.host
        place = _place(service, ipaddress.ip_address(server), network)
        if isinstance(place, str):
            return WayBack(Verdict.UNKNOWN, place)
        knock = _knock(service, record, vip, (place[0], next(self._ports)))
        try:
            way = _judged(knock, server, await self._ask(knock, place[1:], record.pool.check.timeout_s))
            if way.verdict is Verdict.GOOD:
                far = far_address(network, knock.version, service.source.probe_addresses)
                knock = _knock(service, record, vip, (far, next(self._ports)))
                if await self._ask(knock, place[1:], record.pool.check.timeout_s) is not None:
                    return _through_us(server, far)
        except HostError as error:
            return WayBack(Verdict.UNKNOWN, str(error))
        except OSError as error:  # an interface goes away under it
            return WayBack(Verdict.UNKNOWN, f"the answer of {server} could not be heard: {error.strerror}")
        return way

    async def _ask(self, knock: Knock, where: tuple[str, str, str], timeout_s: float) -> Heard | None:
        ear = Ear(knock.source, knock.address)
        try:
            for _ in range(KNOCKS):
                send(knock.packet(), *where)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s / KNOCKS):
                        return await _answer(ear, knock, where)
            if end := knock.abandon():
                send(end, *where)
            return None
        finally:
            ear.close()


async def _answer(ear: Ear, knock: Knock, where: tuple[str, str, str]) -> Heard:
    loop = asyncio.get_running_loop()
    while True:
        packet = await loop.sock_recv(ear.socket, 2048)
        heard = knock.heard(packet)
        if heard is not None:
            if end := knock.end(packet):
                send(end, *where)
            return heard


def _judged(knock: Knock, server: str, heard: Heard | None) -> WayBack:
    door = f"[{knock.address}]:{knock.port}" if knock.version == 6 else f"{knock.address}:{knock.port}"
    if heard is Heard.ANSWER:
        return WayBack(Verdict.GOOD, f"{server} answers for {knock.address}")
    if heard is Heard.REFUSAL:
        return WayBack(
            Verdict.BAD, f"{server} refuses {door}: its program listens on other addresses; let it listen on all"
        )
    if knock.protocol == "echo":
        return WayBack(Verdict.UNKNOWN, f"{server} answers no ping to {knock.address}, and UDP is not tried otherwise")
    return WayBack(
        Verdict.BAD,
        f"{server} is up on its own address and silent on {door}: {knock.address} is missing on its loopback, or "
        "something drops the packets",
    )


def _through_us(server: str, far: str) -> WayBack:
    """Clients on the server's own segment get their answers directly; the others' come to us, where they are a loop."""
    said = f"the answer of {server} to {far} comes to the balancer, which drops it"
    return WayBack(Verdict.BAD, f"{said}; its gateway must be another router", far_only=True)


def _addresses(service: Service, record: Record) -> list[str]:
    doors = dict.fromkeys(door.host for door in service.doors)
    return [host for host in doors if (":" in host) == record.member.endpoint.is_ipv6]


def _knock(service: Service, record: Record, vip: str, ours: tuple[str, int]) -> Knock:
    check, port = record.pool.check, next(door.port for door in service.doors if door.host == vip)
    if service.l4 is not None and service.l4.protocol == "udp":
        if isinstance(check.options, DnsCheck):
            question = asked_in_one_datagram(check.options, secrets.randbits(16))
            return Knock("udp", *ours, vip, port, question)
        return Knock("echo", *ours, vip, port)
    return Knock("tcp", *ours, vip, port)


def _place(service: Service, server: IPAddress, network: Network) -> tuple[str, str, str, str] | str:
    """Our address, the interface, its hardware address and the server's there (empty: there are none); or why it cannot
    be said."""
    tunnel = service.l4.tunnel.encapsulation if service.l4 and service.l4.forward is Forward.TUNNEL else ""
    route = network.route_to(server)
    device = tunnel_device(tunnel, server) if tunnel else route.device if route else ""
    interface = network.interface(device)
    neighbour = network.neighbour(server)
    to_mac = tunnel_mac(str(server)) if tunnel else neighbour.mac if neighbour else ""
    source = next(
        (
            str(own.ip)
            for leaves, own in network.addresses()
            if route
            and leaves.name == route.device
            and own.version == server.version
            and own.network.prefixlen < own.max_prefixlen
            and not own.ip.is_link_local
        ),
        "",
    )
    if interface is not None and source and tunnel in IP_TUNNELS:
        return source, device, "", ""
    if interface is None or not interface.mac or not to_mac or not source:
        return f"the hardware address of {server} is not known"
    return source, device, interface.mac, to_mac
