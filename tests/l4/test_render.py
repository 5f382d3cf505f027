"""Rules row by row: objects in, nft text out; and that nothing but numbers and addresses can get into a rule."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.l4.render import tables
from mailbalancer.l4.ruleset import (
    ForwardedService,
    Guard,
    Near,
    Outbound,
    Persistence,
    PortRange,
    Protocol,
    Ruleset,
    Server,
    Spread,
)
from mailbalancer.l4.tables import Table, script
from mailbalancer.model import Forward

VIP, VIP6 = ip_address("10.0.1.100"), ip_address("2001:db8::100")
S1 = Server(1, 11, ip_address("10.0.2.11"))
S2 = Server(2, 12, ip_address("10.0.2.12"))
S6 = Server(3, 11, ip_address("2001:db8:2::11"))


def service(*servers: Server, **more: Any) -> ForwardedService:
    given: dict[str, Any] = {
        "number": 7,
        "protocol": Protocol.TCP,
        "listen": (PortRange(VIP, 25, 25),),
        "forward": Forward.TRANSPARENT,
        "servers": servers,
    }
    return ForwardedService(**{**given, **more})


def table(*services: ForwardedService, family: str = "inet", **more: Any) -> Table:
    return next(t for t in tables(Ruleset(services, **more)) if t.family == family)


def rules(found: Table, chain: str) -> list[str]:
    return list(found.chains[chain].rules)


def test_nothing_to_forward_is_no_table() -> None:
    assert tables(Ruleset()) == ()


def test_a_packet_finds_its_service() -> None:
    tcp = service(S1, listen=(PortRange(VIP, 25, 25), PortRange(VIP6, 587, 587)))
    udp = service(S2, number=8, protocol=Protocol.UDP, listen=(PortRange(VIP, 5000, 5010),))
    assert rules(table(tcp, udp), "forward_new") == [
        "ip daddr != { 10.0.1.100 } return",
        "ip daddr 10.0.1.100 tcp dport 25 goto service_7_4",
        "ip daddr 10.0.1.100 udp dport 5000-5010 goto service_8_4",
        "ip6 daddr != { 2001:db8::100 } return",
        "ip6 daddr 2001:db8::100 tcp dport 587 goto service_7_6",
    ]


@pytest.mark.parametrize(
    ("spread", "servers", "choice"),
    [
        (Spread.RANDOM, (S1,), []),
        (
            Spread.RANDOM,
            (Server(1, 11, ip_address("10.0.2.11"), share=3), S2),
            ["numgen random mod 4 vmap { 0-2 : goto member_1, 3 : goto member_2 }"],
        ),
        (
            Spread.IN_TURN,
            (Server(1, 11, ip_address("10.0.2.11"), share=2), S2),
            ["numgen inc mod 3 vmap { 0 : goto member_1, 1 : goto member_2, 2 : goto member_1 }"],
        ),
        (Spread.IN_TURN, (S2, Server(1, 11, ip_address("10.0.2.11"), share=0)), []),
    ],
)
def test_a_new_flow_takes_a_share(spread: Spread, servers: tuple[Server, ...], choice: list[str]) -> None:
    """A packet for which the map is gone (a change has come in between) goes to who has the most."""
    most = f"goto member_{servers[0].number}"
    assert rules(table(service(*servers, spread=spread)), "service_7_4") == [*choice, most]


def test_addresses_are_hashed_into_buckets() -> None:
    rule, _ = rules(table(service(S1, S2, spread=Spread.SOURCE_HASH)), "service_7_4")
    assert rule.startswith("jhash ip saddr mod 1024 seed 0x6d62 vmap { 0")
    assert set(re.findall(r"member_\d+", rule)) == {"member_1", "member_2"}


def test_with_nobody_ready_the_packet_goes_on() -> None:
    assert rules(table(service(Server(1, 11, ip_address("10.0.2.11"), share=0))), "service_7_4") == []


def test_a_member_is_marked_counted_and_reached() -> None:
    found = table(service(S1, Server(2, 12, ip_address("10.0.2.12"), port=2525)))
    assert rules(found, "member_1") == [
        "ct mark set 0x6d620001 counter name new_1",
        "meta l4proto tcp dnat ip to 10.0.2.11",
    ]
    assert rules(found, "member_2")[1] == "meta l4proto tcp dnat ip to 10.0.2.12:2525"


def test_ipv6_members_are_reached_in_their_own_family() -> None:
    s6 = Server(3, 11, ip_address("2001:db8:2::11"), port=25)
    found = table(service(S1, s6, listen=(PortRange(VIP6, 25, 25),)))
    assert rules(found, "service_7_6") == ["goto member_3"]
    assert rules(found, "member_3")[1] == "meta l4proto tcp dnat ip6 to [2001:db8:2::11]:25"
    assert "member_1" not in found.chains


def test_clients_that_come_again() -> None:
    found = table(service(S1, S2, persist=Persistence(5, 3600, 1000)))
    assert rules(found, "service_7_4")[:3] == [
        "ct mark set ip saddr map @clients_5_1000_4",
        "ct mark 0x6d63000b goto again_1",
        "ct mark 0x6d63000c goto again_2",
    ]
    assert rules(found, "again_1") == [
        "update @clients_5_1000_4 { ip saddr timeout 3600s : 0x6d63000b }",
        "goto chosen_1",
    ]
    assert rules(found, "member_1") == [
        "delete @clients_5_1000_4 { ip saddr : 0x6d63000b }",
        "add @clients_5_1000_4 { ip saddr timeout 3600s : 0x6d63000b }",
        "goto chosen_1",
    ]


def test_nobody_comes_again_to_a_closed_server() -> None:
    closed = Server(1, 11, ip_address("10.0.2.11"), share=0, returning=False)
    found = table(service(closed, S2, persist=Persistence(5, 3600, 1000)))
    again = [rule for rule in rules(found, "service_7_4") if "again" in rule]
    assert again == ["ct mark 0x6d63000c goto again_2"]


def test_who_is_let_in() -> None:
    found = table(
        service(S1, allow=(ip_network("10.0.0.0/8"),), deny=(ip_network("10.9.0.0/16"), ip_network("10.9.1.0/24")))
    )
    assert rules(found, "service_7_4")[:2] == ["ip saddr { 10.9.0.0/16 } drop", "ip saddr != { 10.0.0.0/8 } drop"]


def test_a_family_that_nobody_is_allowed_from_is_closed() -> None:
    found = table(service(S6, listen=(PortRange(VIP6, 25, 25),), allow=(ip_network("10.0.0.0/8"),)))
    assert rules(found, "service_7_6")[0] == "drop"


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ({"forward": Forward.SNAT}, "meta nfproto ipv4 ct mark { 0x6d620001 } masquerade"),
        (
            {"forward": Forward.SNAT, "snat_address": ip_address("10.0.2.1")},
            "meta nfproto ipv4 ct mark { 0x6d620001 } snat ip to 10.0.2.1",
        ),
        (
            {"near": (Near(9, ip_network("10.0.2.0/24")),)},
            "meta nfproto ipv4 ct mark { 0x6d620001 } ip saddr 10.0.2.0/24 counter name near_9 masquerade",
        ),
    ],
)
def test_whose_address_the_server_sees(more: dict[str, Any], rule: str) -> None:
    assert rules(table(service(S1, **more)), "source_nat") == [rule]


def test_a_server_whose_answers_do_not_come_back_sees_ours() -> None:
    stray = Server(1, 11, ip_address("10.0.2.11"), own_address=True)
    assert rules(table(service(stray, S2)), "source_nat") == [
        "meta nfproto ipv4 ct mark { 0x6d620001 } counter name own_7 masquerade"
    ]


def test_the_servers_own_connections() -> None:
    outbound = Outbound((ip_address("10.0.2.11"),), (ip_network("10.0.2.0/24"),), ip_address("10.0.1.100"))
    assert rules(table(service(S1), outbound=(outbound,)), "source_nat")[-1] == (
        "ip saddr { 10.0.2.11 } ip daddr != { 10.0.2.0/24 } ct mark & 0xffff0000 != 0x6d620000 snat ip to 10.0.1.100"
    )


def test_frames_are_sent_on() -> None:
    near = Server(1, 11, ip_address("10.0.1.11"), device="eth0")
    dsr = service(near, forward=Forward.DSR, devices=("eth0",))
    found = table(dsr, family="netdev", guards=(Guard("eth0", "02:00:00:00:00:01"),))
    assert rules(found, "ingress_0") == [
        "ether saddr 02:00:00:00:00:01 counter name own_mac_0 drop",
        "ip saddr { 10.0.1.100 } goto from_us_0_4",
        "ip daddr != { 10.0.1.100 } return",
        "ip daddr 10.0.1.100 tcp dport 25 goto service_7_4",
        "ip daddr 10.0.1.100 icmp type destination-unreachable icmp code frag-needed @th,136,8 6 @th,224,16 25 "
        "counter name too_big_7 goto too_big_7_4",
    ]
    assert rules(found, "from_us_0_4") == [
        "meta l4proto { tcp, udp } th dport 27746-28257 drop",
        "icmp type echo-reply drop",
        "counter name own_address_0 drop",
    ]
    assert rules(found, "service_7_4") == [
        "meta mark set jhash th sport . th dport . ip saddr mod 4294967295 seed 0x6d62",
        "meta mark set meta mark map @flows_7_262144_4",
        "meta mark 0x6d620001 goto known_1",
        "goto member_1",
        "drop",
    ]
    assert rules(found, "send_1") == [
        "meta mark set 0 counter name in_1",
        'fwd ip to 10.0.1.11 device "eth0"',
    ]


def test_nobody_sends_into_our_tunnels() -> None:
    (found,) = tables(Ruleset(tunnel=27746, tunnel_peers=(ip_network("10.8.0.0/24"),)))
    assert rules(found, "tunnel") == [
        "meta nfproto ipv4 udp dport 4789 @th,96,24 27746 ip saddr != { 10.8.0.0/24 } "
        "counter name tunnel_strangers drop",
        "icmp type destination-unreachable icmp code frag-needed @th,136,8 17 @th,240,16 4789 "
        "counter name tunnel_too_big",
        "meta nfproto ipv6 udp dport 4789 @th,96,24 27746 counter name tunnel_strangers drop",
        "icmpv6 type packet-too-big @th,112,8 17 @th,400,16 4789 counter name tunnel_too_big",
    ]


def test_a_loop_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="a loop"):
        service(S1, forward=Forward.DSR, snat_address=ip_address("10.0.1.1"))
    with pytest.raises(ValueError, match="cannot change the port"):
        service(Server(1, 11, ip_address("10.0.1.11"), port=2525), forward=Forward.TUNNEL)
    with pytest.raises(ValueError, match="no guard"):
        Ruleset((service(S1, forward=Forward.DSR, devices=("eth0",)),))


NASTY = st.text(alphabet="abz019.:/-_ \n\r\t\"'\\;{}#@$|&*é²", max_size=20)


@given(NASTY)
def test_no_text_gets_into_a_rule(text: str) -> None:
    """Whatever is put where a number, an address or a name of an interface belongs is refused, or is one."""
    for make in (
        lambda: Guard(text, "02:00:00:00:00:01"),
        lambda: Guard("eth0", text),
        lambda: Server(1, 1, ip_address("10.0.2.11"), device=text),
        lambda: Server(text, 1, ip_address("10.0.2.11")),  # type: ignore[arg-type]
        lambda: Server(1, 1, text),  # type: ignore[arg-type]
        lambda: PortRange(VIP, text, 25),  # type: ignore[arg-type]
        lambda: Persistence(1, text, 1),  # type: ignore[arg-type]
        lambda: Outbound((VIP,), (text,)),  # type: ignore[arg-type]
        lambda: Server(1, 1, ip_address(f"fe80::1%{text}")),
    ):
        try:
            made = make()
        except ValueError:
            continue
        device = getattr(made, "device", "")
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}|", device)


@given(st.integers(1, 65534), st.integers(0, 1000), st.ip_addresses(v=4), st.booleans())
def test_every_line_is_about_our_table(number: int, share: int, address: Any, in_turn: bool) -> None:
    spread = Spread.IN_TURN if in_turn else Spread.RANDOM
    found = tables(Ruleset((service(Server(number, number, address, share=share), S2, spread=spread),)))
    for line in script(found, None).splitlines():
        assert re.match(r"(add|delete|flush) (table|chain|rule|map|set|counter|element) inet mailbalancer( |$)", line)


# what every packet is asked


@pytest.mark.parametrize("transparent", [True, False])
def test_packets_are_asked_little(transparent: bool) -> None:
    """However many addresses we have: one rule of a family for answers to the probe, and no search for sessions of ours
    where there are none."""
    probes = tuple(map(ip_address, ("192.0.2.1", "10.0.1.1", "10.0.2.1", "2001:db8::1", "fd00::1")))
    found = table(transparent=transparent, probes=probes)
    assert [rule.count("update @answers_") for rule in rules(found, "probed")] == [1, 1]
    searching = rules(found, "transparent")
    assert len(searching) == (1 if transparent else 2)
    assert all(("daddr {" in rule) != transparent for rule in searching)
