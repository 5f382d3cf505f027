"""Clients that real servers see with our address, although the service shows them clients' own.

Decides: that each network of clients is told once, with why and what it loses, whoever noticed it first: a worker, or
the kernel's counters.
Refuses to know: how they are counted.
"""

from __future__ import annotations

from typing import Any

from mailbalancer.control.events import Events
from mailbalancer.model import Config, Service

_LOSS = "rights that real servers grant by address (relay) do not hold for them"


class OwnAddresses:
    """What is known of such clients, by service and network."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._config: Config | None = None
        self._seen: dict[str, dict[str, int | None]] = {}

    def follow(self, config: Config) -> None:
        """This configuration runs: the one with the real servers' own networks in it."""
        self._config = config
        self._seen = {
            service.name: {n: count for n, count in self._seen.get(service.name, {}).items() if _why(service, n)}
            for service in config.services
        }

    def take(self, service: str, network: str, sessions: int | None = None) -> None:
        """A client of this network was given our address.

        Args:
            sessions: how many of them so far; None: not counted by network.

        Raises:
            ValueError: there is no such service, or it has no such network. Workers handle bytes from strangers, so
                their word is checked.
        """
        found = self._config.service(service) if self._config else None
        why = _why(found, network) if found else ""
        if not why:
            raise ValueError(f"service {service!r} gives no address of ours to {network!r}")
        seen = self._seen.setdefault(service, {})
        if network not in seen:
            text = f"service {service}: clients in {network} are shown with the balancer's address ({why}); {_LOSS}"
            self._events.info(text)
        seen[network] = sessions

    def listed(self, service: str) -> list[dict[str, Any]]:
        """For `status`."""
        found = self._config.service(service) if self._config else None
        if found is None:
            return []
        seen = self._seen.get(service, {})
        return [{"network": n, "why": _why(found, n), "sessions": count} for n, count in sorted(seen.items())]


def _why(service: Service, network: str) -> str:
    """The reason; empty: there is none."""
    if network in ("IPv4", "IPv6"):
        return f"the real server has no {network} address" if service.source.use == "client" else ""
    if network in map(str, service.source.near):
        return "real servers would answer them directly"
    return "they are listed in balancer_for" if network in map(str, service.source.balancer_for) else ""
