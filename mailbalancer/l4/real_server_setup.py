"""What an administrator types on a real server so that it can work behind a layer 4 or transparent service.

Decides: the lines for Debian, RHEL and Windows, with the service's own addresses filled in. Linux lines can be pasted
into a root shell as they are, take effect at once, and survive a reboot; Windows lines are for PowerShell.
Refuses to know: the real server; nothing is run from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mailbalancer.model import Forward, Service

SYSTEMS = ("debian", "rhel", "windows")

_SYSCTL_FILE = "/etc/sysctl.d/90-mailbalancer.conf"
_UNIT = "mailbalancer-tunnel.service"
_SCRIPT = "/usr/local/sbin/mailbalancer-tunnel"
#: The number of IP in IP (RFC 2003, RFC 2473).
_IN_IP = {4: 4, 6: 41}
#: What becomes of a segment that is too large: nobody cuts what goes into a tunnel of IP in IP.
_FATE = {False: "would travel in two fragments", True: "do not fit in and are lost"}


@dataclass(frozen=True, slots=True)
class Facts:
    """Addresses that lines are filled with.

    Attributes:
        server: the server's own address.
        gateway: the balancer's address in the server's network; empty: it has none there.
        balancer: the balancer's address towards the server.
        tunnel_mac, tunnel_number, tunnel_port: of the vxlan tunnel's end at the server; empty and 0: none.
        tunnel_type, tunnel_module: of a tunnel's end that takes IP in IP; empty: none.
        mss: largest segment that fits through the tunnel; 0: no tunnel.
    """

    server: str
    gateway: str = ""
    balancer: str = ""
    tunnel_mac: str = ""
    tunnel_number: int = 0
    tunnel_port: int = 0
    mss: int = 0
    tunnel_type: str = ""
    tunnel_module: str = ""

    @property
    def version(self) -> int:
        return 6 if ":" in self.server else 4

    @property
    def bits(self) -> int:
        return 128 if self.version == 6 else 32


def setup(service: Service, system: str, facts: Facts) -> list[str]:
    """The lines, comments among them; beginning with what they are for."""
    forward = service.l4.forward if service.l4 else None
    if forward in (Forward.DSR, Forward.TUNNEL):
        return _past_us(service, system, facts)
    if forward is Forward.TRANSPARENT or service.source.use == "client":
        return _gateway(system, facts)
    lines = [f"# service {service.name} shows real servers the balancer's address: nothing is to be set up on them"]
    if service.proxy_protocol.send:
        version = service.proxy_protocol.send
        lines.append(f"# but their port must expect the PROXY header ({version}) that the service sends")
    return lines


# ---------------------------------------------------------------- the gateway


def _gateway(system: str, facts: Facts) -> list[str]:
    if not facts.gateway:
        return [
            f"# {facts.server} answers clients through the balancer, and is in no network of it: every router between",
            "# must send those answers to the balancer. A gateway on the server alone does not do that",
        ]
    lines = [f"# {facts.server} answers clients through the balancer, which must be its gateway: {facts.gateway}"]
    if system == "windows":
        return [*lines, *_windows_gateway(facts)]
    lines += [_interface(facts), f"ip -{facts.version} route replace default via {facts.gateway}"]
    if facts.version == 6:
        lines += ["# nobody else's router advertisements may replace it", *_settings(("accept_ra = 0",), facts.version)]
    return lines + (_debian_gateway(facts) if system == "debian" else _rhel_gateway(facts))


def _debian_gateway(facts: Facts) -> list[str]:
    family = "inet6" if facts.version == 6 else "inet"
    everybody = "::/0" if facts.version == 6 else "0.0.0.0/0"
    return [
        "# and after a reboot, whichever of these your server uses:",
        f"#   /etc/network/interfaces: in `iface $INTERFACE {family} static` the line `gateway {facts.gateway}`",
        f"#   systemd-networkd, /etc/systemd/network: in [Network] the line `Gateway={facts.gateway}`",
        f"#   netplan: `routes: [{{to: '{everybody}', via: '{facts.gateway}'}}]`, and no `gateway{facts.version}`",
    ]


def _rhel_gateway(facts: Facts) -> list[str]:
    return [
        "# and after a reboot; an address by DHCP brings a gateway of its own, so the address must be a fixed one",
        'CONNECTION=$(nmcli -g GENERAL.CONNECTION device show "$INTERFACE")',
        f'nmcli connection modify "$CONNECTION" ipv{facts.version}.gateway {facts.gateway}',
        'nmcli connection up "$CONNECTION"',
    ]


def _windows_gateway(facts: Facts) -> list[str]:
    everybody = "::/0" if facts.version == 6 else "0.0.0.0/0"
    return [
        f"$lan = (Get-NetIPAddress -IPAddress {facts.server}).InterfaceIndex",
        f"Get-NetRoute -DestinationPrefix {everybody} | Remove-NetRoute -Confirm:$false",
        f"New-NetRoute -DestinationPrefix {everybody} -InterfaceIndex $lan -NextHop {facts.gateway}",
    ]


# ---------------------------------------------------------------- the service's address, and silence about it


def _past_us(service: Service, system: str, facts: Facts) -> list[str]:
    doors = list(dict.fromkeys(door.host for door in service.doors))
    vips = [vip for vip in doors if (":" in vip) == (facts.version == 6)]
    others = [vip for vip in doors if vip not in vips]
    lines = [f"# {facts.server} answers clients itself, with the service's address, and keeps quiet about it"]
    if others:
        lines.append(f"# what is for {', '.join(others)} is not sent to an IPv{facts.version} address")
    if not vips:
        return lines
    tunnel = service.l4 is not None and service.l4.forward is Forward.TUNNEL
    if system == "windows":
        return [*lines, *(_no_windows_tunnel() if tunnel else _windows_loopback(vips, facts))]
    lines.append(_interface(facts))
    lines += [*_silence(vips, facts, tunnel), *_loopback(vips, system, facts)]
    return lines + (_tunnel_end(system, facts) if tunnel else [_other_gateway(facts)])


def _other_gateway(facts: Facts) -> str:
    return f"# the gateway stays as it is; it must not be the balancer ({facts.gateway or facts.balancer})"


def _silence(vips: list[str], facts: Facts, tunnel: bool) -> list[str]:
    """Linux answers ARP on every interface for every address, unless it is told; it does not do so for IPv6."""
    keys = [] if facts.version == 6 else ["arp_ignore = 1", "arp_announce = 2"]
    if not keys and not tunnel:
        return ["# nobody is told of an IPv6 address on lo: nothing is to be set for silence"]
    lines = ["# no answers to ARP for addresses of other interfaces; now, and after a reboot"] if keys else []
    return [*lines, *_settings(keys, facts.version, tunnel), *(_arp_alternative(vips, facts) if keys else [])]


def _settings(keys: Iterable[str], version: int, tunnel: bool = False) -> list[str]:
    """A file of settings that is applied at once. Dots in an interface's name are slashes in the name of a setting."""
    places = ("all", "$(echo $INTERFACE | tr . /)")
    lines = [f"net.ipv{version}.conf.{place}.{key}" for place in places for key in keys]
    if tunnel and version == 4:
        lines += [f"net.ipv4.conf.{place}.rp_filter = 0" for place in ("all", "default")]
    if not lines:
        return []
    return [f"cat > {_SYSCTL_FILE} <<END", *lines, "END", f"sysctl -p {_SYSCTL_FILE}"]


