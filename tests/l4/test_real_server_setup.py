"""Lines for real servers. Whether the Debian ones work is tried in `tests/net/test_realserver.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mailbalancer.l4.real_server_setup import SYSTEMS, Facts, setup
from mailbalancer.model import L4, Endpoint, Forward, Member, Mode, Pool, PortRange, ProxyProtocol, Service, Source

FACTS = Facts("10.0.2.11", gateway="10.0.2.1", balancer="10.0.2.1")
FACTS6 = Facts("fd00:2::11", gateway="fd00:2::1", balancer="fd00:2::1")
TUNNEL = replace(FACTS, tunnel_mac="02:6d:62:00:00:01", tunnel_number=27746, tunnel_port=4789, mss=1410)


def service(forward: Forward) -> Service:
    doors = (("10.0.1.100", 25), ("10.0.1.100", 587), ("10.0.1.101", 25), ("fd00:1::100", 25))
    l4 = L4(tuple(PortRange(address, port, port) for address, port in doors), forward=forward)
    return Service("mail", Mode.L4, (), Pool("mail", "", (Member("s1", Endpoint("10.0.2.11", 25)),)), l4=l4)


def text(forward: Forward, system: str, facts: Facts) -> str:
    return "\n".join(setup(service(forward), system, facts))


@pytest.mark.parametrize(
    ("system", "facts", "now", "for_good"),
    [
        ("debian", FACTS, "ip -4 route replace default via 10.0.2.1", "`gateway 10.0.2.1`"),
        ("debian", FACTS6, "ip -6 route replace default via fd00:2::1", "iface $INTERFACE inet6 static"),
        ("rhel", FACTS, "ip -4 route replace default via 10.0.2.1", '"$CONNECTION" ipv4.gateway 10.0.2.1'),
        ("rhel", FACTS6, "net.ipv6.conf.$(echo $INTERFACE | tr . /).accept_ra = 0", "ipv6.gateway fd00:2::1"),
        ("windows", FACTS, "-IPAddress 10.0.2.11).InterfaceIndex", "0.0.0.0/0 -InterfaceIndex $lan -NextHop 10.0.2.1"),
        ("windows", FACTS6, "-IPAddress fd00:2::11)", "::/0 -InterfaceIndex $lan -NextHop fd00:2::1"),
    ],
)
def test_the_gateway(system: str, facts: Facts, now: str, for_good: str) -> None:
    lines = text(Forward.TRANSPARENT, system, facts)
    assert now in lines
    assert for_good in lines


def test_a_gateway_on_the_server_does_not_help_behind_a_router() -> None:
    lines = text(Forward.TRANSPARENT, "debian", Facts("10.8.0.11"))
    assert "every router between" in lines
    assert "route replace" not in lines


@pytest.mark.parametrize("system", ["debian", "rhel"])
def test_the_loopback(system: str) -> None:
    lines = text(Forward.DSR, system, FACTS)
    for vip in ("10.0.1.100", "10.0.1.101"):
        assert lines.count(f"ip address replace {vip}/32 dev lo") == 1
    for place in ("all", "$(echo $INTERFACE | tr . /)"):
        assert f"net.ipv4.conf.{place}.arp_ignore = 1\n" in lines
        assert f"net.ipv4.conf.{place}.arp_announce = 2\n" in lines
    assert "arp operation request arp daddr ip { 10.0.1.100, 10.0.1.101 } drop" in lines
    assert "what is for fd00:1::100 is not sent to an IPv4 address" in lines
    assert "it must not be the balancer (10.0.2.1)" in lines


def test_the_loopback_after_a_reboot() -> None:
    debian, rhel = (text(Forward.DSR, system, FACTS) for system in ("debian", "rhel"))
    assert "auto lo:mb1\niface lo:mb1 inet static\n    address 10.0.1.101/32\n" in debian
    assert "#   Address=10.0.1.101/32" in debian
    assert "lo: {addresses: ['10.0.1.100/32', '10.0.1.101/32']}" in debian
    assert "ipv4.addresses 10.0.1.100/32,10.0.1.101/32 ipv6.method disabled" in rhel


@pytest.mark.parametrize("system", ["debian", "rhel"])
def test_the_loopback_of_ipv6(system: str) -> None:
    lines = text(Forward.DSR, system, FACTS6)
    assert "ip address replace fd00:1::100/128 dev lo preferred_lft 0" in lines
    assert "arp_ignore" not in lines
    assert "10.0.1.100/" not in lines


def test_windows_has_a_loopback_adapter_and_weak_hosts() -> None:
    lines = text(Forward.DSR, "windows", FACTS)
    assert "-IPAddress 10.0.1.101 -PrefixLength 32 -SkipAsSource $true" in lines
    for adapter, way in (("$lan", "receive"), ("mailbalancer", "receive"), ("mailbalancer", "send")):
        assert f'netsh interface ipv4 set interface "{adapter}" weakhost{way}=enabled' in lines
    assert 'netsh interface ipv6 set interface "$lan" weakhostreceive=enabled' in text(Forward.DSR, "windows", FACTS6)
    assert "cannot end such a tunnel" in text(Forward.TUNNEL, "windows", TUNNEL)


@pytest.mark.parametrize("system", ["debian", "rhel"])
def test_the_end_of_a_tunnel(system: str) -> None:
    lines = text(Forward.TUNNEL, system, TUNNEL)
    assert "address 02:6d:62:00:00:01 type vxlan id 27746 dstport 4789 local 10.0.2.11 nolearning" in lines
    assert "net.ipv4.conf.all.rp_filter = 0\n" in lines
    assert "sysctl -w net.ipv4.conf.mbvxlan.rp_filter=0" in lines
    assert "advmss 1410" in lines
    assert ("firewall-cmd" in lines) == (system == "rhel")
    assert "must not be the balancer" not in lines


@pytest.mark.parametrize("system", ["debian", "rhel"])
@pytest.mark.parametrize(
    ("facts", "kind", "protocol"), [(FACTS, "ipip", 4), (FACTS6, "ip6tnl mode ip6ip6", 41)], ids=["IPv4", "IPv6"]
)
def test_the_end_of_a_tunnel_of_ip_in_ip(system: str, facts: Facts, kind: str, protocol: int) -> None:
    module = "ip6_tunnel" if protocol == 41 else "ipip"
    facts = replace(facts, mss=1440, tunnel_type=kind.split()[0], tunnel_module=module)
    lines = text(Forward.TUNNEL, system, facts)
    assert f"modprobe {module} " in lines
    assert f"ip link add mbtunnel type {kind} local {facts.server} remote {facts.balancer}\n" in lines
    assert ("sysctl -w net.ipv4.conf.mbtunnel.rp_filter=0" in lines) == (protocol == 4)
    assert f"must let IP protocol {protocol} in" in lines
    assert (f"source address={facts.balancer} protocol value={protocol} accept" in lines) == (system == "rhel")
    assert "vxlan" not in lines
    assert "are lost" in lines


def test_nothing_is_needed() -> None:
    assert len(setup(service(Forward.SNAT), "debian", FACTS)) == 1
    plain = Service("mail", Mode.TCP, (Endpoint("10.0.1.1", 25),), service(Forward.SNAT).pool)
    told = replace(plain, proxy_protocol=ProxyProtocol(send="v2"))
    assert "PROXY header (v2)" in setup(told, "debian", FACTS)[1]
    assert "gateway: 10.0.2.1" in setup(replace(plain, source=Source(use="client")), "debian", FACTS)[0]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("forward", list(Forward))
@pytest.mark.parametrize("facts", [FACTS, FACTS6, TUNNEL], ids=["IPv4", "IPv6", "tunnel"])
def test_nothing_is_left_to_be_filled_in(system: str, forward: Forward, facts: Facts) -> None:
    lines = text(forward, system, facts).replace("END", "").replace("INTERFACE=", "")
    for word in ("GATEWAY", "THE_BALANCER", " INTERFACE"):
        assert word not in lines
