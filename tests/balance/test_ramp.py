from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance import ramp
from mailbalancer.model import Schedule

RATE = 25  # new sessions per second
HELD = 200
START = 1000.0


@pytest.mark.parametrize(
    ("ramp_at", "ramp_s", "now", "ramped"),
    [
        (0.0, 300.0, 50.0, 1.0),  # 0.0 means not ramping, even just after the machine started
        (10.0, 0.0, 10.0, 1.0),
        (10.0, 20.0, 10.0, 0.0),
        (10.0, 20.0, 9.0, 0.0),  # another process wrote the start and its clock reads a little later
        (10.0, 20.0, 15.0, 0.25),
        (10.0, 20.0, 30.0, 1.0),
        (10.0, 20.0, 9999.0, 1.0),
    ],
)
def test_how_far_a_ramp_has_come(ramp_at, ramp_s, now, ramped):
    assert ramp.ramped(ramp_at, ramp_s, now) == ramped


def test_the_line_starts_at_a_floor_and_ends_at_the_fair_share():
    assert ramp.line(0.5, 0.0) == 0.5 * ramp.FLOOR
    assert ramp.line(0.5, 0.5) == 0.25
    assert ramp.line(0.5, 1.0) == 0.5


def test_ten_tenths_are_a_whole_session(make_world):
    world = make_world(1)
    for _ in range(10):
        assert not ramp.may_take(world, 0)
        ramp.earn(world, 0, 0.1)
    assert world.credits[0] < 1.0  # the sum of floats
    assert ramp.may_take(world, 0)


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.booleans()), max_size=200))
def test_no_stretch_of_time_takes_more_than_its_area_and_the_cap(make_world, sessions):
    world = make_world(1)
    above = worst = 0.0  # largest excess of any stretch that ends here (Kadane)
    for share, wins in sessions:
        ramp.earn(world, 0, share)
        taken = wins and ramp.may_take(world, 0)
        if taken:
            world.take(0)
        ramp.trim(world, 0)
        assert ramp.saved(world, 0) <= ramp.CAP + 1e-9
        above = max(0.0, above + taken - share)
        worst = max(worst, above)
    assert worst <= ramp.CAP + 1e-6


class Run:
    """A pool under a steady stream of new sessions, none of which ends; `ramping` slots return empty at START."""

    def __init__(self, world, schedule, weights, ramping, ramp_s, workers, seed=7, ramps=True):
        self.world = world
        world.weights = [float(w) for w in weights]
        steady = [slot for slot in range(len(weights)) if slot not in ramping]
        for slot in steady:
            world.counts[slot] = HELD // len(steady)
        for slot in ramping:
            world.ramps[slot] = (START, ramp_s) if ramps else (0.0, 0.0)
        generator = random.Random(seed)
        pools = [world.pool(schedule, seed=seed + worker) for worker in range(workers)]
        self.fair = [w / sum(weights) for w in weights]
        self.ramp_s = ramp_s
        self.got = []  # slot of each new session
        self.at = [n / RATE for n in range(int(ramp_s * RATE))]
        for elapsed in self.at:
            client = generator.randbytes(4)
            choice = generator.choice(pools).pick(world, START + elapsed, client)
            world.counts[choice.member.slot] += 1
            self.got.append(choice.member.slot)

    def highest_above_line(self, slot):
        """Most percentage points by which its share of a second's sessions, any second, is above the line."""
        sessions = list(accumulate((got == slot for got in self.got), initial=0))
        area = list(accumulate((self.fair[slot] * t / self.ramp_s for t in self.at), initial=0.0))
        seconds = range(len(self.got) - RATE + 1)
        return max(100 * (sessions[n + RATE] - sessions[n] - area[n + RATE] + area[n]) / RATE for n in seconds)

    def part_of_area(self, slot):
        """What it got, as a part of the area under its line."""
        return self.got.count(slot) / sum(self.fair[slot] * t / self.ramp_s for t in self.at)


POOLS = [
    pytest.param((1, 1), (1,), id="one of two"),
    pytest.param((1, 1, 1), (1,), id="one of three"),
    pytest.param((1, 1, 1), (0, 2), id="two of three"),
    pytest.param((1, 1, 1, 1), (3,), id="one of four"),
    pytest.param((1, 1, 1, 1), (0, 2), id="two of four"),
    pytest.param((1, 2), (0,), id="the weaker of 1:2"),
    pytest.param((1, 2), (1,), id="the stronger of 1:2"),
    pytest.param((1, 2, 1, 2), (0, 1), id="two of 1:2:1:2"),
]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("ramp_s", [20.0, 60.0, 300.0])
@pytest.mark.parametrize(("weights", "ramping"), POOLS)
def test_least_connections_returns_gently(make_world, weights, ramping, ramp_s, workers):
    run = Run(make_world(len(weights)), Schedule.LEAST_CONNECTIONS, weights, ramping, ramp_s, workers)
    for slot in ramping:
        assert run.highest_above_line(slot) <= 5.0
        assert run.part_of_area(slot) >= 0.8


@pytest.mark.parametrize("schedule", [Schedule.ROUND_ROBIN, Schedule.WEIGHTED_ROUND_ROBIN, Schedule.PRIORITY])
@pytest.mark.parametrize(("weights", "ramping"), POOLS)
def test_the_other_schedules_too(make_world, schedule, weights, ramping):
    run = Run(make_world(len(weights)), schedule, weights, ramping, 60.0, workers=2)
    for slot in ramping:
        assert run.highest_above_line(slot) <= 5.0
        assert run.part_of_area(slot) >= 0.8


@pytest.mark.parametrize(("weights", "ramping"), POOLS)
def test_source_hash_stays_below_the_line(make_world, weights, ramping):
    # Only clients whose hash names it may take its credit, so it gets less than the line allows, but not nothing.
    run = Run(make_world(len(weights)), Schedule.SOURCE_HASH, weights, ramping, 60.0, workers=2)
    for slot in ramping:
        assert run.highest_above_line(slot) <= 5.0
        assert run.part_of_area(slot) >= 0.4


def test_without_a_ramp_least_connections_sends_everything_to_the_one_that_returns(make_world):
    # What the ramp is for; and the measure above does see it.
    run = Run(make_world(2), Schedule.LEAST_CONNECTIONS, (1, 1), (1,), 20.0, workers=1, ramps=False)
    assert run.got[: HELD - 1] == [1] * (HELD - 1)
    assert run.highest_above_line(1) > 90.0
