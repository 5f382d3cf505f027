"""Packets in, sentences out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mailbalancer.l4.pcap import ACK, FIN, RST, SYN
from mailbalancer.l4.seen import Case, sentences, sort
from mailbalancer.model import Endpoint, PortRange
from tests.l4.frames import MACS, Wire

CLIENT, VIP, S1, OURS = "10.9.0.5", ("10.0.1.100", 25), ("10.0.2.11", 25), "10.0.2.1"
CASE = Case(
    "mail",
    CLIENT,
    (PortRange("10.0.1.100", 25, 25),),
    {Endpoint(*S1): "s1"},
    {MACS["s1"]: "s1"},
    frozenset({OURS}),
    frozenset({MACS["us"]}),
)
DSR = replace(CASE, past_us=True)
BACK = ("s1", "us")
ON = ("us", "s1")


def said(case: Case, draw: Callable[[Wire], None]) -> list[str]:
    wire = Wire()
    draw(wire)
    return sentences(sort(case, wire.packets), 10.0)


def talk(wire: Wire, one: tuple[str, int], other: tuple[str, int], sizes: tuple[int, int] = (8, 20)) -> None:
    """A connection that comes about, with bytes in both directions."""
    wire.segment(one, other, SYN)
    wire.segment(other, one, SYN | ACK, macs=BACK)
    wire.segment(one, other, ACK, sizes[0], sequence=2)
    wire.segment(other, one, ACK, sizes[1], sequence=2, macs=BACK)
    wire.segment(one, other, FIN | ACK, sequence=3)


def nothing(wire: Wire) -> None:
    """Somebody else's packets only."""
    talk(wire, ("10.9.0.6", 40000), VIP)


def the_puzzle(wire: Wire) -> None:
    for _ in range(4):
        wire.segment((CLIENT, 40000), VIP, SYN)
        wire.segment((CLIENT, 40000), S1, SYN, macs=ON)


def all_well(wire: Wire) -> None:
    for port in (40000, 40001):
        talk(wire, (CLIENT, port), VIP)
        talk(wire, (CLIENT, port), S1)


def own_address(wire: Wire) -> None:
    talk(wire, (CLIENT, 40000), VIP)
    talk(wire, (OURS, 51000), S1)
    talk(wire, (OURS, 51001), S1)  # somebody else's


def own_address_silent(wire: Wire) -> None:
    talk(wire, (CLIENT, 40000), VIP, (0, 0))
    for _ in range(3):
        wire.segment((OURS, 51000), S1, SYN, macs=ON)


def refused(wire: Wire) -> None:
    wire.segment((CLIENT, 40000), VIP, SYN)
    wire.segment((CLIENT, 40000), S1, SYN, macs=ON)
    wire.segment(S1, (CLIENT, 40000), RST | ACK, macs=BACK)
    wire.segment(VIP, (CLIENT, 40000), RST | ACK, macs=("us", "client"))


def kept_out(wire: Wire) -> None:
    wire.segment((CLIENT, 40000), VIP, SYN)


def too_large(wire: Wire) -> None:
    for target in (VIP, S1):
        wire.segment((CLIENT, 40000), target, SYN)
        wire.segment(target, (CLIENT, 40000), SYN | ACK, macs=BACK)
        for _ in range(4):
            wire.segment((CLIENT, 40000), target, ACK, 1460, sequence=9)
    wire.error("10.0.2.254", (CLIENT, S1[0]), 3, 4, 1400)


def questions(wire: Wire) -> None:
    for port in (5000, 5001):
        wire.datagram((CLIENT, port), VIP)
        wire.datagram((CLIENT, port), S1, ON)
    wire.datagram(S1, (CLIENT, 5000), BACK)
    wire.datagram(VIP, (CLIENT, 5000), ("us", "client"))


def unanswered(wire: Wire) -> None:
    wire.datagram((CLIENT, 5000), VIP)
    wire.datagram((CLIENT, 5000), S1, ON)


