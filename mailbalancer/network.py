"""The machine's network as facts: interfaces, routes, neighbours.

Decides: which interface leads to an address, as the kernel would (the longest prefix, then the lowest metric).
Refuses to know: how the facts are read (`host.network`) and what follows from them (`l4`, `control`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from mailbalancer.model import IPNetwork

#: Knocks at real servers through a service's address leave from these ports, so that rules can tell their answers.
KNOCK_PORTS = range(27746, 28258)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface; `mac` is empty where frames have none (lo, tunnels)."""

    name: str
    index: int
    mac: str = ""
    mtu: int = 1500
    up: bool = True
    addresses: tuple[IPInterface, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table; `via` is None for what lies on the interface itself."""

    network: IPNetwork
    device: str
    via: IPAddress | None = None
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What the kernel knows of a machine on the same segment; `mac` is empty while nobody has answered."""

    address: IPAddress
    device: str
    mac: str
    state: str


@dataclass(frozen=True, slots=True)
class Network:
    """What the machine knew when it was asked."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    def interface(self, name: str) -> Interface | None:
        return next((interface for interface in self.interfaces if interface.name == name), None)

    def is_ours(self, address: IPAddress) -> bool:
        """Whether this is an address of the machine itself."""
        return any(address == own.ip for _, own in self.addresses())

    def addresses(self) -> Iterator[tuple[Interface, IPInterface]]:
        for interface in self.interfaces:
            for own in interface.addresses:
                yield interface, own

    def segment_of(self, address: IPAddress) -> tuple[Interface, IPNetwork] | None:
        """The interface and network on which this address lies without a router in between; the narrowest one."""
        found = [
            (interface, own.network)
            for interface, own in self.addresses()
            if address.version == own.version and address in own.network and own.network.prefixlen < own.max_prefixlen
        ]
        return max(found, key=lambda entry: entry[1].prefixlen, default=None)

    def route_to(self, address: IPAddress) -> Route | None:
        """The route that a packet to this address takes; None: there is none."""
        fitting = [r for r in self.routes if r.network.version == address.version and address in r.network]
        return min(fitting, key=lambda route: (-route.network.prefixlen, route.metric), default=None)

    def source_to(self, address: IPAddress) -> IPAddress | None:
        """The address of ours that connections to this one leave from; one that stands alone is a service's."""
        route = self.route_to(address)
        own = [
            own
            for interface, own in self.addresses()
            if route and interface.name == route.device and own.version == address.version and not own.ip.is_link_local
        ]
        own.sort(key=lambda one: one.network.prefixlen == one.max_prefixlen)
        return own[0].ip if own else None

    def neighbour(self, address: IPAddress) -> Neighbour | None:
        """The machine with this address, if it has been seen."""
        return next((n for n in self.neighbours if n.address == address and n.mac), None)
