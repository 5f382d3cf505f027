"""Which way a connection goes, hop by hop, and whether the answer comes back: the model behind `explain`.

Decides: the hops of each kind of forwarding, the address that the real server sees, what each statement rests on, at
which hop it breaks, and the one sentence that names the cause and the remedy.
Refuses to know: how facts are gathered (`control`), and how the way is drawn (`path_picture`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import AdminState, Endpoint, Forward, Member, Service
from mailbalancer.network import IPAddress, Network


class Outcome(StrEnum):
    """Whether it works."""

    WORKS = "works"
    FAILS = "fails"
    UNKNOWN = "unknown"


class Takes(StrEnum):
    """Whom a real server is given."""

    EVERYBODY = "everybody"
    RETURNING = "returning clients"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of the way.

    Attributes:
        carries: source and destination that a packet has here.
        rests_on: the rule, route, neighbour or probe that the statement is known from.
        outcome: `fails` where the way ends; `unknown` is also said of what lies behind that.
    """

    sender: str
    receiver: str
    carries: str
    statement: str
    rests_on: str
    outcome: Outcome = Outcome.WORKS


@dataclass(frozen=True, slots=True)
class Path:
    """The whole way of one client to one real server and back; `notes` is what should be known although it works."""

    service: str
    client: str
    real_server: str
    server: str
    hops: tuple[Hop, ...]
    seen_as: str
    takes: Takes
    outcome: Outcome
    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What the running balancer knows of the real server; None and empty: nothing.

    Attributes:
        check: what its last check said.
        way: whether its answers to clients come back through us (the gateway probe).
        on_vip: whether it answers on the service's own address (the check through it).
        claims: which machines beside us answer ARP for the service's address, in words.
        mss: largest segment that fits through the tunnel to it; 0: there is no tunnel.
    """

    up: bool | None = None
    check: str = ""
    admin: AdminState = AdminState.ENABLED
    way: WayBack | None = None
    on_vip: WayBack | None = None
    claims: str = ""
    mss: int = 0


def explain(service: Service, client: str, member: Member, network: Network, known: Known) -> Path:
    """The way of a connection from `client` to `member` of this service.

    Raises:
        ValueError: `client` is not an address.
    """
    return _Way(service, ipaddress.ip_address(client), member, network, known).path()


def together(paths: Sequence[Path]) -> str:
    """One sentence for all real servers of a service: whether this client is served."""
    client, service = paths[0].client, paths[0].service
    serving = [path for path in paths if path.takes is Takes.EVERYBODY]
    working = [path.real_server for path in serving if path.outcome is Outcome.WORKS]
    broken = [path.real_server for path in serving if path.outcome is Outcome.FAILS]
    if not serving:
        return f"{client} is not served by {service}: no real server takes new sessions"
    if broken and not working:
        return f"{client} is not served by {service}"
    if broken:
        return f"{client} is served by {', '.join(working)}, and not when it is sent to {', '.join(broken)}"
    if not working:
        return f"whether {client} is served by {service} is not known yet"
    return f"{client} is served by {', '.join(working)}"


#: Where the way ends: at the balancer, at the real server, on the way back to us, on the way out to the client.
_TO_US, _TO_SERVER, _BACK, _OUT = range(4)


@dataclass(frozen=True, slots=True)
class _Judgement:
    outcome: Outcome
    sentence: str
    at: int = _OUT + 1


class _Way:
    def __init__(self, service: Service, client: IPAddress, member: Member, network: Network, known: Known) -> None:
        self._service = service
        self._client = client
        self._member = member
        self._server = ipaddress.ip_address(member.endpoint.host)
        self._network = network
        self._known = known
        self._name = member.real_server
        self._forward = service.l4.forward if service.l4 else None
        self._near = self._is_near()
        self._vip = self._door()

    def path(self) -> Path:
        judged, seen_as, takes = self._judge(), self._seen_as(), self._takes()
        hops = (self._to_us(), self._to_server(seen_as), *self._back(seen_as))
        sentence = judged.sentence
        if takes is Takes.RETURNING:
            sentence = f"{self._name} is draining: only returning clients are sent there; {sentence}"
        name = f"{self._name} {self._member.endpoint}"
        return Path(
            self._service.name,
            str(self._client),
            self._name,
            name,
            tuple(_marked(hops, judged)),
            seen_as,
            takes,
            judged.outcome,
            sentence,
            tuple(self._notes(judged.outcome)),
        )

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

    @property
    def _falls_back(self) -> bool:
        return self._stray and self._service.source.probe_failed == "fall_back_to_balancer_address"

    def _is_here(self, address: IPAddress) -> bool:
        """Whether a packet to this address never leaves the balancer's machine."""
        return address.is_loopback or self._network.is_ours(address)

    def _is_near(self) -> str:
        """The network for whose clients our address is used; empty: none."""
        segment = self._network.segment_of(self._server)
        networks = [*self._service.source.balancer_for, *([segment[1]] if segment else [])]
        return next((str(n) for n in networks if n.version == self._client.version and self._client in n), "")

    def _is_reached(self, address: IPAddress) -> bool:
        return self._is_here(address) or self._network.route_to(address) is not None

    def _on_its_segment(self) -> bool:
        """Whether the client is in the server's own network, so that its gateway does not matter."""
        segment = self._network.segment_of(self._server)
        return segment is not None and self._client.version == segment[1].version and self._client in segment[1]

    def _ours_towards_server(self) -> str:
        if self._service.l4 and self._service.l4.snat_address:
            return self._service.l4.snat_address
        classed = self._class_addresses()
        if classed:
            return classed[0]
        if self._is_here(self._server):
            # the kernel takes the address itself, and of 127.0.0.0/8 the first
            return "127.0.0.1" if self._server.version == 4 and self._server.is_loopback else str(self._server)
        return str(self._network.source_to(self._server) or "the balancer's address")

    def _class_addresses(self) -> tuple[str, ...]:
        """Addresses that connections of this client's class leave from."""
        for one in self._service.source.classes:
            if any(self._client in n for n in one.clients if n.version == self._client.version):
                return one.addresses
        return ()

    def _seen_as(self) -> str:
        if self._past_us:
            return str(self._client)
        same_family = self._client.version == self._server.version
        if self._keeps_address and same_family and not self._near and not self._falls_back:
            return str(self._client)
        return self._ours_towards_server()

    def _door(self) -> Endpoint | None:
        """Where this client finds the service; None: nowhere in its family."""
        return next((d for d in self._service.doors if d.is_ipv6 == (self._client.version == 6)), None)

    # judgement

    def _takes(self) -> Takes:
        out = self._stray and self._service.source.probe_failed == "take_out_of_service" and self._keeps_address
        if self._known.up is False or self._known.admin is AdminState.DISABLED or out:
            return Takes.NOBODY
        return Takes.RETURNING if self._known.admin is AdminState.DRAINING else Takes.EVERYBODY

    def _judge(self) -> _Judgement:
        refusal = self._refused_here() or self._unreachable() or self._not_sent()
        if refusal is not None:
            return refusal
        if self._known.claims:
            return _Judgement(Outcome.UNKNOWN, self._known.claims, _TO_US)
        if self._past_us:
            return self._judge_past_us()
        if not self._is_reached(self._client):
            remedy = "give it a route to that network"
            return _Judgement(Outcome.FAILS, f"the balancer has no route to {self._client}; {remedy}", _OUT)
        if not self._keeps_address:
            return self._judge_own_address()
        return self._judge_transparent()

    def _refused_here(self) -> _Judgement | None:
        """Why the balancer would not take it at all."""
        service, version = self._service, self._client.version
        sentence = ""
        if self._vip is None:
            sentence = f"service {service.name} has no IPv{version} address; add one to its `listen`"
        elif any(self._client in network for network in service.deny if network.version == version):
            sentence = f"{self._client} is in `deny` of service {service.name}"
        elif service.allow and not any(self._client in n for n in service.allow if n.version == version):
            sentence = f"{self._client} is not in `allow` of service {service.name}; add its network"
        elif service.l4 and self._is_here(self._client):
            sentence = (
                f"{self._client} is the balancer itself, and what is connected to from there is not forwarded; try "
                "from another machine"
            )
        elif self._past_us and self._client == self._server:
            sentence = f"{self._name} has {self._vip.host} itself: what it connects to there never leaves it"
        return _Judgement(Outcome.FAILS, sentence, _TO_US) if sentence else None

    def _unreachable(self) -> _Judgement | None:
        """Why the balancer cannot send anything to this server."""
        name, sentence = self._name, ""
        if self._service.l4 and self._client.version != self._server.version:
            sentence = (
                f"{name} has no IPv{self._client.version} address, and the kernel does not translate; use mode tcp"
            )
        elif self._is_here(self._server) and (self._service.l4 or self._keeps_address):
            sentence = (
                f"{self._server} is an address of the balancer itself, where only a layer 7 service with `source: "
                "balancer` can reach a server; write the real server's own address"
            )
        elif not self._is_reached(self._server):
            sentence = f"the balancer has no route to {self._server}; give it an address in that network or a route"
        elif self._forward is Forward.DSR and self._network.segment_of(self._server) is None:
            sentence = (
                f"{name} is not on a segment of the balancer, and forward: dsr reaches no other; write forward: tunnel"
            )
        return _Judgement(Outcome.FAILS, sentence, _TO_SERVER) if sentence else None

    def _not_sent(self) -> _Judgement | None:
        """Why nobody is sent to this server now, although it could be reached."""
        name, known, way = self._name, self._known, self._known.way
        sentence = ""
        if known.admin is AdminState.DISABLED:
            sentence = f"{name} is disabled: nobody is sent there; `mailbalancer enable {name}` ends that"
        elif known.up is False:
            said = f" ({known.check})" if known.check else ""
            sentence = f"{name} is down: its check fails{said}, so nobody is sent there"
        elif self._takes() is Takes.NOBODY and way is not None:
            sentence = f"{name} is out of service: {way.reason}"
        return _Judgement(Outcome.FAILS, sentence, _TO_SERVER) if sentence else None

    def _judge_own_address(self) -> _Judgement:
        seen_as, l4 = self._seen_as(), self._service.l4
        if l4 and l4.snat_address and not self._network.is_ours(ipaddress.ip_address(l4.snat_address)):
            return _Judgement(
                Outcome.FAILS,
                f"{self._name} answers `snat_address` {seen_as}, which is no address of the balancer; use one that is",
                _BACK,
            )
        return _Judgement(
            Outcome.WORKS, f"{self._name} sees {seen_as} and answers it; nothing else is needed of the server"
        )

    def _judge_transparent(self) -> _Judgement:
        name, way, seen_as = self._name, self._known.way, self._seen_as()
        if self._near:
            return _Judgement(
                Outcome.WORKS,
                f"{self._client} is in {self._near}, so {name} is shown {seen_as} and not the client: it would "
                "answer the client directly otherwise, and the connection would break",
            )
        if seen_as != str(self._client) and not self._falls_back:
            return _Judgement(Outcome.WORKS, f"{name} speaks the other IP version, so it is shown {seen_as}")
        if way is None:
            said = f"whether {name} answers through the balancer is known when it has been probed"
            return _Judgement(Outcome.UNKNOWN, said, _BACK)
        if way.verdict is Verdict.GOOD:
            return _Judgement(
                Outcome.WORKS, f"{name} sees {self._client}, and its answer comes back through the balancer"
            )
        if way.verdict is Verdict.UNKNOWN:
            return _Judgement(Outcome.UNKNOWN, way.reason, _BACK)
        return _Judgement(Outcome.WORKS, f"{name} is shown {seen_as} instead of {self._client}, because {way.reason}")

    def _judge_past_us(self) -> _Judgement:
        name, vip, found = self._name, self._vip.host if self._vip else "", self._known.on_vip
        if found is None:
            needs = "and does not answer ARP for it" if self._forward is Forward.DSR else "and ends the tunnel"
            said = f"{name} must have {vip} on its loopback interface {needs}; then it answers {self._client} itself"
            remedy = f"`mailbalancer realserver {self._service.name}` prints how"
            return _Judgement(Outcome.UNKNOWN, f"{said} ({remedy})", _BACK)
        if found.verdict is Verdict.GOOD or (found.far_only and self._on_its_segment()):
            return _Judgement(Outcome.WORKS, f"{name} answers on {vip}, so it answers {self._client} itself, past us")
        return _Judgement(Outcome(_OUTCOMES[found.verdict]), found.reason, _BACK)

    def _notes(self, outcome: Outcome) -> list[str]:
        """What goes wrong later, or is lost, although the connection comes about."""
        notes = []
        if self._keeps_address and outcome is Outcome.WORKS and self._seen_as() != str(self._client):
            notes.append(f"rights that {self._name} grants by address (relay) are those of {self._seen_as()}")
        if self._forward is Forward.TUNNEL and self._known.mss:
            frames = self._service.l4 is not None and self._service.l4.tunnel.encapsulation == "vxlan"
            cut = frames and self._server.version == 4
            lost = _FRAGMENTED if cut else "does not fit into the tunnel and is lost"
            notes.append(
                f"a segment above {self._known.mss} bytes {lost}; the server's default route should say "
                f"`advmss {self._known.mss}`"
            )
        return notes

    # hops

    def _to_us(self) -> Hop:
        vip = self._vip or self._service.doors[0]
        here = next((i.name for i, own in self._network.addresses() if str(own.ip) == vip.host), "")
        place = f"address {vip.host} on {here}" if here else f"address {vip.host} is not on this machine now"
        lists = [word for word in ("allow", "deny") if getattr(self._service, word)]
        return Hop(
            str(self._client),
            vip.host,
            f"{self._client} → {vip}",
            f"{self._client} connects to {vip}",
            "; ".join([place, *(f"`{word}` of service {self._service.name}" for word in lists)]),
        )

    def _to_server(self, seen_as: str) -> Hop:
        vip, target = self._vip or self._service.doors[0], self._member.endpoint
        source = f"the source is {seen_as}"
        what = {
            Forward.DSR: "the frame goes on unchanged, with the server's hardware address",
            Forward.TUNNEL: "the packet goes on unchanged, inside a tunnel",
            Forward.TRANSPARENT: f"the destination becomes {target}, {source}",
            Forward.SNAT: f"the destination becomes {target}, {source}",
            None: f"a connection of the balancer's own to {target}, from {seen_as}{self._told()}",
        }[self._forward]
        carries = f"{seen_as} → {vip if self._past_us else target}"
        return Hop(vip.host, str(target), carries, what, "; ".join(self._server_facts()))

    def _told(self) -> str:
        """How a layer 7 service tells the server of the client although its address is ours."""
        service, ways = self._service, []
        if service.proxy_protocol.send:
            ways.append(f"a PROXY header ({service.proxy_protocol.send})")
        if service.http is not None and service.http.forwarded != "none":
            ways.append("a header")
        if service.mail is not None and service.mail.client_address:
            ways.append(service.mail.client_address.upper())
        return f"; {' and '.join(ways)} names {self._client} to it" if ways else ""

    def _server_facts(self) -> list[str]:
        """Rule, route, neighbour and check that the way to the server rests on."""
        name, route = self._service.name, self._network.route_to(self._server)
        facts = [f"nftables rule of service {name}" if self._service.l4 else f"source of service {name}"]
        facts.append(self._route_words(self._server))
        hop = route.via if route and route.via is not None else self._server
        neighbour = self._network.neighbour(hop)
        if neighbour is not None and not self._is_here(self._server):
            facts.append(f"neighbour {hop} is {neighbour.mac}")
        if self._known.up is not None:
            facts.append(f"check: {'up' if self._known.up else 'down'}")
        if self._known.admin is not AdminState.ENABLED:
            facts.append(f"the operator: {self._known.admin}")
        return facts

    def _back(self, seen_as: str) -> tuple[Hop, ...]:
        server, client = self._member.endpoint, str(self._client)
        vip = self._vip or self._service.doors[0]
        if self._past_us:
            found = self._known.on_vip
            proof = f"check through {vip.host}: {found.verdict}" if found else "the server's own routes, not known here"
            says = f"the server answers {client} itself, as {vip}"
            return (Hop(str(server), client, f"{vip} → {client}", says, proof),)
        if seen_as != client:
            ours = "address of the balancer"
            says, proof = f"the server answers {seen_as}: that is the balancer", ours
        else:
            way = self._known.way
            says = f"the server answers {client} by its gateway, which must be the balancer"
            proof = f"gateway probe: {way.verdict}" if way else "gateway probe: not yet"
        to_us = Hop(str(server), "balancer", f"{server} → {seen_as}", says, proof)
        return (to_us, self._out(vip))

    def _out(self, vip: Endpoint) -> Hop:
        client = str(self._client)
        says = f"the answer goes to {client} as {vip}"
        return Hop("balancer", client, f"{vip} → {client}", says, self._route_words(self._client))

    def _route_words(self, target: IPAddress) -> str:
        route = self._network.route_to(target)
        if self._is_here(target):
            return "on this machine"
        if route is None:
            return f"no route to {target}"
        return f"route to {target} through {route.device}" + (f" by {route.via}" if route.via else "")


