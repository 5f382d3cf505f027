"""Limits that are reached: said once, and once more when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from mailbalancer.control.events import Events
from mailbalancer.control.limits import LimitWatch
from mailbalancer.control.slots import Allocation, Slots
from mailbalancer.ipc.board import Board, Count
from mailbalancer.log import Log
from mailbalancer.model import Config, MemberKey, RealServer, Source, SourceClass, SourceKey
from tests.control.configurations import config, service

EX1 = MemberKey("smtp", "", "ex1")


class Watched:
    """A board whose sessions the test sets, and what is said of them."""

    def __init__(self, log: Log, configured: Config) -> None:
        self.board, self.events = Board(2, 32), Events(log)
        self.plan: Allocation = Slots(self.board).plan(configured)
        self.watch = LimitWatch(self.board, self.events)
        self.watch.follow(configured, self.plan)
        self.now = 0.0

    def sessions(self, slot: int, number: int) -> list[str]:
        """So many now, in two workers; what was said of it."""
        before = len(self.events.listed())
        for worker, share in enumerate((number // 2, number - number // 2)):
            self.board.ints[self.board.count(worker, slot, Count.SESSIONS)] = share
        self.now += 1.0
        self.watch.tick(self.now)
        return [str(event["text"]) for event in self.events.listed()[before:]]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log._close()


def test_a_full_service_is_told_once_and_once_more_when_there_is_room(log: Log) -> None:
    house = Watched(log, config(service("smtp", max_sessions=10)))
    slot = house.plan.services["smtp"]
    assert house.sessions(slot, 9) == []
    assert house.sessions(slot, 10) == ["smtp is full: 10 of 10 sessions; new ones are refused"]
    for number in (10, 9, 10, 9):
        assert house.sessions(slot, number) == [], "at its limit it is not told of every second"
    assert house.sessions(slot, 8) == ["smtp has room again: 8 of 10 sessions"]
    assert house.sessions(slot, 11) == ["smtp is full: 11 of 10 sessions; new ones are refused"]


def test_a_machine_is_full_over_all_its_services(log: Log) -> None:
    base = config(service("smtp"), service("imap"))
    house = Watched(log, replace(base, real_servers=(RealServer("ex1", "127.0.0.1", max_sessions=4),)))
    assert house.sessions(house.plan.members[EX1], 2) == []
    assert house.sessions(house.plan.members[MemberKey("imap", "", "ex1")], 2) == [
        "real server ex1 is full: 4 of 4 sessions; others take the new ones, or they wait"
    ]


def test_a_member_of_one_service(log: Log) -> None:
    limited = service("smtp")
    first, *others = limited.pool.members
    pool = replace(limited.pool, members=(replace(first, max_sessions=2), *others))
    house = Watched(log, config(replace(limited, pool=pool)))
    assert house.sessions(house.plan.members[EX1], 2) == [
        "smtp: ex1 is full: 2 of 2 sessions; others take the new ones, or they wait"
    ]


def test_an_address_of_a_source_class(log: Log) -> None:
    source = Source(classes=(SourceClass("relay", (), ("10.0.0.1",)),), per_source_limit=20)
    house = Watched(log, config(service("smtp", names=("ex1",), source=source)))
    slot = house.plan.sources[SourceKey("10.0.0.1", service("smtp").pool.members[0].endpoint)]
    assert house.sessions(slot, 20) == [
        "smtp: 10.0.0.1 of class relay at ex1 is full: 20 of 20 sessions; another address of the class is used, or the "
        "session waits"
    ]


def test_a_limit_that_is_raised_is_forgotten(log: Log) -> None:
    house = Watched(log, config(service("smtp", max_sessions=2)))
    slot = house.plan.services["smtp"]
    house.sessions(slot, 2)
    house.watch.follow(config(service("smtp")), house.plan)
    assert house.sessions(slot, 5) == []
