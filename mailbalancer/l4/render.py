"""From what is to be forwarded to nftables objects.

Decides: which chains there are, what each rule says, and in which order the kernel asks.
Refuses to know: how objects become a script (`tables`) and who runs it (`host.nft`).

    inet    new flows of transparent and snat: service chain → persistent client? → share → member chain → dnat.
            The connection carries the member's number as its mark: counters and source translation go by it, and an
            established flow never meets these rules again.
    netdev  dsr and tunnel: frames are sent on as they come in, before the kernel sees a packet for itself. It has no
            connection tracking (answers go another way), so flows are remembered in a map of our own.

A packet that is on its way through the rules while they are replaced goes on through the old ones, but the elements of
an old map without a name are gone for it at once (the kernel takes back what they hold a chain by). So a choice that
must not fail is a rule per way, or has a rule behind it for whom the map missed.

Everything in a rule is a number, an address or an interface name: `ruleset` lets nothing else in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mailbalancer.l4.ruleset import (
    BUCKETS,
    MEMBER_MARK,
    TRANSPARENT_MARK,
    ForwardedService,
    Outbound,
    Persistence,
    PortRange,
    Ruleset,
    Server,
    Spread,
)
from mailbalancer.l4.shares import hashed, turns
from mailbalancer.l4.tables import Chain, Table
from mailbalancer.model import Forward, IPNetwork
from mailbalancer.network import KNOCK_PORTS

#: Before anybody else's dnat (dstnat is -100), after connection tracking (-200).
_NAT_IN = "type nat hook prerouting priority -110; policy accept;"
#: This machine's own connections to a service go where those of others do, so that it can be tried from here.
_NAT_OWN = "type nat hook output priority -110; policy accept;"
_NAT_OUT = "type nat hook postrouting priority 90; policy accept;"
_COUNT = "type filter hook forward priority 10; policy accept;"
_TRANSPARENT = "type filter hook prerouting priority -150; policy accept;"
_PROBED = "type filter hook prerouting priority -310; policy accept;"
_TUNNEL = "type filter hook input priority -10; policy accept;"
_INGRESS = "type filter hook ingress device {device} priority -500; policy accept;"
#: A TCP flow that has begun to end is kept this long, for what is still on its way.
ENDING_S = 120
#: Answers to the gateway probe are remembered this long.
_PROBED_S = 60
_FAMILIES = (4, 6)
_ICMP = {4: "icmp", 6: "icmpv6"}
#: A packet did not fit through somewhere and must not be cut there (RFC 792, RFC 4443 section 3.2).
_TOO_BIG = {4: "icmp type destination-unreachable icmp code frag-needed", 6: "icmpv6 type packet-too-big"}
_NUMBER = {"tcp": 6, "udp": 17}
#: IP in IP (RFC 2003, RFC 2473).
_IN_IP = {4: 4, 6: 41}


@dataclass(frozen=True, slots=True)
class _Inner:
    """Where, behind an ICMP header of 8 bytes, the packet is that it speaks of: offsets and lengths in bits."""

    protocol: str
    source_port: str
    destination_port: str
    flow: str  # the same fields as `_flow`, seen from the other side


_INNER = {
    4: _Inner("@th,136,8", "@th,224,16", "@th,240,16", "@th,240,16 . @th,224,16 . @th,192,32"),
    6: _Inner("@th,112,8", "@th,384,16", "@th,400,16", "@th,400,16 . @th,384,16 . @th,256,128"),
}


def tables(ruleset: Ruleset) -> tuple[Table, ...]:
    """Our tables; one that would be empty is not there."""
    found = (_inet(ruleset), _netdev(ruleset))
    return tuple(table for table in found if table.chains)


# ---------------------------------------------------------------- transparent and snat


def _inet(ruleset: Ruleset) -> Table:
    services = [service for service in ruleset.services if not service.keeps_address]
    chains: dict[str, Chain] = {}
    if services:
        chains |= _forwarding(services)
        chains["count"] = Chain((*chains["count"].rules, *_noticed(services)), _COUNT)
    if services or ruleset.outbound:
        chains["source_nat"] = Chain((*_source_nat(services), *map(_outbound, ruleset.outbound)), _NAT_OUT)
    for service in services:
        chains |= _service_chains(service)
    if ruleset.transparent or ruleset.probes:
        chains["transparent"] = Chain(tuple(_to_ourselves(ruleset)), _TRANSPARENT)
    tunnels = bool(ruleset.tunnel or ruleset.tunnel_ends)
    if tunnels:
        chains["tunnel"] = Chain(tuple(_strangers(ruleset)), _TUNNEL)
    memory = _tables_of_clients(services)
    if ruleset.probes:
        chains["probed"] = Chain(tuple(_probed(ruleset)), _PROBED)
        memory |= {f"answers_{version}": ("set", _ANSWERS[version]) for version in _FAMILIES}
    members = _members(services)
    counters = [f"{word}_{server.number}" for server in members for word in ("new", "in", "out")]
    counters += [f"own_{service.number}" for service in services if service.forward is Forward.TRANSPARENT]
    counters += [f"too_big_{service.number}" for service in services]
    counters += [f"stray_{service.number}" for service in services if service.forward is Forward.TRANSPARENT]
    counters += ["tunnel_strangers", "tunnel_too_big"] if tunnels else []
    counters += [f"near_{near.number}" for service in services for near in service.near]
    fixed = {
        f"count_{word}": ("{ type mark : counter; }", tuple(f'0x{s.mark:08x} : "{word}_{s.number}"' for s in members))
        for word in ("in", "out")
        if services
    }
    return Table("inet", tuple(counters), memory, fixed, chains)


def _forwarding(services: Sequence[ForwardedService]) -> dict[str, Chain]:
    count = (
        "ct direction original counter name ct mark map @count_in",
        "ct direction reply counter name ct mark map @count_out",
    )
    new = _dispatch(services)
    return {
        "forward_new": Chain(new, _NAT_IN),
        "forward_own": Chain(new, _NAT_OWN),
        "count": Chain(count, _COUNT),
    }


def _noticed(services: Sequence[ForwardedService]) -> Iterator[str]:
    """What passes and is worth a word: packets that do not fit somewhere, and answers to nothing that came through us.
    What is rare is asked first, for every packet is asked.

    Such an answer is an invalid packet to connection tracking: a server behind us was reached past us.
    """
    for service in services:
        for family in _families(service):
            servers = [server for server in service.servers if server.address.version == family]
            if not servers:
                continue
            told = f"ct state related {_TOO_BIG[family]}"
            yield f"{told} {_marked(servers, family)} counter name too_big_{service.number}"
            if service.forward is Forward.TRANSPARENT:
                whose = ", ".join(dict.fromkeys(str(server.address) for server in servers))
                answer = "ct state invalid tcp flags & (syn | ack) == syn | ack"
                yield f"{answer} {_ip(family)} saddr {{ {whose} }} counter name stray_{service.number}"


def _dispatch(services: Sequence[ForwardedService]) -> tuple[str, ...]:
    """Whether a packet is for an address of ours at all, and then a rule per port to the chain of its service."""
    rules: list[str] = []
    for family in _families(*services):
        own = [(s, port) for s in services for port in s.listen if port.address.version == family]
        addresses = dict.fromkeys(str(port.address) for _, port in own)
        rules.append(f"{_ip(family)} daddr != {{ {', '.join(addresses)} }} return")
        for service, port in own:
            what = f"{_ip(family)} daddr {port.address} {service.protocol} dport {_ports(port)}"
            rules.append(f"{what} goto {_service_chain(service, family)}")
    return tuple(rules)


def _service_chains(service: ForwardedService) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    for family in _families(service):
        servers = [server for server in service.servers if server.address.version == family]
        rules = [
            *_admission(service, family),
            *_returning(service, servers, family),
            *_spread(service, servers, family),
        ]
        chains[_service_chain(service, family)] = Chain(tuple(rules))
        for server in servers:
            chains |= _member(service, server)
    return chains


def _admission(service: ForwardedService, family: int) -> list[str]:
    source = f"{_ip(family)} saddr"
    rules = []
    denied, allowed = _networks(service.deny, family), _networks(service.allow, family)
    if denied:
        rules.append(f"{source} {denied} drop")
    if service.allow:
        rules.append(f"{source} != {allowed} drop" if allowed else "drop")
    return rules


def _returning(service: ForwardedService, servers: Sequence[Server], family: int) -> list[str]:
    """A client that is known goes back to its machine, if that may have it."""
    open_again = [server for server in servers if server.returning]
    if service.persist is None or not open_again:
        return []
    return [
        f"ct mark set {_ip(family)} saddr map @{_clients(service.persist, family)}",
        *(f"ct mark 0x{server.machine_mark:08x} goto again_{server.number}" for server in open_again),
    ]


def _spread(service: ForwardedService, servers: Sequence[Server], family: int) -> list[str]:
    """A new flow takes a share; with nobody to take it the packet goes on, and is refused by who gets it."""
    shares = [server.share for server in servers]
    if not any(shares):
        return []
    match service.spread:
        case Spread.SOURCE_HASH:
            order = hashed([server.machine for server in servers], shares)
            key = f"jhash {_ip(family)} saddr mod {BUCKETS} seed 0x6d62"
        case Spread.IN_TURN:
            order = turns(shares)
            key = f"numgen inc mod {len(order)}"
        case Spread.RANDOM:
            order = [index for index, share in enumerate(shares) for _ in range(share)]
            key = f"numgen random mod {len(order)}"
    if len(set(order)) == 1:
        return [f"goto member_{servers[order[0]].number}"]
    ways = (f"{_range(first, last)} : goto member_{servers[index].number}" for first, last, index in _runs(order))
    most = servers[shares.index(max(shares))]
    return [f"{key} vmap {{ {', '.join(ways)} }}", f"goto member_{most.number}"]


def _member(service: ForwardedService, server: Server) -> dict[str, Chain]:
    """What happens to a flow that is this server's."""
    family = server.address.version
    target = str(server.address)
    if server.port:
        target = f"[{target}]:{server.port}" if family == 6 else f"{target}:{server.port}"
    rules = (
        f"ct mark set 0x{server.mark:08x} counter name new_{server.number}",
        f"meta l4proto {service.protocol} dnat {_ip(family)} to {target}",
    )
    return _with_memory(service, server, rules)


