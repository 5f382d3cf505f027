from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.candidate import CLOSED, READY, RETURNING
from mailbalancer.balance.health import Result, Verdict
from mailbalancer.balance.member import (
    AvailabilityChanged,
    DrainEnded,
    Flipped,
    MemberState,
    WeightFactorChanged,
)
from mailbalancer.model import AdminState

UP = Result(Verdict.UP, "250 OK")
DOWN = Result(Verdict.DOWN, "connect refused")
MAINTENANCE = Result(Verdict.MAINTENANCE, "421 4.3.2 Service not active")
BACK_PRESSURE = Result(Verdict.BACK_PRESSURE, "452 4.3.1 Insufficient system resources")
ENABLED, DRAINING, DISABLED = AdminState.ENABLED, AdminState.DRAINING, AdminState.DISABLED


def member(*results, rise=1, fall=1, **start):
    state = MemberState(rise, fall, **start)
    for n, result in enumerate(results):
        state.observe(result, 1.0 + n)
    return state


@pytest.mark.parametrize(
    ("admin", "result", "drained", "availability", "why"),
    [
        (ENABLED, None, False, READY, "enabled, not checked yet"),
        (ENABLED, UP, False, READY, "up and enabled"),
        (ENABLED, BACK_PRESSURE, False, READY, "up and enabled"),
        (ENABLED, MAINTENANCE, False, RETURNING, "in maintenance: 421 4.3.2 Service not active"),
        (ENABLED, DOWN, False, CLOSED, "down: connect refused (first check)"),
        (DRAINING, None, False, RETURNING, "draining by the operator's command"),
        (DRAINING, UP, False, RETURNING, "draining by the operator's command"),
        (DRAINING, MAINTENANCE, False, RETURNING, "draining by the operator's command"),
        (DRAINING, DOWN, False, CLOSED, "down: connect refused (first check)"),
        (DRAINING, UP, True, CLOSED, "drained: its drain time is over"),
        (DRAINING, DOWN, True, CLOSED, "down: connect refused (first check)"),
        (DISABLED, None, False, CLOSED, "disabled by the operator"),
        (DISABLED, UP, False, CLOSED, "disabled by the operator"),
        (DISABLED, DOWN, False, CLOSED, "disabled by the operator"),
    ],
)
def test_the_table(admin, result, drained, availability, why):
    state = MemberState(2, 3)
    state.set_admin(admin, 10.0, 60.0)
    if result is not None:
        state.observe(result, 11.0)
    if drained:
        state.tick(70.0)
    assert (state.availability, state.why) == (availability, why)


class TestStart:
    def test_a_clean_start_does_not_ramp(self):
        state = MemberState(2, 3)
        assert state.observe(UP, 5.0) == []
        assert (state.availability, state.ramp_at) == (READY, 0.0)

    def test_a_ramp_that_was_under_way_goes_on(self):
        state = MemberState(2, 3, ramp_at=4.0)
        state.observe(UP, 5.0)
        assert state.ramp_at == 4.0

    def test_a_first_check_that_fails_and_the_return_after_it(self):
        state = MemberState(1, 3)
        assert state.observe(DOWN, 5.0) == [
            Flipped(False, "connect refused (first check)"),
            AvailabilityChanged(READY, CLOSED, "down: connect refused (first check)", ramp=False),
        ]
        assert state.observe(UP, 6.0) == [
            Flipped(True, "250 OK (1 of 1 checks passed)"),
            AvailabilityChanged(CLOSED, READY, "up and enabled", ramp=True),
        ]
        assert state.ramp_at == 6.0

    def test_disabled_or_draining_from_before(self):
        assert MemberState(1, 1, DISABLED, ramp_at=3.0).ramp_at == 0.0
        drained = MemberState(1, 1, DRAINING, drain_ends_at=9.0)
        assert (drained.availability, drained.drain_ends_at) == (RETURNING, 9.0)
        assert drained.tick(9.0)[-1] == DrainEnded()
        assert MemberState(1, 1, ENABLED, drain_ends_at=9.0).drain_ends_at is None


