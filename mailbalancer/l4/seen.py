"""What a capture shows of one client's connections, in sentences: packets in, words out.

Decides: which packets belong to the client, on both sides of the balancer; what became of each connection; and what the
administrator reads first.
Refuses to know: how packets are captured (`control.capturing`) and how files look (`pcap`).

On the client's side the addresses tell whose a packet is. On the servers' side they do so only where the client's
address is kept; elsewhere our port does, as the list of sessions names it (or the client's own port, which the kernel
keeps if it can). What cannot be told apart is counted and called so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mailbalancer.l4.pcap import ACK, FIN, RST, SYN, TCP, UDP, Packet
from mailbalancer.model import Endpoint, PortRange


@dataclass(frozen=True, slots=True)
class Case:
    """Whose packets are looked for.

    Attributes:
        doors: where clients find the service.
        machines: name of a real server by the hardware address of its frames (of its tunnel's end).
        ours: addresses of this machine, and in `own_macs` those of its interfaces.
        past_us: real servers answer clients themselves (dsr, tunnel).
        ports: our ports towards servers, in the client's sessions; empty: none is known.
    """

    service: str
    client: str
    doors: tuple[PortRange, ...]
    servers: Mapping[Endpoint, str]
    machines: Mapping[str, str] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    own_macs: frozenset[str] = frozenset()
    past_us: bool = False
    ports: frozenset[int] = frozenset()

    def is_door(self, address: str, port: int) -> bool:
        return any(d.address in (address, "0.0.0.0", "::") and d.first <= port <= d.last for d in self.doors)


class Key(NamedTuple):
    """One connection on one side: who opened it, to whom; `server` is empty on the client's side."""

    server: str
    source: str
    port: int
    target: Endpoint


@dataclass(slots=True)
class Flow:
    """What was seen of it."""

    protocol: int
    began_at: float
    syns: int = 0
    answered_at: float = 0.0
    refused: bool = False
    there: int = 0  # packets, and bytes below
    back: int = 0
    bytes_there: int = 0
    bytes_back: int = 0
    again: int = 0  # segments with bytes that had been seen before, towards the target
    again_back: int = 0
    ended_by: str = ""
    _seen: set[tuple[bool, int]] = field(default_factory=set)

    def take(self, packet: Packet, there: bool) -> None:
        if there:
            self.there += 1
        else:
            self.back += 1
        if packet.protocol == TCP:
            self._segment(packet, there)
        if self._is_new(packet, there):
            if there:
                self.bytes_there += packet.payload
            else:
                self.bytes_back += packet.payload

    def _segment(self, packet: Packet, there: bool) -> None:
        if packet.flags & SYN and there:
            self.syns += 1
        elif packet.flags & SYN and packet.flags & ACK and not self.answered_at:
            self.answered_at = packet.at
        elif packet.flags & RST and not there and not self.answered_at:
            self.refused = True
        if packet.flags & (FIN | RST) and not self.ended_by and not self.refused:
            self.ended_by = "there" if there else "back"

    def _is_new(self, packet: Packet, there: bool) -> bool:
        if packet.protocol != TCP or not packet.payload:
            return True
        mark = (there, packet.sequence)
        if mark in self._seen:
            if there:
                self.again += 1
            else:
                self.again_back += 1
            return False
        self._seen.add(mark)
        return True

    @property
    def came_about(self) -> bool:
        return bool(self.answered_at) if self.protocol == TCP else bool(self.back)


@dataclass(slots=True)
class Sorted:
    """All packets of a capture, each where it belongs."""

    case: Case
    near: dict[Key, Flow] = field(default_factory=dict)  # the client's side
    passed: dict[Key, Flow] = field(default_factory=dict)  # frames that went on to a server (dsr, tunnel)
    behind: dict[Key, Flow] = field(default_factory=dict)  # the servers' side
    strays: dict[str, int] = field(default_factory=dict)  # answers that should not pass here, by who sent them
    errors: dict[tuple[str, str, str, int], int] = field(default_factory=dict)

    def take(self, packet: Packet) -> None:
        if packet.error:
            self._error(packet)
        elif packet.protocol in (TCP, UDP):
            self._sort(packet)

    def _error(self, packet: Packet) -> None:
        about = set(packet.about)
        servers = {endpoint.host for endpoint in self.case.servers}
        if self.case.client in about or about & servers:
            key = (packet.source, packet.error, packet.about[1], packet.mtu)
            self.errors[key] = self.errors.get(key, 0) + 1

    def _sort(self, packet: Packet) -> None:
        case = self.case
        source = Endpoint(packet.source, packet.source_port)
        target = Endpoint(packet.destination, packet.destination_port)
        if source.host == case.client and case.is_door(target.host, target.port):
            self._from_client(packet, target)
        elif target.host == case.client and case.is_door(source.host, source.port):
            self._to_client(packet, source)
        elif target in case.servers:
            self._take(self.behind, Key(case.servers[target], source.host, source.port, target), packet, there=True)
        elif source in case.servers:
            self._take(self.behind, Key(case.servers[source], target.host, target.port, source), packet, there=False)

    def _from_client(self, packet: Packet, target: Endpoint) -> None:
        case = self.case
        if case.past_us and packet.from_mac in case.own_macs:
            server = case.machines.get(packet.to_mac, packet.to_mac)
            self._take(self.passed, Key(server, packet.source, packet.source_port, target), packet, there=True)
        else:
            self._take(self.near, Key("", packet.source, packet.source_port, target), packet, there=True)

    def _to_client(self, packet: Packet, source: Endpoint) -> None:
        case = self.case
        if case.past_us and packet.from_mac not in case.own_macs:
            sender = case.machines.get(packet.from_mac, packet.from_mac)
            self.strays[sender] = self.strays.get(sender, 0) + 1
        key = Key("", packet.destination, packet.destination_port, source)
        self._take(self.near, key, packet, there=False)

    def _take(self, flows: dict[Key, Flow], key: Key, packet: Packet, *, there: bool) -> None:
        if key not in flows and packet.protocol == TCP and not packet.flags & SYN and not there:
            return  # of a connection that was there before
        flow = flows.setdefault(key, Flow(packet.protocol, packet.at))
        flow.take(packet, there)

    def is_clients(self, key: Key) -> bool:
        """Whether a connection on the servers' side is known to be this client's."""
        own_ports = {near.port for near in self.near}
        return key.source == self.case.client or key.port in self.case.ports or key.port in own_ports

    def belongs(self, packet: Packet) -> bool:
        """Whether a packet is one of the client's, or may be: for the file that is kept."""
        if packet.error or self.case.client in (packet.source, packet.destination):
            return True
        source, target = (
            Endpoint(packet.source, packet.source_port),
            Endpoint(packet.destination, packet.destination_port),
        )
        for ours, server in ((source, target), (target, source)):
            if server in self.case.servers:
                return self.is_clients(Key(self.case.servers[server], ours.host, ours.port, server)) or not self.known
        return False

    @property
    def known(self) -> bool:
        """Whether any connection on the servers' side is known to be this client's."""
        return any(self.is_clients(key) for key in self.behind)


def sort(case: Case, packets: Iterable[Packet]) -> Sorted:
    """Every packet where it belongs."""
    found = Sorted(case)
    for packet in packets:
        found.take(packet)
    return found


def sentences(found: Sorted, seconds: float) -> list[str]:
    """What was seen, in the order of the way; the last sentence is what to do, where there is something to do."""
    case = found.case
    if not found.near:
        nothing = f"nothing came from {case.client} to {_doors(case)} in {seconds:.0f} s"
        return [nothing, "it did not try, looks for the service elsewhere (DNS), or is stopped on its way here"]
    lines = list(_near_side(found))
    lines += _passed_on(found) if case.past_us else _behind(found)
    lines += [_error_words(key, count) for key, count in found.errors.items()]
    return lines + _conclusion(found)


# ---------------------------------------------------------------- the client's side


def _near_side(found: Sorted) -> Iterator[str]:
    case = found.case
    for target in dict.fromkeys(key.target for key in found.near):
        flows = [flow for key, flow in found.near.items() if key.target == target]
        if flows[0].protocol == UDP:
            yield f"{_datagrams(flows)} came from {case.client} to {target}, {sum(f.back for f in flows)} went back"
            continue
        begun = [flow for flow in flows if flow.syns]
        if len(begun) < len(flows):
            yield f"{_count(len(flows) - len(begun), 'connection')} from {case.client} to {target} had begun before"
        yield from _opened(begun, f"{case.client} to {target}", silent_is_normal=case.past_us)


def _opened(flows: list[Flow], way: str, *, silent_is_normal: bool) -> Iterator[str]:
    about = [flow for flow in flows if flow.came_about]
    refused = [flow for flow in flows if flow.refused]
    silent = [flow for flow in flows if not flow.came_about and not flow.refused]
    if about:
        sizes = f"{sum(f.bytes_there for f in about)} bytes there, {sum(f.bytes_back for f in about)} back"
        yield f"{_count(len(about), 'connection')} from {way} came about; {sizes}{_repeated(about)}"
    if refused:
        yield f"{_count(len(refused), 'connection')} from {way} refused (RST)"
    if silent and silent_is_normal:
        yield f"SYN from {way} came {_times(silent)}"
    elif silent:
        yield f"SYN from {way} came {_times(silent)}, no answer went back"


def _repeated(flows: list[Flow]) -> str:
    there, back = sum(flow.again for flow in flows), sum(flow.again_back for flow in flows)
    said = [
        f"{_count(number, 'segment')} {way} sent again" for number, way in ((there, "there"), (back, "back")) if number
    ]
    return f"; {' and '.join(said)}" if said else ""


# ---------------------------------------------------------------- the servers' side


def _behind(found: Sorted) -> list[str]:
    lines: list[str] = []
    for server in dict.fromkeys(key.server for key in found.behind if found.is_clients(key)):
        flows = {key: flow for key, flow in found.behind.items() if key.server == server and found.is_clients(key)}
        for source in dict.fromkeys(key.source for key in flows):
            of_source = [flow for key, flow in flows.items() if key.source == source]
            lines += _to_server(found.case, _named(server, flows), _whose(found.case, source), of_source)
    others = [key for key in found.behind if not found.is_clients(key) and found.behind[key].there]
    if others and not lines:
        said = _count(len(others), "connection")
        lines.append(f"{said} of the balancer to real servers; which are of {found.case.client} is not known")
        silent = [found.behind[k] for k in others if not found.behind[k].came_about and not found.behind[k].refused]
        if silent:
            lines.append(f"SYN to real servers sent {_times(silent)} by the balancer, no answer came back here")
    return lines


def _to_server(case: Case, server: str, whose: str, flows: list[Flow]) -> Iterator[str]:
    if flows[0].protocol == UDP:
        yield f"{_datagrams(flows)} sent to {server} with {whose}, {sum(f.back for f in flows)} came back"
        return
    about = [flow for flow in flows if flow.came_about]
    refused = [flow for flow in flows if flow.refused]
    silent = [flow for flow in flows if flow.syns and not flow.came_about and not flow.refused]
    if about:
        sizes = f"{sum(f.bytes_there for f in about)} bytes there, {sum(f.bytes_back for f in about)} back"
        yield f"{server} answered {_count(len(about), 'connection')} with {whose}; {sizes}{_repeated(about)}"
    if refused:
        yield f"{server} refused {_count(len(refused), 'connection')} with {whose} (RST)"
    if silent:
        yield f"SYN to {server} sent {_times(silent)} with {whose}, no answer came back here"


def _whose(case: Case, source: str) -> str:
    return "the client's address" if source == case.client else f"the balancer's address {source}"


def _named(server: str, flows: Mapping[Key, Flow]) -> str:
    return f"{server} {next(iter(flows)).target}"


def _passed_on(found: Sorted) -> list[str]:
    lines: list[str] = []
    for server in dict.fromkeys(key.server for key in found.passed):
        flows = [flow for key, flow in found.passed.items() if key.server == server]
        if flows[0].protocol == UDP:
            lines.append(f"{_datagrams(flows)} passed on to {server}")
        else:
            packets = _count(sum(flow.there for flow in flows), "packet")
            opened = sum(flow.syns for flow in flows)
            said = f"{packets} of {_count(len(flows), 'connection')} passed on to {server}"
            lines.append(f"{said}, SYN {_times(flows)} among them" if opened else said)
    for sender, number in found.strays.items():
        lines.append(f"{_count(number, 'answer')} of {sender} to the client came through here, and must not")
    return lines


# ---------------------------------------------------------------- what to do


def _conclusion(found: Sorted) -> list[str]:
    case = found.case
    ask = f"`mailbalancer explain --client {case.client} --service {case.service}`"
    if case.past_us:
        return _conclusion_past_us(found, ask)
    own = {key: flow for key, flow in found.behind.items() if found.is_clients(key)}
    silent = _silent(own)
    if not found.behind:
        return [f"nothing went on to a real server: none is ready, or {case.client} is kept out; see {ask}"]
    if any(key.source == case.client for key in silent):
        return [f"the real server answers another way: its gateway must be the balancer; see {ask}"]
    if silent:
        return ["the real server is off, or a firewall before it drops what the balancer sends"]
    stuck = [flow for flow in own.values() if flow.came_about and flow.again >= 3]
    if stuck or any(mtu for _, _, _, mtu in found.errors):
        return ["what is large does not arrive: a smaller MTU on the way, and ICMP that is filtered"] if stuck else []
    return []


def _silent(flows: Mapping[Key, Flow]) -> list[Key]:
    """Connections that were asked for and not answered; datagrams only where none was: single ones get lost."""
    answered = any(flow.came_about for flow in flows.values())
    return [
        key
        for key, flow in flows.items()
        if not flow.came_about and not flow.refused and (flow.syns or (flow.protocol == UDP and not answered))
    ]


def _conclusion_past_us(found: Sorted, ask: str) -> list[str]:
    if found.strays:
        return ["the real server's gateway is the balancer: with dsr and tunnel it must be another router"]
    if not found.passed:
        return [f"nothing went on to a real server: none is ready, or {found.case.client} is kept out; see {ask}"]
    tried = [key.server for key, flow in found.passed.items() if flow.syns > 1 and flow.there == flow.syns]
    if tried:
        names = ", ".join(dict.fromkeys(tried))
        return [f"the client asks again, so no answer of {names} reaches it: is the service's address on its loopback?"]
    return []


def _error_words(key: tuple[str, str, str, int], count: int) -> str:
    sender, error, about, mtu = key
    fits = f", {mtu} bytes fit" if mtu else ""
    times = f" ({count} times)" if count > 1 else ""
    return f"{sender} says of packets to {about}: {error}{fits}{times}"


def _doors(case: Case) -> str:
    return " or ".join(map(str, case.doors))


def _times(flows: list[Flow]) -> str:
    """How often they asked for a connection."""
    number = sum(flow.syns for flow in flows)
    times = "once" if number == 1 else f"{number} times"
    return times if len(flows) == 1 else f"{times} for {len(flows)} connections"


def _datagrams(flows: list[Flow]) -> str:
    return _count(sum(flow.there for flow in flows), "datagram")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