def _with_memory(service: ForwardedService, server: Server, rules: tuple[str, ...]) -> dict[str, Chain]:
    """The chain for a new client of this server, and the one for a client that comes again.

    Only for a new one is the entry made anew, because `update` would leave an old machine in place. Entries that are
    deleted stay in the kernel's table for a second, and too many with one key make it refuse the next.
    """
    number = server.number
    if service.persist is None:
        return {f"member_{number}": Chain(rules)}
    entry = f"{_ip(server.address.version)} saddr"
    clients, mark = _clients(service.persist, server.address.version), f"0x{server.machine_mark:08x}"
    lasts = f"{entry} timeout {service.persist.timeout_s}s : {mark}"
    new = (f"delete @{clients} {{ {entry} : {mark} }}", f"add @{clients} {{ {lasts} }}")
    return {
        f"member_{number}": Chain((*new, f"goto chosen_{number}")),
        f"again_{number}": Chain((f"update @{clients} {{ {lasts} }}", f"goto chosen_{number}")),
        f"chosen_{number}": Chain(rules),
    }


def _source_nat(services: Sequence[ForwardedService]) -> list[str]:
    return [rule for service in services for family in _families(service) for rule in _translated(service, family)]


def _translated(service: ForwardedService, family: int) -> list[str]:
    """Whose flows leave with an address of ours: all of snat, of transparent those that would not come back."""
    servers = [server for server in service.servers if server.address.version == family]
    if service.forward is Forward.SNAT:
        address = service.snat_address
        named = address is not None and address.version == family
        if not servers:
            return []
        return [f"{_marked(servers, family)} {f'snat {_ip(family)} to {address}' if named else 'masquerade'}"]
    always = [server for server in servers if server.own_address]
    rules = [f"{_marked(always, family)} counter name own_{service.number} masquerade"] if always else []
    narrowest = sorted(service.near, key=lambda near: -near.network.prefixlen)
    for near in narrowest if servers else ():
        if near.network.version == family:
            clients = f"{_marked(servers, family)} {_ip(family)} saddr {near.network}"
            rules.append(f"{clients} counter name near_{near.number} masquerade")
    return rules


