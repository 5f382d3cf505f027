"""The worker process: configurations applied under live sessions, its end, and what it tells."""

from __future__ import annotations

import contextlib
import socket

import pytest

from mailbalancer.ipc.board import Beat, Count
from mailbalancer.ipc.messages import Configure, Configured, ListSessions, SessionList, Stopped
from mailbalancer.model import Config, Persist
from mailbalancer.worker.reactor import Reactor
from mailbalancer.worker.relay import Relay
from mailbalancer.worker.service import Service
from mailbalancer.worker.session import Session
from tests.support.lone_worker import LOG, Door, LoneWorker, member, receive, receive_all, service
from tests.support.servers import Echo, Named
from tests.support.waiting import eventually


def echoes(client: socket.socket, data: bytes = b"NOOP") -> bool:
    client.sendall(data)
    return receive(client, len(data)) == data


def test_a_session_outlives_ten_configurations_and_new_ones_follow_them() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1, Named("ex2") as ex2:
        worker.configure(service("imap", ex1))
        with worker.connect("imap") as client:
            for number in range(10):
                servers = (ex2,) if number % 2 else (member(ex1, weight=1.0 + number), member(ex2, weight=2.0))
                worker.configure(
                    service("imap", *servers, idle_timeout_s=600 + number, buffer_bytes=4096 << number % 3)
                )
                assert worker.beat(Beat.CONFIG_VERSION) == worker.version
                assert echoes(client, bytes(100_000))
            worker.configure(service("imap", ex2))
            with worker.connect("imap") as other:
                other.sendall(b"who\n")
                assert receive(other, 3) == b"ex2"
            assert echoes(client)
            assert worker.count(Count.SESSIONS, "imap", "ex1") == 1
        worker.eventually_counts(0, Count.SESSIONS, "imap", "ex1")
        worker.eventually_counts(0, Count.SESSIONS, "imap")


def test_a_listener_that_is_removed_refuses_and_its_sessions_stay() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1, Echo("ex2") as ex2:
        worker.configure(service("imap", ex1), service("pop", ex2))
        gone = worker.address("pop")
        with worker.connect("pop") as client:
            assert echoes(client)
            worker.configure(service("imap", ex1))
            eventually(lambda: _refused(gone), what="nobody listens there any more")
            assert echoes(client)
            assert [s["service"] for s in worker.list_sessions().sessions] == ["pop"]
            with worker.connect("imap") as other:
                assert echoes(other)
        worker.session_lines(2)
        worker.eventually_counts(0, Count.SESSIONS, "pop", "ex2")
        worker.eventually_counts(0, Count.SESSIONS, "pop")


def _refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_persistence_group_may_come_and_go_under_live_sessions() -> None:
    persist = {"persist": Persist(group="cas", timeout_s=600)}
    with LoneWorker() as worker, Echo("ex1") as ex1:
        with contextlib.ExitStack() as clients:
            for pool in (persist, {}, persist, {"persist": Persist(group="other")}, {}):
                worker.configure(service("imap", ex1, pool=pool))
                client = clients.enter_context(worker.connect("imap"))
                assert echoes(client)
        worker.session_lines(5)
        worker.eventually_counts(0, Count.SESSIONS, "imap", "ex1")


def test_a_configuration_that_cannot_be_applied_is_answered_and_the_worker_goes_on() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.may_fault = True
        worker.configure(service("imap", ex1))
        with worker.connect("imap") as client:
            assert echoes(client)
            new = service("new", ex1)
            worker.send(Configure(99, Config("test", (new,), (), 1, "", "", "", log=LOG), {}, {}, {}))  # without slots
            assert "KeyError" in worker.message(Configured, lambda m: m.version == 99).error
            worker.after_beats(3)
            assert echoes(client)


def test_stop_without_sessions_ends_at_once() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        worker.stop(sessions_may_last_s=600)
        assert worker.message_at_end(Stopped) == Stopped(0)
        eventually(worker.ended)
        assert worker.exit_code == 0


def test_stop_lets_sessions_finish_and_takes_no_new_ones() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        with worker.connect("imap") as client:
            assert echoes(client)
            worker.stop(sessions_may_last_s=600)
            worker.after_beats(3)
            assert echoes(client)
            late = worker.connect("imap")  # the supervisor's socket still queues it, for whoever comes next
            worker.after_beats(3)
            assert worker.count(Count.TOTAL, "imap") == 1
            late.close()
        assert worker.message_at_end(Stopped) == Stopped(0)
        eventually(worker.ended)


