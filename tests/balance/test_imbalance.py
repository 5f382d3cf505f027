from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.imbalance import CLEAR_AT, MIN_SESSIONS, Report, SourceCounter

NAT = "198.51.100.1"


def counter(warn_share=0.25, **sessions):
    counted = SourceCounter(warn_share)
    for source, number in sessions.items():
        for _ in range(number):
            counted.opened(source)
    return counted


def closed(counted, source, number):
    for _ in range(number):
        counted.closed(source)


def test_one_that_carries_more_than_its_share_is_reported_once():
    counted = counter(nat=26, other=10)
    report = counted.observe(100)
    assert report == Report("nat", 26, 100)
    assert report.share == 0.26
    assert counted.observe(100) is None


def test_exactly_the_share_is_not_more():
    assert counter(nat=25).observe(100) is None


@pytest.mark.parametrize(("total", "reported"), [(MIN_SESSIONS - 1, False), (MIN_SESSIONS, True)])
def test_a_few_sessions_are_chance(total, reported):
    assert (counter(nat=total).observe(total) is not None) is reported


def test_nobody_is_nobody():
    counted = SourceCounter(0.25)
    assert counted.observe(0) is None
    assert counted.observe(1000) is None  # all of them in other workers


def test_is_over_only_well_below_the_limit():
    counted = counter(nat=30)
    counted.observe(100)
    closed(counted, "nat", 9)
    assert counted.observe(100) is None  # 21 of 100 is under 25 % and over 20 %
    closed(counted, "nat", 1)
    assert counted.observe(100) == Report("nat", 0, 100)
    assert counted.observe(100) is None


def test_hovering_at_the_limit_says_one_thing():
    counted = counter(nat=26)
    reports = [counted.observe(100)]
    for _ in range(50):
        closed(counted, "nat", 2)
        reports.append(counted.observe(100))
        counted.opened("nat")
        counted.opened("nat")
        reports.append(counted.observe(100))
    assert [report for report in reports if report] == [Report("nat", 26, 100)]


def test_is_over_when_hardly_anybody_is_left():
    counted = counter(nat=30)
    counted.observe(40)
    closed(counted, "nat", 21)
    assert counted.observe(9) == Report("nat", 0, 9)
    assert counted.observe(0) is None


def test_the_next_follows_when_the_first_is_over():
    counted = counter(nat=40, vpn=35)
    assert counted.observe(100).source == "nat"
    closed(counted, "nat", 40)
    assert counted.observe(60) == Report("nat", 0, 60)
    assert counted.observe(60) == Report("vpn", 35, 60)


def test_a_source_without_sessions_takes_no_memory():
    counted = counter(nat=3)
    closed(counted, "nat", 3)
    assert len(counted) == 0
    closed(counted, "nat", 1)  # one too many must not count below nothing
    assert len(counted) == 0


def test_an_empty_service_has_no_share():
    assert Report(NAT, 0, 0).share == 0.0


@given(st.lists(st.integers(0, 100), max_size=60))
def test_reports_come_in_pairs_and_are_true(levels):
    counted, level, warned = SourceCounter(0.5), 0, False
    for target in levels:
        while level < target:
            counted.opened(NAT)
            level += 1
        closed(counted, NAT, level - target)
        level = target
        report = counted.observe(100)
        if report is None:
            assert level > 50 * CLEAR_AT if warned else level <= 50
        else:
            assert report == Report(NAT, 0 if warned else level, 100)
            warned = not warned
