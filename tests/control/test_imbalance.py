"""One source with too large a share: told once, shown while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.control.events import Events
from mailbalancer.control.imbalance import Imbalances
from mailbalancer.ipc.messages import Imbalance
from mailbalancer.log import Log
from tests.control.configurations import config, service

CONFIG = config(service("smtp"), service("imap"))


@pytest.fixture
def events() -> Iterator[Events]:
    log = Log()
    yield Events(log)
    log._close()


def report(sessions: int, total: int, source: str = "10.0.0.1", name: str = "smtp") -> Imbalance:
    return Imbalance(name, source, sessions, total)


def test_told_once_and_shown(events: Events) -> None:
    imbalances = Imbalances(events)
    imbalances.take(0, report(6, 10), CONFIG)
    imbalances.take(0, report(9, 12), CONFIG)
    (event,) = events.listed()
    assert event["level"] == "warning"
    assert str(event["text"]).startswith("smtp: 6 of 10 sessions come from 10.0.0.1")
    assert imbalances.worst("smtp") == {"source": "10.0.0.1", "sessions": 9, "total": 12, "share": 0.75}
    assert imbalances.worst("imap") is None


def test_the_worst_of_several_workers(events: Events) -> None:
    imbalances = Imbalances(events)
    imbalances.take(0, report(5, 10, "10.0.0.1"), CONFIG)
    imbalances.take(1, report(8, 10, "10.0.0.2"), CONFIG)
    worst = imbalances.worst("smtp")
    assert worst is not None
    assert worst["source"] == "10.0.0.2"
    imbalances.forget_worker(1)
    worst = imbalances.worst("smtp")
    assert worst is not None
    assert worst["source"] == "10.0.0.1"


def test_it_ends_with_a_report_of_zero_or_with_its_service(events: Events) -> None:
    imbalances = Imbalances(events)
    imbalances.take(0, report(5, 10), CONFIG)
    imbalances.take(0, report(0, 10), CONFIG)
    assert imbalances.worst("smtp") is None
    imbalances.take(0, report(5, 10, name="imap"), CONFIG)
    imbalances.follow(config(service("smtp")))
    assert imbalances.worst("imap") is None


@pytest.mark.parametrize(
    "change",
    [
        {"service": "pop"},
        {"source": 5},
        {"sessions": -1},
        {"sessions": 11},
        {"sessions": "many"},
        {"total": None},
    ],
)
def test_nonsense_from_a_worker_is_refused(events: Events, change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"service": "smtp", "source": "10.0.0.1", "sessions": 5, "total": 10}
    with pytest.raises(ValueError, match="imbalance"):
        Imbalances(events).take(0, Imbalance(**{**fields, **change}), CONFIG)
