"""Which way a connection goes, hop by hop, and whether the answer comes back: the model behind `explain`.

Decides: the hops of each kind of forwarding, the address that the real server sees, what each statement rests on, and
the one sentence that names the cause and the remedy when it cannot work.
Refuses to know: how facts are gathered (`control`), and how they are printed (`text`, `svg` only arrange them).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum
from html import escape

from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import Forward, Member, Service
from mailbalancer.network import IPAddress, Network


class Outcome(StrEnum):
    """Whether it works."""

    WORKS = "works"
    FAILS = "fails"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of the way; `rests_on`: the rule, route, neighbour or probe that it is known from."""

    sender: str
    receiver: str
    statement: str
    rests_on: str


@dataclass(frozen=True, slots=True)
class Path:
    """The whole way of one client to one real server and back."""

    service: str
    client: str
    server: str
    hops: tuple[Hop, ...]
    seen_as: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the real server: whether it is up, and whether its answers come back through us."""

    up: bool | None = None
    way: WayBack | None = None


def explain(service: Service, client: str, member: Member, network: Network, known: Known) -> Path:
    """The way of a connection from `client` to `member` of this service.

    Raises:
        ValueError: `client` is not an address.
    """
    return _Way(service, ipaddress.ip_address(client), member, network, known).path()


class _Way:
    def __init__(self, service: Service, client: IPAddress, member: Member, network: Network, known: Known) -> None:
        self._service = service
        self._client = client
        self._member = member
        self._server = ipaddress.ip_address(member.endpoint.host)
        self._network = network
        self._known = known
        self._forward = service.l4.forward if service.l4 else None
        self._near = self._is_near()

    def path(self) -> Path:
        outcome, sentence = self._judge()
        seen_as = self._seen_as()
        hops = (self._to_us(), self._to_server(seen_as), *self._back(seen_as))
        name = f"{self._member.real_server} {self._member.endpoint}"
        return Path(self._service.name, str(self._client), name, hops, seen_as, outcome, sentence)

    # who sees whom

    @property
    def _keeps_address(self) -> bool:
        """Whether the service is meant to show clients' addresses, with answers through us."""
        return self._forward is Forward.TRANSPARENT or (self._forward is None and self._service.source.use == "client")

    @property
    def _past_us(self) -> bool:
        return self._forward in (Forward.DSR, Forward.TUNNEL)

    @property
    def _stray(self) -> bool:
        return self._known.way is not None and self._known.way.verdict is Verdict.BAD

    def _is_near(self) -> str:
        """The network for whose clients our address is used; empty: none."""
        segment = self._network.segment_of(self._server)
        networks = [*self._service.source.balancer_for, *([segment[1]] if segment else [])]
        return next((str(n) for n in networks if n.version == self._client.version and self._client in n), "")

    def _ours_towards_server(self) -> str:
        if self._service.l4 and self._service.l4.snat_address:
            return self._service.l4.snat_address
        route = self._network.route_to(self._server)
        found = [
            own.ip
            for interface, own in self._network.addresses()
            if route
            and interface.name == route.device
            and own.version == self._server.version
            and not own.ip.is_link_local
        ]
        return str(found[0]) if found else "the balancer's address"

    def _seen_as(self) -> str:
        if self._past_us:
            return str(self._client)
        falls_back = self._stray and self._service.source.probe_failed == "fall_back_to_balancer_address"
        same_family = self._client.version == self._server.version
        if self._keeps_address and same_family and not self._near and not falls_back:
            return str(self._client)
        return self._ours_towards_server()

    # judgement

    def _judge(self) -> tuple[Outcome, str]:
        refusal = self._refusal()
        if refusal:
            return Outcome.FAILS, refusal
        if self._past_us:
            return self._judge_past_us()
        if not self._keeps_address:
            return Outcome.WORKS, f"the real server sees {self._seen_as()} and answers it; nothing else is needed of it"
        return self._judge_transparent()

    def _refusal(self) -> str:
        service, name = self._service, self._member.real_server
        if any(self._client in network for network in service.deny if network.version == self._client.version):
            return f"{self._client} is in `deny` of service {service.name}"
        if service.allow and not any(self._client in n for n in service.allow if n.version == self._client.version):
            return f"{self._client} is not in `allow` of service {service.name}; add its network"
        if service.l4 and self._client.version != self._server.version:
            return f"{name} has no IPv{self._client.version} address, and the kernel does not translate; use mode tcp"
        if self._network.route_to(self._server) is None:
            return f"the balancer has no route to {self._server}; give it an address in that network or a route"
        if self._known.up is False:
            return f"{name} is down: its check fails, so nobody is sent there"
        return ""

    def _judge_transparent(self) -> tuple[Outcome, str]:
        name, way = self._member.real_server, self._known.way
        if way is not None and self._stray and self._service.source.probe_failed == "take_out_of_service":
            return Outcome.FAILS, f"{name} is out of service: {way.reason}"
        if self._near:
            return Outcome.WORKS, (
                f"{self._client} is in {self._near}, so {name} is shown {self._seen_as()} and not the client: it would "
                "answer the client directly otherwise, and the connection would break"
            )
        if way is None:
            return Outcome.UNKNOWN, f"whether {name} answers through the balancer is known when it has been probed"
        if way.verdict is Verdict.GOOD:
            return Outcome.WORKS, f"{name} sees {self._client}, and its answer comes back through the balancer"
        if way.verdict is Verdict.UNKNOWN:
            return Outcome.UNKNOWN, way.reason
        return Outcome.WORKS, f"{name} is shown {self._seen_as()} instead of {self._client}, because {way.reason}"

    def _judge_past_us(self) -> tuple[Outcome, str]:
        name, vip = self._member.real_server, self._vip()
        if self._forward is Forward.DSR and self._network.segment_of(self._server) is None:
            return Outcome.FAILS, (
                f"{name} is not on a segment of the balancer, and forward: dsr reaches no other; write forward: tunnel"
            )
        needs = "and does not answer ARP for it" if self._forward is Forward.DSR else "and ends the tunnel"
        return Outcome.UNKNOWN, (
            f"{name} must have {vip} on its loopback interface {needs}; then it answers {self._client} itself "
            f"(`mailbalancer realserver {self._service.name}` prints how)"
        )

    # hops

    def _vip(self) -> str:
        doors = [door.host for door in self._service.doors]
        return next((host for host in doors if (":" in host) == (self._client.version == 6)), doors[0] if doors else "")

    def _to_us(self) -> Hop:
        vip = self._vip()
        here = next((i.name for i, own in self._network.addresses() if str(own.ip) == vip), "")
        rests_on = f"address on {here}" if here else "address not on this machine now"
        return Hop(str(self._client), vip, f"{self._client} connects to {vip}", rests_on)

    def _to_server(self, seen_as: str) -> Hop:
        route = self._network.route_to(self._server)
        way = f"through {route.device}" + (f" by {route.via}" if route.via else "") if route else "no route"
        what = {
            Forward.DSR: "the frame goes on unchanged, with the server's hardware address",
            Forward.TUNNEL: "the packet goes on unchanged, inside a tunnel",
            Forward.TRANSPARENT: f"the destination becomes {self._member.endpoint}, the source is {seen_as}",
            Forward.SNAT: f"the destination becomes {self._member.endpoint}, the source is {seen_as}",
            None: f"a connection of the balancer's own to {self._member.endpoint}, from {seen_as}",
        }[self._forward]
        return Hop(self._vip(), str(self._member.endpoint), what, f"rule of service {self._service.name}; route {way}")

    def _back(self, seen_as: str) -> tuple[Hop, ...]:
        server, vip, client = str(self._member.endpoint), self._vip(), str(self._client)
        if self._past_us:
            return (Hop(server, client, f"the server answers {client} itself, as {vip}", "the server's own routes"),)
        if seen_as != client:
            to_us = Hop(
                server, "balancer", f"the server answers {seen_as}: that is the balancer", "address of the balancer"
            )
        else:
            way = self._known.way
            proof = f"gateway probe: {way.verdict}" if way else "gateway probe: not yet"
            to_us = Hop(server, "balancer", f"the server answers {client} by its gateway", proof)
        route = self._network.route_to(self._client)
        way_out = f"route through {route.device}" if route else "no route to the client"
        return (to_us, Hop("balancer", client, f"the answer goes to {client} as {vip}", way_out))


