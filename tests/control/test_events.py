"""Events go to the log and to a short memory."""

from __future__ import annotations

import re

import pytest

from mailbalancer.control.events import REMEMBERED, Events, iso_utc
from mailbalancer.log import Log


def test_said_once_in_the_log_and_remembered(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log()
    events = Events(log)
    events.info("one")
    events.warning("two")
    events.error("three")
    log.flush()
    log._close()
    assert [(event["level"], event["text"]) for event in events.listed()] == [
        ("info", "one"),
        ("warning", "two"),
        ("error", "three"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["at"]) for event in events.listed())
    assert re.findall(r"(info|warning|error) +(\w+)", capfd.readouterr().err) == [
        ("info", "one"),
        ("warning", "two"),
        ("error", "three"),
    ]


def test_the_oldest_are_forgotten() -> None:
    log = Log()
    events = Events(log)
    for number in range(REMEMBERED + 3):
        events.info(str(number))
    log._close()
    assert [event["text"] for event in events.listed()] == [str(n) for n in range(3, REMEMBERED + 3)]


def test_instants_are_utc() -> None:
    assert iso_utc(0) == "1970-01-01T00:00:00Z"
