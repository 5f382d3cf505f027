from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.health import BACK_PRESSURE_WEIGHT, Flip, Health, Result, Verdict

UP = Result(Verdict.UP, "220 mx1 ESMTP")
DOWN = Result(Verdict.DOWN, "connect refused")
MAINTENANCE = Result(Verdict.MAINTENANCE, "421 4.3.2 Service not active")
BACK_PRESSURE = Result(Verdict.BACK_PRESSURE, "452 4.3.1 Insufficient system resources")
ANSWERS = [UP, MAINTENANCE, BACK_PRESSURE]


def fed(*results, rise=2, fall=3):
    health = Health(rise, fall)
    for result in results:
        health.observe(result)
    return health


class TestFirstResult:
    def test_before_it_nothing_is_known(self):
        health = Health(2, 3)
        assert (health.up, health.maintenance, health.back_pressure) == (None, False, False)

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_an_answer_confirms_what_was_assumed(self, answer):
        health = Health(2, 3)
        assert health.observe(answer) is None
        assert health.up is True

    def test_a_failure_decides_alone(self):
        health = Health(2, 3)
        assert health.observe(DOWN) == Flip(False, "connect refused (first check)")
        assert health.up is False


class TestRiseAndFall:
    def test_falls_after_so_many_in_a_row(self):
        health = fed(UP)
        assert [health.observe(DOWN) for _ in range(4)] == [
            None,
            None,
            Flip(False, "connect refused (3 of 3 checks failed)"),
            None,
        ]

    def test_rises_after_so_many_in_a_row(self):
        health = fed(DOWN)
        assert [health.observe(UP) for _ in range(3)] == [
            None,
            Flip(True, "220 mx1 ESMTP (2 of 2 checks passed)"),
            None,
        ]

    @pytest.mark.parametrize("answer", ANSWERS)
    def test_one_answer_between_starts_the_count_again(self, answer):
        health = fed(UP, DOWN, DOWN, answer)
        assert [health.observe(DOWN) is None for _ in range(3)] == [True, True, False]

    def test_the_last_reason_is_told(self):
        health = fed(UP, DOWN, DOWN)
        assert health.observe(Result(Verdict.DOWN, "no banner in 5 s")).reason.startswith("no banner in 5 s (")

    @pytest.mark.parametrize("first", [UP, DOWN])
    @pytest.mark.parametrize("answer", ANSWERS)
    def test_three_hundred_alternating_results_do_not_flip(self, first, answer):
        health = fed(first)
        assert [flip for n in range(300) if (flip := health.observe(answer if n % 2 else DOWN))] == []
        assert health.up is (first is UP)

    @given(
        st.integers(1, 4),
        st.integers(1, 4),
        st.lists(st.sampled_from([UP, DOWN, DOWN, MAINTENANCE, BACK_PRESSURE]), max_size=60),
    )
    def test_as_a_reader_of_the_whole_history_would_judge(self, rise, fall, results):
        health = Health(rise, fall)
        up = True
        answers = []
        for n, result in enumerate(results):
            flip = health.observe(result)
            answers.append(result.verdict is not Verdict.DOWN)
            streak = len(list([list(group) for _, group in groupby(answers)][-1]))
            turned = answers[-1] is not up and (n == 0 or streak >= (rise if answers[-1] else fall))
            up = answers[-1] if turned else up
            assert (flip is not None) is turned
            assert health.up is up
            assert flip is None or flip.up is up


class TestMaintenanceAndBackPressure:
    def test_last_until_an_answer_without_them(self):
        health = fed(MAINTENANCE)
        assert (health.up, health.maintenance, health.back_pressure) == (True, True, False)
        health.observe(BACK_PRESSURE)
        assert (health.up, health.maintenance, health.back_pressure) == (True, False, True)
        health.observe(UP)
        assert (health.up, health.maintenance, health.back_pressure) == (True, False, False)

    def test_a_check_that_got_no_answer_says_nothing_about_them(self):
        assert fed(MAINTENANCE, DOWN, DOWN).maintenance
        assert fed(BACK_PRESSURE, DOWN, DOWN).back_pressure

    def test_back_pressure_lowers_the_weight_and_never_to_nothing(self):
        assert fed(BACK_PRESSURE).weight_factor == BACK_PRESSURE_WEIGHT
        assert 0.0 < BACK_PRESSURE_WEIGHT < 1.0
        assert fed(BACK_PRESSURE, UP).weight_factor == 1.0


class TestTraffic:
    def test_failed_connects_in_a_row_take_it_down(self):
        health = fed(UP)
        assert health.observe_traffic(0, 2, "connection refused") is None
        assert health.observe_traffic(0, 0, "") is None
        assert health.observe_traffic(0, 1, "connection refused") == Flip(
            False, "connection refused (3 sessions in a row could not connect)"
        )
        assert health.up is False

    def test_many_at_once_take_it_down_at_once(self):
        assert Health(2, 3).observe_traffic(0, 40, "timed out").reason.startswith("timed out (40 sessions")

    def test_a_success_between_clears_them(self):
        health = fed(UP)
        for _ in range(100):
            assert health.observe_traffic(0, 2, "timed out") is None
            assert health.observe_traffic(1, 0, "") is None
            assert health.observe_traffic(1, 9, "timed out") is None

    def test_nothing_brings_it_back_but_checks(self):
        health = fed(DOWN)
        assert health.observe_traffic(50, 0, "") is None
        assert health.observe_traffic(0, 50, "timed out") is None
        assert health.up is False
        assert [health.observe(UP), health.observe(UP)] == [None, Flip(True, "220 mx1 ESMTP (2 of 2 checks passed)")]

    def test_the_count_starts_again_after_the_return(self):
        health = fed(UP)
        health.observe_traffic(0, 3, "timed out")
        health.observe(UP)
        health.observe(UP)
        assert health.observe_traffic(0, 2, "timed out") is None
