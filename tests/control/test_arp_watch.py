"""Who is said to claim our addresses, and for how long. With real machines: tests/net/test_black_holes.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_interface
from typing import ClassVar

import pytest

from mailbalancer.control import arp_watch
from mailbalancer.control.arp_watch import EVERY_S, LISTEN_S, ArpWatch
from mailbalancer.control.events import Events
from mailbalancer.host.segment import Claim
from mailbalancer.log import Log
from mailbalancer.model import Endpoint, RealServer
from mailbalancer.network import Interface, Neighbour, Network
from tests.control.configurations import config, service

OURS, THEIRS, STRANGE = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
VIP = "10.0.1.100"
NETWORK = Network(
    (
        Interface("lo", 1, addresses=(ip_interface("127.0.0.1/8"),)),
        Interface("eth0", 2, OURS, addresses=(ip_interface("10.0.1.1/24"), ip_interface(f"{VIP}/32"))),
    ),
    neighbours=(Neighbour(ip_address("10.0.1.11"), "eth0", THEIRS, "reachable"),),
)
CONFIG = replace(config(service(listen=[Endpoint(VIP, 25)])), real_servers=(RealServer("s1", "10.0.1.11"),))


class Segment:
    """A segment where these answer."""

    claiming: tuple[Claim, ...] = ()
    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, device: str, mac: str) -> None:
        assert (device, mac) == ("eth0", OURS)

    def ask(self, address: str, from_address: str) -> None:
        Segment.asked.append((address, from_address))

    def claims(self) -> list[Claim]:
        return list(self.claiming)

    def close(self) -> None: ...


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ArpWatch, Events]]:
    monkeypatch.setattr(arp_watch, "Segment", Segment)
    Segment.claiming, Segment.asked = (), []
    log = Log()
    events = Events(log)
    yield ArpWatch(events), events
    log.flush()


def a_round(watched: ArpWatch, number: int) -> None:
    """Ask, and hear what comes."""
    at = number * (EVERY_S + 1)
    for now in (at, at + LISTEN_S / 2, at + LISTEN_S):
        watched.tick(now, CONFIG, NETWORK)


def test_a_real_server_is_named_once_and_forgotten_when_it_is_quiet(watch: tuple[ArpWatch, Events]) -> None:
    watched, events = watch
    Segment.claiming = (Claim(VIP, THEIRS), Claim("10.0.1.7", STRANGE), Claim(VIP, OURS))
    a_round(watched, 1)
    a_round(watched, 2)
    assert Segment.asked == [(VIP, "10.0.1.1")] * 2
    assert watched.listed() == [{"address": VIP, "mac": THEIRS, "who": "real server s1"}]
    assert [event["level"] for event in events.listed()] == ["error"]
    Segment.claiming = ()
    a_round(watched, 3)
    assert watched.listed()  # one lost answer proves nothing
    a_round(watched, 4)
    assert watched.listed() == []
    assert events.listed()[-1]["text"] == f"real server s1 ({THEIRS}) does not answer for {VIP} any more"


def test_a_stranger_is_another_machine(watch: tuple[ArpWatch, Events]) -> None:
    watched, events = watch
    Segment.claiming = (Claim(VIP, STRANGE),)
    a_round(watched, 1)
    assert watched.listed()[0]["who"] == "another machine"
    assert "two machines have one address" in events.listed()[0]["text"]
