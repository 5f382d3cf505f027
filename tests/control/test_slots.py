"""Slots keep their meaning, and are given on only when nobody is counted there."""

from __future__ import annotations

import pytest

from mailbalancer.control.slots import Slots
from mailbalancer.errors import MailbalancerError
from mailbalancer.ipc.board import Board, Count
from mailbalancer.model import MemberKey
from tests.control.configurations import config, route, service

EX1, EX2, EX3 = (MemberKey("smtp", "", name) for name in ("ex1", "ex2", "ex3"))


@pytest.fixture
def board() -> Board:
    return Board(2, 6)


@pytest.fixture
def slots(board: Board) -> Slots:
    return Slots(board)


def test_members_and_services_have_different_slots(slots: Slots) -> None:
    plan = slots.plan(config(service(routes=(route("smtp", "mail", ["ex1"]),)), service("imap", names=["ex1"])))
    given = [*plan.members.values(), *plan.services.values()]
    assert set(plan.members) == {EX1, EX2, MemberKey("smtp", "mail", "ex1"), MemberKey("imap", "", "ex1")}
    assert set(plan.services) == {"smtp", "imap"}
    assert len(set(given)) == len(given)


def test_a_member_keeps_its_slot_whatever_happens_around_it(slots: Slots) -> None:
    first = slots.plan(config(service(names=["ex1", "ex2"])))
    slots.commit(first)
    second = slots.plan(config(service(names=["ex3", "ex2"])))
    assert second.members[EX2] == first.members[EX2]
    assert second.services == first.services


def test_a_plan_that_is_not_committed_changes_nothing(slots: Slots, board: Board) -> None:
    running = slots.plan(config(service(names=["ex1", "ex2"])))
    slots.commit(running)
    board.ints[board.count(0, running.members[EX1], Count.TOTAL)] = 5
    slots.plan(config(service(names=["ex3"])))
    assert slots.plan(config(service(names=["ex1", "ex2"]))) == running
    assert board.total(running.members[EX1], Count.TOTAL) == 5


def test_a_server_that_comes_back_finds_its_totals(slots: Slots, board: Board) -> None:
    before = slots.plan(config(service(names=["ex1", "ex2"])))
    slots.commit(before)
    board.ints[board.count(1, before.members[EX2], Count.TOTAL)] = 9
    slots.commit(slots.plan(config(service(names=["ex1"]))))
    slots.commit(slots.plan(config(service(names=["ex1", "ex3"]))))
    after = slots.plan(config(service(names=["ex1", "ex2"])))
    assert after.members[EX2] == before.members[EX2]
    assert board.total(after.members[EX2], Count.TOTAL) == 9


def full(slots: Slots) -> int:
    """Six slots: five members and the service; returns the slot of ex1."""
    plan = slots.plan(config(service(names=["ex1", "a", "b", "c", "d"])))
    slots.commit(plan)
    return plan.members[EX1]


def test_a_slot_with_sessions_is_not_given_on(slots: Slots, board: Board) -> None:
    slot = full(slots)
    slots.commit(slots.plan(config(service(names=["a", "b", "c", "d"]))))
    board.ints[board.count(1, slot, Count.SESSIONS)] = 1
    replaced = config(service(names=["ex2", "a", "b", "c", "d"]))
    with pytest.raises(MailbalancerError, match=r"6 places .* which has 6: 1 are missing"):
        slots.plan(replaced)
    board.ints[board.count(1, slot, Count.SESSIONS)] = 0
    board.ints[board.count(1, slot, Count.TOTAL)] = 77
    plan = slots.plan(replaced)
    assert plan.members[EX2] == slot
    assert board.total(slot, Count.TOTAL) == 0, "another member starts from zero"


def test_a_slot_of_the_running_configuration_is_not_given_on_before_the_next_one_runs(slots: Slots) -> None:
    full(slots)
    with pytest.raises(MailbalancerError, match="1 are missing"):
        slots.plan(config(service(names=["ex2", "a", "b", "c", "d"])))


def test_more_than_the_board_has(slots: Slots) -> None:
    with pytest.raises(MailbalancerError, match="8 places"):
        slots.plan(config(service(names=list("abcdefg"))))
