"""What a configuration needs of a machine, worked out from facts; nothing here touches one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest

from mailbalancer.config.load import load_text
from mailbalancer.control.host_plan import (
    HostPlan,
    needed_capabilities,
    needs_host,
    plan,
    tunnel_bytes,
    tunnel_devices,
    tunnel_mac,
)
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.steps import Address, Forwarding6, IpTunnel, LocalRoute, Rule, Step, Sysctl, TunnelEnd, Vxlan
from mailbalancer.model import Config
from mailbalancer.network import Interface, Network, Route

NETWORK = Network(
    (
        Interface("lo", 1, addresses=(ip_interface("127.0.0.1/8"),)),
        Interface(
            "eth0", 2, "02:00:00:00:00:01", 1500, True, (ip_interface("10.0.1.1/24"), ip_interface("fd00:1::1/64"))
        ),
        Interface(
            "eth1", 3, "02:00:00:00:00:02", 1400, True, (ip_interface("10.0.2.1/24"), ip_interface("fd00:2::1/64"))
        ),
    ),
    (
        Route(ip_network("10.0.1.0/24"), "eth0"),
        Route(ip_network("10.0.2.0/24"), "eth1"),
        Route(ip_network("fd00:2::/64"), "eth1"),
        Route(ip_network("10.8.0.0/24"), "eth1", ip_address("10.0.2.254")),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.254")),
    ),
)
SERVERS = {"s1": "10.0.2.11", "s6": "fd00:2::11", "away": "10.8.0.11", "near": "10.0.1.11"}


def config(*listen: str, servers: Sequence[str] = ("s1",), **service: Any) -> Config:
    mail = {"listen": [*listen], "real_servers": [*servers], **service}
    known = {name: SERVERS[name] for name in servers}
    return load_text(json.dumps({"version": 1, "real_servers": known, "services": {"mail": mail}}), "x.yaml")


def planned(found: Config, now: str = "0", in_force: Sequence[Step] = ()) -> HostPlan:
    return plan(found, NETWORK, lambda key: now, in_force)


def ip_in_ip(encapsulation: str, listen: str, *servers: str) -> Config:
    return config(listen, servers=servers, mode="l4", forward="tunnel", tunnel={"encapsulation": encapsulation})


L4 = {"mode": "l4", "forward": "transparent"}


def test_an_address_goes_where_its_network_is() -> None:
    steps = planned(config("10.0.1.100:25", **L4)).steps
    assert steps[0] == Address("10.0.1.100/32", "eth0")
    assert Address("fd00:2::100/128", "eth1") in planned(config("[fd00:2::100]:25", servers=["s6"], **L4)).steps


def test_an_address_of_the_machine_is_used_as_it_is() -> None:
    assert not [step for step in planned(config("10.0.1.1:25", **L4)).steps if isinstance(step, Address)]


def test_what_was_found_before_us_is_kept() -> None:
    """A reload finds the machine as we made it; the way back is still to what was there."""
    found = config("10.0.1.100:25", **L4)
    first = planned(found).steps
    assert Sysctl("net.ipv4.conf.eth1.forwarding", "1", "0") in first
    assert planned(found, now="1", in_force=first).steps == first


@pytest.mark.parametrize(
    ("found", "said", "remedy"),
    [
        (config("10.77.0.1:25", **L4), "10.77.0.1 is in no network of this machine", "interface:"),
        (config("10.0.1.100:25", **L4, interface="eth7"), "there is no interface eth7", "eth0, eth1"),
        (config("10.0.1.100:25", mode="l4", forward="snat", snat_address="10.0.1.9"), "not an address of this", ""),
        (config("10.0.1.100:25", **L4, masquerade_outbound="10.0.1.9"), "masquerade_outbound 10.0.1.9 is not an", ""),
        (config("10.0.1.100:25", **L4, source={"probe_address": "10.0.2.9"}), "is in 10.0.2.0/24", "routers"),
    ],
)  # fmt: skip
def test_what_cannot_work_here_is_said_with_its_remedy(found: Config, said: str, remedy: str) -> None:
    with pytest.raises(MailbalancerError, match="service mail: ") as caught:
        planned(found)
    assert said in caught.value.message
    assert remedy in caught.value.remedy


def test_no_way_to_a_real_server() -> None:
    nowhere = Network(NETWORK.interfaces, NETWORK.routes[:1])
    with pytest.raises(MailbalancerError, match=r"there is no route to real server 10\.0\.2\.11"):
        plan(config("10.0.1.100:25", **L4), nowhere, lambda key: "0")


def test_an_address_that_another_service_adds_may_be_the_source() -> None:
    steps = planned(config("10.0.1.100:25", mode="l4", forward="snat", snat_address="10.0.1.100")).steps
    assert Address("10.0.1.100/32", "eth0") in steps
    assert not [step for step in steps if isinstance(step, LocalRoute | Rule)]  # nothing is probed


def test_transparency_needs_a_way_for_borrowed_addresses() -> None:
    for found in (config("10.0.1.100:25", **L4), config("10.0.1.1:25", mode="tcp", source="client")):
        steps = planned(found).steps
        assert [step.version for step in steps if isinstance(step, LocalRoute | Rule)] == [4, 4]
        assert {step.key for step in steps if isinstance(step, Sysctl)} >= {"net.ipv4.conf.eth1.forwarding"}


def test_ipv6_has_one_switch_for_forwarding() -> None:
    steps = planned(config("[fd00:1::100]:25", servers=["s6"], **L4)).steps
    assert len([step for step in steps if isinstance(step, Forwarding6)]) == 1


@pytest.mark.parametrize("service", [L4, {"mode": "tcp", "source": "client"}], ids=["l4", "layer 7"])
def test_one_arm_is_warned_of_and_gets_no_redirects(service: dict[str, Any]) -> None:
    found = plan(config("10.0.1.1:25", servers=["near"], **service), NETWORK, lambda key: "1")
    assert "clients and real servers are both reached through eth0" in found.warnings[0]
    assert Sysctl("net.ipv4.conf.eth0.send_redirects", "0", "1") in found.steps
    assert not planned(config("10.0.1.1:25", **service)).warnings


def test_a_tunnel_leaves_from_the_way_to_its_end() -> None:
    steps = planned(config("10.0.1.100:25", servers=["away"], mode="l4", forward="tunnel")).steps
    device = next(step for step in steps if isinstance(step, Vxlan))
    assert (device.local, device.mtu, device.mss) == ("10.0.2.1", 1350, 1310)
    assert TunnelEnd("mbvxlan4", "10.8.0.11", tunnel_mac("10.8.0.11")) in steps
    smaller = Network(
        (*NETWORK.interfaces[:2], Interface("eth1", 3, "", 1300, True, NETWORK.interfaces[2].addresses)), NETWORK.routes
    )
    found = config("10.0.1.100:25", servers=["away"], mode="l4", forward="tunnel")
    again = plan(found, smaller, lambda key: "0", steps).steps
    assert next(step for step in again if isinstance(step, Vxlan)).mtu == 1250


def test_a_tunnel_of_ip_in_ip_is_a_device_for_each_server() -> None:
    found = ip_in_ip("ipip", "10.0.1.100:25", "away", "near")
    steps = planned(found).steps
    devices = [step for step in steps if isinstance(step, IpTunnel)]
    assert [(d.local, d.remote, d.mtu, d.mss) for d in devices] == [
        ("10.0.2.1", "10.8.0.11", 1380, 1340),
        ("10.0.1.1", "10.0.1.11", 1480, 1440),
    ]
    assert tuple(device.device for device in devices) == tunnel_devices(found.services[0])
    assert len({device.device for device in devices}) == 2
    assert not [step for step in steps if isinstance(step, Vxlan | TunnelEnd)]
    assert planned(found, in_force=steps).steps == steps


def test_a_tunnel_of_ip6_in_ip6() -> None:
    steps = planned(ip_in_ip("ip6ip6", "[fd00:2::100]:25", "s6")).steps
    device = next(step for step in steps if isinstance(step, IpTunnel))
    assert (device.local, device.remote, device.mtu, device.mss) == ("fd00:2::1", "fd00:2::11", 1360, 1300)
    assert [tunnel_bytes(name, 6) for name in ("vxlan", "ip6ip6")] == [70, 40]


@pytest.mark.parametrize(
    ("found", "kind", "module"),
    [
        (ip_in_ip("ipip", "10.0.1.100:25", "away"), "ipip", "ipip"),
        (ip_in_ip("ip6ip6", "[fd00:2::100]:25", "s6"), "ip6tnl", "ip6_tunnel"),
    ],
)
def test_a_kernel_without_such_a_tunnel(found: Config, kind: str, module: str) -> None:
    with pytest.raises(MailbalancerError, match=f"service mail: this kernel has no {kind} devices") as caught:
        plan(found, NETWORK, lambda key: "0", lacks=lambda asked: asked == kind)
    assert caught.value.remedy == f"load the module {module}, or write encapsulation: vxlan"
    plan(found, NETWORK, lambda key: "0", lacks=lambda asked: asked != kind)


def test_who_needs_which_rights() -> None:
    plain, kernel = config("10.0.1.1:25", mode="tcp"), config("10.0.1.100:25", **L4)
    client = config("10.0.1.1:25", mode="tcp", source="client")
    assert [needs_host(found) for found in (plain, kernel, client)] == [False, True, True]
    assert needed_capabilities(plain, False) == (frozenset(), frozenset())
    assert needed_capabilities(plain, True) == (frozenset({12, 13}), frozenset())
    assert needed_capabilities(client, True) == (frozenset({12, 13}), frozenset({13}))
