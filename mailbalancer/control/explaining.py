"""`mailbalancer explain` and `realserver`: the facts, from the configuration, this machine and the running balancer.

Decides: which real servers are explained, and that the model works without a running balancer, on less knowledge.
Refuses to know: what follows from the facts (`l4.paths`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from mailbalancer.control.host_plan import IP_TUNNELS, VXLAN_NUMBER, VXLAN_PORT, tunnel_bytes, tunnel_mac
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.l4.paths import Known, Path, explain
from mailbalancer.l4.real_server_setup import Facts, setup
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import AdminState, Config, Forward, Member, Service
from mailbalancer.network import Network


def explained(config: Config, client: str, service: str, server: str, status: Mapping[str, Any] | None) -> list[Path]:
    """The ways from this client to the real servers of a service (or to one of them).

    Args:
        status: what the running balancer says; None: it does not run.

    Raises:
        MailbalancerError: there is no such service or server, or `client` is not an address.
    """
    found = _service(config, service)
    members = members_of(found, server)
    network = network_now()
    try:
        return [explain(found, client, m, network, known_of(found, m, status, network)) for m in members]
    except ValueError:
        raise MailbalancerError(f"{client!r} is not an IP address", "name the client by its address") from None


def members_of(service: Service, server: str = "") -> list[Member]:
    """The real servers of a service (or the one that is named), each endpoint once.

    Raises:
        MailbalancerError: it has none of that name.
    """
    members = {(m.real_server, m.endpoint): m for pool in service.pools() for m in pool.members}
    found = [member for member in members.values() if server in ("", member.real_server)]
    if not found and server:
        there = ", ".join(dict.fromkeys(m.real_server for m in members.values()))
        raise MailbalancerError(f"service {service.name} has no real server {server!r}", f"it has: {there}")
    return found


def real_server_lines(config: Config, service: str, system: str, server: str = "") -> list[str]:
    """What is to be typed on every real server of a service, or on the one that is named.

    Raises:
        MailbalancerError: there is no such service or server.
    """
    found = _service(config, service)
    network = network_now()
    lines: list[str] = []
    for member in {m.endpoint.host: m for m in members_of(found, server)}.values():
        lines += [f"# ---- {member.real_server}", *setup(found, system, _facts(found, member, network)), ""]
    return lines


def _facts(service: Service, member: Member, network: Network) -> Facts:
    server = ipaddress.ip_address(member.endpoint.host)
    segment = network.segment_of(server)
    addresses = segment[0].addresses if segment else ()
    gateway = next((str(own.ip) for own in addresses if segment and own.network == segment[1]), "")
    mss = tunnel_mss(service, member, network)
    balancer = gateway or own_address_towards(member, network)
    if not mss or service.l4 is None:
        return Facts(str(server), gateway, balancer)
    encapsulation = service.l4.tunnel.encapsulation
    if encapsulation in IP_TUNNELS:
        kind, module, _ = IP_TUNNELS[encapsulation]
        # the server's end takes packets of one address only: the one that ours sends from
        ours = own_address_towards(member, network)
        return Facts(str(server), gateway, ours, mss=mss, tunnel_type=kind, tunnel_module=module)
    return Facts(str(server), gateway, balancer, tunnel_mac(str(server)), VXLAN_NUMBER, VXLAN_PORT, mss)


def own_address_towards(member: Member, network: Network) -> str:
    """The address of ours that leads to a real server; empty: there is none."""
    return str(network.source_to(ipaddress.ip_address(member.endpoint.host)) or "")


def tunnel_mss(service: Service, member: Member, network: Network) -> int:
    """The largest TCP segment that fits through the tunnel to a real server; 0: there is no tunnel."""
    if service.l4 is None or service.l4.forward is not Forward.TUNNEL:
        return 0
    server = ipaddress.ip_address(member.endpoint.host)
    route = network.route_to(server)
    interface = network.interface(route.device) if route else None
    mtu = interface.mtu if interface else 1500
    # IP and TCP headers inside what the tunnel leaves
    return mtu - tunnel_bytes(service.l4.tunnel.encapsulation, server.version) - (60 if server.version == 6 else 40)


def _service(config: Config, name: str) -> Service:
    found = config.service(name)
    if found is None:
        there = ", ".join(s.name for s in config.services)
        raise MailbalancerError(f"there is no service {name!r}", f"there are: {there}")
    return found


def known_of(service: Service, member: Member, status: Mapping[str, Any] | None, network: Network) -> Known:
    """What the running balancer says of this member; without one, what stands in the file."""
    found, mss = _status_of(service.name, member, status), tunnel_mss(service, member, network)
    if found is None:
        return Known(admin=member.state, mss=mss)
    check = found.get("check") or {}
    return Known(
        up=found["up"],
        check=str(check.get("reason", "")),
        admin=AdminState(found["admin"]),
        way=_way(found.get("way_back")),
        on_vip=_way(found.get("through_vip")),
        claims=_claims(service, status),
        mss=mss,
    )


def _claims(service: Service, status: Mapping[str, Any] | None) -> str:
    """Who answers ARP for an address of this service beside us, in words."""
    doors = {door.host for door in service.doors}
    claims: Iterable[Mapping[str, Any]] = ((status or {}).get("network") or {}).get("claims", ())
    found = [claim for claim in claims if claim["address"] in doors]
    if not found:
        return ""
    who = " and ".join(f"{claim['who']} ({claim['mac']})" for claim in found)
    return (
        f"{who} answers ARP for {found[0]['address']}, so some clients go there past the balancer; it must keep quiet "
        f"about that address (`mailbalancer realserver {service.name}` prints how)"
    )


def _way(found: Mapping[str, Any] | None) -> WayBack | None:
    if not found:
        return None
    return WayBack(Verdict(found["verdict"]), str(found["reason"]), bool(found.get("far_only")))


def _status_of(service: str, member: Member, status: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    services: Iterable[Mapping[str, Any]] = status["services"] if status else ()
    for one in (s for s in services if s["name"] == service):
        for server in (server for pool in one["pools"] for server in pool["real_servers"]):
            if server["name"] == member.real_server and server["endpoint"] == str(member.endpoint):
                return dict(server)
    return None