_FRAGMENTED = "travels in two fragments, and is lost where those are dropped"
_OUTCOMES = {Verdict.GOOD: Outcome.WORKS, Verdict.BAD: Outcome.FAILS, Verdict.UNKNOWN: Outcome.UNKNOWN}


def _marked(hops: Sequence[Hop], judged: _Judgement) -> list[Hop]:
    """Each hop with what is known of it; behind the one where the way ends, nothing is."""
    last = min(judged.at, len(hops) - 1) if judged.outcome is not Outcome.WORKS else len(hops)
    marks = [
        Outcome.WORKS if at < last else judged.outcome if at == last else Outcome.UNKNOWN for at in range(len(hops))
    ]
    return [replace(hop, outcome=mark) for hop, mark in zip(hops, marks, strict=True)]


def text(path: Path) -> str:
    """For a terminal."""
    lines = [f"{path.client} -> {path.service} -> {path.server}: {path.outcome}"]
    for at, hop in enumerate(path.hops, 1):
        sign = "" if hop.outcome is Outcome.WORKS else f"   [{hop.outcome}]"
        lines += [f"  {at}. {hop.sender} -> {hop.receiver}{sign}", f"     {hop.statement}", f"     ({hop.rests_on})"]
    lines.append(f"  the real server sees {path.seen_as}")
    lines.append(f"  {path.sentence}")
    return "\n".join([*lines, *(f"  note: {note}" for note in path.notes)])