def _marked(servers: Sequence[Server], family: int) -> str:
    marks = ", ".join(f"0x{server.mark:08x}" for server in servers)
    return f"meta nfproto ipv{family} ct mark {{ {marks} }}"


def _outbound(outbound: Outbound) -> str:
    """The servers' own connections. Ours to them carry a mark, and never come here with a server as source."""
    family = outbound.servers[0].version
    servers = ", ".join(str(address) for address in outbound.servers)
    near = _networks(outbound.near, family)
    elsewhere = f" {_ip(family)} daddr != {near}" if near else ""
    action = f"snat {_ip(family)} to {outbound.address}" if outbound.address else "masquerade"
    unmarked = f"ct mark & 0xffff0000 != 0x{MEMBER_MARK:08x}"
    return f"{_ip(family)} saddr {{ {servers} }}{elsewhere} {unmarked} {action}"


def _tables_of_clients(services: Iterable[ForwardedService]) -> dict[str, tuple[str, str]]:
    return {
        _clients(service.persist, family): (
            "map",
            f"{{ type {_kind(family)} : mark; flags dynamic,timeout; size {service.persist.size}; }}",
        )
        for service in services
        if service.persist is not None
        for family in _families(service)
    }


# ---------------------------------------------------------------- layer 7 with clients' addresses


