from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.pool import Choice, PoolMember, Refusal
from mailbalancer.model import Schedule

NOW = 1000.0
SCHEDULES = list(Schedule)


def pick(pool, world, key=b"client", tried=(), **options):
    """The chosen name, or the refusal."""
    outcome = pool.pick(world, NOW, key, tried, **options)
    return outcome if isinstance(outcome, Refusal) else outcome.member.name


MEMBERS = st.lists(
    st.fixed_dictionaries(
        {
            "availability": st.sampled_from([0, 1, 2, 2, 2]),
            "weight": st.sampled_from([0.0, 0.25, 1.0, 1.0, 3.0]),
            "sessions": st.integers(0, 5),
            "max_sessions": st.sampled_from([0, 0, 3]),
            "room": st.sampled_from([True, True, True, False]),
            "ramp": st.sampled_from([(0.0, 0.0), (0.0, 0.0), (990.0, 20.0), (1000.0, 300.0), (1.0, 20.0)]),
            "priority": st.integers(0, 2),
            "tried": st.sampled_from([False, False, True]),
        }
    ),
    max_size=6,
)


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(members=MEMBERS, keys=st.lists(st.binary(max_size=8), min_size=1, max_size=12), by_key=st.booleans())
def test_whoever_is_picked_was_allowed_and_nobody_is_refused_in_vain(make_world, schedule, members, keys, by_key):
    world = make_world(len(members))
    for slot, member in enumerate(members):
        world.availabilities[slot] = member["availability"]
        world.weights[slot] = member["weight"]
        world.counts[slot] = member["sessions"]
        world.rooms[slot] = member["room"]
        world.ramps[slot] = member["ramp"]
    pool = world.pool(schedule, **{n: [m[n] for m in members] for n in ("max_sessions", "priority")})
    tried = {f"ex{slot + 1}" for slot, member in enumerate(members) if member["tried"]}
    ready = {
        f"ex{slot + 1}"
        for slot, member in enumerate(members)
        if member["availability"] == 2 and member["weight"] > 0 and not member["tried"]
    }
    for key in keys:
        able = {
            name
            for name in ready
            for slot in [int(name[2:]) - 1]
            if world.rooms[slot] and not 0 < members[slot]["max_sessions"] <= world.counts[slot]
        }
        outcome = pool.pick(world, NOW, key, tried, by_key)
        if isinstance(outcome, Refusal):
            assert not able
            assert outcome is (Refusal.ALL_FULL if ready else Refusal.NONE_READY)
        else:
            assert outcome.member.name in able
            world.counts[outcome.member.slot] += 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_empty_pool_refuses(make_world, schedule):
    assert pick(make_world(0).pool(schedule), make_world(0)) is Refusal.NONE_READY


def test_refusals_are_words():
    assert Refusal.NONE_READY.value == "no real server is ready"
    assert Refusal.ALL_FULL.value == "every ready real server is full"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_reason_is_the_schedule(make_world, schedule):
    world = make_world(2)
    pool = world.pool(schedule)
    assert pool.pick(world, NOW, b"x").why == schedule.value
    assert pool.pick(world, NOW, b"x", by_key=True).why == "source_hash"


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule.ROUND_ROBIN,
        Schedule.WEIGHTED_ROUND_ROBIN,
        Schedule.LEAST_CONNECTIONS,
        Schedule.WEIGHTED_LEAST_CONNECTIONS,
        Schedule.PRIORITY,
        Schedule.SOURCE_HASH,
    ],
)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0), (1.0, 2.0, 5.0), (1.0, 1.0, 0.25)])
def test_shares_of_ten_thousand_sessions_follow_weights(make_world, schedule, weights):
    world = make_world(len(weights))
    world.weights = list(weights)
    pool, generator = world.pool(schedule), random.Random(3)
    for _ in range(10_000):
        choice = pool.pick(world, NOW, generator.randbytes(4))
        world.counts[choice.member.slot] += 1  # nobody leaves
    for slot, weight in enumerate(weights):
        assert world.counts[slot] / 10_000 == pytest.approx(weight / sum(weights), abs=0.02)


