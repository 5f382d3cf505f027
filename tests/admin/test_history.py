from __future__ import annotations

from mailbalancer.admin.history import MOST_NAMES, POINTS, RESOLUTION_S, SERIES, History


def numbers(total: float, sessions: float = 0) -> dict[str, float]:
    return {**dict.fromkeys(SERIES, 0.0), "total": total, "sessions": sessions}


def at(step: int) -> float:
    return 1_000_000 * RESOLUTION_S + step * RESOLUTION_S


def test_counters_become_rates_and_gauges_stay() -> None:
    history = History()
    for step, total in enumerate((0, 30, 90)):
        history.take({"smtp": numbers(total, sessions=step)}, at(step))
    last = history.last("smtp", 4)
    assert last["sessions"] == [None, 0, 1, 2]
    assert last["total"] == [None, None, 1, 2]


def test_a_gap_stays_a_gap_and_a_counter_that_began_anew_is_no_negative_rate() -> None:
    history = History()
    for step, total in ((0, 0), (3, 90), (4, 5)):
        history.take({"smtp": numbers(total)}, at(step))
    assert history.last("smtp", 5)["total"] == [None, None, None, 1, 0]


def test_what_is_older_than_a_day_is_forgotten() -> None:
    history = History()
    history.take({"smtp": numbers(0, 7), "gone": numbers(0)}, at(0))
    for step in range(1, POINTS + 2):
        history.take({"smtp": numbers(0, 1)}, at(step))
    assert set(history.last("smtp", POINTS)["sessions"]) == {1}
    assert history.names() == ["smtp"]
    assert history.last("gone", 2)["sessions"] == [None, None]


def test_a_clock_that_goes_back_or_far_ahead_does_no_harm() -> None:
    history = History()
    history.take({"smtp": numbers(0, 1)}, at(10))
    history.take({"smtp": numbers(0, 2)}, at(5))
    assert history.last("smtp", 1)["sessions"] == [1]
    history.take({"smtp": numbers(0, 3)}, at(10 + 100 * POINTS))
    assert history.last("smtp", POINTS)["sessions"] == [None] * (POINTS - 1) + [3]


def test_names_are_bounded() -> None:
    history = History()
    history.take({f"s{n}": numbers(0) for n in range(MOST_NAMES + 50)}, at(0))
    assert len(history.names()) == MOST_NAMES
