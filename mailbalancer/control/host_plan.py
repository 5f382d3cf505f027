"""What this configuration needs of the machine beside nftables rules: addresses, forwarding, routes, tunnel devices.

Decides: the smallest change that lets the configured services work, in the order in which it is made; and which service
cannot work in this network at all.
Refuses to know: how a step is done (`host.steps`). Nothing is changed here: `host plan` shows the same list.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2s
from typing import TypeVar

from mailbalancer.errors import MailbalancerError
from mailbalancer.host.network import can_listen_on
from mailbalancer.host.privileges import CAP_NET_ADMIN, CAP_NET_RAW
from mailbalancer.host.steps import Address, Forwarding6, IpTunnel, LocalRoute, Rule, Step, Sysctl, TunnelEnd, Vxlan
from mailbalancer.l4.ruleset import TRANSPARENT_MARK
from mailbalancer.model import Config, Forward, Service
from mailbalancer.network import Interface, IPAddress, Network

Kind = TypeVar("Kind", bound=Step)

TABLE = 27746
RULE_PRIORITY = 2774
TUNNEL_DEVICES = {4: "mbvxlan4", 6: "mbvxlan6"}
VXLAN_NUMBER = 27746
VXLAN_PORT = 4789
#: Outer IP, UDP and VXLAN headers and the inner Ethernet one (RFC 7348 section 5).
VXLAN_BYTES = {4: 50, 6: 70}
#: Tunnels without frames inside: what `ip link` calls their devices, the module, and the outer header's bytes.
IP_TUNNELS = {"ipip": ("ipip", "ipip", 20), "ip6ip6": ("ip6tnl", "ip6_tunnel", 40)}


@dataclass(slots=True)
class HostPlan:
    """Steps in order, each once; and what the administrator should know of them."""

    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, step: Step) -> None:
        if step not in self.steps:
            self.steps.append(step)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def needs_host(config: Config) -> bool:
    """Whether this configuration changes the machine wherever it runs."""
    return any(service.l4 is not None or service.source.use == "client" for service in config.services)


def absent_addresses(config: Config) -> tuple[str, ...]:
    """Addresses that services of layer 7 listen on and that are not on this machine now."""
    hosts = dict.fromkeys(endpoint.host for service in config.services for endpoint in service.listen)
    return tuple(host for host in hosts if not can_listen_on(host))


def needed_capabilities(config: Config, changes_host: bool) -> tuple[frozenset[int], frozenset[int]]:
    """What the supervisor and what the workers need beyond ports below 1024, as numbers of capabilities(7)."""
    transparent = any(service.source.use == "client" for service in config.services)
    supervisor = frozenset({CAP_NET_ADMIN, CAP_NET_RAW}) if changes_host else frozenset()
    return supervisor, frozenset({CAP_NET_RAW}) if transparent else frozenset()


def plan(
    config: Config,
    network: Network,
    sysctl: Callable[[str], str],
    in_force: Sequence[Step] = (),
    lacks: Callable[[str], bool] = lambda kind: False,
) -> HostPlan:
    """The steps for all services.

    Args:
        sysctl: the value of a kernel setting now; empty: this kernel does not have it.
        in_force: steps taken earlier. What they found is the state to go back to, not what they made of it.
        lacks: whether the kernel is known to have no devices of this type.

    Raises:
        MailbalancerError: a service cannot work in this network; with the remedy.
    """
    return _Planner(network, sysctl, in_force, lacks).plan(config)


class _Planner:
    def __init__(
        self,
        network: Network,
        sysctl: Callable[[str], str],
        in_force: Sequence[Step],
        lacks: Callable[[str], bool],
    ) -> None:
        self._network = network
        self._sysctl = sysctl
        self._in_force = in_force
        self._lacks = lacks
        self._plan = HostPlan()

    def plan(self, config: Config) -> HostPlan:
        for service in config.services:
            if service.l4 is not None:
                self._addresses(service)
            else:
                self._listened_on(service)
        for service in config.services:
            self._own_sources(service)
            self._probed_from(service)
            if service.l4 is not None and service.l4.forward is Forward.TUNNEL:
                self._tunnel(service)
            elif service.l4 is not None and service.l4.forward is not Forward.DSR:
                self._forwarding(service)
            elif service.source.use == "client":
                self._transparent(service)
        return self._plan

    # addresses

    def _addresses(self, service: Service) -> None:
        assert service.l4 is not None
        for port in service.l4.listen:
            address = ipaddress.ip_address(port.address)
            made = self._made(Address, partial(_is_of, address))
            if made is not None:
                self._plan.add(made)
            elif not self._network.is_ours(address):
                self._plan.add(Address(f"{address}/{address.max_prefixlen}", self._home(service, address)))

    def _listened_on(self, service: Service) -> None:
        """A service of layer 7 gets its address like any other, where its place is plain.

        Where it is not, opening the listener fails, with the remedy.
        """
        for endpoint in service.listen:
            address = ipaddress.ip_address(endpoint.host)
            made = self._made(Address, partial(_is_of, address))
            segment = self._network.segment_of(address)
            if made is not None:
                self._plan.add(made)
            elif segment is not None and not self._network.is_ours(address) and not can_listen_on(endpoint.host):
                self._plan.add(Address(f"{address}/{address.max_prefixlen}", segment[0].name))

    def _home(self, service: Service, address: IPAddress) -> str:
        """The interface that an address belongs on."""
        assert service.l4 is not None
        if service.l4.interface:
            if self._network.interface(service.l4.interface) is None:
                there = ", ".join(interface.name for interface in self._network.interfaces)
                raise MailbalancerError(
                    f"service {service.name}: there is no interface {service.l4.interface}", f"there are: {there}"
                )
            return service.l4.interface
        segment = self._network.segment_of(address)
        if segment is None:
            raise MailbalancerError(
                f"service {service.name}: {address} is in no network of this machine",
                "write `interface:` with the interface on which clients look for it",
            )
        return segment[0].name

    def _own_sources(self, service: Service) -> None:
        """An address that connections leave from must be ours, or their answers go to somebody else."""
        if service.l4 is None:
            return
        added = {ipaddress.ip_interface(step.address).ip for step in self._plan.steps if isinstance(step, Address)}
        for key in ("snat_address", "masquerade_outbound"):
            text: str = getattr(service.l4, key)
            if not text:
                continue
            address = ipaddress.ip_address(text)
            if not self._network.is_ours(address) and address not in added:
                raise MailbalancerError(
                    f"service {service.name}: {key} {address} is not an address of this machine, so answers to it "
                    "would not come back",
                    f"name one that it has or that a service listens on, or add it (`ip address add {text} …`)",
                )

    def _probed_from(self, service: Service) -> None:
        for text in service.source.probe_addresses:
            segment = self._network.segment_of(ipaddress.ip_address(text))
            if segment is not None:
                raise MailbalancerError(
                    f"service {service.name}: probe_address {text} is in {segment[1]}, a network of this machine; "
                    "answers to it come back whatever the real servers' gateway is",
                    "name an address that only routers lead to",
                )

    # forwarding

    def _forwarding(self, service: Service) -> None:
        assert service.l4 is not None
        for version in self._versions(service):
            inward = {
                device for address in self._servers(service, version) if (device := self._way_to(service, address))
            }
            outward = set(self._outward(service, version))
            self._forward_on(version, sorted(inward | outward))
            if service.l4.forward is Forward.TRANSPARENT:
                self._answers_to_borrowed(version)  # for the gateway probe
            for device in sorted(inward & outward):
                self._one_armed(service, version, device)

    def _outward(self, service: Service, version: int) -> Iterator[str]:
        """Where clients come from: the interfaces of the service's addresses, and the default route's."""
        for address in _fronts(service, version):
            owner = next((i.name for i, own in self._network.addresses() if own.ip == address), None)
            segment = self._network.segment_of(address)
            if owner is not None:
                yield owner
            elif service.l4 is not None:
                yield self._home(service, address)
            elif segment is not None:
                yield segment[0].name
        default = next(
            (r for r in self._network.routes if r.network.version == version and r.network.prefixlen == 0), None
        )
        if default is not None:
            yield default.device

    def _way_to(self, service: Service, address: IPAddress) -> str:
        route = self._network.route_to(address)
        if route is None:
            raise MailbalancerError(
                f"service {service.name}: there is no route to real server {address}",
                "give this machine an address in that network, or a route to it",
            )
        return route.device

    def _forward_on(self, version: int, devices: Iterable[str]) -> None:
        if version == 4:
            for device in devices:
                self._set(f"net.ipv4.conf.{_key(device)}.forwarding", "1")
            return
        made = self._made(Forwarding6)
        if made is None and self._sysctl("net.ipv6.conf.all.forwarding") == "1":
            return
        for interface in self._network.interfaces:
            if interface.name != "lo":
                self._keep_router_advertisements(interface)
        self._plan.add(made or Forwarding6.as_now())

    def _keep_router_advertisements(self, interface: Interface) -> None:
        """A machine that forwards ignores them, and drops the default route it learned from them, unless told this."""
        key = f"net.ipv6.conf.{_key(interface.name)}.accept_ra"
        if self._sysctl(key) == "1" or self._made(Sysctl, lambda step: step.key == key):
            self._set(key, "2")

    def _one_armed(self, service: Service, version: int, device: str) -> None:
        """Clients and servers on one interface: the kernel would tell both of a shorter way, past us."""
        if version == 4:
            for place in ("all", _key(device)):
                self._set(f"net.ipv4.conf.{place}.send_redirects", "0")
        if service.l4 is None or service.l4.forward is Forward.TRANSPARENT:
            self._plan.warn(
                f"service {service.name}: clients and real servers are both reached through {device}; with the "
                "balancer as their gateway, real servers can be reached directly only from their own network, and "
                "clients in that network are shown with the balancer's address"
            )

    def _set(self, key: str, value: str) -> None:
        made = self._made(Sysctl, lambda step: step.key == key and step.value == value)
        now = self._sysctl(key)
        if made is not None:
            self._plan.add(made)
        elif now not in ("", value):
            self._plan.add(Sysctl(key, value, now))

    # layer 7 with clients' addresses

    def _transparent(self, service: Service) -> None:
        versions = {6 if m.endpoint.is_ipv6 else 4 for pool in service.pools() for m in pool.members}
        for version in sorted(versions):
            self._answers_to_borrowed(version)
            servers = self._servers(service, version)
            devices = {self._way_to(service, address) for address in servers}
            default = {
                r.device for r in self._network.routes if r.network.version == version and not r.network.prefixlen
            }
            # the servers' gateway is us: what they ask of others passes here
            self._forward_on(version, sorted(devices | default))
            for device in sorted(devices & set(self._outward(service, version))):
                self._one_armed(service, version, device)

    def _answers_to_borrowed(self, version: int) -> None:
        """What is sent to an address that we have borrowed is for us."""
        self._plan.add(LocalRoute(version, TABLE))
        self._plan.add(Rule(version, RULE_PRIORITY, TRANSPARENT_MARK, TABLE))

    # tunnels

    def _tunnel(self, service: Service) -> None:
        assert service.l4 is not None
        encapsulation = service.l4.tunnel.encapsulation
        if encapsulation in IP_TUNNELS:
            self._ip_tunnels(service, encapsulation)
            return
        for version in self._versions(service):
            servers = self._servers(service, version)
            if servers:
                self._plan.add(self._device(service, version, servers))
            for address in servers:
                self._plan.add(TunnelEnd(TUNNEL_DEVICES[version], str(address), tunnel_mac(str(address))))

    def _device(self, service: Service, version: int, servers: Sequence[IPAddress]) -> Vxlan:
        """One for all services: it leaves from the address that leads to the first server."""
        made = self._made(Vxlan, lambda step: step.device == TUNNEL_DEVICES[version])
        local, room = self._outer(service, servers[0])
        mtu = room - VXLAN_BYTES[version]
        fresh = Vxlan(TUNNEL_DEVICES[version], VXLAN_NUMBER, VXLAN_PORT, local, mtu)
        return made if made is not None and made.mtu == mtu else fresh

    def _ip_tunnels(self, service: Service, encapsulation: str) -> None:
        """One to each server, for all services: the kernel has at most one between two addresses."""
        kind, module, header = IP_TUNNELS[encapsulation]
        if self._lacks(kind):
            raise MailbalancerError(
                f"service {service.name}: this kernel has no {kind} devices for encapsulation: {encapsulation}",
                f"load the module {module}, or write encapsulation: vxlan",
            )
        for version in self._versions(service):
            for address in self._servers(service, version):
                local, room = self._outer(service, address)
                self._plan.add(IpTunnel(tunnel_device(encapsulation, address), local, str(address), room - header))

    def _outer(self, service: Service, server: IPAddress) -> tuple[str, int]:
        """Where a tunnel to this server leaves from, and the largest packet that goes there."""
        device = self._way_to(service, server)
        interface, local = self._network.interface(device), self._network.source_to(server)
        if interface is None or local is None:
            raise MailbalancerError(
                f"service {service.name}: {device} has no IPv{server.version} address to send a tunnel from"
            )
        return str(local), interface.mtu

    # facts

    def _made(self, kind: type[Kind], fits: Callable[[Kind], bool] = lambda step: True) -> Kind | None:
        return next((step for step in self._in_force if isinstance(step, kind) and fits(step)), None)

    def _versions(self, service: Service) -> list[int]:
        return [version for version in (4, 6) if list(_fronts(service, version))]

    def _servers(self, service: Service, version: int) -> list[IPAddress]:
        addresses = [ipaddress.ip_address(m.endpoint.host) for pool in service.pools() for m in pool.members]
        return list(dict.fromkeys(address for address in addresses if address.version == version))


def _is_of(address: IPAddress, step: Address) -> bool:
    return ipaddress.ip_interface(step.address).ip == address


def tunnel_mac(address: str) -> str:
    """The hardware address that a real server's end of the tunnel has: known to both sides without asking."""
    digest = blake2s(address.encode()).digest()
    return "02:6d:62:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def tunnel_device(encapsulation: str, server: IPAddress) -> str:
    """The device of ours through which a tunnel leads to a real server."""
    if encapsulation in IP_TUNNELS:
        return f"mbip{server.version}{blake2s(server.packed).hexdigest()[:10]}"
    return TUNNEL_DEVICES[server.version]


def tunnel_bytes(encapsulation: str, version: int) -> int:
    """What a tunnel takes of every packet."""
    return IP_TUNNELS[encapsulation][2] if encapsulation in IP_TUNNELS else VXLAN_BYTES[version]


def tunnel_devices(service: Service) -> tuple[str, ...]:
    """The devices of ours that lead to the real servers of a service; of other services than tunnels none."""
    if service.l4 is None or service.l4.forward is not Forward.TUNNEL:
        return ()
    servers = (ipaddress.ip_address(member.endpoint.host) for member in service.pool.members)
    reached = (server for server in servers if list(_fronts(service, server.version)))
    return tuple(dict.fromkeys(tunnel_device(service.l4.tunnel.encapsulation, server) for server in reached))


def _fronts(service: Service, version: int) -> Iterator[IPAddress]:
    """The addresses at which clients find a service."""
    for door in service.doors:
        address = ipaddress.ip_address(door.host)
        if address.version == version:
            yield address


def _key(device: str) -> str:
    """Dots in an interface's name are slashes in the name of a setting."""
    return device.replace(".", "/")
