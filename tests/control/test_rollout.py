"""A configuration reaches every worker or none: real sockets, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from mailbalancer.control import rollout as module
from mailbalancer.control.certificates import Certificates
from mailbalancer.control.events import Events
from mailbalancer.control.listeners import Listeners, worker_of
from mailbalancer.control.members import Members
from mailbalancer.control.persistence import Bindings
from mailbalancer.control.rollout import Rollout
from mailbalancer.control.slots import Slots
from mailbalancer.control.workers import WorkerMain, Workers
from mailbalancer.errors import ListenError, MailbalancerError
from mailbalancer.ipc.board import Beat, Board
from mailbalancer.ipc.messages import Bound, SessionList, Up
from mailbalancer.log import Log
from mailbalancer.model import Config, Endpoint
from mailbalancer.tls.context_pool import ContextPool
from tests.control.configurations import config, persist, service
from tests.control.crew import Dying, Keeping, Refusing, Stub
from tests.support.ports import free_port, free_ports
from tests.support.waiting import eventually_async


@dataclass
class Engine:
    board: Board
    workers: Workers
    listeners: Listeners
    members: Members
    rollout: Rollout
    bindings: Bindings
    heard: dict[int, list[str]]

    def versions(self) -> list[int]:
        return [self.board.ints[self.board.beat(w.index, Beat.CONFIG_VERSION)] for w in self.workers]

    def runs(self) -> tuple[str, ...]:
        assert self.rollout.running is not None
        return tuple(service.name for service in self.rollout.running.config.services)


@asynccontextmanager
async def engine(main: WorkerMain, workers: int = 2) -> AsyncIterator[Engine]:
    log = Log()
    board, events, bindings = Board(workers, 64), Events(log), Bindings()
    crew = Workers(board, log, events, main)
    members = Members(board, events, lambda slot, reason: None)
    listeners = Listeners(workers)
    rollout = Rollout(listeners, Slots(board), crew, members, bindings, Certificates(ContextPool(0)))
    crew.on_start = rollout.configure
    heard: dict[int, list[str]] = {}
    crew.on_message = lambda worker, message: heard.update({worker.index: told(message)})
    crew.on_end = lambda index: None
    crew.on_change = rollout.worker_changed
    crew.start()
    try:
        yield Engine(board, crew, listeners, members, rollout, bindings, heard)
    finally:
        crew.no_more_replacements()
        for worker in crew:
            crew.kill(worker)
        await crew.all_ended()
        listeners.close([entry.endpoint for entry in listeners])
        log._close()


def told(message: Up) -> list[str]:
    assert isinstance(message, SessionList)
    return [session["key"] for session in message.sessions]


def here() -> Endpoint:
    return Endpoint("127.0.0.1", free_port())


async def greeting(endpoint: Endpoint) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        return await asyncio.wait_for(reader.readline(), 10)
    finally:
        writer.close()


def refuses(endpoint: Endpoint) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((endpoint.host, endpoint.port)) != 0


def test_every_worker_runs_it_and_old_listeners_close_last() -> None:
    async def scenario() -> None:
        old, new = here(), here()
        async with engine(Stub.run) as it:
            await it.rollout.apply(config(service("smtp", [old])))
            assert it.versions() == [1, 1]
            assert await greeting(old)
            await it.rollout.apply(config(service("smtp", [new])))
            assert it.versions() == [2, 2]
            assert await greeting(new)
            assert refuses(old)

    asyncio.run(scenario())


def test_one_worker_that_refuses_takes_it_back_from_all() -> None:
    async def scenario() -> None:
        kept, tried = here(), here()
        async with engine(Refusing.run) as it:
            await it.rollout.apply(config(service("good", [kept])))
            with pytest.raises(MailbalancerError, match="worker 1 cannot run the configuration: cannot do that"):
                await it.rollout.apply(config(service("bad", [tried], names=["ex9"])))
            assert it.runs() == ("good",)
            assert {record.key.real_server for record in it.members} == {"ex1", "ex2"}
            assert [entry.endpoint for entry in it.listeners] == [kept]
            await eventually_async(lambda: it.versions() == [3, 3], what="both run the old one again")
            assert await greeting(kept)
            assert refuses(tried)
            await it.rollout.apply(config(service("better", [kept, tried])))
            assert await greeting(tried)

    asyncio.run(scenario())


def test_a_listener_that_cannot_be_opened_changes_nothing() -> None:
    async def scenario() -> None:
        kept, free, taken = here(), here(), here()
        async with engine(Stub.run) as it:
            await it.rollout.apply(config(service("smtp", [kept])))
            with socket.create_server((taken.host, taken.port)), pytest.raises(ListenError):
                await it.rollout.apply(config(service("smtp", [free, taken])))
            assert it.versions() == [1, 1]
            assert await greeting(kept)
            assert refuses(free)

    asyncio.run(scenario())


def test_workers_that_never_run_anything_make_the_start_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROLLOUT_S", 0.2)

    async def scenario() -> None:
        endpoint = here()
        async with engine(Dying.run) as it:
            with pytest.raises(MailbalancerError, match="worker 0, 1 did not take the configuration"):
                await it.rollout.apply(config(service("smtp", [endpoint])))
            assert it.rollout.running is None
            # a child forked a moment ago still has everything of its parent's for another moment
            await eventually_async(lambda: refuses(endpoint), what="the listener is closed")

    asyncio.run(scenario())


def test_connections_that_wait_while_a_worker_is_dead_are_served_by_its_successor() -> None:
    async def scenario() -> None:
        endpoint = here()
        async with engine(Stub.run, workers=1) as it:
            await it.rollout.apply(config(service("smtp", [endpoint])))
            (worker,) = it.workers
            assert worker.life is not None
            dead = worker.life.pid
            os.kill(dead, signal.SIGSTOP)  # nobody accepts, and nobody notices before these are queued
            clients = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(20)]
            os.kill(dead, signal.SIGKILL)
            await eventually_async(lambda: worker.starts == 2 and worker.settled, what="a successor")
            for client in clients:
                client.settimeout(10)
                assert client.recv(100).split()[1] != str(dead).encode()
                client.close()

    asyncio.run(scenario())


def test_a_successor_gets_what_runs_now() -> None:
    async def scenario() -> None:
        first, second = here(), here()
        async with engine(Stub.run) as it:
            await it.rollout.apply(config(service("a", [first])))
            await it.rollout.apply(config(service("a", [first]), service("b", [second])))
            (worker, _) = it.workers
            assert worker.life is not None
            os.kill(worker.life.pid, signal.SIGKILL)
            await eventually_async(lambda: worker.starts == 2 and worker.settled, what="a successor")
            assert it.versions() == [2, 2]
            assert await greeting(second)

    asyncio.run(scenario())


def test_a_successor_learns_the_clients_that_land_on_it() -> None:
    groups = config(service("smtp", persist=persist()), service("tls", persist=persist("tls", by="tls_session_id")))

    async def scenario() -> None:
        async with engine(Keeping.run) as it:
            await it.rollout.apply(groups)
            expires_at = time.monotonic() + 500
            addresses = [f"10.0.0.{number}" for number in range(40)]
            for key in addresses:
                it.bindings.learn(Bound("cas", key, "ex1", expires_at), time.monotonic())
            it.bindings.learn(Bound("tls", "0a1b", "ex2", expires_at), time.monotonic())
            for worker in it.workers:
                it.workers.kill(worker)
            await eventually_async(lambda: len(it.heard) == 2, what="both successors tell what they were told")
            for index, keys in it.heard.items():
                assert sorted(keys) == sorted(["0a1b", *(a for a in addresses if worker_of(a, 2) == index)])

    asyncio.run(scenario())


def test_more_listeners_than_one_frame_carries() -> None:
    async def scenario() -> None:
        endpoints = [Endpoint("127.0.0.1", port) for port in free_ports(450)]
        async with engine(Stub.run, workers=1) as it:
            await it.rollout.apply(config(service("many", endpoints)))
            for endpoint in (endpoints[0], endpoints[210], endpoints[-1]):
                assert await greeting(endpoint)

    asyncio.run(scenario())


def test_sixty_rollouts_lose_no_connection() -> None:
    async def scenario() -> None:
        kept, other = here(), here()
        one: list[Config] = [config(service("a", [kept])), config(service("b", [kept, other]))]
        async with engine(Stub.run) as it:
            await it.rollout.apply(one[0])
            stop = asyncio.Event()
            served = asyncio.create_task(_keep_asking(kept, stop))
            for number in range(60):
                await it.rollout.apply(one[number % 2])
            stop.set()
            assert await served > 0

    asyncio.run(scenario())


async def _keep_asking(endpoint: Endpoint, stop: asyncio.Event) -> int:
    count = 0
    while not stop.is_set():
        assert await greeting(endpoint)
        count += 1
    return count
