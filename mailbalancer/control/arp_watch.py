"""The ARP watch: asks each segment who has the addresses of our services, and listens for anybody but us.

A real server that answers ARP for the service's address takes clients away, past the balancer: some, at times, until
their own memory of it has run out. So it is asked for, all the time.

Decides: how often is asked, which addresses, and what is said of whom.
Refuses to know: frames (`host.segment`).
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mailbalancer.control.events import Events
from mailbalancer.host.commands import HostError
from mailbalancer.host.segment import Segment
from mailbalancer.model import Config
from mailbalancer.network import Interface, Network

#: Asked so often; answers count that come within the second number. Who has kept quiet so many times is well again.
EVERY_S, LISTEN_S = 10.0, 1.0
QUIET = 2


@dataclass(slots=True)
class _Seen:
    who: str
    quiet: int = 0


@dataclass(slots=True)
class ArpWatch:
    """Who else claims our addresses."""

    events: Events
    _open: list[Segment] = field(default_factory=list)
    _asked: set[str] = field(default_factory=set)
    _heard: set[tuple[str, str]] = field(default_factory=set)
    _seen: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    _ends_at: float = 0.0
    _next_at: float = 0.0

    def tick(self, now: float, config: Config, network: Network) -> None:
        """Ask when it is time; take what has been heard."""
        if self._open:
            self._listen()
            if now >= self._ends_at:
                self._close(config, network)
        elif now >= self._next_at:
            self._next_at, self._ends_at = now + EVERY_S, now + LISTEN_S
            self._ask(config, network)

    def stop(self) -> None:
        """Nothing is open any more."""
        for segment in self._open:
            segment.close()
        self._open.clear()

    def listed(self) -> list[dict[str, Any]]:
        """For `status`: addresses of ours that others claim, and who."""
        return [{"address": a, "mac": mac, "who": seen.who} for (a, mac), seen in sorted(self._seen.items())]

    def _ask(self, config: Config, network: Network) -> None:
        self._asked.clear()
        self._heard.clear()
        for interface, addresses in _ours(config, network).items():
            with contextlib.suppress(HostError):  # the interface went just now, or cannot be listened on
                segment = Segment(interface.name, interface.mac)
                self._open.append(segment)
                for address in addresses:
                    segment.ask(address, _asker(interface, address))
                    self._asked.add(address)

    def _listen(self) -> None:
        for segment in self._open:
            self._heard |= {(c.address, c.mac) for c in segment.claims() if c.address in self._asked}

    def _close(self, config: Config, network: Network) -> None:
        self.stop()
        ours = {interface.mac for interface in network.interfaces}
        for address, mac in {(address, mac) for address, mac in self._heard if mac not in ours}:
            if (address, mac) not in self._seen:
                self._seen[address, mac] = _Seen(_who(mac, config, network))
                self._say(address, mac)
            self._seen[address, mac].quiet = 0
        for key in self._seen.keys() - self._heard:
            self._seen[key].quiet += 1
            if self._seen[key].quiet >= QUIET or key[0] not in self._asked:
                who = self._seen.pop(key).who
                self.events.info(f"{who} ({key[1]}) does not answer for {key[0]} any more")

    def _say(self, address: str, mac: str) -> None:
        who = self._seen[address, mac].who
        remedy = (
            "it must keep quiet about it (`mailbalancer realserver` prints how)"
            if who.startswith("real server")
            else "two machines have one address"
        )
        self.events.error(f"{who} ({mac}) answers for {address}, so some clients go there past the balancer; {remedy}")


def _ours(config: Config, network: Network) -> dict[Interface, list[str]]:
    """Addresses of services on interfaces that others are on too."""
    wanted = {ipaddress.ip_address(door.host) for service in config.services for door in service.doors}
    found: dict[Interface, list[str]] = {}
    for interface, own in network.addresses():
        if own.ip in wanted and interface.mac and interface.up:
            found.setdefault(interface, []).append(str(own.ip))
    return found


def _asker(interface: Interface, address: str) -> str:
    """An address of this interface that is not a service's alone, so that nobody learns anything wrong."""
    version = ipaddress.ip_address(address).version
    usable: Iterable[str] = (
        str(own.ip)
        for own in interface.addresses
        if own.version == version and own.network.prefixlen < own.max_prefixlen and str(own.ip) != address
    )
    return next(iter(usable), "")


def _who(mac: str, config: Config, network: Network) -> str:
    """The real server that has this hardware address."""
    addresses = {str(neighbour.address) for neighbour in network.neighbours if neighbour.mac == mac}
    names = sorted(server.name for server in config.real_servers if server.address in addresses)
    return f"real server {', '.join(names)}" if names else "another machine"
