"""What a pool sees of the board: sums over every worker, and writes into one column only."""

from __future__ import annotations

import pytest

from mailbalancer.ipc.board import Board, Count, Slot
from mailbalancer.worker.view import BoardView

WORKERS, SLOTS = 3, 5


@pytest.fixture
def board() -> Board:
    return Board(WORKERS, SLOTS)


def test_cells_of_the_supervisor(board: Board) -> None:
    for slot in range(SLOTS):
        board.ints[board.slot(slot, Slot.AVAILABILITY)] = slot % 3
        board.floats[board.slot(slot, Slot.WEIGHT)] = slot + 0.5
        board.floats[board.slot(slot, Slot.RAMP_AT)] = slot + 100.0
        board.floats[board.slot(slot, Slot.RAMP_S)] = slot + 300.0
    view = BoardView(board, 1)
    for slot in range(SLOTS):
        assert view.availability(slot) == slot % 3
        assert view.look(slot) == (slot % 3, slot + 0.5, 0, slot + 100.0)
        assert view.ramp(slot) == (slot + 100.0, slot + 300.0)


def test_sums_over_every_worker(board: Board) -> None:
    for worker in range(WORKERS):
        for slot in range(SLOTS):
            board.ints[board.count(worker, slot, Count.SESSIONS)] = 10**worker * (slot + 1)
            board.ints[board.count(worker, slot, Count.RAMP_TAKEN)] = 2 * 10**worker * (slot + 1)
            board.floats[board.count(worker, slot, Count.RAMP_CREDIT)] = 0.25 * (slot + 1)
    for own in range(WORKERS):
        view = BoardView(board, own)
        for slot in range(SLOTS):
            assert view.sessions(slot) == 111 * (slot + 1)
            assert view.ramp_taken(slot) == 222 * (slot + 1)
            assert view.ramp_credit(slot) == 0.75 * (slot + 1)


@pytest.mark.parametrize("own", range(WORKERS))
def test_credit_is_written_in_the_own_column_alone(board: Board, own: int) -> None:
    view = BoardView(board, own)
    view.grant(2, 0.75)
    view.grant(2, -0.25)
    view.take(2)
    view.take(2)
    for worker in range(WORKERS):
        for slot in range(SLOTS):
            mine = worker == own and slot == 2
            assert board.floats[board.count(worker, slot, Count.RAMP_CREDIT)] == (0.5 if mine else 0.0)
            assert board.ints[board.count(worker, slot, Count.RAMP_TAKEN)] == (2 if mine else 0)


def test_the_limit_of_a_real_server_counts_all_its_slots_in_all_workers(board: Board) -> None:
    view = BoardView(board, 0)
    assert view.room(1)
    view.set_limits({1: (3, (1, 4)), 4: (3, (1, 4))})
    board.ints[board.count(0, 1, Count.SESSIONS)] = 1
    board.ints[board.count(2, 4, Count.SESSIONS)] = 1
    assert view.room(1)
    assert view.room(4)
    board.ints[board.count(1, 4, Count.SESSIONS)] = 1
    assert not view.room(1)
    assert not view.room(4)
    assert view.room(2)
    view.set_limits({})
    assert view.room(1)


def test_a_limit_is_exceeded_only_above_it(board: Board) -> None:
    view = BoardView(board, 0)
    for worker in range(WORKERS):
        board.ints[board.count(worker, 1, Count.SESSIONS)] = 2
    assert not view.exceeded(1, 0)
    assert not view.exceeded(1, 6)
    assert view.exceeded(1, 5)
    view.set_limits({1: (7, (1, 2)), 2: (7, (1, 2))})
    board.ints[board.count(2, 2, Count.SESSIONS)] = 1
    assert not view.exceeded(1, 0)
    board.ints[board.count(1, 2, Count.SESSIONS)] = 1
    assert view.exceeded(2, 0)
