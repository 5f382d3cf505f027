"""Worker processes: forked, watched, replaced. Real processes, small ones."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from mailbalancer.control.events import Events
from mailbalancer.control.workers import BACK_OFF_S, FREE_RESTARTS, Life, Worker, WorkerMain, Workers
from mailbalancer.ipc.board import Beat, Board, Count
from mailbalancer.ipc.messages import Configure, ListSessions, SessionList, Stop, Up
from mailbalancer.log import Log
from tests.control.configurations import config
from tests.control.crew import Dying, Spinning, Stub
from tests.support.waiting import eventually_async

BARE = Configure(1, config(), {}, {}, {})


@dataclass
class Owner:
    """Configures whoever starts, and notes what happens."""

    workers: Workers
    board: Board
    events: Events
    heard: list[tuple[int, Up]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.workers.on_start = lambda worker: self.workers.send(worker, BARE)
        self.workers.on_message = lambda worker, message: self.heard.append((worker.index, message))
        self.workers.on_end = self.ended.append
        self.workers.on_change = lambda: None

    def pid(self, index: int) -> int:
        life = list(self.workers)[index].life
        return life.pid if life and life.configured else 0

    def texts(self) -> str:
        return "\n".join(event["text"] for event in self.events.listed())


@asynccontextmanager
async def running(main: WorkerMain, count: int = 2) -> AsyncIterator[Owner]:
    log = Log()
    board, events = Board(count, 4), Events(log)
    owner = Owner(Workers(board, log, events, main), board, events)
    owner.workers.start()
    try:
        yield owner
    finally:
        owner.workers.no_more_replacements()
        for worker in owner.workers:
            owner.workers.kill(worker)
        await owner.workers.all_ended()
        log._close()


async def settled(owner: Owner) -> None:
    await eventually_async(lambda: all(worker.settled for worker in owner.workers), what="all workers settled")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_killed_or_stopped_worker_is_replaced_and_the_other_is_not(number: signal.Signals) -> None:
    async def scenario() -> None:
        async with running(Stub.run) as owner:
            await settled(owner)
            old, other = owner.pid(0), owner.pid(1)
            owner.board.ints[owner.board.count(0, 2, Count.SESSIONS)] = 5
            owner.board.ints[owner.board.count(0, 2, Count.TOTAL)] = 5
            os.kill(old, number)
            await eventually_async(lambda: owner.pid(0) not in (0, old), what="a successor is configured")
            assert owner.pid(1) == other
            assert owner.ended == [0]
            assert owner.board.total(2, Count.SESSIONS) == 0
            assert owner.board.total(2, Count.TOTAL) == 5
            assert [worker.starts for worker in owner.workers] == [2, 1]
            assert f"process {old}) was ended by" in owner.texts()

    asyncio.run(scenario())


def test_a_spinning_worker_is_replaced() -> None:
    async def scenario() -> None:
        async with running(Spinning.run, 1) as owner:
            await eventually_async(lambda: owner.pid(0), what="it runs")
            spinning = owner.pid(0)
            # the board's beat cells are cleared for a successor; this makes the second life an ordinary one
            owner.workers.on_start = lambda worker: _ordinary(owner, worker)
            await eventually_async(lambda: owner.pid(0) not in (0, spinning), what="a successor runs")
            assert "is hung: no sign of life" in owner.texts()
            assert "(busy)" in owner.texts()

    asyncio.run(scenario())


def _ordinary(owner: Owner, worker: Worker) -> None:
    owner.board.ints[owner.board.beat(worker.index, Beat.SPARE_7)] = 1
    owner.workers.send(worker, BARE)


def test_messages_up_reach_the_owner() -> None:
    async def scenario() -> None:
        async with running(Stub.run) as owner:
            await settled(owner)
            owner.workers.broadcast(ListSessions(7, "smtp", 1), but=next(iter(owner.workers)))
            await eventually_async(lambda: owner.heard)
            ((index, message),) = owner.heard
            assert index == 1
            assert isinstance(message, SessionList)
            assert (message.ask, len(message.sessions), message.more) == (7, 1, 2)

    asyncio.run(scenario())


def test_workers_that_stop_when_asked_are_not_replaced() -> None:
    async def scenario() -> None:
        async with running(Stub.run) as owner:
            await settled(owner)
            owner.workers.no_more_replacements()
            owner.workers.broadcast(Stop(0.0))
            await asyncio.wait_for(owner.workers.all_ended(), 10)
            assert owner.workers.alive == 0
            assert "takes its place" not in owner.texts()

    asyncio.run(scenario())


def test_a_worker_that_dies_at_start_is_not_restarted_without_pause() -> None:
    async def scenario() -> None:
        async with running(Dying.run, 1) as owner:
            await eventually_async(lambda: "is started in 0.5 s" in owner.texts(), what="the second pause")
            (worker,) = owner.workers
            assert worker.starts == 2
            assert "ended with exit code 9" in owner.texts()

    asyncio.run(scenario())


def life(configured: bool) -> Life:
    return Life(1, -1, None, None, configured=configured)  # type: ignore[arg-type]


def test_the_pause_grows_while_nothing_ever_runs_and_ends_with_the_first_success() -> None:
    worker = Worker(0)
    waits = []
    for _ in range(7):
        worker.ended(life(configured=False), 100.0)
        waits.append(worker.wait_s(100.0))
    assert waits == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    worker.ended(life(configured=True), 200.0)
    assert worker.wait_s(200.0) == 0.0


def test_a_worker_that_keeps_crashing_after_its_start_waits_too() -> None:
    worker = Worker(0)
    for _ in range(FREE_RESTARTS):
        worker.ended(life(configured=True), 100.0)
    assert worker.wait_s(100.0) == 0.0
    worker.ended(life(configured=True), 101.0)
    assert worker.wait_s(101.0) == BACK_OFF_S[0]
    assert worker.wait_s(120.0) == 0.0