def test_least_connections_keeps_levels_while_sessions_come_and_go(make_world):
    world, generator = make_world(3), random.Random(5)
    pools = [world.pool(Schedule.LEAST_CONNECTIONS, seed=worker) for worker in range(4)]
    for step in range(10_000):
        world.counts[generator.choice(pools).pick(world, NOW, b"").member.slot] += 1
        if step >= 300:
            leaver = generator.choice([slot for slot in range(3) if world.counts[slot]])
            world.counts[leaver] -= 1
            # One that is short gets every new session, so it lags behind by no more than chance takes in a row.
            assert max(world.counts) - min(world.counts) <= 8


def test_weight_zero_gets_no_new_sessions(make_world):
    world = make_world(2)
    world.weights = [0.0, 1.0]
    pool = world.pool(Schedule.LEAST_CONNECTIONS)
    world.counts = [0, 500]
    assert pick(pool, world) == "ex2"
    world.weights = [0.0, 0.0]
    assert pick(pool, world) is Refusal.NONE_READY
    assert pool.returning(world, "ex1") == PoolMember("ex1", 0)


class TestPriority:
    def test_the_lowest_number_that_is_ready_takes_all(self, make_world):
        world = make_world(3)
        pool = world.pool(Schedule.PRIORITY, priority=[10, 20, 20])
        world.counts = [900, 0, 0]
        assert pick(pool, world) == "ex1"
        world.availabilities[0] = 0
        world.counts = [0, 7, 6]
        assert pick(pool, world) == "ex3"

    def test_a_full_one_hands_on_to_the_next_number(self, make_world):
        world = make_world(2)
        pool = world.pool(Schedule.PRIORITY, priority=[10, 20], max_sessions=[5, 0])
        world.counts = [5, 0]
        assert pick(pool, world) == "ex2"

    def test_a_return_ramps_up_to_everything(self, make_world):
        world = make_world(2)
        pool = world.pool(Schedule.PRIORITY, priority=[10, 20])
        world.ramps[0] = (NOW - 90.0, 100.0)
        got = Counter(pick(pool, world) for _ in range(1000))
        assert got["ex1"] == pytest.approx(900, abs=2)

    def test_by_key_stays_within_the_number(self, make_world):
        world = make_world(3)
        pool = world.pool(Schedule.PRIORITY, priority=[20, 10, 10])
        got = {pick(pool, world, str(n).encode(), by_key=True) for n in range(100)}
        assert got == {"ex2", "ex3"}


class TestByKey:
    def test_workers_agree_whatever_they_did_before(self, make_world):
        world = make_world(3)
        one, two = world.pool(Schedule.ROUND_ROBIN, seed=1), world.pool(Schedule.ROUND_ROBIN, seed=2)
        for _ in range(5):
            one.pick(world, NOW, b"")
        keys = [str(n).encode() for n in range(100)]
        assert [pick(one, world, k, by_key=True) for k in keys] == [pick(two, world, k, by_key=True) for k in keys]


class TestRetry:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_goes_round_all_and_then_gives_up(self, make_world, schedule):
        world = make_world(3)
        pool, tried = world.pool(schedule), set()
        for _ in range(3):
            tried.add(pick(pool, world, tried=tried))
        assert tried == {"ex1", "ex2", "ex3"}
        assert pick(pool, world, tried=tried) is Refusal.NONE_READY

    def test_full_is_said_when_one_that_was_not_tried_is_full(self, make_world):
        world = make_world(2)
        world.rooms[1] = False
        assert pick(world.pool(Schedule.ROUND_ROBIN), world, tried=["ex1"]) is Refusal.ALL_FULL

    def test_earns_no_ramp_credit(self, make_world):
        world = make_world(3)
        world.ramps[2] = (NOW - 10.0, 20.0)
        pool = world.pool(Schedule.LEAST_CONNECTIONS)
        for _ in range(50):
            assert pick(pool, world, tried=["ex1"]) == "ex2"
        assert world.credits == [0.0, 0.0, 0.0]


