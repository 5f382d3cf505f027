"""`mailbalancer explain`: the facts for the model, from the configuration, this machine and the running balancer.

Decides: which real servers are explained, and that the model works without a running balancer, on less knowledge.
Refuses to know: what follows from the facts (`l4.paths`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mailbalancer.errors import MailbalancerError
from mailbalancer.host.commands import RealCommands
from mailbalancer.host.network import read_network
from mailbalancer.l4.paths import Known, Path, explain
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import Config, Member


def explained(config: Config, client: str, service: str, server: str, status: Mapping[str, Any] | None) -> list[Path]:
    """The ways from this client to the real servers of a service (or to one of them).

    Args:
        status: what the running balancer says; None: it does not run.

    Raises:
        MailbalancerError: there is no such service or server, or `client` is not an address.
    """
    found = config.service(service)
    if found is None:
        there = ", ".join(s.name for s in config.services)
        raise MailbalancerError(f"there is no service {service!r}", f"there are: {there}")
    members = {m.real_server: m for pool in found.pools() for m in pool.members if server in ("", m.real_server)}
    if not members:
        raise MailbalancerError(f"service {service} has no real server {server!r}")
    network = read_network(RealCommands())
    try:
        return [explain(found, client, m, network, _known(service, m, status)) for m in members.values()]
    except ValueError:
        raise MailbalancerError(f"{client!r} is not an IP address", "name the client by its address") from None


def _known(service: str, member: Member, status: Mapping[str, Any] | None) -> Known:
    services = status["services"] if status else ()
    for one in (s for s in services if s["name"] == service):
        for server in (server for pool in one["pools"] for server in pool["real_servers"]):
            if server["name"] == member.real_server:
                way = server.get("way_back")
                return Known(server["up"], WayBack(Verdict(way["verdict"]), way["reason"]) if way else None)
    return Known()
