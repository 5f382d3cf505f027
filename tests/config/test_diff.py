"""What a reload changes, in words and as data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mailbalancer.config.diff import Change, Kind, diff
from mailbalancer.model import Config

BASE = """
workers: 2
real_servers: {a: 10.0.0.1, b: 10.0.0.2}
services:
  smtp: {mode: tcp, listen: 10.0.1.1:25, real_servers: [a, b]}
  web: {mode: tls, listen: 10.0.1.1:443, real_servers: [a, b], routes: [{name: owa, host: m.example}]}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("workers: 2", "workers: 3", ["workers 2 -> 3 (needs a restart)"]),
        ("b: 10.0.0.2", "b: 10.0.0.3", [
            "service smtp, real server b: endpoint 10.0.0.2:25 -> 10.0.0.3:25",
            "service web, real server b: endpoint 10.0.0.2:443 -> 10.0.0.3:443",
            "service web, route owa, real server b: endpoint 10.0.0.2:443 -> 10.0.0.3:443",
            "real server b: address 10.0.0.2 -> 10.0.0.3"]),
        ("listen: 10.0.1.1:25, ", "listen: 10.0.1.1:25, schedule: priority, ",
         ["service smtp: schedule least_connections -> priority"]),
        ("listen: 10.0.1.1:25, real_servers: [a, b]", "listen: 10.0.1.1:25, real_servers: {a: {weight: 3}}",
         ["service smtp, real server a: weight 1 -> 3", "service smtp, real server b removed"]),
        ("listen: 10.0.1.1:25,", "listen: [10.0.1.1:25, 10.0.1.2:25], persist: source, deny: 10.9.0.0/16,", [
            "service smtp: listen 10.0.1.1:25 -> 10.0.1.1:25, 10.0.1.2:25",
            "service smtp: persist.by none -> source",
            "service smtp: persist.group none -> smtp",
            "service smtp: persist.timeout_s none -> 3600",
            "service smtp: persist.max_entries none -> 100000",
            "service smtp: persist.warn_share none -> 0.25",
            "service smtp: deny none -> 10.9.0.0/16"]),
        ("routes: [{name: owa, host: m.example}]", "routes: [{name: ews, host: m.example}]",
         ["service web, route ews added", "service web, route owa removed"]),
        ("  smtp:", "  mail:", ["service mail added", "service smtp removed"]),
        ("workers: 2", "# a comment\n\nworkers: 2", []),
    ],
    ids=range(8),
)  # fmt: skip
def test_words(load: Callable[[str], Config], old: str, new: str, words: list[str]) -> None:
    assert old in BASE
    assert [str(change) for change in diff(load(BASE), load(BASE.replace(old, new)))] == words


def test_data(load: Callable[[str], Config]) -> None:
    (change,) = diff(load(BASE), load(BASE.replace("workers: 2", "workers: 4")))
    assert change == Change(Kind.CHANGED, (), "workers", "2", "4")
    assert change.needs_restart
    (change,) = diff(load(BASE), load(BASE.replace("10.0.1.1:25,", "10.0.1.1:25, ramp_s: 5,")))
    assert change == Change(Kind.CHANGED, ("service smtp",), "ramp_s", "300", "5")
    assert not change.needs_restart


def test_from_nothing_to_something_and_back(load: Callable[[str], Config]) -> None:
    one = load(BASE)
    few = load(BASE[: BASE.index("  web:")])
    assert [str(change) for change in diff(few, one)] == ["service web added"]
    assert [str(change) for change in diff(one, few)] == ["service web removed"]
    assert diff(one, one) == []