class TestRamp:
    def ramping(self, make_world, members=2, **attributes):
        """The last member is half way up its ramp."""
        world = make_world(members)
        world.ramps[-1] = (NOW - 10.0, 20.0)
        return world, world.pool(Schedule.LEAST_CONNECTIONS, **attributes)

    def test_half_way_up_it_gets_half_its_fair_share_and_the_reason_says_so(self, make_world):
        world, pool = self.ramping(make_world)
        world.counts = [200, 0]
        reasons = Counter(pool.pick(world, NOW, b"") for _ in range(400))
        assert reasons == {
            Choice(PoolMember("ex1", 0), "least_connections"): 300,
            Choice(PoolMember("ex2", 1), "ramp"): 100,
        }
        assert world.taken == [0, 100]

    def test_least_connections_still_decides_whether_it_uses_its_credit(self, make_world):
        world, pool = self.ramping(make_world)
        world.counts = [0, 50]  # they stayed with it while it drained
        assert {pick(pool, world) for _ in range(50)} == {"ex1"}
        assert world.credits[1] <= 1.2 + 1e-9  # what it does not use is not saved up
        world.counts = [50, 0]
        assert [pick(pool, world) for _ in range(5)] == ["ex2", "ex1", "ex1", "ex1", "ex2"]

    @pytest.mark.parametrize("obstacle", ["full", "no room", "tried"])
    def test_it_helps_out_when_nobody_else_can(self, make_world, obstacle):
        world, pool = self.ramping(make_world, max_sessions=[5, 0])
        if obstacle == "full":
            world.counts[0] = 5
        world.rooms[0] = obstacle != "no room"
        tried = ["ex1"] if obstacle == "tried" else []
        assert [pick(pool, world, tried=tried) for _ in range(10)] == ["ex2"] * 10
        # Helping out is no debt: it goes on along its line afterwards.
        assert world.taken[1] <= world.credits[1] <= world.taken[1] + 1.2 + 1e-9

    def test_all_full_beside_a_ramping_one(self, make_world):
        world, pool = self.ramping(make_world)
        world.rooms = [False, False]
        assert [pick(pool, world) for _ in range(20)] == [Refusal.ALL_FULL] * 20
        assert world.credits[1] <= 1.2 + 1e-9

    def test_all_tried_beside_a_ramping_one(self, make_world):
        world, pool = self.ramping(make_world)
        assert pick(pool, world, tried=["ex1", "ex2"]) is Refusal.NONE_READY

    def test_a_pool_of_ramping_servers_balances_as_if_none_were(self, make_world):
        world, pool = self.ramping(make_world, members=2)
        world.ramps[0] = (NOW, 300.0)
        world.counts = [3, 0]
        assert [pick(pool, world) for _ in range(3)] == ["ex2", "ex2", "ex2"]
        assert world.credits == [0.0, 0.0]
        assert world.taken == [0, 0]

    def test_alone_it_takes_everything(self, make_world):
        world, pool = self.ramping(make_world)
        world.availabilities[0] = 0
        assert [pick(pool, world) for _ in range(3)] == ["ex2"] * 3

    def test_when_it_is_over_it_is_as_any_other(self, make_world):
        world, pool = self.ramping(make_world)
        world.ramps[1] = (NOW - 20.0, 20.0)
        world.counts = [3, 0]
        assert [pick(pool, world) for _ in range(3)] == ["ex2"] * 3
        assert world.credits == [0.0, 0.0]

    def test_clients_that_come_back_do_not_count(self, make_world):
        world, pool = self.ramping(make_world)
        assert all(pool.returning(world, "ex2") for _ in range(10))
        assert world.taken == [0, 0]


class TestReturning:
    @pytest.mark.parametrize(("availability", "allowed"), [(0, False), (1, True), (2, True)])
    def test_follows_availability(self, make_world, availability, allowed):
        world = make_world(1)
        world.availabilities[0] = availability
        pool = world.pool(Schedule.ROUND_ROBIN)
        assert (pool.returning(world, "ex1") is not None) is allowed
        assert (pool.takes_back(world, "ex1") is not None) is allowed

    def test_not_where_it_failed_a_moment_ago_and_not_to_a_stranger(self, make_world):
        world = make_world(1)
        pool = world.pool(Schedule.ROUND_ROBIN)
        assert pool.returning(world, "ex1", ["ex1"]) is None
        assert pool.returning(world, "ex9") is None
        assert pool.member("ex9") is None

    @pytest.mark.parametrize(("sessions", "room"), [(5, True), (0, False)])
    def test_a_full_server_keeps_its_clients_but_has_no_room(self, make_world, sessions, room):
        world = make_world(1)
        world.counts, world.rooms = [sessions], [room]
        pool = world.pool(Schedule.ROUND_ROBIN, max_sessions=[5])
        assert pool.returning(world, "ex1") is None
        assert pool.takes_back(world, "ex1") == PoolMember("ex1", 0, 0, 5)
