"""`mailbalancer explain` and `realserver`: the facts, from the configuration, this machine and the running balancer.

Decides: which real servers are explained, and that the model works without a running balancer, on less knowledge.
Refuses to know: what follows from the facts (`l4.paths`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from mailbalancer.control.host_plan import VXLAN_BYTES, VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.commands import RealCommands
from mailbalancer.host.network import read_network
from mailbalancer.l4.paths import Known, Path, explain
from mailbalancer.l4.real_server_setup import Facts, setup
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import Config, Forward, Member, Service
from mailbalancer.network import Network


def explained(config: Config, client: str, service: str, server: str, status: Mapping[str, Any] | None) -> list[Path]:
    """The ways from this client to the real servers of a service (or to one of them).

    Args:
        status: what the running balancer says; None: it does not run.

    Raises:
        MailbalancerError: there is no such service or server, or `client` is not an address.
    """
    found = _service(config, service)
    members = {m.real_server: m for pool in found.pools() for m in pool.members if server in ("", m.real_server)}
    if not members:
        raise MailbalancerError(f"service {service} has no real server {server!r}")
    network = read_network(RealCommands())
    try:
        return [explain(found, client, m, network, _known(service, m, status)) for m in members.values()]
    except ValueError:
        raise MailbalancerError(f"{client!r} is not an IP address", "name the client by its address") from None


def real_server_lines(config: Config, service: str, system: str) -> list[str]:
    """What is to be typed on every real server of a service.

    Raises:
        MailbalancerError: there is no such service.
    """
    found = _service(config, service)
    network = read_network(RealCommands())
    lines: list[str] = []
    for member in {m.endpoint.host: m for pool in found.pools() for m in pool.members}.values():
        lines += [f"# ---- {member.real_server}", *setup(found, system, _facts(found, member, network)), ""]
    return lines


def _facts(service: Service, member: Member, network: Network) -> Facts:
    server = ipaddress.ip_address(member.endpoint.host)
    segment = network.segment_of(server)
    addresses = segment[0].addresses if segment else ()
    gateway = next((str(own.ip) for own in addresses if segment and own.network == segment[1]), "")
    if service.l4 is None or service.l4.forward is not Forward.TUNNEL:
        return Facts(str(server), gateway)
    route = network.route_to(server)
    interface = network.interface(route.device) if route else None
    mtu = interface.mtu if interface else 1500
    # IP and TCP headers inside what the tunnel leaves
    mss = mtu - VXLAN_BYTES[server.version] - (60 if server.version == 6 else 40)
    return Facts(str(server), gateway, tunnel_mac(str(server)), VXLAN_NUMBER, VXLAN_PORT, mss)


def _service(config: Config, name: str) -> Service:
    found = config.service(name)
    if found is None:
        there = ", ".join(s.name for s in config.services)
        raise MailbalancerError(f"there is no service {name!r}", f"there are: {there}")
    return found


def _known(service: str, member: Member, status: Mapping[str, Any] | None) -> Known:
    services = status["services"] if status else ()
    for one in (s for s in services if s["name"] == service):
        for server in (server for pool in one["pools"] for server in pool["real_servers"]):
            if server["name"] == member.real_server:
                way = server.get("way_back")
                return Known(server["up"], WayBack(Verdict(way["verdict"]), way["reason"]) if way else None)
    return Known()
