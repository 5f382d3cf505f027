"""The board: every cell has its own place, sums go over the columns, and a fork shares the memory."""

from __future__ import annotations

import os

import pytest

from mailbalancer.ipc.board import (
    BEAT,
    BOUNDS_S,
    COUNT,
    GAUGES,
    PHASE,
    SLOT,
    TIMING,
    Availability,
    Beat,
    Board,
    Count,
    Phase,
    Slot,
)

WORKERS, SLOTS = 3, 5


@pytest.fixture
def board() -> Board:
    return Board(WORKERS, SLOTS)


def test_no_two_cells_share_a_place(board: Board) -> None:
    beats = [board.beat(w, Beat(c)) for w in range(WORKERS) for c in range(BEAT)]
    slots = [board.slot(s, Slot(c)) for s in range(SLOTS) for c in range(SLOT)]
    counts = [board.count(w, s, Count(c)) for w in range(WORKERS) for s in range(SLOTS) for c in range(COUNT)]
    begins = [board.timing(w, s, p) for w in range(WORKERS) for s in range(SLOTS) for p in Phase]
    cells = beats + slots + counts + [at + cell for at in begins for cell in range(PHASE)]
    assert len(set(cells)) == len(cells)
    assert max(cells) == len(board.ints) - 1


def test_a_new_board_is_closed_and_empty(board: Board) -> None:
    assert set(board.ints) == {0}
    assert board.ints[board.slot(0, Slot.AVAILABILITY)] == Availability.CLOSED


def test_totals_are_sums_over_the_columns(board: Board) -> None:
    for worker in range(WORKERS):
        board.ints[board.count(worker, 2, Count.SESSIONS)] = 10**worker
    assert board.total(2, Count.SESSIONS) == 111
    assert board.total(1, Count.SESSIONS) == board.total(3, Count.SESSIONS) == 0


def test_a_dead_worker_leaves_its_totals_and_takes_its_gauges(board: Board) -> None:
    for worker in range(WORKERS):
        for count in Count:
            board.ints[board.count(worker, 4, count)] = 7
    board.clear_gauges(1)
    for count in Count:
        assert board.ints[board.count(1, 4, count)] == (0 if count in GAUGES else 7)
        assert board.ints[board.count(0, 4, count)] == board.ints[board.count(2, 4, count)] == 7


def test_clearing_a_slot_touches_no_other(board: Board) -> None:
    for index in range(len(board.ints)):
        board.ints[index] = 1
    board.clear_slot(2)
    own = {board.slot(2, c) for c in Slot} | {board.count(w, 2, c) for w in range(WORKERS) for c in Count}
    begins = [board.timing(w, 2, Phase.QUEUE) for w in range(WORKERS)]
    own |= {begin + cell for begin in begins for cell in range(TIMING)}
    assert {index for index, value in enumerate(board.ints) if value == 0} == own


def test_a_child_writes_what_the_parent_reads(board: Board) -> None:
    pid = os.fork()
    if pid == 0:
        board.ints[board.count(2, 3, Count.TOTAL)] = 42
        board.floats[board.beat(2, Beat.AT)] = 1.5
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.total(3, Count.TOTAL) == 42
    assert board.floats[board.beat(2, Beat.AT)] == 1.5


def test_times_of_all_workers_are_one_histogram(board: Board) -> None:
    for worker in range(WORKERS):
        at = board.timing(worker, 3, Phase.CONNECT)
        board.ints[at + worker] = 2
        board.floats[at + PHASE - 1] = 0.5
    timings = board.timings(3)
    assert timings[Phase.CONNECT].counts == [2] * WORKERS + [0] * (len(BOUNDS_S) + 1 - WORKERS)
    assert timings[Phase.CONNECT].sum_s == 0.5 * WORKERS
    assert all(not any(timings[phase].counts) for phase in Phase if phase is not Phase.CONNECT)
