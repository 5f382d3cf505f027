"""Lines for real servers."""

from __future__ import annotations

import pytest

from mailbalancer.l4.real_server_setup import SYSTEMS, Facts, setup
from mailbalancer.model import L4, Endpoint, Forward, Member, Mode, Pool, PortRange, Service

FACTS = Facts("10.0.2.11", gateway="10.0.2.1")


def service(forward: Forward) -> Service:
    l4 = L4((PortRange("10.0.1.100", 25, 25), PortRange("10.0.1.100", 587, 587)), forward=forward)
    pool = Pool("mail", "", (Member("s1", Endpoint("10.0.2.11", 25)),))
    return Service("mail", Mode.L4, (), pool, l4=l4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_gateway(system: str) -> None:
    assert any("10.0.2.1" in line for line in setup(service(Forward.TRANSPARENT), system, FACTS)[1:])


@pytest.mark.parametrize("system", ["debian", "rhel"])
def test_the_loopback(system: str) -> None:
    lines = setup(service(Forward.DSR), system, FACTS)
    assert lines.count("ip address add 10.0.1.100/32 dev lo") == 1
    assert "sysctl -w net.ipv4.conf.all.arp_ignore=1" in lines
    assert "sysctl -w net.ipv4.conf.INTERFACE.arp_announce=2" in lines


def test_windows_has_a_loopback_adapter_and_weak_hosts() -> None:
    lines = setup(service(Forward.DSR), "windows", FACTS)
    assert 'netsh interface ipv4 add address "LOOPBACK" 10.0.1.100 255.255.255.255' in lines
    assert 'netsh interface ipv4 set interface "LOOPBACK" weakhostsend=enabled' in lines
    assert "cannot end such a tunnel" in setup(service(Forward.TUNNEL), "windows", FACTS)[0]


def test_the_end_of_a_tunnel() -> None:
    facts = Facts("10.8.0.11", tunnel_mac="02:6d:62:00:00:01", tunnel_number=27746, tunnel_port=4789, mss=1410)
    lines = setup(service(Forward.TUNNEL), "debian", facts)
    assert "ip route replace default via GATEWAY advmss 1410" in lines


def test_snat_needs_nothing() -> None:
    assert len(setup(service(Forward.SNAT), "debian", FACTS)) == 1