def test_stop_with_a_deadline_that_passes_resets_what_is_left() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("imap", door))
        with worker.connect("imap") as client, door.accept() as server:
            client.sendall(b"x")
            receive(server, 1)
            worker.stop(sessions_may_last_s=0.2)
            for sock in (client, server):
                with pytest.raises(ConnectionResetError):
                    receive_all(sock)
        assert worker.message_at_end(Stopped) == Stopped(1)
        assert worker.session_lines()[0]["end"] == "stopped"
        eventually(worker.ended)
        assert worker.count(Count.SESSIONS, "imap") == 0


def test_a_second_stop_brings_the_end_nearer() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        with worker.connect("imap") as client:
            assert echoes(client)
            worker.stop(sessions_may_last_s=600)
            worker.stop(sessions_may_last_s=0)
            assert worker.message_at_end(Stopped) == Stopped(1)
        eventually(worker.ended)


def test_without_a_supervisor_sessions_finish_and_the_worker_ends() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        with worker.connect("imap") as client:
            assert echoes(client)
            worker.hang_up()
            eventually(lambda: any("supervisor is gone" in line["message"] for line in worker.log_lines()))
            assert echoes(client)
            assert not worker.ended()
        eventually(worker.ended, what="the worker ends after its last session")
        assert worker.exit_code == 0


def test_a_supervisor_that_dies_while_it_does_not_read_makes_no_worker_spin() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        clients = [worker.connect("imap") for _ in range(300)]
        for client in clients:
            assert echoes(client)
        for ask in range(100, 140):  # answers of some 100 kB each: more than the channel holds
            worker.send(ListSessions(ask))
        worker.after_beats(4)
        worker.hang_up()
        eventually(lambda: any("supervisor is gone" in line["message"] for line in worker.log_lines()))
        before = worker.cpu_ticks()
        worker.after_beats(20)
        assert worker.cpu_ticks() - before < 50  # 20 heartbeats are a second or more; spinning costs all of it: 100
        for client in clients:
            client.close()
        eventually(worker.ended)


def test_long_answers_arrive_whole() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        clients = [worker.connect("imap") for _ in range(200)]
        for client in clients:
            assert echoes(client)
        for ask in range(100, 120):
            worker.send(ListSessions(ask))
        for ask in range(100, 120):
            assert len(worker.message(SessionList, lambda m, ask=ask: m.ask == ask).sessions) == 200  # type: ignore[misc]
        for client in clients:
            client.close()


def test_the_board_says_who_beats() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1))
        worker.after_beats(2)
        assert worker.beat(Beat.PID) == worker.pid
        assert worker.beat(Beat.PAUSED) == 0
        before = worker.beat(Beat.OPEN_FILES)
        with worker.connect("imap") as client:
            assert echoes(client)
            worker.after_beats(2)
            assert worker.beat(Beat.OPEN_FILES) == before + 2


class Mistake:
    """Makes every third call of a method raise."""

    def __init__(self, owner: type[object], name: str) -> None:
        self.owner, self.name = owner, name
        self.original = getattr(owner, name)
        self.calls = 0

    def install(self) -> None:
        mistake = self

        def sometimes(*args: object) -> object:
            mistake.calls += 1
            if mistake.calls % 3 == 0:
                raise RuntimeError("a mistake of ours")
            return mistake.original(*args)

        setattr(self.owner, self.name, sometimes)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Service, "choose"), (Service, "header_for"), (Session, "_admit"), (Reactor, "watch"), (Relay, "on_server")],
)
def test_a_mistake_in_one_session_ends_that_one_and_is_told(owner: type[object], name: str) -> None:
    with LoneWorker(prepare=Mistake(owner, name).install) as worker, Echo("ex1") as ex1:
        worker.may_fault = True
        worker.configure(service("imap", ex1))
        answers = []
        worker.after_beats(1)
        files = worker.files()
        for _ in range(6):
            try:
                with worker.connect("imap") as client:
                    answers.append(echoes(client))
            except ConnectionResetError:
                answers.append(False)
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        worker.eventually_counts(0, Count.SESSIONS, "imap", "ex1")
        told = [line for line in worker.log_lines() if line["message"].startswith("internal error")]
        assert told
        assert told[0]["error"] == "RuntimeError: a mistake of ours"
        assert "sometimes" in told[0]["at"]
        assert True in answers
        assert not worker.list_sessions().sessions
        eventually(lambda: worker.files() == files, what="every descriptor is given back")


def test_a_mistake_at_a_deadline_stops_no_heartbeat() -> None:
    with LoneWorker(prepare=Mistake(Session, "due").install) as worker, Echo("ex1") as ex1:
        worker.may_fault = True
        worker.configure(service("imap", ex1, idle_timeout_s=0.1))
        clients = [worker.connect("imap") for _ in range(4)]
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        worker.after_beats(2)
        assert {line["end"] for line in worker.session_lines(4)} == {"idle_timeout", "internal_error"}
        for client in clients:
            client.close()
