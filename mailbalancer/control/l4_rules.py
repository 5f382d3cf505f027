"""What the kernel is to be told, from the configuration, the network as it is, and what is known of real servers.

Decides: which clients are near, which interfaces are guarded, what has a number, and the servers' shares in the rules.
Refuses to know: how shares come about and when rules change (`l4_engine`), and how rules look (`l4.render`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from mailbalancer.balance.candidate import CLOSED
from mailbalancer.control.gateway_probe import FAR
from mailbalancer.control.host_plan import (
    IP_TUNNELS,
    TUNNEL_DEVICES,
    VXLAN_NUMBER,
    tunnel_device,
    tunnel_devices,
)
from mailbalancer.control.members import Members, Record
from mailbalancer.errors import MailbalancerError
from mailbalancer.l4.numbers import Numbers
from mailbalancer.l4.render import tables
from mailbalancer.l4.ruleset import (
    ForwardedService,
    Guard,
    Near,
    Outbound,
    Persistence,
    PortRange,
    Protocol,
    Ruleset,
    Server,
    Spread,
)
from mailbalancer.l4.tables import script
from mailbalancer.model import Config, Forward, IPNetwork, MemberKey, Schedule, Service
from mailbalancer.network import IPAddress, Network

_SPREADS = {Schedule.SOURCE_HASH: Spread.SOURCE_HASH, Schedule.ROUND_ROBIN: Spread.IN_TURN}
_SPREADS |= {Schedule.WEIGHTED_ROUND_ROBIN: Spread.IN_TURN}


class RulesetBuilder:
    """The ruleset of a configuration in a network.

    Args:
        shares: what each of these members gets of new flows.
        strays: whether a member's answers are known not to come back through us.
        members: None: as if every real server were ready.
    """

    def __init__(
        self,
        config: Config,
        network: Network,
        numbers: Numbers,
        shares: Callable[[Service, list[Record]], list[int]],
        strays: Callable[[MemberKey], bool],
        members: Members | None = None,
    ) -> None:
        self._config = config
        self._network = network
        self._numbers = numbers
        self._shares = shares
        self._strays = strays
        self._members = members

    def ruleset(self) -> Ruleset:
        services = [service for service in self._config.services if service.l4 is not None]
        through = [s for s in services if s.l4 and s.l4.forward is Forward.TUNNEL]
        tunnels = [s.l4.tunnel for s in through if s.l4]
        ends = [m.endpoint.host for s in through if _in_ip(s) for m in s.pool.members]
        probed = any(map(is_transparent, self._config.services))
        return Ruleset(
            services=tuple(map(self._service, services)),
            outbound=tuple(outbound for service in services for outbound in self._outbound(service)),
            guards=guards_of(self._network),
            transparent=any(service.source.use == "client" for service in self._config.services),
            tunnel=VXLAN_NUMBER if not all(map(_in_ip, through)) else 0,
            tunnel_ends=tuple(map(ipaddress.ip_address, dict.fromkeys(ends))),
            tunnel_peers=tuple(peer for tunnel in tunnels for peer in tunnel.allow_peers),
            probes=tuple(self._probes()) if probed else (),
        )

    def _probes(self) -> Iterator[IPAddress]:
        """Where answers to the gateway probe go."""
        named = (address for service in self._config.services for address in service.source.probe_addresses)
        default = (address for addresses in FAR.values() for address in addresses)
        yield from map(ipaddress.ip_address, dict.fromkeys((*named, *default)))
        for _, own in self._network.addresses():
            if not own.ip.is_loopback and not own.ip.is_link_local:
                yield own.ip

    def _service(self, service: Service) -> ForwardedService:
        l4, pool = service.l4, service.pool
        assert l4 is not None
        return ForwardedService(
            number=self._numbers[service.name],
            protocol=Protocol(l4.protocol),
            listen=tuple(PortRange(ipaddress.ip_address(p.address), p.first, p.last) for p in l4.listen),
            forward=l4.forward,
            servers=self._servers(service),
            spread=_SPREADS.get(pool.schedule, Spread.RANDOM),
            persist=self._persistence(service),
            allow=service.allow,
            deny=service.deny,
            snat_address=ipaddress.ip_address(l4.snat_address) if l4.snat_address else None,
            near=self._near(service),
            devices=tuple(guard.device for guard in guards_of(self._network)) if passes_us(service) else (),
        )

    def _persistence(self, service: Service) -> Persistence | None:
        persist = service.pool.persist
        if persist is None:
            return None
        return Persistence(
            self._numbers[f"group {persist.group}"], max(1, round(persist.timeout_s)), persist.max_entries
        )

    def _servers(self, service: Service) -> tuple[Server, ...]:
        pool = service.pool
        if self._members is None:
            return tuple(self._server(service, pool.key(member), 1, None) for member in pool.members)
        records = [self._members[pool.key(member)] for member in pool.members]
        given = self._shares_by_family(service, records)
        return tuple(self._server(service, r.key, given[r.key], r) for r in records)

    def _shares_by_family(self, service: Service, records: list[Record]) -> Mapping[MemberKey, int]:
        """A server takes part in its own family only: there is no translation between them."""
        given: dict[MemberKey, int] = {}
        for ipv6 in (False, True):
            part = [record for record in records if record.member.endpoint.is_ipv6 == ipv6]
            given |= {record.key: share for record, share in zip(part, self._shares(service, part), strict=True)}
        return given

    def _server(self, service: Service, key: MemberKey, share: int, record: Record | None) -> Server:
        assert service.l4 is not None
        member = next(m for m in service.pool.members if m.real_server == key.real_server)
        address = ipaddress.ip_address(member.endpoint.host)
        own_port = member.endpoint.port != service.l4.listen[0].first
        return Server(
            number=self._numbers[str(key)],
            machine=self._numbers[f"machine {key.real_server}"],
            address=address,
            port=member.endpoint.port if own_port else 0,
            share=min(share, 1000),
            returning=record is None or record.availability != CLOSED,
            down=record is not None and record.state.health.up is False,
            own_address=service.l4.forward is Forward.TRANSPARENT and self._strays(key),
            device=self._device(service, address),
        )

    def _device(self, service: Service, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
        assert service.l4 is not None
        if service.l4.forward is Forward.TUNNEL:
            return tunnel_device(service.l4.tunnel.encapsulation, address)
        if service.l4.forward is not Forward.DSR:
            return ""
        segment = self._network.segment_of(address)
        if segment is None:
            raise MailbalancerError(
                f"service {service.name}: real server {address} is in no network of this machine, and forward: dsr "
                "reaches only machines on the same segment",
                "give this machine an address in that network, or write forward: tunnel",
            )
        return segment[0].name

    def _near(self, service: Service) -> tuple[Near, ...]:
        """Clients that a server answers directly, past us: those in its own network, and those that are listed."""
        return tuple(Near(self._numbers[place], network) for place, network in near_places(service).items())

    def _outbound(self, service: Service) -> Iterable[Outbound]:
        assert service.l4 is not None
        if not service.l4.masquerade_outbound:
            return
        address = ipaddress.ip_address(service.l4.masquerade_outbound)
        servers = [ipaddress.ip_address(m.endpoint.host) for m in service.pool.members]
        own = tuple(dict.fromkeys(server for server in servers if server.version == address.version))
        segments = [self._network.segment_of(server) for server in own]
        if own:
            yield Outbound(own, tuple(dict.fromkeys(found[1] for found in segments if found)), address)


def examined_script(config: Config, network: Network) -> str:
    """The rules of a configuration as if every real server were ready, for nft to look at and for people to read."""
    services = tuple(with_neighbours(s, network) for s in config.services if not _waits_for_device(s, network))
    examined = replace(config, services=services)
    numbers = Numbers()
    numbers.follow(names(examined))
    builder = RulesetBuilder(examined, network, numbers, lambda service, records: [], lambda key: False)
    return script(tables(builder.ruleset()), None)


def guards_of(network: Network) -> tuple[Guard, ...]:
    """Every interface on which frames with addresses of ours could come in."""
    return tuple(
        Guard(interface.name, interface.mac)
        for interface in network.interfaces
        if interface.mac and interface.up and interface.name not in TUNNEL_DEVICES.values()
    )


def is_transparent(service: Service) -> bool:
    """Whether its real servers see clients' addresses and must answer through us."""
    return service.source.use == "client" or (service.l4 is not None and service.l4.forward is Forward.TRANSPARENT)


