"""How often an address may do something in a minute."""

from __future__ import annotations

from mailbalancer.balance.source_rates import REMEMBERED, SourceRate


def test_a_minutes_worth_at_once_and_then_evenly() -> None:
    rate = SourceRate(6)
    assert [rate.take("a", 100.0) for _ in range(7)] == [True] * 6 + [False]
    assert not rate.take("a", 109.9)
    assert rate.take("a", 110.0)
    assert not rate.take("a", 110.1)
    assert rate.take("b", 110.1)


def test_what_is_refused_is_not_counted() -> None:
    rate = SourceRate(1)
    assert rate.take("a", 0.0)
    assert not any(rate.take("a", at / 10) for at in range(1, 599))
    assert rate.take("a", 60.1)


def test_no_limit_remembers_nobody() -> None:
    rate = SourceRate(0)
    assert all(rate.take("a", 0.0) for _ in range(1000))
    assert not len(rate)


def test_memory_is_bounded() -> None:
    rate = SourceRate(1)
    for at in range(REMEMBERED + 100):
        rate.take(str(at), 0.0)
    assert len(rate) == REMEMBERED
    assert not rate.take(str(REMEMBERED), 0.0)
    assert rate.take("0", 0.0)