def _to_ourselves(ruleset: Ruleset) -> Iterator[str]:
    """Answers to a client whose address a session of ours uses: routed here by this mark.

    Looking for the session costs every packet that is forwarded, so it is done for the gateway probe's addresses alone
    where there are no such sessions.
    """
    found = f"socket transparent 1 meta mark set 0x{TRANSPARENT_MARK:08x}"
    if ruleset.transparent:
        yield f"meta l4proto tcp {found}"
        return
    for family, probes in _probes(ruleset):
        yield f"{_ip(family)} daddr {probes} meta l4proto tcp {found}"


def _probes(ruleset: Ruleset) -> Iterator[tuple[int, str]]:
    """The addresses that the gateway probe connects from, by family."""
    for family in _FAMILIES:
        probes = ", ".join(dict.fromkeys(str(probe) for probe in ruleset.probes if probe.version == family))
        if probes:
            yield family, f"{{ {probes} }}"


def _strangers(ruleset: Ruleset) -> Iterator[str]:
    """What somebody sends into our tunnels (RFC 7348 section 5: the number lies behind the UDP header), and what does
    not fit on the way to their ends. Other tunnels of this machine are none of ours."""
    frames = f"udp dport 4789 @th,96,24 {ruleset.tunnel}"
    for family in _FAMILIES:
        peers, inner = _networks(ruleset.tunnel_peers, family), _INNER[family]
        strangers = f" {_ip(family)} saddr != {peers}" if peers else ""
        ends = ", ".join(str(end) for end in ruleset.tunnel_ends if end.version == family)
        ours = {frames: f"{inner.protocol} 17 {inner.destination_port} 4789"} if ruleset.tunnel else {}
        if ends:
            ours[f"meta l4proto {_IN_IP[family]} {_ip(family)} saddr {{ {ends} }}"] = (
                f"{inner.protocol} {_IN_IP[family]}"
            )
        for what, too_big in ours.items():
            yield f"meta nfproto ipv{family} {what}{strangers} counter name tunnel_strangers drop"
            yield f"{_TOO_BIG[family]} {too_big} counter name tunnel_too_big"


_ANSWERS = {
    family: f"{{ type {kind} . inet_service . ether_addr; flags dynamic,timeout; size 1024; }}"
    for family, kind in ((4, "ipv4_addr"), (6, "ipv6_addr"))
}


