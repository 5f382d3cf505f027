"""Which kinds of clients are asked for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from mailbalancer.control.client_networks import kinds_of_clients
from mailbalancer.model import Endpoint, Mail, MailPolicy, Member, Mode, Pool, Service, Smtp, Source, SourceClass
from mailbalancer.network import Interface, Network, Route

NETWORK = Network(
    (
        Interface("lo", 1, addresses=(ip_interface("127.0.0.1/8"),)),
        Interface("eth0", 2, addresses=(ip_interface("10.0.1.1/24"), ip_interface("fd00:1::1/64"))),
        Interface("eth1", 3, addresses=(ip_interface("10.0.2.1/30"), ip_interface("10.0.1.100/32"))),
    ),
    (
        Route(ip_network("10.0.1.0/24"), "eth0"),
        Route(ip_network("10.5.0.0/16"), "eth0", ip_address("10.0.1.254")),
        Route(ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.254")),
        Route(ip_network("::/0"), "eth0", ip_address("fd00:1::254")),
    ),
)
MEMBER = Member("s1", Endpoint("10.0.2.2", 25))
SERVICE = Service("mail", Mode.TCP, (Endpoint("10.0.1.100", 25),), Pool("mail", "", (MEMBER,)))


def addresses(service: Service) -> dict[str, str]:
    return {one.words: one.address for one in kinds_of_clients(service, NETWORK)}


def test_near_routed_and_far() -> None:
    assert addresses(SERVICE) == {
        "clients in 10.0.1.0/24 (eth0)": "10.0.1.2",
        "clients in 10.5.0.0/16 (behind 10.0.1.254)": "10.5.0.1",
        "clients of other networks and the Internet": "203.0.113.1",
    }, "10.0.2.0/30 has nobody but us and the server"


def test_both_families() -> None:
    both = replace(SERVICE, listen=(*SERVICE.listen, Endpoint("fd00:1::100", 25)))
    found = [one.address for one in kinds_of_clients(both, NETWORK)]
    assert {"fd00:1::2", "3fff::1"} <= set(found)


def test_networks_that_the_configuration_names() -> None:
    named = replace(
        SERVICE,
        source=Source((SourceClass("scanners", (ip_network("10.7.0.9/32"),), ("10.0.2.1",)),)),
        mail=Mail(
            "mx", smtp=Smtp(policy=MailPolicy(relay_clients=(ip_network("10.8.0.0/24"), ip_network("0.0.0.0/0"))))
        ),
    )
    found = addresses(named)
    assert found["clients in 10.7.0.9/32 (class scanners)"] == "10.7.0.9"
    assert found["clients in 10.8.0.0/24 (`relay_clients`)"] == "10.8.0.1"
    assert not any("0.0.0.0/0" in words for words in found)


def test_who_is_kept_out_is_not_asked_for() -> None:
    assert "clients in 10.0.1.0/24 (eth0)" not in addresses(replace(SERVICE, deny=(ip_network("10.0.0.0/15"),)))
    assert list(addresses(replace(SERVICE, allow=(ip_network("10.5.0.0/16"),)))) == ["clients in 10.5.0.0/16 (`allow`)"]
