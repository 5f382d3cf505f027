"""A place at a real server: chosen, connected to, given up, sought again. Real sockets, one loop, no worker process."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from mailbalancer.ipc.board import Availability, Board, Count, Slot
from mailbalancer.ipc.messages import Remark, Up
from mailbalancer.log import Log
from mailbalancer.model import Endpoint, Logging, MemberKey, Queue, Schedule
from mailbalancer.worker import placement
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.placement import Placement
from mailbalancer.worker.service import Service
from mailbalancer.worker.wheel import Wheel
from tests.support.lone_worker import Door, member
from tests.support.lone_worker import service as described
from tests.support.ports import free_port

PRIORITY = {"schedule": Schedule.PRIORITY}
TIMEOUT_S = 10.0


class Seat(Placement):
    """Notes what becomes of it."""

    def __init__(self, engine: Engine, service: Service) -> None:
        super().__init__(engine, service, "192.0.2.1", 4711)
        self.outcome: list[str] = []

    def placed(self, events: int) -> None:
        assert self.target is not None
        self.outcome.append(self.target.name)

    def unplaced(self, reason: str) -> None:
        self.outcome.append(reason)

    def reached(self) -> Endpoint:
        return Endpoint("192.0.2.2", 25)


class House:
    """An engine, one service on it, and what it tells the supervisor."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.board = Board(1, 16)
        self.engine = Engine(0, self.board, Log(Logging()), self.loop, 1000)
        self.told: list[Up] = []
        self.service = Service(self.engine, self.told.append)
        self.slots: dict[str, int] = {}

    def configure(self, *servers: Any, **options: Any) -> None:
        config = described("web", *(s if not isinstance(s, Door) else member(s) for s in servers), **options)
        keys = [config.pool.key(m) for m in config.pool.members]
        slots: dict[MemberKey, int] = {key: at for at, key in enumerate(keys, 1)}
        for key, slot in slots.items():
            self.slots[key.real_server] = slot
            self.board.ints[self.board.slot(slot, Slot.AVAILABILITY)] = Availability.READY
            self.board.floats[self.board.slot(slot, Slot.WEIGHT)] = 1.0
        self.service.configure(config, 0, slots, {})

    def seek(self) -> Seat:
        seat = Seat(self.engine, self.service)
        seat.seek()
        return seat

    def until(self, happened: Callable[[], object]) -> None:
        """Turn the loop, and the wheel as a heartbeat does, until it has."""

        async def turn() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                while not happened():
                    await asyncio.sleep(0.01)
                    self.engine.reactor.now = now = asyncio.get_running_loop().time()
                    for due in self.engine.wheel.due(now):
                        due.due(now)

        self.loop.run_until_complete(turn())

    def count(self, count: Count, name: str) -> int:
        return self.board.total(self.slots[name], count)

    def close(self) -> None:
        self.engine.reactor.stop()
        self.loop.close()


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    made.close()


def dead(name: str, **options: Any) -> Any:
    """A member where nobody listens."""
    return member((name, "127.0.0.1", free_port()), **options)


def test_a_place_is_counted_from_the_choice_until_it_is_given_up(house: House) -> None:
    with Door("ex1") as ex1:
        house.configure(ex1)
        seat = house.seek()
        assert house.count(Count.SESSIONS, "ex1") == 1, "while it connects"
        assert seat.connecting
        house.until(lambda: seat.outcome)
        assert seat.outcome == ["ex1"]
        assert (house.count(Count.CONNECT_OK, "ex1"), house.count(Count.TOTAL, "ex1")) == (1, 1)
        assert seat.server is not None
        assert seat.server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        with ex1.accept() as theirs:
            seat.give_up()
            seat.no_deadline()
            assert theirs.recv(1) == b"", "giving up closes the connection"
        assert (seat.server, seat.slot, house.count(Count.SESSIONS, "ex1")) == (None, -1, 0)
        assert len(house.engine.wheel) == 0


def test_a_refused_connect_goes_to_the_next_server_and_is_told(house: House) -> None:
    with Door("ex2") as ex2:
        house.configure(dead("ex1"), member(ex2, priority=1), pool=PRIORITY)
        seat = house.seek()
        house.until(lambda: seat.outcome)
        assert seat.outcome == ["ex2"]
        assert seat.tried == ("ex1",)
        assert seat.last_failure == "ex1: connection refused"
        counts = (Count.CONNECT_FAILED, Count.RETRIED, Count.SESSIONS)
        assert [house.count(count, "ex1") for count in counts] == [1, 1, 0]
        assert house.told == [Remark("web", "", "ex1", "failure", "connection refused")]
        seat.give_up()