# ---------------------------------------------------------------- arranged for people


def text(path: Path) -> str:
    """For a terminal."""
    lines = [f"{path.client} -> {path.service} -> {path.server}: {path.outcome}"]
    for at, hop in enumerate(path.hops, 1):
        lines += [f"  {at}. {hop.sender} -> {hop.receiver}", f"     {hop.statement}", f"     ({hop.rests_on})"]
    return "\n".join([*lines, f"  the real server sees {path.seen_as}", f"  {path.sentence}"])


_COLOURS = {Outcome.WORKS: "#1a7f37", Outcome.FAILS: "#b3261e", Outcome.UNKNOWN: "#8a6d00"}
_PLACES = {"client": 90, "balancer": 400, "server": 710}


def svg(path: Path) -> str:
    """A picture: three boxes and numbered arrows."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {220 + 20 * len(path.hops)}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z"/></marker></defs>',
    ]
    names = {"client": path.client, "balancer": f"balancer ({path.service})", "server": path.server}
    for place, at in _PLACES.items():
        parts.append(f'<rect x="{at - 85}" y="20" width="170" height="40" rx="6" fill="#eef2f7" stroke="#556"/>')
        parts.append(f'<text x="{at}" y="45" text-anchor="middle">{escape(names[place])}</text>')
    for at, (hop, (start, end)) in enumerate(zip(path.hops, _arrows(path), strict=True)):
        y = 85 + 22 * at
        parts.append(f'<line x1="{start}" y1="{y}" x2="{end}" y2="{y}" stroke="#333" marker-end="url(#tip)"/>')
        parts.append(f'<text x="{(start + end) // 2}" y="{y - 4}" text-anchor="middle">{at + 1}</text>')
        parts.append(f'<text x="20" y="{190 + 20 * at}">{at + 1}. {escape(hop.statement)}</text>')
    colour, y = _COLOURS[path.outcome], 200 + 20 * len(path.hops)
    parts.append(f'<text x="20" y="{y}" fill="{colour}">{escape(path.outcome)}: {escape(path.sentence)}</text></svg>')
    return "\n".join(parts)


def _arrows(path: Path) -> list[tuple[int, int]]:
    client, balancer, server = _PLACES.values()
    there = [(client, balancer), (balancer, server)]
    return there + ([(server, client)] if len(path.hops) == 3 else [(server, balancer), (balancer, client)])
