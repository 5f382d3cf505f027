"""Numbers, times and states in words."""

from __future__ import annotations

from typing import Any

import pytest

from mailbalancer.admin import network_words, words
from mailbalancer.admin.words import Tone

QUIET_SERVER: dict[str, Any] = {
    "admin": "enabled",
    "up": True,
    "ramp_percent": 100,
    "weight": 1.0,
    "configured_weight": 1.0,
    "max_sessions": 0,
    "sessions": 0,
    "maintenance": False,
    "back_pressure": False,
    "drain_ends_in_s": None,
    "check": None,
    "last_flip": None,
}
REFUSED = {"up": False, "reason": "connection refused", "at": "2026-01-01T00:00:00Z"}
FAILING = {"type": "smtp", "verdict": "down", "reason": "no banner", "ago_s": 1.0, "took_s": 5.0, "detail": {}}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (10 * 1024, "10 KiB"),
        (999 * 1024, "999 KiB"),
        (1000 * 1024, "1.0 MiB"),
        (3 * 1024**3, "3.0 GiB"),
        (5 * 1024**4, "5.0 TiB"),
        (12.7, "12 B"),
    ],
)
def test_size(number: float, said: str) -> None:
    assert words.size(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "0:00"),
        (0.9, "0:00"),
        (59.9, "0:59"),
        (60, "1:00"),
        (899, "14:59"),
        (3723, "1:02:03"),
        (86400, "1 d 00:00:00"),
    ],
)
def test_span(seconds: float, said: str) -> None:
    assert words.span(seconds) == said


@pytest.mark.parametrize(
    ("changes", "said", "tone"),
    [
        ({}, "up", Tone.GOOD),
        ({"up": None}, "not checked", Tone.QUIET),
        ({"up": False, "last_flip": REFUSED}, "down: connection refused", Tone.BAD),
        ({"out_of_service": "no way back"}, "out of service: no way back", Tone.BAD),
        ({"out_of_service": "no way back", "up": False, "last_flip": REFUSED}, "down: connection refused", Tone.BAD),
        ({"up": False, "last_flip": None, "check": FAILING}, "down: no banner", Tone.BAD),
        ({"up": False, "last_flip": REFUSED, "check": FAILING}, "down: no banner", Tone.BAD),
        ({"up": False, "last_flip": REFUSED | {"up": True, "reason": "answers"}}, "down: no reason known", Tone.BAD),
        ({"admin": "disabled"}, "disabled", Tone.QUIET),
        ({"admin": "disabled", "sessions": 3, "up": False}, "disabled, 3 sessions", Tone.QUIET),
        ({"admin": "draining"}, "draining", Tone.WARNING),
        (
            {"admin": "draining", "sessions": 412, "drain_ends_in_s": 899.0},
            "draining, 412 sessions, ends in 14:59",
            Tone.WARNING,
        ),
        (
            {"admin": "draining", "sessions": 412, "long_polls": 38, "long_polls_end_in_s": 899.0},
            "draining, 412 sessions, 38 long polls, the last ends in 14:59 at the latest",
            Tone.WARNING,
        ),
        (
            {"admin": "draining", "sessions": 1, "up": False, "last_flip": REFUSED},
            "draining, 1 session; down: connection refused",
            Tone.BAD,
        ),
        ({"maintenance": True, "sessions": 2}, "draining: it says it is in maintenance, 2 sessions", Tone.WARNING),
        (
            {"maintenance": True, "availability_reason": "in maintenance: 421 4.3.2 Service not active"},
            "draining: in maintenance: 421 4.3.2 Service not active",
            Tone.WARNING,
        ),
        ({"ramp_percent": 37}, "ramping 37 %", Tone.WARNING),
        ({"back_pressure": True, "weight": 0.5}, "back pressure: weight 0.5 of 1", Tone.WARNING),
        (
            {
                "back_pressure": True,
                "weight": 0.1,
                "back_pressure_reason": "answer to MAIL was '452 4.3.1 No'",
            },
            "back pressure: weight 0.1 of 1 (answer to MAIL was '452 4.3.1 No')",
            Tone.WARNING,
        ),
        ({"max_sessions": 5, "sessions": 5}, "full at 5 sessions", Tone.WARNING),
        ({"max_sessions": 5, "sessions": 4}, "up", Tone.GOOD),
        ({"ramp_percent": 5, "max_sessions": 1, "sessions": 1}, "ramping 5 %, full at 1 session", Tone.WARNING),
    ],
)
def test_state_of_a_real_server(changes: dict[str, Any], said: str, tone: Tone) -> None:
    assert words.server_state(QUIET_SERVER | changes) == (said, tone)


@pytest.mark.parametrize(
    ("said", "column", "more"),
    [
        ("up", "up", False),
        ("down: certificate is not the pinned one", "down", True),
        ("draining, 412 sessions, ends in 14:59", "draining", True),
        ("down: refused", "down: refused", False),
    ],
)
def test_long_states_are_cut_where_they_explain(said: str, column: str, more: bool) -> None:
    assert words.split_state(said, 24) == (column, more)


def test_last_check() -> None:
    assert words.last_check({"check": None}) == "no check"
    assert words.last_check({"check": FAILING}) == "smtp down 0:01 ago, 5000 ms"
    assert words.last_check({"check": FAILING | {"verdict": "up"}}) == "smtp ok 0:01 ago, 5000 ms"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"alive": False}, ["worker 2 (pid 99) is not running; it is being replaced"]),
        ({"beat_age_s": None}, []),
        ({"beat_age_s": 1.3}, ["worker 2 (pid 99) has shown no heartbeat for 1.3 s"]),
        ({"paused": True}, ["worker 2 (pid 99) accepts nothing: it has 1000 files open; raise LimitNOFILE"]),
        ({"restarts": 1}, ["worker 2 (pid 99) has been replaced 1 time; the log says why"]),
    ],
)
def test_troubles_of_a_worker(changes: dict[str, Any], said: list[str]) -> None:
    well = {"index": 2, "pid": 99, "alive": True, "beat_age_s": 0.1, "open_files": 1000, "paused": False, "restarts": 0}
    assert words.worker_troubles(well | changes) == said


def test_plain_keeps_letters_of_every_language_and_nothing_that_moves_a_cursor() -> None:
    assert words.plain("Grüße, 東京, 12 %") == "Grüße, 東京, 12 %"
    assert words.plain("a\x1b[31mb\x00\x7f\x9b\u202e\u2028\ud800c") == "a?[31mb??????c"


@pytest.mark.parametrize(
    ("sessions", "limit", "said", "tone"),
    [
        (17, 20, "relay from 10.0.2.6 to ex1: 17/20", None),
        (20, 20, "relay from 10.0.2.6 to ex1: 20/20", Tone.WARNING),
        (5, 0, "relay from 10.0.2.6 to ex1: 5", None),
    ],
)
def test_what_leaves_from_an_address_of_a_class(sessions: int, limit: int, said: str, tone: Tone | None) -> None:
    source = {"class": "relay", "address": "10.0.2.6", "real_server": "ex1", "sessions": sessions, "limit": limit}
    assert list(network_words.service_words({"sources": [source]})) == [(said, tone)]
