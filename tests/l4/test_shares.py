"""Shares: proportions, levels, ramps, rounds and hashes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.l4.shares import BUCKETS, Runner, by_sessions, by_weight, hashed, staying, turns


def test_whole_weights_are_shares() -> None:
    assert by_weight([Runner(2), Runner(1)]) == [2, 1]
    assert by_weight([Runner(2), Runner(1, full=True)]) == [2, 0]
    assert by_weight([]) == []


def test_a_ramping_server_stays_below_its_line() -> None:
    assert by_weight([Runner(1), Runner(1, ramped=0.5)]) == [750, 250]
    assert by_weight([Runner(1), Runner(1, ramped=0.0)]) == [990, 10]
    assert by_weight([Runner(1, ramped=0.3), Runner(1, ramped=0.3)]) == [500, 500]


def test_sessions_are_levelled() -> None:
    assert by_sessions([Runner(1, 10), Runner(1, 0)], 10) == [0, 1000]
    assert by_sessions([Runner(1, 10), Runner(1, 0)], 30) == [333, 667]
    assert by_sessions([Runner(2, 0), Runner(1, 0)], 30) == [667, 333]
    assert by_sessions([Runner(1, 100), Runner(1, 0, ramped=0.1)], 10) == [950, 50]
    assert by_sessions([Runner(1, 5, full=True), Runner(1, 9)], 10) == [0, 1000]


@given(st.lists(st.builds(Runner, st.floats(0.1, 100), st.integers(0, 10_000), st.floats(0, 1), st.booleans())))
def test_somebody_is_chosen_whenever_somebody_can_be(runners: list[Runner]) -> None:
    for shares in (by_weight(runners), by_sessions(runners, 10)):
        assert any(shares) == any(not runner.full for runner in runners)
        assert all(share == 0 for share, runner in zip(shares, runners, strict=True) if runner.full)


def test_turns_are_evenly_spread() -> None:
    assert turns([500, 500]) == [0, 1]
    assert turns([3, 1]) == [0, 0, 1, 0]
    assert turns([0, 0]) == []


def test_who_leaves_moves_only_its_own_clients() -> None:
    everybody = hashed([11, 12, 13], [1, 1, 1])
    without = hashed([11, 12, 13], [1, 0, 1])
    assert len(everybody) == BUCKETS
    assert all(new == old for new, old in zip(without, everybody, strict=True) if old != 1)
    assert 250 < everybody.count(0) < 450


def test_flows_that_stay() -> None:
    assert staying(0, 100.0, 0.5) == 0
    assert staying(1000, 10.0, 0.5) == 5
    assert staying(3, 300.0, 0.5) == 3
