"""Which kinds of clients there can be, as far as this machine knows networks at all.

Decides: the networks that are worth a question (our own, those behind each route, the Internet, and every one that the
configuration names), and one address in each that stands for its clients.
Refuses to know: what becomes of a client (`explaining`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from mailbalancer.control.gateway_probe import FAR
from mailbalancer.model import IPNetwork, Service
from mailbalancer.network import IPAddress, Network

#: So many addresses of a network are tried until one is found that nobody of ours has.
_TRIED = 64


@dataclass(frozen=True, slots=True)
class Clients:
    """One kind of clients: how people call it, and an address that stands for all of them."""

    words: str
    address: str


def kinds_of_clients(service: Service, network: Network) -> list[Clients]:
    """Every kind of clients of a service, in the families that it has addresses in; each network once."""
    families = {6 if door.is_ipv6 else 4 for door in service.doors}
    taken = {ipaddress.ip_address(m.endpoint.host) for pool in service.pools() for m in pool.members}
    taken |= {ipaddress.ip_address(door.host) for door in service.doors}
    taken |= {own.ip for _, own in network.addresses()}
    found: dict[IPNetwork, Clients] = {}
    for words, one in (*_near(network), *_named(service), *_routed(network)):
        address = _one_of(one, taken)
        if one.version in families and one not in found and address is not None and not _is_denied(service, address):
            found[one] = Clients(words, str(address))
    return list(found.values())


def _near(network: Network) -> Iterator[tuple[str, IPNetwork]]:
    for interface, own in network.addresses():
        single = own.network.prefixlen == own.max_prefixlen
        if not own.ip.is_loopback and not own.ip.is_link_local and not single:
            yield f"clients in {own.network} ({interface.name})", own.network


def _routed(network: Network) -> Iterator[tuple[str, IPNetwork]]:
    for route in network.routes:
        if route.via is None or not route.network.prefixlen:
            continue
        yield f"clients in {route.network} (behind {route.via})", route.network
    for version in sorted({route.network.version for route in network.routes if not route.network.prefixlen}):
        yield "clients of other networks and the Internet", ipaddress.ip_network(FAR[version][-1])


def _named(service: Service) -> Iterator[tuple[str, IPNetwork]]:
    for one in service.source.classes:
        for network in one.clients:
            yield f"clients in {network} (class {one.name})", network
    lists = {"allow": service.allow, "source.balancer_for": service.source.balancer_for}
    if service.mail is not None:
        lists["relay_clients"] = service.mail.smtp.policy.relay_clients
    for key, networks in lists.items():
        for network in networks:
            yield f"clients in {network} (`{key}`)", network


def _one_of(network: IPNetwork, taken: Collection[IPAddress]) -> IPAddress | None:
    if network.prefixlen == network.max_prefixlen:
        only: IPAddress = network.network_address
        return only if only not in taken else None
    if not network.prefixlen:
        return None  # everybody: the others stand for them
    hosts: Iterator[IPAddress] = iter(network.hosts())
    return next((address for address in islice(hosts, _TRIED) if address not in taken), None)


def _is_denied(service: Service, address: IPAddress) -> bool:
    """Whether the operator wants nobody from there: nothing to find fault with."""
    if any(address in network for network in service.deny if network.version == address.version):
        return True
    return bool(service.allow) and not any(address in n for n in service.allow if n.version == address.version)
