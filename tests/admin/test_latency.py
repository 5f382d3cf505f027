"""The last minute, out of histograms that only grow."""

from __future__ import annotations

from typing import Any

from mailbalancer.admin.latency import WINDOW_S, Latency

BOUNDS_S = [0.001, 0.01, 0.1]


def timings(*places: dict[str, list[int]]) -> dict[str, Any]:
    return {"bounds_s": BOUNDS_S, "places": [{"phases": {k: (v, 0.0) for k, v in one.items()}} for one in places]}


def test_what_was_before_somebody_looked_does_not_count() -> None:
    latency = Latency()
    assert latency.take(timings({"total": [100, 0, 0, 0]}), 0.0) == []
    (one,) = latency.take(timings({"total": [100, 18, 0, 2]}), 1.0)
    assert one == {"phase": "total", "count": 20, "half_s": 0.01, "most_s": None}


def test_half_and_most_are_the_bounds_that_hold() -> None:
    latency = Latency()
    latency.take(timings({"connect": [0, 0, 0, 0]}), 0.0)
    (one,) = latency.take(timings({"connect": [50, 45, 5, 0]}), 1.0)
    assert (one["half_s"], one["most_s"]) == (0.001, 0.01)


def test_places_are_added_up_and_phases_kept_apart() -> None:
    latency = Latency()
    nothing = {"total": [0, 0, 0, 0], "queue": [0, 0, 0, 0]}
    latency.take(timings(nothing, nothing), 0.0)
    found = latency.take(timings({**nothing, "total": [1, 0, 0, 0]}, {**nothing, "total": [0, 0, 1, 0]}), 1.0)
    assert [(one["phase"], one["count"]) for one in found] == [("total", 2)]


def test_a_minute_is_remembered_and_no_more() -> None:
    latency = Latency()
    counts = []
    for second in range(200):
        found = latency.take(timings({"total": [second, 0, 0, 0]}), float(second))
        counts.append(found[0]["count"] if found else 0)
    assert max(counts) == counts[-1] == WINDOW_S


def test_counts_that_went_away_are_no_negative_numbers() -> None:
    latency = Latency()
    latency.take(timings({"total": [50, 0, 0, 0]}), 0.0)
    assert latency.take(timings({"total": [0, 3, 0, 0]}), 1.0)[0]["count"] == 3
