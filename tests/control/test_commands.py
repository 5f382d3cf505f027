"""Commands: arguments checked, work done on real parts, refusals that help."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from mailbalancer.control import commands as module
from mailbalancer.control.commands import Commands
from mailbalancer.control.events import Events
from mailbalancer.control.kernel_clients import KernelClients
from mailbalancer.control.maintenance import Maintenance
from mailbalancer.control.members import Members
from mailbalancer.control.persistence import Bindings
from mailbalancer.control.slots import Slots
from mailbalancer.control.workers import Workers
from mailbalancer.errors import ControlError
from mailbalancer.host.commands import RecordedCommands
from mailbalancer.host.nft import Nft
from mailbalancer.ipc.board import Availability, Board
from mailbalancer.ipc.messages import Bound, Configure
from mailbalancer.log import Log
from mailbalancer.model import MemberKey
from tests.control.configurations import config, persist, service
from tests.control.crew import Stub
from tests.support.waiting import eventually_async

CONFIG = config(
    service("smtp", persist=persist("smtp")),
    service("imap", names=["ex1", "ex3"], persist=persist("imap")),
)


class Desk:
    """Commands over real members, bindings and (when started) workers."""

    def __init__(self, log: Log) -> None:
        board, events = Board(2, 32), Events(log)
        self.saves = 0
        self.members = Members(board, events, lambda slot, reason: None)
        slots = Slots(board)
        plan = slots.plan(CONFIG)
        self.members.prepare(CONFIG, plan, 0.0)
        self.members.commit(CONFIG, plan, 0.0)
        self.bindings = Bindings()
        self.bindings.follow(CONFIG)
        self.workers = Workers(board, log, events, Stub.run)
        self.workers.on_start = lambda worker: self.workers.send(worker, Configure(1, CONFIG, {}, {}, {}))
        self.workers.on_end = lambda index: None
        self.workers.on_change = lambda: None
        self.sessions = 0
        maintenance = Maintenance(self.members, events, lambda record: self.sessions, self.save)
        maintenance.follow(CONFIG)
        kernel = KernelClients(Nft(RecordedCommands()), (), {})
        self.commands = Commands(
            self.members, self.workers, self.bindings, events, dict, self.reload, self.save, maintenance, lambda: kernel
        )
        self.workers.on_message = lambda worker, message: self.commands.listed(worker, message)  # type: ignore[arg-type]

    async def reload(self) -> dict[str, Any]:
        return {"changes": []}

    def save(self) -> None:
        self.saves += 1

    def ask(self, command: str, **arguments: Any) -> Any:
        return asyncio.run(self.commands.run(command, arguments))

    def availability(self, service: str, name: str) -> int:
        return self.members[MemberKey(service, "", name)].state.availability


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log._close()


@pytest.fixture
def desk(log: Log) -> Desk:
    return Desk(log)


def test_drain_in_one_service_or_everywhere(desk: Desk) -> None:
    assert desk.ask("drain", real_server="ex1", service="smtp") == {
        "state": "draining",
        "members": ["smtp/ex1"],
        "warnings": [],
    }
    assert desk.availability("smtp", "ex1") == Availability.RETURNING
    assert desk.availability("imap", "ex1") == Availability.READY
    assert desk.ask("disable", real_server="ex1")["members"] == ["smtp/ex1", "imap/ex1"]
    assert desk.availability("imap", "ex1") == Availability.CLOSED
    assert desk.ask("enable", real_server="ex1", service="")["state"] == "enabled"
    assert desk.availability("smtp", "ex1") == Availability.READY
    assert desk.saves == 3


def test_taking_the_last_one_is_done_and_warned_about(desk: Desk) -> None:
    desk.ask("drain", real_server="ex3")
    answer = desk.ask("drain", real_server="ex1")
    assert answer["warnings"] == ["imap: no real server is ready, new sessions are refused"]


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("drane", {}, "there is no command 'drane'; known are status"),
        ("drain", {"real_server": "ex9"}, "there is no real server 'ex9'; did you mean ex"),
        ("drain", {"real_server": "ex3", "service": "smtp"}, "no real server 'ex3' in service 'smtp'"),
        ("drain", {"real_server": "ex1", "service": "smpt"}, "no service 'smpt'; did you mean smtp?"),
        ("drain", {}, "there is no real server ''"),
        ("drain", {"real_server": 5}, "real_server must be text, not 5"),
        ("drain", {"server": "ex1"}, "drain has no argument 'server'; known are real_server, service"),
        ("status", {"verbose": True}, "status has no argument 'verbose'; known are none"),
        ("sessions", {"service": "pop"}, "no service 'pop'"),
        ("sessions", {"limit": -1}, "limit must be a whole number"),
        ("sessions", {"limit": True}, "limit must be a whole number"),
        ("persistence", {"group": "owa"}, "no persistence group 'owa'; known are imap, smtp"),
        ("persistence_clear", {"group": "owa"}, "no persistence group 'owa'"),
    ],
)
def test_what_is_refused_and_what_to_do(desk: Desk, command: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ControlError) as refused:
        desk.ask(command, **arguments)
    assert words in str(refused.value)
    assert desk.saves == 0


def test_persistence_is_listed_and_cleared(desk: Desk) -> None:
    now = time.monotonic()
    for group, key in (("smtp", "10.0.0.1"), ("smtp", "10.0.0.2"), ("imap", "10.0.0.1")):
        desk.bindings.learn(Bound(group, key, "ex1", now + 60), now)
    groups = {group["group"]: group for group in desk.ask("persistence")["groups"]}
    assert [entry["key"] for entry in groups["smtp"]["entries"]] == ["10.0.0.2", "10.0.0.1"]
    assert [group["group"] for group in desk.ask("persistence", group="imap")["groups"]] == ["imap"]
    assert desk.ask("persistence_clear", group="smtp", key="10.0.0.1") == {"cleared": 1}
    assert desk.ask("persistence_clear") == {"cleared": 2}


def with_workers(desk: Desk, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        desk.workers.start()
        try:
            await eventually_async(lambda: all(worker.settled for worker in desk.workers))
            await scenario()
        finally:
            desk.workers.no_more_replacements()
            for worker in desk.workers:
                desk.workers.kill(worker)
            await desk.workers.all_ended()

    asyncio.run(run())


def test_sessions_of_all_workers(desk: Desk) -> None:
    async def scenario() -> None:
        everything = await desk.commands.run("sessions", {})
        assert sorted(session["worker"] for session in everything["sessions"]) == [0, 0, 0, 1, 1, 1]
        assert everything["more"] == 0
        some = await desk.commands.run("sessions", {"service": "imap", "limit": 2})
        assert [session["service"] for session in some["sessions"]] == ["imap", "imap"]
        assert some["more"] == 4

    with_workers(desk, scenario)


def test_two_who_ask_at_once_are_both_answered(desk: Desk) -> None:
    async def scenario() -> None:
        answers = await asyncio.gather(*(desk.commands.run("sessions", {}) for _ in range(5)))
        assert [len(answer["sessions"]) for answer in answers] == [6] * 5

    with_workers(desk, scenario)


def test_a_worker_that_does_not_answer_is_left_out(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_S", 0.2)

    async def scenario() -> None:
        desk.workers.on_message = lambda worker, message: (
            desk.commands.listed(worker, message) if worker.index else None  # type: ignore[arg-type]
        )
        answer = await desk.commands.run("sessions", {})
        assert [session["worker"] for session in answer["sessions"]] == [1, 1, 1]

    with_workers(desk, scenario)