class TestDrain:
    def test_its_course(self):
        state = member(UP)
        assert state.set_admin(DRAINING, 10.0, 60.0) == [
            AvailabilityChanged(READY, RETURNING, "draining by the operator's command", ramp=False)
        ]
        assert state.drain_ends_at == 70.0
        assert state.tick(69.9) == []
        assert state.tick(70.0) == [
            AvailabilityChanged(RETURNING, CLOSED, "drained: its drain time is over", ramp=False),
            DrainEnded(),
        ]
        assert state.tick(71.0) == []
        assert state.set_admin(ENABLED, 80.0, 60.0) == [AvailabilityChanged(CLOSED, READY, "up and enabled", ramp=True)]
        assert (state.ramp_at, state.drain_ends_at) == (80.0, None)

    def test_asking_again_does_not_prolong_it(self):
        state = member(UP)
        state.set_admin(DRAINING, 10.0, 60.0)
        assert state.set_admin(DRAINING, 50.0, 60.0) == []
        assert state.drain_ends_at == 70.0

    def test_a_drain_after_a_drain_has_its_whole_time(self):
        state = member(UP)
        state.set_admin(DRAINING, 10.0, 60.0)
        state.tick(70.0)
        state.set_admin(ENABLED, 80.0, 60.0)
        state.set_admin(DRAINING, 90.0, 60.0)
        assert (state.availability, state.drain_ends_at) == (RETURNING, 150.0)

    def test_no_time_at_all(self):
        assert member(UP).set_admin(DRAINING, 10.0, 0.0) == [
            AvailabilityChanged(READY, CLOSED, "drained: its drain time is over", ramp=False),
            DrainEnded(),
        ]

    def test_ends_also_while_the_server_is_down(self):
        state = member(UP)
        state.set_admin(DRAINING, 10.0, 60.0)
        state.observe(DOWN, 20.0)
        assert state.tick(70.0) == [DrainEnded()]
        state.observe(UP, 80.0)
        assert (state.availability, state.why) == (CLOSED, "drained: its drain time is over")

    def test_disabling_cuts_it_short(self):
        state = member(UP)
        state.set_admin(DRAINING, 10.0, 60.0)
        assert [event.new for event in state.set_admin(DISABLED, 20.0, 60.0)] == [CLOSED]
        assert state.drain_ends_at is None
        assert state.tick(70.0) == []


class TestChecks:
    def test_maintenance_comes_and_goes_with_a_ramp_and_no_flip(self):
        state = member(UP)
        assert state.observe(MAINTENANCE, 10.0) == [
            AvailabilityChanged(READY, RETURNING, "in maintenance: 421 4.3.2 Service not active", ramp=False)
        ]
        assert state.observe(MAINTENANCE, 20.0) == []
        assert state.observe(UP, 30.0) == [AvailabilityChanged(RETURNING, READY, "up and enabled", ramp=True)]
        assert state.ramp_at == 30.0

    def test_a_lost_check_in_maintenance_does_not_open_the_door(self):
        state = member(MAINTENANCE, fall=3)
        assert state.observe(DOWN, 10.0) == []
        assert state.why == "in maintenance: 421 4.3.2 Service not active"

    def test_back_pressure_changes_the_weight_only(self):
        state = member(UP)
        assert state.observe(BACK_PRESSURE, 10.0) == [WeightFactorChanged(1.0, 0.25, BACK_PRESSURE.reason)]
        assert state.observe(BACK_PRESSURE, 20.0) == []
        assert (state.availability, state.weight_factor) == (READY, 0.25)
        assert state.pressure == BACK_PRESSURE.reason
        assert state.observe(UP, 30.0) == [WeightFactorChanged(0.25, 1.0, "250 OK")]
        assert state.pressure == ""

    def test_traffic_takes_it_down(self):
        state = member(UP, fall=3)
        assert state.observe_traffic(0, 2, "timed out", 10.0) == []
        reason = "timed out (3 sessions in a row could not connect)"
        assert state.observe_traffic(0, 1, "timed out", 10.5) == [
            Flipped(False, reason),
            AvailabilityChanged(READY, CLOSED, f"down: {reason}", ramp=False),
        ]

    def test_a_flip_of_a_disabled_server_is_told_and_changes_nothing(self):
        state = MemberState(1, 1, DISABLED)
        assert state.observe(DOWN, 1.0) == [Flipped(False, "connect refused (first check)")]
        assert state.observe(UP, 2.0) == [Flipped(True, "250 OK (1 of 1 checks passed)")]
        assert state.ramp_at == 0.0


STEPS = st.one_of(
    st.sampled_from([UP, DOWN, MAINTENANCE, BACK_PRESSURE]),
    st.sampled_from(list(AdminState)),
    st.integers(0, 5),
)


@given(st.lists(STEPS, max_size=50))
def test_events_tell_every_change_and_nothing_else(steps):
    state, now = MemberState(2, 2), 100.0
    told = state.availability, state.weight_factor, True
    for step in steps:
        now += 1.0
        if isinstance(step, Result):
            events = state.observe(step, now)
        elif isinstance(step, AdminState):
            events = state.set_admin(step, now, 5.0)
        else:
            now += step
            events = state.tick(now)
        availability, factor, up = told
        for event in events:
            match event:
                case AvailabilityChanged(old, new, _, ramp):
                    assert old == availability != new
                    assert ramp is (new == READY)
                    assert state.ramp_at == (now if ramp else 0.0)
                    availability = new
                case WeightFactorChanged(old, new, _):
                    assert old == factor != new
                    factor = new
                case Flipped(new, _):
                    assert new is not up
                    up = new
        told = availability, factor, up
        assert told == (state.availability, state.weight_factor, state.health.up is not False)
