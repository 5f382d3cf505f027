"""When an address is announced. That a segment believes it: tests/net/test_addresses.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mailbalancer.control import vips
from mailbalancer.control.events import Events
from mailbalancer.control.vips import Vips
from mailbalancer.host.commands import HostError
from mailbalancer.host.steps import Address, LocalRoute
from mailbalancer.log import Log
from mailbalancer.network import Interface, Network

MAC = "02:00:00:00:00:01"
NETWORK = Network((Interface("lo", 1), Interface("eth0", 2, MAC)))
STEPS = [Address("10.0.1.100/32", "eth0"), Address("fd00:1::100/128", "eth0"), Address("10.0.1.101/32", "lo")]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.flush()


def test_it_is_said_at_once_and_again(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str, str]] = []
    monkeypatch.setattr(vips, "announce", lambda *frame: said.append(frame))
    announcer = Vips(Events(log))
    announcer.added(NETWORK, [*STEPS, LocalRoute(4, 27746)], 100.0)
    assert said == [("10.0.1.100", "eth0", MAC), ("fd00:1::100", "eth0", MAC)]  # on lo nobody listens
    for now, times in ((100.5, 1), (101.0, 2), (102.9, 2), (103.0, 3), (110.0, 4), (1000.0, 4)):
        announcer.tick(now)
        assert len(said) == 2 * times, now


def test_a_late_tick_says_all_that_was_due(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(vips, "announce", lambda address, *_: said.append(address))
    announcer = Vips(Events(log))
    announcer.added(NETWORK, STEPS[:1], 100.0)
    announcer.tick(104.0)
    assert said == ["10.0.1.100"] * 3


def test_what_cannot_be_said_is_reported_once(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise HostError("10.0.1.100 cannot be announced on eth0: Network is down")

    monkeypatch.setattr(vips, "announce", refuse)
    events = Events(log)
    announcer = Vips(events)
    announcer.added(NETWORK, STEPS[:1], 100.0)
    announcer.tick(200.0)
    assert [event["text"] for event in events.listed() if event["level"] == "warning"] == [
        "10.0.1.100 cannot be announced on eth0: Network is down"
    ]
