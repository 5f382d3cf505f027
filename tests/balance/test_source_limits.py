"""How much one address may have at once, and ask for in a second."""

from __future__ import annotations

from mailbalancer.balance.source_limits import BURST_S, REMEMBERED, SourceLimits


def test_connections() -> None:
    limits = SourceLimits(2, 0)
    assert [limits.opened("a") for _ in range(3)] == [True, True, False]
    assert limits.opened("b")
    limits.closed("a")
    assert limits.opened("a")
    assert not limits.opened("a")


def test_no_limit_still_counts_for_a_later_one() -> None:
    limits = SourceLimits(0, 0)
    assert all(limits.opened("a") for _ in range(5))
    limits.configure(5, 0)
    assert not limits.opened("a")
    for _ in range(9):
        limits.closed("a")
    assert limits._open == {}


def test_requests() -> None:
    limits = SourceLimits(0, 10)
    burst = int(10 * BURST_S)
    assert all(limits.asked("a", 100.0) for _ in range(burst))
    assert not limits.asked("a", 100.0)
    assert limits.asked("b", 100.0)
    assert limits.asked("a", 100.125)
    assert not limits.asked("a", 100.15)
    assert sum(limits.asked("a", 200.0) for _ in range(100)) == burst


def test_over_time_it_is_the_rate() -> None:
    limits = SourceLimits(0, 10)
    allowed = sum(limits.asked("a", number / 100) for number in range(1000))  # 100 a second for 10 seconds
    assert 100 <= allowed <= 100 + 10 * BURST_S


def test_memory_has_a_bound() -> None:
    limits = SourceLimits(0, 1)
    for number in range(REMEMBERED + 100):
        limits.asked(str(number), 0.0)
    assert len(limits._buckets) == REMEMBERED
