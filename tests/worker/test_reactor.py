"""The reactor: one handler's failure, and descriptors that must not be used again within a batch."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import uvloop

from mailbalancer.worker.reactor import HANGUP, READ, WRITE, Reactor

Turn = Callable[[], None]


@pytest.fixture
def faults() -> list[tuple[int, Exception]]:
    return []


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def reactor(loop: asyncio.AbstractEventLoop, faults: list[tuple[int, Exception]]) -> Iterator[Reactor]:
    made = Reactor(loop, lambda fd, error: faults.append((fd, error)))
    yield made
    made.stop()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    made = [socket.socketpair() for _ in range(3)]
    for pair in made:
        for sock in pair:
            sock.setblocking(False)
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def turn(loop: asyncio.AbstractEventLoop, times: int = 3) -> None:
    """Let the loop poll so many times."""

    async def pass_by() -> None:
        for _ in range(times):
            await asyncio.sleep(0)

    loop.run_until_complete(pass_by())


Pairs = list[tuple[socket.socket, socket.socket]]


def test_both_edges_are_delivered_once(loop: asyncio.AbstractEventLoop, reactor: Reactor, pairs: Pairs) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    reactor.watch(ours, seen.append)
    turn(loop)
    assert seen == [WRITE]
    theirs.send(b"x")
    turn(loop)
    assert len(seen) == 2
    assert seen[1] & READ
    assert not seen[1] & HANGUP
    theirs.close()
    turn(loop)
    assert seen[2] & HANGUP


def test_a_level_is_delivered_for_as_long_as_it_lasts(
    loop: asyncio.AbstractEventLoop, reactor: Reactor, pairs: Pairs
) -> None:
    ours, theirs = pairs[0]
    seen: list[int] = []
    reactor.watch_level(ours, seen.append)
    theirs.send(b"x")
    turn(loop, 5)
    assert len(seen) > 1
    reactor.unwatch(ours)
    before = len(seen)
    turn(loop, 5)
    assert len(seen) == before
    reactor.unwatch(ours)  # twice is no error


def test_a_handler_that_raises_costs_nobody_else_an_event(
    loop: asyncio.AbstractEventLoop, reactor: Reactor, pairs: Pairs, faults: list[tuple[int, Exception]]
) -> None:
    seen: list[int] = []

    def bad(_events: int) -> None:
        raise RuntimeError("a mistake")

    def note(fd: int, _events: int) -> None:
        seen.append(fd)

    for ours, _ in pairs:
        reactor.watch(ours, partial(note, ours.fileno()))
    reactor.handlers[pairs[0][0].fileno()] = bad
    turn(loop)
    assert sorted(seen) == sorted(ours.fileno() for ours, _ in pairs[1:])
    assert [(fd, str(error)) for fd, error in faults] == [(pairs[0][0].fileno(), "a mistake")]


def test_work_to_go_on_with_that_raises_stops_no_other_work(
    loop: asyncio.AbstractEventLoop, reactor: Reactor, faults: list[tuple[int, Exception]]
) -> None:
    done: list[str] = []

    def bad() -> None:
        raise RuntimeError("a mistake")

    reactor.again(7, bad)
    reactor.again(8, lambda: done.append("second"))
    turn(loop)
    assert done == ["second"]
    assert [fd for fd, _ in faults] == [7]


def test_who_ends_another_in_the_same_batch_silences_it(
    loop: asyncio.AbstractEventLoop, reactor: Reactor, pairs: Pairs
) -> None:
    """All three are ready at once; whichever comes first closes the others, which then hear nothing."""
    called: list[int] = []

    def handler(me: int) -> Callable[[int], None]:
        def handle(_events: int) -> None:
            called.append(me)
            for number, (ours, _) in enumerate(pairs):
                if number != me:
                    reactor.close(ours)

        return handle

    for number, (ours, _) in enumerate(pairs):
        reactor.watch(ours, handler(number))
    turn(loop)
    assert len(called) == 1


def test_a_number_is_not_given_out_again_within_the_batch(
    loop: asyncio.AbstractEventLoop, reactor: Reactor, pairs: Pairs
) -> None:
    opened: list[int] = []

    def end_and_open(_events: int) -> None:
        for ours, _ in pairs:
            reactor.close(ours)
        fd = os.open("/dev/null", os.O_RDONLY)
        opened.append(fd)

    numbers = {ours.fileno() for ours, _ in pairs}
    for ours, _ in pairs:
        reactor.watch(ours, end_and_open)
    turn(loop)
    assert len(opened) == 1
    assert opened[0] not in numbers
    assert all(ours.fileno() == -1 for ours, _ in pairs)
    os.close(opened[0])


def test_work_given_again_from_within_comes_in_a_later_turn(loop: asyncio.AbstractEventLoop, reactor: Reactor) -> None:
    rounds: list[int] = []

    def work() -> None:
        rounds.append(len(rounds))
        if len(rounds) < 3:
            reactor.again(1, work)

    reactor.again(1, work)
    turn(loop, 6)
    assert rounds == [0, 1, 2]
