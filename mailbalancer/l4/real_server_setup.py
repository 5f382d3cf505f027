"""What an administrator types on a real server so that it can work behind a layer 4 or transparent service.

Decides: the lines for Debian, RHEL and Windows, with the service's own addresses filled in.
Refuses to know: the real server; nothing is run from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailbalancer.model import Forward, Service

SYSTEMS = ("debian", "rhel", "windows")


@dataclass(frozen=True, slots=True)
class Facts:
    """Addresses that lines are filled with.

    Attributes:
        gateway: the balancer's address in the server's network; empty: it has none there.
        server: the server's own address.
        tunnel_mac, tunnel_number, tunnel_port: of the tunnel's end at the server; empty and 0: no tunnel.
        mss: largest segment that fits through the tunnel; 0: no tunnel.
    """

    server: str
    gateway: str = ""
    tunnel_mac: str = ""
    tunnel_number: int = 0
    tunnel_port: int = 0
    mss: int = 0


def setup(service: Service, system: str, facts: Facts) -> list[str]:
    """The lines, comments among them; beginning with what they are for."""
    forward = service.l4.forward if service.l4 else None
    if forward in (Forward.DSR, Forward.TUNNEL):
        vips = list(dict.fromkeys(door.host for door in service.doors))
        return _windows_loopback(vips, forward) if system == "windows" else _linux_loopback(vips, system, facts)
    if forward is Forward.TRANSPARENT or service.source.use == "client":
        return _gateway(system, facts)
    return [f"# service {service.name} shows real servers the balancer's address: nothing is to be set up on them"]


def _gateway(system: str, facts: Facts) -> list[str]:
    gateway = facts.gateway or "THE_BALANCER"
    lines = [f"# {facts.server} answers clients through the balancer, which must be its gateway: {gateway}"]
    if system == "windows":
        return [*lines, f"route -p change 0.0.0.0 mask 0.0.0.0 {gateway}"]
    lines.append(f"ip route replace default via {gateway}")
    if system == "rhel":
        return [*lines, "# permanently:", f"nmcli connection modify CONNECTION ipv4.gateway {gateway}"]
    return [*lines, "# permanently, in /etc/network/interfaces:", f"#   gateway {gateway}"]


def _linux_loopback(vips: list[str], system: str, facts: Facts) -> list[str]:
    lines = [f"# {facts.server} answers clients itself, with the service's address, and keeps quiet about it (ARP)"]
    settings = [
        f"net.ipv4.conf.{place}.{key}" for place in ("all", "INTERFACE") for key in ("arp_ignore=1", "arp_announce=2")
    ]
    lines += [f"sysctl -w {setting}" for setting in settings]
    lines += [f"ip address add {vip}/{128 if ':' in vip else 32} dev lo" for vip in vips]
    if facts.tunnel_mac:
        lines += _tunnel_end(facts)
    lines += ["# permanently:", f"printf '%s\\n' {' '.join(settings)} > /etc/sysctl.d/90-mailbalancer.conf"]
    where = "/etc/network/interfaces" if system == "debian" else "nmcli connection modify lo +ipv4.addresses"
    lines += [f"#   {where}: {vip}" for vip in vips]
    return lines


def _tunnel_end(facts: Facts) -> list[str]:
    identity = f"id {facts.tunnel_number} dstport {facts.tunnel_port} local {facts.server}"
    return [
        "# the far end of the balancer's tunnel",
        f"ip link add mbvxlan address {facts.tunnel_mac} type vxlan {identity} nolearning",
        "ip link set mbvxlan up",
        "sysctl -w net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.mbvxlan.rp_filter=0",
        f"# segments must fit through it; with your gateway instead of GATEWAY: advmss {facts.mss}",
        f"ip route replace default via GATEWAY advmss {facts.mss}",
    ]


def _windows_loopback(vips: list[str], forward: Forward) -> list[str]:
    if forward is Forward.TUNNEL:
        return ["# Windows cannot end such a tunnel: use forward: dsr on its segment, transparent or snat"]
    lines = [
        "# add the Microsoft KM-TEST Loopback Adapter (hdwwiz.exe) and call it LOOPBACK; LAN is the real one",
    ]
    for vip in vips:
        version, length = ("ipv6", "128") if ":" in vip else ("ipv4", "255.255.255.255")
        address = f"{vip}/{length}" if version == "ipv6" else f"{vip} {length}"
        lines.append(f'netsh interface {version} add address "LOOPBACK" {address}')
        lines.append(f'netsh interface {version} set interface "LAN" weakhostreceive=enabled')
        lines += [
            f'netsh interface {version} set interface "LOOPBACK" weakhost{way}=enabled' for way in ("receive", "send")
        ]
    return lines