def in_the_middle(wire: Wire) -> None:
    wire.segment((CLIENT, 40000), VIP, ACK, 100, sequence=5)
    wire.segment((CLIENT, 40000), S1, ACK, 100, sequence=5, macs=ON)
    wire.segment(S1, (CLIENT, 40000), ACK, macs=BACK)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (
            nothing,
            [
                "nothing came from 10.9.0.5 to 10.0.1.100:25 in 10 s",
                "it did not try, looks for the service elsewhere (DNS), or is stopped on its way here",
            ],
        ),
        (
            the_puzzle,
            [
                "SYN from 10.9.0.5 to 10.0.1.100:25 came 4 times, no answer went back",
                "SYN to s1 10.0.2.11:25 sent 4 times with the client's address, no answer came back here",
                "the real server answers another way: its gateway must be the balancer; see "
                "`mailbalancer explain --client 10.9.0.5 --service mail`",
            ],
        ),
        (
            all_well,
            [
                "2 connections from 10.9.0.5 to 10.0.1.100:25 came about; 16 bytes there, 40 back",
                "s1 10.0.2.11:25 answered 2 connections with the client's address; 16 bytes there, 40 back",
            ],
        ),
        (
            refused,
            [
                "1 connection from 10.9.0.5 to 10.0.1.100:25 refused (RST)",
                "s1 10.0.2.11:25 refused 1 connection with the client's address (RST)",
            ],
        ),
        (
            kept_out,
            [
                "SYN from 10.9.0.5 to 10.0.1.100:25 came once, no answer went back",
                "nothing went on to a real server: none is ready, or 10.9.0.5 is kept out; see "
                "`mailbalancer explain --client 10.9.0.5 --service mail`",
            ],
        ),
        (
            too_large,
            [
                "1 connection from 10.9.0.5 to 10.0.1.100:25 came about; 1460 bytes there, 0 back; 3 segments there "
                "sent again",
                "s1 10.0.2.11:25 answered 1 connection with the client's address; 1460 bytes there, 0 back; 3 segments "
                "there sent again",
                "10.0.2.254 says of packets to 10.0.2.11: fragmentation needed, 1400 bytes fit",
                "what is large does not arrive: a smaller MTU on the way, and ICMP that is filtered",
            ],
        ),
        (
            questions,
            [
                "2 datagrams came from 10.9.0.5 to 10.0.1.100:25, 1 went back",
                "2 datagrams sent to s1 10.0.2.11:25 with the client's address, 1 came back",
            ],
        ),
        (
            unanswered,
            [
                "1 datagram came from 10.9.0.5 to 10.0.1.100:25, 0 went back",
                "1 datagram sent to s1 10.0.2.11:25 with the client's address, 0 came back",
                "the real server answers another way: its gateway must be the balancer; see "
                "`mailbalancer explain --client 10.9.0.5 --service mail`",
            ],
        ),
        (in_the_middle, ["1 connection from 10.9.0.5 to 10.0.1.100:25 had begun before"]),
    ],
)
def test_with_the_clients_address(draw: Callable[[Wire], None], expected: list[str]) -> None:
    assert said(CASE, draw) == expected


def test_with_our_address_the_port_tells() -> None:
    lines = said(replace(CASE, ports=frozenset({51000})), own_address)
    assert (
        lines[1] == "s1 10.0.2.11:25 answered 1 connection with the balancer's address 10.0.2.1; 8 bytes there, 20 back"
    )
    lines = said(replace(CASE, ports=frozenset({51000})), own_address_silent)
    assert lines[1:] == [
        "SYN to s1 10.0.2.11:25 sent 3 times with the balancer's address 10.0.2.1, no answer came back here",
        "the real server is off, or a firewall before it drops what the balancer sends",
    ]


def test_with_our_address_and_no_port_known() -> None:
    assert said(CASE, own_address)[1:] == [
        "2 connections of the balancer to real servers; which are of 10.9.0.5 is not known"
    ]
    assert said(CASE, own_address_silent)[2] == (
        "SYN to real servers sent 3 times by the balancer, no answer came back here"
    )


def passed_on(wire: Wire, times: int = 1, acknowledged: bool = True) -> None:
    for _ in range(times):
        for macs in (("client", "us"), ON):
            wire.segment((CLIENT, 40000), VIP, SYN, macs=macs)
    if acknowledged:
        for macs in (("client", "us"), ON):
            wire.segment((CLIENT, 40000), VIP, ACK, 100, sequence=2, macs=macs)


def test_direct_server_return() -> None:
    assert said(DSR, passed_on) == [
        "SYN from 10.9.0.5 to 10.0.1.100:25 came once",
        "2 packets of 1 connection passed on to s1, SYN once among them",
    ]


def test_a_black_hole() -> None:
    lines = said(DSR, lambda wire: passed_on(wire, 3, acknowledged=False))
    assert lines[-1] == (
        "the client asks again, so no answer of s1 reaches it: is the service's address on its loopback?"
    )


def test_answers_that_must_not_pass_here() -> None:
    def draw(wire: Wire) -> None:
        passed_on(wire)
        wire.segment(VIP, (CLIENT, 40000), SYN | ACK, macs=BACK)

    lines = said(DSR, draw)
    assert "1 answer of s1 to the client came through here, and must not" in lines
    assert "gateway is the balancer" in lines[-1]


def test_which_packets_are_kept() -> None:
    wire = Wire()
    own_address(wire)
    nothing(wire)
    found = sort(replace(CASE, ports=frozenset({51000})), wire.packets)
    kept = [packet for packet in wire.packets if found.belongs(packet)]
    assert {packet.source_port for packet in kept} | {packet.destination_port for packet in kept} == {25, 40000, 51000}
    assert all(packet.source != "10.9.0.6" for packet in kept)