def passes_us(service: Service) -> bool:
    """Whether its real servers answer clients themselves, with the service's address."""
    return service.l4 is not None and service.l4.forward in (Forward.DSR, Forward.TUNNEL)


def with_neighbours(service: Service, network: Network) -> Service:
    """Clients in a real server's own network are answered past us."""
    if not is_transparent(service):
        return service
    servers = (ipaddress.ip_address(m.endpoint.host) for pool in service.pools() for m in pool.members)
    near = tuple(dict.fromkeys(found[1] for server in servers if (found := network.segment_of(server))))
    return replace(service, source=replace(service.source, near=near))


def _waits_for_device(service: Service, network: Network) -> bool:
    """A rule can name a device only when it is there; that of tunnels is made when the configuration is applied."""
    return any(network.interface(name) is None for name in tunnel_devices(service))


def _in_ip(service: Service) -> bool:
    """Whether a tunnel service has tunnels without frames inside."""
    return service.l4 is not None and service.l4.tunnel.encapsulation in IP_TUNNELS


def near_places(service: Service) -> dict[str, IPNetwork]:
    """Networks whose clients are given our address, by the name under which each is counted."""
    if service.l4 is None or service.l4.forward is not Forward.TRANSPARENT:
        return {}
    networks = dict.fromkeys((*service.source.near, *service.source.balancer_for))
    return {f"near {service.name} {network}": network for network in networks}


def names(config: Config) -> list[str]:
    """Everything that has a number in the kernel."""
    found: list[str] = []
    for service in config.services:
        if service.l4 is None:
            continue
        found.append(service.name)
        found += [str(service.pool.key(member)) for member in service.pool.members]
        found += near_places(service)
        found += [f"machine {member.real_server}" for member in service.pool.members]
        if service.pool.persist is not None:
            found.append(f"group {service.pool.persist.group}")
    return found