def _probed(ruleset: Ruleset) -> Iterator[str]:
    """Write down through whose hands the answer to a probe came: one rule a family, for every packet is asked."""
    for family, probes in _probes(ruleset):
        key = f"{_ip(family)} saddr . tcp dport . ether saddr timeout {_PROBED_S}s"
        yield f"tcp flags & (syn | ack) == syn | ack {_ip(family)} daddr {probes} update @answers_{family} {{ {key} }}"


# ---------------------------------------------------------------- dsr and tunnel


def _netdev(ruleset: Ruleset) -> Table:
    services = [service for service in ruleset.services if service.keeps_address]
    if not services:
        return Table("netdev")
    chains: dict[str, Chain] = {}
    for at, guard in enumerate(ruleset.guards):
        here = [service for service in services if guard.device in service.devices]
        if here:
            # in this order: most frames are for nobody of ours, and most of ours belong to a service
            rules = (*_loops(at, guard.mac, here), *_dispatch(here), *_too_big(here))
            chains[f"ingress_{at}"] = Chain(rules, _INGRESS.format(device=f'"{guard.device}"'))
            chains |= {f"from_us_{at}_{family}": _from_us(at, family) for family in _families(*here)}
    for service in services:
        chains |= _frame_chains(service)
    counters = [f"{word}_{server.number}" for server in _members(services) for word in ("new", "in")]
    counters += [f"{word}_{at}" for at in range(len(ruleset.guards)) for word in ("own_mac", "own_address")]
    counters += [f"too_big_{service.number}" for service in services]
    memory = {
        _flows(service, family): ("map", _flow_map(service)) for service in services for family in _families(service)
    }
    return Table("netdev", tuple(counters), memory | _tables_of_clients(services), {}, chains)


def _loops(at: int, mac: str, services: Sequence[ForwardedService]) -> list[str]:
    """What claims to come from us, came from us and is going round, or is an answer that should not pass here."""
    rules = [f"ether saddr {mac} counter name own_mac_{at} drop"]
    for family in _families(*services):
        addresses = dict.fromkeys(str(p.address) for s in services for p in s.listen if p.address.version == family)
        rules.append(f"{_ip(family)} saddr {{ {', '.join(addresses)} }} goto from_us_{at}_{family}")
    return rules


def _from_us(at: int, family: int) -> Chain:
    """What has an address of ours as its source goes no further; answers to our knocks are no answers that stray."""
    ports = _range(KNOCK_PORTS[0], KNOCK_PORTS[-1])
    knocked = f"meta l4proto {{ tcp, udp }} th dport {ports} drop"  # who knocked has heard it
    return Chain((knocked, f"{_ICMP[family]} type echo-reply drop", f"counter name own_address_{at} drop"))


def _too_big(services: Iterable[ForwardedService]) -> Iterator[str]:
    """A router on the way from a server to a client lets no packet of that size through. It tells the address that the
    packet came from, which is ours; the one who has to know is the server."""
    for service in services:
        for port in service.listen:
            family = port.address.version
            inner = f"{_INNER[family].protocol} {_NUMBER[service.protocol]} {_INNER[family].source_port} {_ports(port)}"
            what = f"{_ip(family)} daddr {port.address} {_TOO_BIG[family]} {inner}"
            yield f"{what} counter name too_big_{service.number} goto too_big_{service.number}_{family}"


def _frame_chains(service: ForwardedService) -> dict[str, Chain]:
    chains: dict[str, Chain] = {}
    for family in _families(service):
        servers = [server for server in service.servers if server.address.version == family]
        # a TCP flow of a dead server is dead with it; of UDP only the client's port is the same, so it goes elsewhere
        living = [server for server in servers if service.protocol == "tcp" or not server.down]
        rules = []
        if living:
            rules += [_flow(family), f"meta mark set meta mark map @{_flows(service, family)}"]
            rules += [f"meta mark 0x{server.mark:08x} goto known_{server.number}" for server in living]
        rules += _admission(service, family)
        rules += [rule.replace("ct mark", "meta mark") for rule in _returning(service, servers, family)]
        rules += _spread(service, servers, family)
        chains[_service_chain(service, family)] = Chain((*rules, "drop"))
        told = (
            f"meta mark set jhash {_INNER[family].flow} mod 4294967295 seed 0x6d62",
            f"meta mark set meta mark map @{_flows(service, family)}",
            *(f"meta mark 0x{server.mark:08x} goto send_{server.number}" for server in living),
            "meta mark set 0",
        )
        chains[f"too_big_{service.number}_{family}"] = Chain(told)
        for server in servers:
            chains |= _frame_member(service, server)
    return chains


