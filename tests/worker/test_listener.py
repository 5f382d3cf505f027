"""Accepting at the limit of descriptors: it pauses without spinning, harms nobody, and goes on."""

from __future__ import annotations

import contextlib
import socket

from mailbalancer.ipc.board import Beat, Count
from tests.support.lone_worker import Door, LoneWorker, receive, reset, service
from tests.support.servers import Echo
from tests.support.waiting import eventually

MAX_FILES = 100


def echoes(client: socket.socket) -> bool:
    client.sendall(b"NOOP")
    return receive(client, 4) == b"NOOP"


def test_at_the_limit_accepting_pauses_and_goes_on_when_sessions_end() -> None:
    with LoneWorker(max_files=MAX_FILES) as worker, Echo("ex1") as ex1, contextlib.ExitStack() as stack:
        worker.configure(service("imap", ex1))
        clients = [stack.enter_context(worker.connect("imap")) for _ in range(60)]
        eventually(lambda: worker.beat(Beat.PAUSED) == 1, what="accepting pauses")
        served = worker.count(Count.SESSIONS, "imap")
        assert 0 < served < 60
        assert worker.files() <= MAX_FILES
        assert all(echoes(client) for client in clients[:served])
        before = worker.cpu_ticks()
        worker.after_beats(30)
        assert worker.cpu_ticks() - before < 75  # 30 heartbeats are 1.5 s or more; spinning costs all of it: 150 ticks
        assert worker.beat(Beat.PAUSED) == 1
        for client in clients[:served]:
            client.close()
        for client in clients[served:]:  # nobody who waited in the backlog was lost
            assert echoes(client)
            client.close()
        eventually(lambda: worker.beat(Beat.PAUSED) == 0, what="accepting goes on")
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        warnings = [line["message"] for line in worker.log_lines() if "descriptors" in line["message"]]
        assert warnings
        assert "ulimit -n" in warnings[0]
        assert worker.count(Count.REFUSED, "imap") == 0


def test_a_listener_that_is_removed_while_it_pauses_is_closed() -> None:
    with LoneWorker(max_files=MAX_FILES) as worker, Echo("ex1") as ex1, contextlib.ExitStack() as stack:
        worker.configure(service("imap", ex1), service("pop", ex1))
        clients = [stack.enter_context(worker.connect("imap")) for _ in range(60)]
        stack.enter_context(worker.connect("pop"))
        eventually(lambda: worker.beat(Beat.PAUSED) == 1, what="accepting pauses")
        worker.configure(service("pop", ex1))
        served = worker.count(Count.SESSIONS, "imap")
        for client in clients[:served]:
            client.close()
        eventually(lambda: worker.beat(Beat.PAUSED) == 0, what="accepting goes on for the other service")
        with worker.connect("pop") as client:
            assert echoes(client)


def test_a_listener_that_stops_listening_makes_nobody_spin() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1), service("pop", ex1))
        worker.listening_socket("imap").shutdown(socket.SHUT_RDWR)  # the worker's copy is the same socket
        before = worker.cpu_ticks()
        worker.after_beats(20)
        assert worker.cpu_ticks() - before < 50
        with worker.connect("pop") as client:
            assert echoes(client)


def test_more_connections_at_once_than_one_turn_accepts() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1, contextlib.ExitStack() as stack:
        worker.configure(service("imap", ex1))
        clients = [stack.enter_context(worker.connect("imap")) for _ in range(300)]
        for client in clients:
            client.sendall(b"NOOP")
        for client in clients:
            assert receive(client, 4) == b"NOOP"


def test_connections_reset_in_the_backlog_are_passed_over() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("imap", door))
        for _ in range(100):
            reset(worker.connect("imap"))
        client = worker.connect("imap")
        client.sendall(b"x")
        eventually(lambda: any(s["bytes_in"] == 1 for s in worker.list_sessions().sessions))
        reset(client)
        worker.eventually_counts(0, Count.SESSIONS, "imap")