def _arp_alternative(vips: list[str], facts: Facts) -> list[str]:
    addresses = ", ".join(vips)
    return [
        "# instead, where these settings are not wanted, the same with nftables (put it into /etc/nftables.conf):",
        "#   table arp mailbalancer {",
        "#     chain input { type filter hook input priority 0;",
        f"#       arp operation request arp daddr ip {{ {addresses} }} drop; }}",
        "#     chain output { type filter hook output priority 0;",
        f"#       arp saddr ip {{ {addresses} }} arp saddr ip set {facts.server}; }}",
        "#   }",
    ]


def _loopback(vips: list[str], system: str, facts: Facts) -> list[str]:
    # an address that is not preferred is never taken for the server's own connections
    own = " preferred_lft 0" if facts.version == 6 else ""
    lines = ["# the service's address, now"]
    lines += [f"ip address replace {vip}/{facts.bits} dev lo{own}" for vip in vips]
    if system == "rhel":
        addresses = ",".join(f"{vip}/{facts.bits}" for vip in vips)
        other = 4 if facts.version == 6 else 6
        return [
            *lines,
            "# and after a reboot, on an interface that NetworkManager keeps",
            "nmcli connection add type dummy ifname mailbalancer con-name mailbalancer "
            f"ipv{facts.version}.method manual ipv{facts.version}.addresses {addresses} ipv{other}.method disabled",
        ]
    lines += ["# and after a reboot (/etc/network/interfaces must say `source /etc/network/interfaces.d/*`)"]
    lines += ["cat > /etc/network/interfaces.d/mailbalancer <<END", *_stanzas(vips, facts), "END"]
    listed = ", ".join(f"'{vip}/{facts.bits}'" for vip in vips)
    return [
        *lines,
        "# or, with systemd-networkd, a file /etc/systemd/network/10-mailbalancer.network:",
        "#   [Match]",
        "#   Name=lo",
        "#   [Network]",
        *(f"#   Address={vip}/{facts.bits}" for vip in vips),
        f"# or, with netplan: network: {{version: 2, ethernets: {{lo: {{addresses: [{listed}]}}}}}}",
    ]


def _stanzas(vips: list[str], facts: Facts) -> list[str]:
    family = "inet6" if facts.version == 6 else "inet"
    lines = []
    for number, vip in enumerate(vips):
        name = "lo" if facts.version == 6 else f"lo:mb{number}"
        lines += [f"auto {name}", f"iface {name} {family} static", f"    address {vip}/{facts.bits}"]
    return lines


# ---------------------------------------------------------------- the end of a tunnel