def _frame_member(service: ForwardedService, server: Server) -> dict[str, Chain]:
    family = server.address.version
    flows, mark, go_on = _flows(service, family), f"0x{server.mark:08x}", f"goto send_{server.number}"
    lasts = f"update @{flows} {{ meta mark timeout {service.idle_s}s : {mark} }}"
    ends = f"tcp flags & (fin | rst) != 0 update @{flows} {{ meta mark timeout {ENDING_S}s : {mark} }} {go_on}"
    new = [
        _flow(family),
        f"delete @{flows} {{ meta mark : {mark} }}",
        f"add @{flows} {{ meta mark timeout {service.idle_s}s : {mark} }}",
        f"counter name new_{server.number}",
        go_on,
    ]
    send = (
        f"meta mark set 0 counter name in_{server.number}",
        f'fwd {_ip(family)} to {server.address} device "{server.device}"',
    )
    known = [_flow(family), *([ends] if service.protocol == "tcp" else []), lasts, go_on]
    chains = {f"known_{server.number}": Chain(tuple(known)), f"send_{server.number}": Chain(send)}
    return _with_memory(service, server, tuple(new)) | chains


def _flow_map(service: ForwardedService) -> str:
    return f"{{ type mark : mark; flags dynamic,timeout; size {service.max_flows}; }}"


def _flow(family: int) -> str:
    """The mark of a packet becomes what stands for its flow. A hash, because nft 1.0 writes over the end of keys longer
    than 16 bytes; two flows with one hash share a server and nothing else."""
    key = f"th sport . th dport . {_ip(family)} saddr"
    return f"meta mark set jhash {key} mod 4294967295 seed 0x6d62"


# ---------------------------------------------------------------- names and words


def _members(services: Iterable[ForwardedService]) -> list[Server]:
    """Servers that can be reached at all: those of a family that the service listens in."""
    return [s for service in services for s in service.servers if s.address.version in _families(service)]


def _families(*services: ForwardedService) -> list[int]:
    present = {port.address.version for service in services for port in service.listen}
    return [family for family in _FAMILIES if family in present]


def _service_chain(service: ForwardedService, family: int) -> str:
    return f"service_{service.number}_{family}"


def _clients(persist: Persistence, family: int) -> str:
    return f"clients_{persist.group}_{persist.size}_{family}"


def _flows(service: ForwardedService, family: int) -> str:
    return f"flows_{service.number}_{service.max_flows}_{family}"


def _ip(family: int) -> str:
    return "ip" if family == 4 else "ip6"


def _kind(family: int) -> str:
    return "ipv4_addr" if family == 4 else "ipv6_addr"


def _ports(port: PortRange) -> str:
    return _range(port.first, port.last)


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _networks(networks: Iterable[IPNetwork], family: int) -> str:
    """A set without parts that lie in others (nft refuses overlaps); empty when there is none of this family."""
    own = [network for network in networks if network.version == family]
    apart = sorted(n for n in set(own) if not any(n != o and n.subnet_of(o) for o in own))  # type: ignore[arg-type]
    return f"{{ {', '.join(map(str, apart))} }}" if apart else ""


def _runs(order: Sequence[int]) -> list[tuple[int, int, int]]:
    """Stretches of equal neighbours: first, last, value."""
    runs: list[tuple[int, int, int]] = []
    for at, value in enumerate(order):
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], at, value)
        else:
            runs.append((at, at, value))
    return runs
