"""Who is let in, and who waits.

Decides: whether a client's address is on the right side of a service's allow and deny lists, and the order of a
bounded queue for sessions that found every server full.
Refuses to know: sockets, session limits (the pool's) and what a refused client is told.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Generic, TypeVar

from mailbalancer.model import IPNetwork

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Item = TypeVar("Item", bound=Hashable)

#: Answers remembered per service: mail comes from few addresses again and again, and parsing one costs 2 µs.
CACHE_ENTRIES = 4096
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class AddressLists:
    """The allow and deny lists of one service. Deny wins; an empty allow list allows everybody.

    An IPv4 client on a socket that listens on IPv6 (`::ffff:192.0.2.1`, RFC 4291 section 2.5.5.2) is that IPv4 client,
    and networks written in that form mean IPv4 too.
    """

    def __init__(self, allow: Iterable[IPNetwork], deny: Iterable[IPNetwork]) -> None:
        self._allow = _Networks(allow)
        self._deny = _Networks(deny)
        self._open = not self._allow and not self._deny
        self._judged = lru_cache(CACHE_ENTRIES)(self._judge)

    def admits(self, address: str) -> bool:
        """Whether a client with this address is let in. What is no IP address is not, once there is any list."""
        return self._open or self._judged(address)

    def _judge(self, text: str) -> bool:
        try:
            address = _plain(ipaddress.ip_address(text))
        except ValueError:
            return False
        if address in self._deny:
            return False
        return not self._allow or address in self._allow


class _Networks:
    """A set of networks. A look-up costs one step per prefix length in use, however long a block list is."""

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}
        for network in map(_plain_network, networks):
            shift = network.max_prefixlen - network.prefixlen
            starts = self._prefixes.setdefault((network.version, shift), set())
            starts.add(int(network.network_address) >> shift)

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __contains__(self, address: IPAddress) -> bool:
        number = int(address)
        return any(
            version == address.version and number >> shift in starts
            for (version, shift), starts in self._prefixes.items()
        )


def _plain(address: IPAddress) -> IPAddress:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _plain_network(network: IPNetwork) -> IPNetwork:
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        start = ipaddress.IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        return ipaddress.IPv4Network((start, network.prefixlen - _MAPPED.prefixlen))
    return network


class WaitQueue(Generic[Item]):
    """Sessions that wait for room, first come first served. How long each waits is its own affair.

    Args:
        size: most sessions that wait; 0: nobody may. A reload changes it for those who come.

    Attributes:
        waiting: who waits, longest first; to be looked at, not changed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: dict[Item, None] = {}

    def push(self, item: Item) -> bool:
        """Join the end. False: the queue is full. An item that waits already keeps its place."""
        if item in self.waiting:
            return True
        if len(self.waiting) >= self.size:
            return False
        self.waiting[item] = None
        return True

    def remove(self, item: Item) -> bool:
        """Take out one that has its turn or gave up; False: it did not wait."""
        return item in self.waiting and self.waiting.pop(item) is None
