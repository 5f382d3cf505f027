from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mailbalancer.balance.persist import Entry, Table, select
from mailbalancer.balance.pool import Choice, Refusal
from mailbalancer.model import Schedule

KEYS = st.sampled_from([f"10.0.0.{n}" for n in range(8)])
NAMES = st.sampled_from(["ex1", "ex2", "ex3"])


class Model:
    """One client in a table that searches for everything: slow and plain."""

    def __init__(self, name, used_at, touched):
        self.name, self.used_at, self.touched = name, used_at, touched
        self.sessions = 0


class TableAgainstModel(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.steps = 0
        self.model = {}

    @initialize(timeout_s=st.integers(1, 20), max_entries=st.integers(1, 6))
    def begin(self, timeout_s, max_entries):
        self.table = Table(float(timeout_s), max_entries)

    def step(self):
        self.steps += 1
        return self.steps

    def live(self, key):
        entry = self.model.get(key)
        if entry is not None and not entry.sessions and self.now - entry.used_at >= self.table.timeout_s:
            return None
        return entry

    def evict(self):
        while len(self.model) > self.table.max_entries:
            del self.model[min(self.model, key=lambda k: (self.model[k].sessions > 0, self.model[k].touched))]

    def put(self, key, name, used_at):
        entry = self.model.get(key)
        if entry is None:
            self.model[key] = Model(name, used_at, self.step())
            self.evict()
        else:
            entry.name, entry.used_at, entry.touched = name, used_at, self.step()

    @rule(seconds=st.integers(0, 8))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(key=KEYS)
    def lookup(self, key):
        entry = self.live(key)
        if entry is None:
            self.model.pop(key, None)
        assert self.table.lookup(key, self.now) == (entry.name if entry else None)

    @rule(key=KEYS, name=NAMES)
    def bind(self, key, name):
        assert self.table.bind(key, name, self.now) == self.now + self.table.timeout_s
        self.put(key, name, self.now)

    @rule(key=KEYS)
    def opened(self, key):
        self.table.opened(key)
        if key in self.model:
            if not self.model[key].sessions:
                self.model[key].touched = self.step()
            self.model[key].sessions += 1

    @rule(key=KEYS)
    def closed(self, key):
        self.table.closed(key, self.now)
        entry = self.model.get(key)
        if entry is not None and entry.sessions:
            entry.sessions -= 1
            entry.used_at = self.now
            if not entry.sessions:
                entry.touched = self.step()

    @rule(key=KEYS, name=NAMES, remaining=st.integers(0, 20))
    def learn(self, key, name, remaining):
        expires_at = self.now + remaining
        self.table.learn(key, name, expires_at)
        used_at = expires_at - self.table.timeout_s
        entry = self.model.get(key)
        if entry is None or (entry.used_at, entry.name) <= (used_at, name):
            self.put(key, name, used_at)

    @rule(key=st.one_of(KEYS, st.just("")))
    def forget(self, key):
        gone = [k for k in self.model if key in ("", k)]
        assert self.table.forget(key) == len(gone)
        for k in gone:
            del self.model[k]

    @rule()
    def sweep(self):
        self.table.sweep(self.now)
        # Only what stands at the end of the line goes; what is left has merely to be unfindable.
        held = {entry.key for entry in self.table}
        assert all(self.live(key) is None for key in self.model.keys() - held)
        self.model = {key: entry for key, entry in self.model.items() if key in held}

    @rule(timeout_s=st.integers(1, 20), max_entries=st.integers(1, 6))
    def configure(self, timeout_s, max_entries):
        self.table.configure(float(timeout_s), max_entries)
        self.evict()

    @invariant()
    def holds_what_the_model_holds(self):
        if hasattr(self, "table"):
            expected = {
                Entry(key, e.name, e.used_at + self.table.timeout_s, e.sessions) for key, e in self.model.items()
            }
            assert set(self.table) == expected
            assert len(self.table) == len(expected) <= self.table.max_entries


TestTableAgainstModel = TableAgainstModel.TestCase
TestTableAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TestTimeout:
    def test_slides_with_use_and_not_with_looking(self):
        table = Table(60.0, 10)
        table.bind("a", "ex1", 0.0)
        assert table.lookup("a", 59.0) == "ex1"
        assert table.bind("a", "ex1", 59.0) == 119.0
        assert table.lookup("a", 118.9) == "ex1"
        assert table.lookup("a", 119.0) is None
        assert len(table) == 0

    def test_stands_still_while_a_session_is_open_and_starts_at_its_end(self):
        table = Table(60.0, 10)
        table.bind("a", "ex1", 0.0)
        table.opened("a")
        table.opened("a")
        table.closed("a", 10.0)
        assert table.sweep(5000.0) == 0
        assert table.lookup("a", 5000.0) == "ex1"
        table.closed("a", 5000.0)
        assert table.lookup("a", 5059.9) == "ex1"
        assert table.lookup("a", 5060.0) is None

    def test_a_move_keeps_the_open_sessions(self):
        table = Table(60.0, 10)
        table.bind("a", "ex1", 0.0)
        table.opened("a")
        table.bind("a", "ex2", 1.0)
        assert list(table) == [Entry("a", "ex2", 61.0, 1)]

    def test_a_reload_that_shortens_it_counts_from_the_last_use(self):
        table = Table(3600.0, 10)
        table.bind("a", "ex1", 0.0)
        table.configure(60.0, 10)
        assert table.lookup("a", 60.0) is None

    def test_sweeps_in_bounded_steps(self):
        table = Table(60.0, 100)
        for n in range(50):
            table.bind(f"k{n}", "ex1", float(n))
        assert table.sweep(99.0, steps=25) == 25
        assert table.sweep(99.0) == 15
        assert [entry.key for entry in table] == [f"k{n}" for n in range(40, 50)]


class TestBound:
    def test_the_longest_unused_goes_first_and_open_sessions_last(self):
        table = Table(60.0, 3)
        for key in "abc":
            table.bind(key, "ex1", 0.0)
        table.opened("a")
        table.bind("b", "ex1", 1.0)
        table.bind("d", "ex1", 2.0)
        assert [entry.key for entry in table] == ["b", "d", "a"]

    def test_a_smaller_bound_at_a_reload_holds_at_once(self):
        table = Table(60.0, 3)
        for key in "abc":
            table.bind(key, "ex1", 0.0)
        table.configure(60.0, 1)
        assert [entry.key for entry in table] == ["c"]

    def test_the_end_of_a_session_whose_entry_is_gone_is_no_error(self):
        table = Table(60.0, 3)
        table.closed("a", 0.0)
        table.bind("a", "ex1", 0.0)
        table.closed("a", 0.0)
        assert list(table) == [Entry("a", "ex1", 60.0, 0)]
        table.opened("nobody")
        assert len(table) == 1


class TestReports:
    def test_new_and_moved_and_after_half_the_time(self):
        table = Table(60.0, 10)
        assert not table.needs_report("a", 0.0)
        table.bind("a", "ex1", 0.0)
        assert table.needs_report("a", 0.0)
        assert not table.needs_report("a", 0.0)
        table.bind("a", "ex1", 30.0)
        assert not table.needs_report("a", 30.0)
        assert table.needs_report("a", 30.5)
        assert not table.needs_report("a", 31.0)
        table.bind("a", "ex2", 31.0)
        assert table.needs_report("a", 31.0)

    def test_what_was_learned_is_known_to_the_others(self):
        table = Table(60.0, 10)
        table.learn("a", "ex1", 60.0)
        assert not table.needs_report("a", 20.0)
        assert table.needs_report("a", 30.5)

    def test_an_open_session_is_reported_again(self):
        table = Table(60.0, 10)
        table.bind("a", "ex1", 0.0)
        table.opened("a")
        assert [table.needs_report("a", t) for t in (0.0, 30.0, 31.0, 61.0, 62.0)] == [True, False, True, False, True]


@pytest.mark.parametrize(("first", "second"), [(("ex1", 1.0), ("ex2", 1.25)), (("ex2", 1.0), ("ex1", 1.0))])
def test_two_workers_that_bound_a_client_at_once_come_to_agree(first, second):
    tables = Table(60.0, 10), Table(60.0, 10)
    expiries = [table.bind("a", name, now) for table, (name, now) in zip(tables, (first, second), strict=True)]
    tables[0].learn("a", second[0], expiries[1])
    tables[1].learn("a", first[0], expiries[0])
    assert tables[0].lookup("a", 2.0) == tables[1].lookup("a", 2.0) == "ex2"


class TestSelect:
    @pytest.fixture
    def world(self, make_world):
        return make_world(3)

    @pytest.fixture
    def pool(self, world):
        return world.pool(Schedule.LEAST_CONNECTIONS, max_sessions=[100, 100, 100])

    @pytest.fixture
    def table(self):
        return Table(60.0, 10)

    def test_a_new_client_is_bound_to_the_choice(self, world, pool, table):
        world.counts = [5, 3, 4]
        outcome, moved = select(pool, table, "a", b"a", world, 0.0)
        assert outcome == Choice(pool.member("ex2"), "least_connections")
        assert not moved
        assert table.lookup("a", 0.0) == "ex2"

    @pytest.mark.parametrize("availability", [1, 2])
    def test_a_bound_client_goes_back_and_its_time_starts_anew(self, world, pool, table, availability):
        table.bind("a", "ex1", 0.0)
        world.counts = [99, 0, 0]
        world.availabilities[0] = availability
        assert select(pool, table, "a", b"a", world, 50.0) == (Choice(pool.member("ex1"), "persistence"), False)
        assert table.lookup("a", 109.0) == "ex1"

    def test_weight_zero_keeps_its_clients(self, world, pool, table):
        table.bind("a", "ex1", 0.0)
        world.weights[0] = 0.0
        assert select(pool, table, "a", b"a", world, 0.0)[0].member.name == "ex1"

    def test_an_expired_client_is_new_and_not_moved(self, world, pool, table):
        table.bind("a", "ex1", 0.0)
        world.counts = [5, 3, 4]
        outcome, moved = select(pool, table, "a", b"a", world, 60.0)
        assert (outcome.member.name, moved) == ("ex2", False)

    @pytest.mark.parametrize("obstacle", ["closed", "tried", "gone"])
    def test_a_client_whose_server_is_out_moves_for_good(self, world, pool, table, obstacle):
        table.bind("a", "ex9" if obstacle == "gone" else "ex1", 0.0)
        world.counts = [0, 3, 4]
        world.availabilities[0] = 0 if obstacle in ("closed", "gone") else 2
        tried = ["ex1"] if obstacle == "tried" else []
        outcome, moved = select(pool, table, "a", b"a", world, 1.0, tried)
        assert (outcome.member.name, outcome.why, moved) == ("ex2", "least_connections", True)
        world.availabilities[0] = 2
        world.counts = [0, 50, 0]
        assert select(pool, table, "a", b"a", world, 2.0)[0] == Choice(pool.member("ex2"), "persistence")

    @pytest.mark.parametrize(("sessions", "room"), [(100, True), (0, False)])
    def test_a_client_whose_server_is_full_waits_for_it(self, world, pool, table, sessions, room):
        table.bind("a", "ex1", 0.0)
        world.counts[0], world.rooms[0] = sessions, room
        assert select(pool, table, "a", b"a", world, 1.0) == (Refusal.ALL_FULL, False)
        assert list(table) == [Entry("a", "ex1", 60.0, 0)]

    def test_nobody_there_leaves_the_binding_as_it_was(self, world, pool, table):
        table.bind("a", "ex1", 0.0)
        world.availabilities = [0, 0, 0]
        assert select(pool, table, "a", b"a", world, 1.0) == (Refusal.NONE_READY, False)
        assert table.lookup("a", 1.0) == "ex1"
        assert select(pool, table, "b", b"b", world, 1.0) == (Refusal.NONE_READY, False)
        assert table.lookup("b", 1.0) is None

    def test_the_services_of_a_group_send_a_client_to_one_machine(self, make_world, table):
        # 135, 59531 and 59532 of Exchange 2010: each service has its own pool and its own slots.
        worlds = [make_world(3) for _ in range(3)]
        for n, world in enumerate(worlds):
            world.counts = [(slot + n) % 3 for slot in range(3)]
        pools = [world.pool(Schedule.LEAST_CONNECTIONS) for world in worlds]
        chosen = [select(p, table, "a", b"a", w, 0.0)[0].member.name for p, w in zip(pools, worlds, strict=True)]
        assert chosen == ["ex1", "ex1", "ex1"]

    def test_workers_that_share_a_table_agree_on_a_new_client(self, world):
        for n in range(50):
            key = f"10.0.0.{n}"
            chosen = {
                select(
                    world.pool(Schedule.LEAST_CONNECTIONS, seed=worker),
                    Table(60.0, 10),
                    key,
                    key.encode(),
                    world,
                    0.0,
                    deterministic=True,
                )[0].member.name
                for worker in range(4)
            }
            assert len(chosen) == 1


def test_bindings_with_open_sessions_are_told_again_at_half_their_time() -> None:
    table = Table(100.0, 10)
    for key in ("a", "b"):
        table.bind(key, "ex1", 0.0)
        assert table.needs_report(key, 0.0)
    table.opened("a")
    assert table.overdue(50.0) == []
    assert [(e.key, e.name, e.expires_at, e.sessions) for e in table.overdue(50.1)] == [("a", "ex1", 150.1, 1)]
    assert table.overdue(60.0) == []
