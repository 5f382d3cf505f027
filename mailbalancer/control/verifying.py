"""`mailbalancer realserver SERVICE NAME --verify`: what of a real server's set-up can be seen from here.

Decides: which questions matter for the service's forwarding, how each is asked, and what the answer says. The server is
asked on the wire, the way that clients' packets come, and not logged in to.
Refuses to know: frames (`host.knock`, `host.segment`, `host.path_size`), and what a server needs
(`l4.real_server_setup`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mailbalancer.balance.health import Verdict as Check
from mailbalancer.control.checks.dns import asked_in_one_datagram
from mailbalancer.control.checks.run import run_check
from mailbalancer.control.explaining import members_of, own_address_towards, tunnel_mss
from mailbalancer.control.gateway_probe import far_address
from mailbalancer.control.host_plan import IP_TUNNELS, tunnel_device, tunnel_mac
from mailbalancer.host.knock import Ear, Heard, Knock, send
from mailbalancer.host.path_size import largest
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.host.segment import claimed
from mailbalancer.l4.pcap import Record, packet
from mailbalancer.l4.way_back import Verdict
from mailbalancer.model import DnsCheck, Endpoint, Forward, Member, Service
from mailbalancer.network import KNOCK_PORTS, Network

ANSWER_S = 1.0
KNOCKS = 3
#: Packet sizes that are common somewhere: Ethernet, PPPoE, tunnels, the least that IPv6 allows.
SIZES = (9000, 1500, 1492, 1480, 1450, 1400, 1280, 576)
_FRAME = 2048


@dataclass(frozen=True, slots=True)
class Verified:
    """One question, what is known, and what to do about it (empty: nothing)."""

    what: str
    verdict: Verdict
    text: str
    remedy: str = ""
    real_server: str = ""


@dataclass(frozen=True, slots=True)
class _Met:
    """What a knock has met; `mss`: the largest segment that the answer says its sender takes."""

    heard: Heard | None
    mss: int = 0


def verified(service: Service, name: str) -> list[Verified]:
    """Every question that matters for this service's way to this server.

    Raises:
        MailbalancerError: the service has no such real server, or this user may not send frames.
    """
    return [
        replace(answer, real_server=member.real_server)
        for member in members_of(service, name)
        for answer in _Verification(service, member).answers()
    ]


def text(found: Sequence[Verified]) -> str:
    """For a terminal."""
    lines, name = [], ""
    for one in found:
        if one.real_server != name:
            name = one.real_server
            lines.append(f"# ---- {name}")
        lines.append(f"{one.verdict:<8}{one.what}: {one.text}")
        lines += [f"{'':<8}-> {one.remedy}"] if one.remedy else []
    return "\n".join(lines)


class _Verification:
    def __init__(self, service: Service, member: Member) -> None:
        self._service = service
        self._member = member
        self._name, self._server = member.real_server, member.endpoint.host
        self._forward = service.l4.forward if service.l4 else None
        self._datagrams = service.l4 is not None and service.l4.protocol == "udp"
        self._past_us = self._forward in (Forward.DSR, Forward.TUNNEL)
        self._needs_gateway = self._forward is Forward.TRANSPARENT or service.source.use == "client"
        self._network = Network()
        self._ports = iter(random.sample(KNOCK_PORTS, len(KNOCK_PORTS)))

    def answers(self) -> Iterator[Verified]:
        own = self._own_address()
        self._network = network_now()  # the kernel has looked for the server now, if it had not before
        yield own
        if self._forward is Forward.DSR:
            yield self._segment()
        if self._needs_gateway:
            yield self._way_back()
        if self._past_us:
            yield from self._through_vips()
        yield from self._arp()
        yield self._path()

    # ------------------------------------------------------------ questions

    def _own_address(self) -> Verified:
        what, endpoint = "its own address", self._member.endpoint
        if self._datagrams:
            return self._own_check(what)
        try:
            with socket.create_connection((endpoint.host, endpoint.port), KNOCKS * ANSWER_S):
                return Verified(what, Verdict.GOOD, f"{endpoint} accepts connections from the balancer")
        except ConnectionRefusedError:
            return Verified(what, Verdict.BAD, f"{endpoint} refuses connections", "is its program running there?")
        except OSError as error:
            said = "does not answer" if isinstance(error, TimeoutError) else f"cannot be reached: {error.strerror}"
            return Verified(what, Verdict.BAD, f"{endpoint} {said}", "is it on, and does its firewall let us in?")

    def _own_check(self, what: str) -> Verified:
        """Datagrams are answered by who understands them: the service's check asks what its program knows."""
        check, endpoint = self._service.pool.check, self._member.endpoint
        if not isinstance(check.options, DnsCheck) or check.type == "none":
            return Verified(what, Verdict.UNKNOWN, f"{endpoint} takes datagrams, and no check says which it answers")
        result = asyncio.run(run_check(check, endpoint))
        verdict = Verdict.GOOD if result.verdict is not Check.DOWN else Verdict.BAD
        return Verified(what, verdict, f"{endpoint}: {result.reason}")

    def _segment(self) -> Verified:
        what, found = "same segment", self._network.segment_of(ipaddress.ip_address(self._server))
        if found is None:
            remedy = "write forward: tunnel, or give the balancer an address in its network"
            return Verified(what, Verdict.BAD, f"{self._server} is in no network of the balancer", remedy)
        neighbour = self._network.neighbour(ipaddress.ip_address(self._server))
        if neighbour is None:
            return Verified(what, Verdict.BAD, f"nobody answers for {self._server} on {found[0].name}", "is it on?")
        return Verified(what, Verdict.GOOD, f"{self._server} is {neighbour.mac} on {found[0].name}")

    def _way_back(self) -> Verified:
        what = "gateway"
        far = far_address(self._network, self._version, self._service.source.probe_addresses)
        met = self._knock(far, self._member.endpoint)
        if isinstance(met, str):
            return Verified(what, Verdict.UNKNOWN, met)
        if met.heard is Heard.ANSWER:
            return Verified(what, Verdict.GOOD, f"its answer to {far} comes back to the balancer")
        if met.heard is Heard.REFUSAL:
            return Verified(what, Verdict.UNKNOWN, f"it refuses {far}, which its firewall may do for no one else")
        gateway = own_address_towards(self._member, self._network)
        remedy = f"set its gateway to {gateway} (`mailbalancer realserver {self._service.name}` prints how)"
        return Verified(what, Verdict.BAD, f"its answer to {far} does not come back to the balancer", remedy)

    def _through_vips(self) -> Iterator[Verified]:
        vips = [door for door in self._service.doors if door.is_ipv6 == (self._version == 6)]
        for vip in {door.host: door for door in vips}.values():
            ours = own_address_towards(self._member, self._network)
            met = self._knock(ours, vip)
            yield self._on_vip(vip, met)
            if isinstance(met, _Met) and met.heard is Heard.ANSWER:
                yield self._other_gateway(vip)
                if met.mss:
                    yield self._segments(met.mss)

    def _on_vip(self, vip: Endpoint, met: _Met | str) -> Verified:
        what = "the service's address"
        if isinstance(met, str):
            return Verified(what, Verdict.UNKNOWN, met)
        if met.heard is Heard.ANSWER:
            return Verified(what, Verdict.GOOD, f"it answers on {vip}")
        prints = f"`mailbalancer realserver {self._service.name}` prints how"
        if met.heard is Heard.REFUSAL:
            return Verified(
                what, Verdict.BAD, f"it has {vip.host} and refuses {vip}", "let its program listen on all addresses"
            )
        if self._datagrams and not isinstance(self._service.pool.check.options, DnsCheck):
            return Verified(what, Verdict.UNKNOWN, f"it answers no ping to {vip.host}, which it need not do")
        where = "put that address on its loopback interface"
        tunnel = ", end the tunnel, and switch rp_filter off there" if self._forward is Forward.TUNNEL else ""
        return Verified(what, Verdict.BAD, f"it is silent on {vip}", f"{where}{tunnel} ({prints})")

    def _other_gateway(self, vip: Endpoint) -> Verified:
        """Answers to clients must not pass us: they would be dropped as a loop."""
        what = "gateway"
        far = far_address(self._network, self._version, self._service.source.probe_addresses)
        met = self._knock(far, vip)
        if isinstance(met, str):
            return Verified(what, Verdict.UNKNOWN, met)
        if met.heard is None:
            return Verified(what, Verdict.GOOD, f"its answer to {far} goes another way than through the balancer")
        return Verified(
            what,
            Verdict.BAD,
            f"its answer to {far} comes to the balancer, which drops it",
            "its gateway must be another router than the balancer",
        )

    def _segments(self, mss: int) -> Verified:
        what, fits = "segment size", tunnel_mss(self._service, self._member, self._network)
        if not fits or mss <= fits:
            return Verified(what, Verdict.GOOD, f"it tells its peers to send segments of {mss} bytes at most")
        return Verified(
            what,
            Verdict.BAD,
            f"it tells its peers to send segments of {mss} bytes, and {fits} fit through the tunnel: larger ones "
            "travel in fragments, and are lost where those are dropped",
            f"add `advmss {fits}` to its default route",
        )

    def _arp(self) -> Iterator[Verified]:
        """Does it answer for the service's address? Everybody but the balancer must keep quiet."""
        neighbour = self._network.neighbour(ipaddress.ip_address(self._server))
        for door in {door.host: door for door in self._service.doors}.values():
            found = self._network.segment_of(ipaddress.ip_address(door.host))
            if found is None or neighbour is None or neighbour.device != found[0].name:
                continue
            claims = claimed(found[0].name, found[0].mac, [door.host], ANSWER_S)
            if claims.get(door.host) == neighbour.mac:
                remedy = f"arp_ignore=1 and arp_announce=2 (`mailbalancer realserver {self._service.name}` prints how)"
                yield Verified("silence", Verdict.BAD, f"it answers ARP for {door.host}", remedy)
            elif self._past_us:
                yield Verified("silence", Verdict.GOOD, f"it does not answer ARP for {door.host}")

    def _path(self) -> Verified:
        what, route = "packet size", self._network.route_to(ipaddress.ip_address(self._server))
        interface = self._network.interface(route.device) if route else None
        if interface is None:
            return Verified(what, Verdict.UNKNOWN, f"there is no route to {self._server}")
        size = largest(self._server, [s for s in (interface.mtu, *SIZES) if s <= interface.mtu], ANSWER_S / 2)
        if size is None:
            return Verified(what, Verdict.UNKNOWN, "it answers no ping")
        if size == interface.mtu:
            return Verified(what, Verdict.GOOD, f"packets of {size} bytes reach it in one piece")
        remedy = "look for the smaller MTU on the way, and let ICMP pass there"
        if self._forward is Forward.TUNNEL:
            remedy = f"the tunnel loses room: add `advmss {size - (interface.mtu - self._fits)}` to its default route"
        return Verified(
            what, Verdict.BAD, f"packets of {interface.mtu} bytes do not reach it, such of {size} do", remedy
        )

    # ------------------------------------------------------------ asking

    @property
    def _version(self) -> int:
        return 6 if self._member.endpoint.is_ipv6 else 4

    @property
    def _fits(self) -> int:
        return tunnel_mss(self._service, self._member, self._network)

    def _knock(self, source: str, target: Endpoint) -> _Met | str:
        """At this server for this address, as from that source; a text: why nobody could be asked."""
        place = self._place(target.host)
        if isinstance(place, str):
            return place
        protocol, question = ("echo", b"") if self._datagrams else ("tcp", b"")
        options = self._service.pool.check.options
        if self._datagrams and isinstance(options, DnsCheck):
            protocol, question = "udp", asked_in_one_datagram(options, random.getrandbits(16))
        knock = Knock(protocol, source, next(self._ports), target.host, target.port, question)
        ear = Ear(source, target.host)
        try:
            for _ in range(KNOCKS):
                send(knock.packet(), *place)
                answer = _heard(ear.socket, knock)
                if answer is not None:
                    if end := knock.end(answer):
                        send(end, *place)
                    return _Met(knock.heard(answer), _mss(answer))
            if end := knock.abandon():
                send(end, *place)
            return _Met(None)
        finally:
            ear.close()

    def _place(self, target: str) -> tuple[str, str, str] | str:
        """The interface, its hardware address and that of whoever the frame goes to; empty: there are none."""
        server = ipaddress.ip_address(self._server)
        route = self._network.route_to(server)
        tunnel = self._service.l4.tunnel.encapsulation if self._service.l4 else ""
        inside = self._forward is Forward.TUNNEL and target != self._server
        if inside:
            device, to_mac = tunnel_device(tunnel, server), tunnel_mac(self._server)
        else:
            neighbour = self._network.neighbour((route.via if route else None) or server)
            device, to_mac = route.device if route else "", neighbour.mac if neighbour else ""
        interface = self._network.interface(device)
        if interface is None or not to_mac:
            return "the balancer must run: it makes the tunnel" if inside else f"nobody answers for {self._server}"
        if inside and tunnel in IP_TUNNELS:
            return device, "", ""
        return device, interface.mac, to_mac


def _heard(ear: socket.socket, knock: Knock) -> bytes | None:
    ends_at = time.monotonic() + ANSWER_S
    while (left_s := ends_at - time.monotonic()) > 0:
        ear.settimeout(left_s)
        try:
            answer = ear.recv(_FRAME)
        except TimeoutError:
            return None
        if knock.heard(answer) is not None:
            return answer
    return None


def _mss(answer: bytes) -> int:
    """What a SYN-ACK says of segments."""
    ethertype = struct.pack("!H", 0x86DD if answer[0] >> 4 == 6 else 0x0800)
    seen = packet(Record(0.0, len(answer), bytes(12) + ethertype + answer))
    return seen.mss if seen is not None else 0