def test_the_same_failure_is_not_told_for_every_session(house: House) -> None:
    house.configure(dead("ex1"))
    seats = [house.seek() for _ in range(20)]
    house.until(lambda: all(seat.outcome for seat in seats))
    assert {tuple(seat.outcome) for seat in seats} == {("no_server",)}
    assert house.count(Count.CONNECT_FAILED, "ex1") == 20
    assert house.count(Count.RETRIED, "ex1") == 0, "nobody had another server"
    assert len(house.told) < 20


def test_a_connect_that_gets_no_answer_is_given_up_in_time(house: House) -> None:
    with Door("ex1", backlog=0) as ex1, Door("ex2") as ex2:
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # a full backlog drops every further SYN
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", ex1.port))
        house.configure(member(ex1), member(ex2, priority=1), pool=PRIORITY, connect_timeout_s=0.2)
        seat = house.seek()
        house.until(lambda: seat.outcome)
        assert seat.outcome == ["ex2"]
        assert seat.last_failure == "ex1: no answer in 0.2 s"
        seat.give_up()
        for filler in fillers:
            filler.close()


def test_who_finds_all_full_waits_and_gets_the_place_that_is_given_up(house: House) -> None:
    with Door("ex1") as ex1:
        house.configure(member(ex1, max_sessions=1), queue=Queue(5, 10.0))
        first = house.seek()
        house.until(lambda: first.outcome)
        second = house.seek()
        assert second.waiting
        assert second.slot == -1
        first.give_up()
        house.service.release(first, waiting=False)
        assert not second.waiting
        house.until(lambda: second.outcome)
        assert second.outcome == ["ex1"]
        assert house.count(Count.SESSIONS, "ex1") == 1
        second.give_up()


def test_patience_ends(house: House) -> None:
    with Door("ex1") as ex1:
        house.configure(member(ex1, max_sessions=1), queue=Queue(5, 0.2))
        first = house.seek()
        second = house.seek()
        house.until(lambda: second.outcome)
        assert second.outcome == ["queue_timeout"]
        assert house.board.total(0, Count.QUEUED) == 0
        first.give_up()


def test_without_a_queue_full_is_full(house: House) -> None:
    with Door("ex1") as ex1:
        house.configure(member(ex1, max_sessions=1))
        first, second = house.seek(), house.seek()
        assert second.outcome == ["servers_full"]
        first.give_up()


def test_what_this_machine_lacks_is_not_held_against_the_server(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with Door("ex1") as ex1:
        house.configure(ex1)

        def exhausted(*_: object) -> socket.socket:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(placement, "PlainSocket", exhausted)
        seat = house.seek()
        assert seat.outcome == ["local_failure"]
        assert house.count(Count.CONNECT_FAILED, "ex1") == 0
        assert house.count(Count.SESSIONS, "ex1") == 0
        assert house.told == []


class Deadline(Placement):
    """Notes when its deadline comes."""

    def __init__(self, engine: Engine, service: Service) -> None:
        super().__init__(engine, service, "192.0.2.1", 4711)
        self.came: list[float] = []

    def expired(self, now: float) -> None:
        self.came.append(now)


@pytest.fixture
def waits(house: House) -> Callable[..., list[float]]:
    """The deadlines that come when these are set one after the other, with the time standing still between."""

    def run(*deadlines: float, until: float = 60.0) -> list[float]:
        item = Deadline(house.engine, house.service)
        start = house.engine.reactor.now
        house.engine.wheel = Wheel(start)
        for deadline in deadlines:
            item.wait_until(start + deadline)
        for step in range(int(until * 10)):
            now = start + step / 10
            for due in house.engine.wheel.due(now):
                due.due(now)
        item.no_deadline()
        return [round(at - start) for at in item.came]

    return run


def test_only_the_deadline_set_last_comes(waits: Callable[..., list[float]]) -> None:
    assert waits(5.0) == [5]
    assert waits(5.0, 30.0) == [30], "put off"
    assert waits(30.0, 5.0) == [5], "brought forward"
    assert waits(5.0, 30.0, 10.0) == [10]
    assert waits(10.0, 5.0, 40.0) == [40]


def test_a_deadline_that_is_taken_back_does_not_come(house: House) -> None:
    item = Deadline(house.engine, house.service)
    item.wait_until(house.engine.reactor.now + 1.0)
    item.no_deadline()
    assert list(house.engine.wheel.due(house.engine.reactor.now + 10.0)) == []
    assert len(house.engine.wheel) == 0
