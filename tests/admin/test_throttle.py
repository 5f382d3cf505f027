from __future__ import annotations

from mailbalancer.admin.throttle import Throttle, source


def test_a_few_failures_are_forgiven_and_more_cost_waiting() -> None:
    throttle = Throttle(burst=3, refill_s=10)
    for _ in range(3):
        assert throttle.wait_s("192.0.2.1", 100.0) == 0
        throttle.failed("192.0.2.1", 100.0)
    assert throttle.wait_s("192.0.2.1", 100.0) == 10
    assert throttle.wait_s("192.0.2.1", 109.0) == 1
    assert throttle.wait_s("192.0.2.1", 110.0) == 0
    assert throttle.wait_s("192.0.2.2", 100.0) == 0


def test_guessing_goes_at_the_pace_of_the_refill() -> None:
    throttle = Throttle(burst=5, refill_s=12)
    tried, now = 0, 0.0
    while now < 3600:
        if throttle.wait_s("192.0.2.1", now) == 0:
            throttle.failed("192.0.2.1", now)
            tried += 1
        now += 0.5
    assert tried <= 5 + 3600 / 12


def test_memory_is_bounded_and_who_failed_last_is_remembered() -> None:
    throttle = Throttle(burst=1, refill_s=10, most=100)
    for number in range(1000):
        throttle.failed(f"10.0.{number // 250}.{number % 250}", 0.0)
    assert len(throttle._forgiven_at) <= 101
    assert throttle.wait_s("10.0.3.249", 0.0) > 0


def test_an_ipv6_customer_is_one_source() -> None:
    assert source("2001:db8:1:2::1") == source("2001:db8:1:2:ffff::9") != source("2001:db8:1:3::1")
    assert source("::ffff:192.0.2.1") == source("192.0.2.1")
    assert source("fe80::1%eth0") == source("fe80::2%eth0")
