"""Layer 4 services: what is built, and what cannot work in any network."""

from __future__ import annotations

import pytest

from mailbalancer.config.load import load_text
from mailbalancer.errors import ConfigError
from mailbalancer.model import Config, Forward, Mode, PortRange

HEAD = """\
version: 1
real_servers: {s1: 10.0.2.11, s2: 10.0.2.12, s6: "2001:db8::11"}
services:
"""


def built(service: str) -> Config:
    return load_text(HEAD + f"  mail: {{mode: l4, {service}}}\n", "x.yaml")


def problems(service: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(HEAD + f"  mail: {{mode: l4, {service}}}\n", "x.yaml")
    return caught.value.problems


def test_a_service_of_the_kernel() -> None:
    service = built("forward: dsr, protocol: udp, listen: '10.0.1.101:5000-5010', real_servers: [s1]").services[0]
    assert (service.mode, service.listen) == (Mode.L4, ())
    assert service.l4 is not None
    assert service.l4.forward is Forward.DSR
    assert service.l4.listen == (PortRange("10.0.1.101", 5000, 5010),)
    assert service.places == ("10.0.1.101:5000-5010",)
    assert service.doors[0].port == 5000


TRANSPARENT = "forward: transparent, listen: '10.0.1.100:25', real_servers: "
TUNNEL = "forward: tunnel, listen: '10.0.1.100:25', real_servers: "


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("forward: dsr, listen: '10.0.1.100:25', real_servers: [s1], snat_address: 10.0.2.1", "a loop"),
        ("forward: tunnel, listen: '10.0.1.100:25', real_servers: [s1], source: {balancer_for: 10.0.0.0/8}", "a loop"),
        ("forward: dsr, listen: '10.0.1.100:25', real_servers: {s1: 2525}", "cannot change the port"),
        ("forward: snat, listen: '10.0.1.100:25-30', real_servers: {s1: 2525}", "several ports cannot become one"),
        (
            "forward: dsr, listen: '10.0.1.100:25', real_servers: [s1], masquerade_outbound: 10.0.1.100",
            "not the servers' gateway",
        ),
        (TRANSPARENT + "[s6]", "does not translate between IPv4 and IPv6"),
        (TRANSPARENT + "[s1], snat_address: 10.0.2.1", "write forward: snat"),
        (TRANSPARENT + "[s1], tunnel: {encapsulation: ipip}", "is for forward: tunnel"),
        (TUNNEL + "[s1, s6], tunnel: {encapsulation: ipip}", "2001:db8::11 is IPv6, and encapsulation: ipip carries"),
        (TUNNEL + "[s1, s6], tunnel: {encapsulation: ip6ip6}", "10.0.2.11 is IPv4, and encapsulation: ip6ip6 carries"),
        (TRANSPARENT + "[s1], source: client", "forward: transparent (the client's)"),
        (TRANSPARENT + "[s1], max_sessions: 5", "limit the real servers"),
        (
            "forward: snat, listen: ['10.0.1.100:20-30', '10.0.1.100:25'], real_servers: [s1]",
            "is in 10.0.1.100:20-30 already",
        ),
        ("forward: snat, listen: '10.0.2.11:25', real_servers: [s1]", "a loop"),
    ],
)
def test_what_cannot_work(service: str, said: str) -> None:
    lines = problems(service)
    assert len(lines) == 1
    assert said in lines[0]


def test_an_address_and_port_belongs_to_one_service() -> None:
    other = "  web: {mode: tcp, listen: '10.0.1.100:25', real_servers: [s1]}\n"
    with pytest.raises(ConfigError) as caught:
        load_text(HEAD + other + f"  mail: {{mode: l4, {TRANSPARENT}[s2]}}\n", "x.yaml")
    assert "10.0.1.100:25 already belongs to service web" in caught.value.problems[0]


def test_the_same_port_of_the_other_protocol_is_free() -> None:
    other = "  dns: {mode: l4, protocol: udp, forward: snat, listen: '10.0.1.100:25', real_servers: [s1]}\n"
    load_text(HEAD + other + f"  mail: {{mode: l4, {TRANSPARENT}[s2]}}\n", "x.yaml")


def test_a_group_is_the_kernels_or_the_workers() -> None:
    other = "  web: {mode: tcp, listen: ':80', real_servers: [s1], persist: {group: g}}\n"
    with pytest.raises(ConfigError) as caught:
        load_text(HEAD + other + f"  mail: {{mode: l4, {TRANSPARENT}[s1], persist: {{group: g}}}}\n", "x.yaml")
    assert "remembered by the kernel" in caught.value.problems[0]
