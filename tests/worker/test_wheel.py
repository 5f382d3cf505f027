"""The wheel against a plain list of deadlines."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mailbalancer.worker.wheel import TICK_S, Wheel

ITEMS = st.integers(0, 20)


class WheelMachine(RuleBasedStateMachine):
    """Items are put in, taken out and put in again while time goes on, now slowly, now in leaps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wheel: Wheel[int] = Wheel(self.now)
        self.keys: dict[int, int] = {}
        self.deadlines: dict[int, float] = {}

    @rule(item=ITEMS, after=st.one_of(st.sampled_from((0.05, 0.06, 1.0)), st.floats(-5, 700)))
    def add(self, item: int, after: float) -> None:
        if item in self.keys:
            self.wheel.remove(item, self.keys[item])
        self.deadlines[item] = self.now + max(after, 0)  # what is late already is due at the next tick
        self.keys[item] = self.wheel.add(item, self.now + after)

    @rule(item=ITEMS)
    def remove(self, item: int) -> None:
        self.wheel.remove(item, self.keys.get(item, 0))
        self.keys.pop(item, None)
        self.deadlines.pop(item, None)

    @rule(passing=st.one_of(st.floats(0, 1), st.floats(0, 2000)))
    def turn(self, passing: float) -> None:
        self.now += passing
        due = set(self.wheel.due(self.now))
        for item in due:
            assert self.deadlines[item] <= self.now, "before its time"
            del self.deadlines[item], self.keys[item]
        late = [item for item, at in self.deadlines.items() if at < self.now - 2 * TICK_S]
        assert not late, "forgotten"

    @rule(first=ITEMS, second=ITEMS, passing=st.floats(0, 5))
    def turn_in_which_one_item_concerns_another(self, first: int, second: int, passing: float) -> None:
        """Whoever is delivered first removes one item and puts off another: neither may still be delivered."""
        self.now += passing
        delivered: list[int] = []
        for item in self.wheel.due(self.now):
            assert item in self.deadlines
            delivered.append(item)
            del self.deadlines[item], self.keys[item]
            if len(delivered) == 1:
                self.remove(first)
                self.add(second, 60)
        assert len(delivered) == len(set(delivered))

    @invariant()
    def counts(self) -> None:
        assert len(self.wheel) == len(self.deadlines)


WheelMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWheel = WheelMachine.TestCase


def test_an_item_is_due_at_the_first_tick_after_its_deadline() -> None:
    wheel: Wheel[str] = Wheel(0.0, tick_s=1.0)
    wheel.add("a", 2.5)
    assert list(wheel.due(2.9)) == []
    assert list(wheel.due(3.0)) == ["a"]
    assert list(wheel.due(99.0)) == []


def test_a_deadline_in_the_past_is_due_at_the_next_tick() -> None:
    wheel: Wheel[str] = Wheel(100.0, tick_s=1.0)
    list(wheel.due(105.0))
    wheel.add("late", 3.0)
    assert list(wheel.due(105.9)) == []
    assert list(wheel.due(106.0)) == ["late"]


def test_an_item_that_another_one_removed_is_not_delivered() -> None:
    wheel: Wheel[str] = Wheel(0.0, tick_s=1.0)
    keys = {name: wheel.add(name, 2.5) for name in ("a", "b")}
    delivered = []
    for name in wheel.due(3.0):
        delivered.append(name)
        other = "b" if name == "a" else "a"
        wheel.remove(other, keys[other])
    assert len(delivered) == 1
    assert len(wheel) == 0