def _tunnel_end(system: str, facts: Facts) -> list[str]:
    """A script makes it, now and (by a unit of systemd, which both distributions have) after each boot."""
    default = f"$(ip -{facts.version} route show default | head -n 1 | sed 's/ advmss [0-9]*//')"
    lines = [
        "# the end of the balancer's tunnel: now, and after a reboot",
        f"cat > {_SCRIPT} <<'END'",
        "#!/bin/sh -e",
        *(_takes_packets(facts) if facts.tunnel_type else _takes_frames(facts)),
        *_unfiltered(facts),
        f"# larger segments {_FATE[bool(facts.tunnel_type)]}: clients are told to send {facts.mss} bytes at most",
        f"ip -{facts.version} route change {default} advmss {facts.mss}",
        "END",
        f"chmod 755 {_SCRIPT}",
        _SCRIPT,
        f"cat > /etc/systemd/system/{_UNIT} <<END",
        *("[Unit]", "After=network-online.target", "Wants=network-online.target"),
        *("[Service]", "Type=oneshot", f"ExecStart={_SCRIPT}", "[Install]", "WantedBy=multi-user.target", "END"),
        f"systemctl enable {_UNIT}",
        f"# the firewall must let {_let_in(facts)} in, from {facts.balancer or 'the balancer'} alone",
    ]
    if system == "rhel":
        source = f"source address={facts.balancer} " if facts.balancer else ""
        what = f"protocol value={_IN_IP[facts.version]}" if facts.tunnel_type else ""
        what = what or f"port port={facts.tunnel_port} protocol=udp"
        rule = f"rule family=ipv{facts.version} {source}{what} accept"
        lines.append(f"firewall-cmd --permanent --add-rich-rule='{rule}' && firewall-cmd --reload")
    return lines


def _takes_frames(facts: Facts) -> list[str]:
    identity = f"id {facts.tunnel_number} dstport {facts.tunnel_port} local {facts.server} nolearning"
    return [
        "ip link del mbvxlan 2> /dev/null || true",
        f"ip link add mbvxlan address {facts.tunnel_mac} type vxlan {identity}",
        "ip link set mbvxlan up",
    ]


def _takes_packets(facts: Facts) -> list[str]:
    kind = "ip6tnl mode ip6ip6" if facts.version == 6 else "ipip"
    return [
        f"modprobe {facts.tunnel_module} 2> /dev/null || true  # it can be part of the kernel",
        "ip link del mbtunnel 2> /dev/null || true",
        f"ip link add mbtunnel type {kind} local {facts.server} remote {facts.balancer or 'any'}",
        "ip link set mbtunnel up",
    ]


def _let_in(facts: Facts) -> str:
    return f"IP protocol {_IN_IP[facts.version]}" if facts.tunnel_type else f"UDP port {facts.tunnel_port}"


def _unfiltered(facts: Facts) -> list[str]:
    """Reverse path filtering drops without a word what comes out of a device that nothing can be sent back into."""
    if facts.version == 6:
        return []
    return ["# nothing can be sent back into it, so the reverse path is not filtered there",
            f"sysctl -w net.ipv4.conf.{'mbtunnel' if facts.tunnel_type else 'mbvxlan'}.rp_filter=0"]  # fmt: skip


# ---------------------------------------------------------------- Windows


def _no_windows_tunnel() -> list[str]:
    return ["# Windows cannot end such a tunnel: use forward: dsr on its segment, transparent or snat"]


def _windows_loopback(vips: list[str], facts: Facts) -> list[str]:
    """The weak host model lets the LAN's interface take packets for an address of the loopback adapter."""
    version = f"ipv{facts.version}"
    lines = [
        "# a loopback adapter, once; without the Internet: hdwwiz.exe, install manually, network adapters, Microsoft,",
        "# Microsoft KM-TEST Loopback Adapter, then Rename-NetAdapter -Name 'Ethernet 2' -NewName mailbalancer",
        "Install-Module -Name LoopbackAdapter -Scope AllUsers",
        "New-LoopbackAdapter -Name mailbalancer -Force",
        f"$lan = (Get-NetIPAddress -IPAddress {facts.server}).InterfaceAlias",
    ]
    for vip in vips:
        how = f"-PrefixLength {facts.bits} -SkipAsSource $true"
        lines.append(f"New-NetIPAddress -InterfaceAlias mailbalancer -IPAddress {vip} {how}")
    return [
        *lines,
        f'netsh interface {version} set interface "$lan" weakhostreceive=enabled',
        f'netsh interface {version} set interface "mailbalancer" weakhostreceive=enabled',
        f'netsh interface {version} set interface "mailbalancer" weakhostsend=enabled',
        "# nobody is to find the server under this address, and nothing leaves by this adapter",
        "Set-DnsClient -InterfaceAlias mailbalancer -RegisterThisConnectionsAddress $false",
        f"Set-NetIPInterface -InterfaceAlias mailbalancer -AddressFamily IPv{facts.version} -InterfaceMetric 254",
        _other_gateway(facts),
    ]


def _interface(facts: Facts) -> str:
    """The server finds its interface itself, so that no line has to be filled in."""
    return f"INTERFACE=$(ip -brief address show to {facts.server} | sed 's/[@ ].*//')"
