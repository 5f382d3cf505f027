"""What sessions of one service share: lists, limits, the queue, and clients that come back to their server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.ipc.messages import Bind, Binding, Bound, Imbalance, Unbind
from mailbalancer.model import Persist, Queue, Schedule, Service
from tests.support.lone_worker import Door, LoneWorker, member, receive, receive_all, reset, service
from tests.support.ports import free_port
from tests.support.servers import Named
from tests.support.waiting import eventually

PERSIST = {"persist": Persist(group="cas", timeout_s=600), "schedule": Schedule.ROUND_ROBIN}


def ask(client: socket.socket) -> str:
    """The name of the server this client is on."""
    client.sendall(b"who\n")
    answer = bytearray()
    while not answer.endswith(b"\n"):
        piece = client.recv(100)
        assert piece, "the session was ended"
        answer += piece
    return answer.decode().partition(":")[0]


def who(worker: LoneWorker, name: str, source: str = "") -> str:
    """The server that one more session of this service gets."""
    with worker.connect(name, source=source) as client:
        return ask(client)


@contextlib.contextmanager
def three() -> Iterator[list[Named]]:
    with Named("ex1") as ex1, Named("ex2") as ex2, Named("ex3") as ex3:
        yield [ex1, ex2, ex3]


# ---------------------------------------------------------------- admission


@pytest.mark.parametrize(
    ("lists", "served"),
    [
        ({"allow": ("127.0.0.2/32",)}, False),
        ({"allow": ("127.0.0.0/24",)}, True),
        ({"deny": ("127.0.0.1/32",)}, False),
        ({"allow": ("127.0.0.0/8",), "deny": ("127.0.0.0/24",)}, False),
        ({"deny": ("127.0.0.2/32",)}, True),
    ],
)
def test_lists_decide_who_is_served(lists: dict[str, tuple[str, ...]], served: bool) -> None:
    networks: dict[str, Any] = {k: tuple(map(ipaddress.ip_network, v)) for k, v in lists.items()}
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(service("imap", ex1, **networks))
        if served:
            assert who(worker, "imap") == "ex1"
            return
        assert worker.refuses("imap")
        assert worker.session_lines()[0]["end"] == "denied"
        assert worker.count(Count.REFUSED, "imap") == 1
        assert not ex1.connections


def test_a_service_holds_no_more_than_its_limit() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(service("imap", ex1, max_sessions=2))
        with worker.connect("imap") as one, worker.connect("imap") as two:
            ask(one)
            ask(two)
            assert worker.refuses("imap")
        assert worker.session_lines(3)[0]["end"] == "service_full"
        assert worker.count(Count.REFUSED, "imap") == 1
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        assert who(worker, "imap") == "ex1"


# ---------------------------------------------------------------- queue


def queued(*servers: Named | Door, size: int = 2, timeout_s: float = 600, **options: Any) -> Service:
    members = [member(s, max_sessions=1) for s in servers]
    return service("imap", *members, queue=Queue(size, timeout_s), **options)


def test_who_waits_is_served_in_order_when_a_place_is_free() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1))
        with contextlib.ExitStack() as clients:
            first = clients.enter_context(worker.connect("imap"))
            ask(first)
            second = clients.enter_context(worker.connect("imap"))
            worker.eventually_counts(1, Count.QUEUED, "imap")
            third = clients.enter_context(worker.connect("imap"))
            worker.eventually_counts(2, Count.QUEUED, "imap")
            assert worker.refuses("imap")
            assert worker.session_lines()[0]["end"] == "servers_full"
            assert worker.count(Count.REFUSED, "imap") == 1
            assert {s["state"] for s in worker.list_sessions().sessions} == {"relaying", "waiting"}
            first.close()
            assert ask(second) == "ex1"
            assert worker.count(Count.QUEUED, "imap") == 1
            second.close()
            assert ask(third) == "ex1"
            assert worker.count(Count.QUEUED, "imap") == 0


def test_patience_has_an_end() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1, timeout_s=0.2))
        with worker.connect("imap") as first:
            ask(first)
            assert worker.refuses("imap")
            assert worker.session_lines()[0]["end"] == "queue_timeout"
            assert worker.count(Count.QUEUED, "imap") == 0
            assert worker.count(Count.CONNECT_FAILED, "imap", "ex1") == 0
            assert ask(first) == "ex1"


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
def test_who_gives_up_leaves_the_queue(leave: Any) -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1))
        with worker.connect("imap") as first:
            ask(first)
            waiting = worker.connect("imap")
            worker.eventually_counts(1, Count.QUEUED, "imap")
            leave(waiting)
            worker.eventually_counts(0, Count.QUEUED, "imap")
            worker.eventually_counts(1, Count.SESSIONS, "imap")
            assert worker.session_lines()[0]["end"] in ("client_closed", "client_reset")


def test_who_has_said_something_and_ended_its_half_keeps_its_place() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1))
        with worker.connect("imap") as first, worker.connect("imap") as second:
            ask(first)
            worker.eventually_counts(1, Count.QUEUED, "imap")
            second.sendall(b"QUIT\n")
            second.shutdown(socket.SHUT_WR)
            worker.after_beats(2)
            first.close()
            assert receive_all(second) == b"ex1: QUIT\r\n"


def test_a_place_freed_by_another_worker_is_seen() -> None:
    with LoneWorker(workers=2) as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1))
        elsewhere = worker.board.count(1, worker.slot("imap", "ex1"), Count.SESSIONS)
        worker.board.ints[elsewhere] = 1
        with worker.connect("imap") as client:
            worker.eventually_counts(1, Count.QUEUED, "imap")
            worker.board.ints[elsewhere] = 0
            assert ask(client) == "ex1"


def test_who_waits_for_servers_that_go_away_is_refused() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1))
        with worker.connect("imap") as first, worker.connect("imap") as second:
            holder, waiting = (first, second)
            ask(holder)
            worker.eventually_counts(1, Count.QUEUED, "imap")
            worker.make_available(worker.slot("imap", "ex1"), Availability.CLOSED)
            with pytest.raises(ConnectionResetError):
                receive_all(waiting)
            assert worker.count(Count.QUEUED, "imap") == 0
            assert ask(holder) == "ex1"


def test_who_waits_in_a_service_that_is_removed_is_refused() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1:
        worker.configure(queued(ex1), service("pop", ex1))
        with worker.connect("imap") as first, worker.connect("imap") as second:
            ask(first)
            worker.eventually_counts(1, Count.QUEUED, "imap")
            worker.configure(service("pop", ex1))
            with pytest.raises(ConnectionResetError):
                receive_all(second)
            assert worker.session_lines()[0]["end"] == "no_server"
            assert ask(first) == "ex1"
            assert worker.count(Count.QUEUED, "imap") == 0
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        worker.eventually_counts(0, Count.SESSIONS, "imap", "ex1")


def test_a_failed_connect_sends_a_waiting_client_back_to_wait() -> None:
    with LoneWorker() as worker, Named("ex2") as ex2:
        dead = ("ex1", "127.0.0.1", free_port())
        worker.configure(
            service("imap", member(dead, max_sessions=1), member(ex2, max_sessions=1), queue=Queue(5, 600))
        )
        worker.make_available(worker.slot("imap", "ex1"), Availability.CLOSED)
        with worker.connect("imap") as first, worker.connect("imap") as second:
            ask(first)
            worker.eventually_counts(1, Count.QUEUED, "imap")
            worker.make_available(worker.slot("imap", "ex1"), Availability.READY)
            worker.eventually_counts(1, Count.CONNECT_FAILED, "imap", "ex1")
            worker.after_beats(2)
            assert worker.count(Count.QUEUED, "imap") == 1
            first.close()
            assert ask(second) == "ex2"
            assert worker.count(Count.QUEUED, "imap") == 0


def test_a_bound_client_whose_server_is_full_does_not_hold_up_the_others() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1, Named("ex2") as ex2:
        worker.configure(
            service(
                "imap",
                member(ex1, max_sessions=1),
                member(ex2, max_sessions=1),
                queue=Queue(5, 600),
                pool=PERSIST,
            ),
            bindings=(
                Binding("cas", "127.0.0.11", "ex1", time.monotonic() + 600),
                Binding("cas", "127.0.0.12", "ex2", time.monotonic() + 600),
            ),
        )
        with contextlib.ExitStack() as clients:
            on1 = clients.enter_context(worker.connect("imap", source="127.0.0.11"))
            on2 = clients.enter_context(worker.connect("imap", source="127.0.0.12"))
            assert (ask(on1), ask(on2)) == ("ex1", "ex2")
            clients.enter_context(worker.connect("imap", source="127.0.0.11"))  # waits for ex1 alone
            worker.eventually_counts(1, Count.QUEUED, "imap")
            anyone = clients.enter_context(worker.connect("imap", source="127.0.0.13"))
            worker.eventually_counts(2, Count.QUEUED, "imap")
            on2.close()
            assert ask(anyone) == "ex2"


# ---------------------------------------------------------------- persistence


def test_a_client_comes_back_to_its_server_in_every_service_of_the_group() -> None:
    with LoneWorker() as worker, three() as servers:
        worker.configure(service("mapper", *servers, pool=PERSIST), service("rpc", *servers, pool=PERSIST))
        seen = set()
        for number in range(2, 8):
            source = f"127.0.0.{number}"
            home = who(worker, "mapper", source)
            seen.add(home)
            assert {who(worker, name, source) for name in ("rpc", "mapper") * 3} == {home}
        assert seen == {"ex1", "ex2", "ex3"}
        bound = worker.said(Bound)
        assert len(bound) == 6
        assert {b.group for b in bound} == {"cas"}


def test_a_closed_server_loses_its_clients_and_a_draining_one_keeps_them() -> None:
    with LoneWorker() as worker, three() as servers:
        worker.configure(service("rpc", *servers, pool=PERSIST))
        home = who(worker, "rpc")
        slot = worker.slot("rpc", home)
        worker.make_available(slot, Availability.RETURNING)
        assert who(worker, "rpc") == home
        assert home not in {who(worker, "rpc", f"127.0.0.{n}") for n in range(2, 9)}
        worker.make_available(slot, Availability.CLOSED)
        away = who(worker, "rpc")
        assert away != home
        assert worker.count(Count.MOVED, "rpc", away) == 1
        worker.make_available(slot, Availability.READY)
        assert who(worker, "rpc") == away
        assert worker.message(Bound, lambda b: b.key == "127.0.0.1" and b.real_server == away)


def test_a_failed_connect_moves_the_client_and_holds_its_binding_once() -> None:
    with LoneWorker() as worker, Named("ex2") as ex2:
        dead = ("ex1", "127.0.0.1", free_port())
        pool = {"persist": Persist(group="cas", timeout_s=0.3), "schedule": Schedule.ROUND_ROBIN}
        worker.configure(
            service("rpc", dead, ex2, pool=pool),
            bindings=(Binding("cas", "127.0.0.1", "ex1", time.monotonic() + 600),),
        )
        with worker.connect("rpc") as client:
            assert ask(client) == "ex2"
            assert worker.count(Count.MOVED, "rpc", "ex2") == 1
        # Held twice it would never expire: a third server proves that it does.
        worker.session_lines(1)
        worker.make_available(worker.slot("rpc", "ex1"), Availability.CLOSED)
        moved = worker.count(Count.MOVED, "rpc", "ex2")
        eventually(lambda: _forgotten(worker), what="the binding expires")
        assert worker.count(Count.MOVED, "rpc", "ex2") == moved


def _forgotten(worker: LoneWorker) -> bool:
    """Whether a session is chosen by schedule, because nothing is remembered of the client any more."""
    worker.after_beats(8)  # longer than the table's timeout; the heartbeat is the worker's own clock
    who(worker, "rpc")
    lines = [line for line in worker.log_lines() if line["message"] == "session"]
    return bool(lines) and any(line["why"] == "round_robin" for line in lines[1:])


def test_bindings_that_come_with_the_configuration_are_followed_until_forgotten() -> None:
    with LoneWorker() as worker, three() as servers:
        until = time.monotonic() + 600
        worker.configure(
            service("rpc", *servers, pool=PERSIST),
            bindings=tuple(Binding("cas", f"127.0.0.{n}", "ex3", until) for n in range(2, 8)),
        )
        assert {who(worker, "rpc", f"127.0.0.{n}") for n in range(2, 8)} == {"ex3"}
        worker.send(Unbind("other"))
        assert {who(worker, "rpc", f"127.0.0.{n}") for n in range(2, 8)} == {"ex3"}

        def others() -> set[str]:
            worker.send(Unbind("cas"))
            return {who(worker, "rpc", f"127.0.0.{n}") for n in range(2, 8)} - {"ex3"}

        eventually(others, what="somebody is served by another server")


def test_what_another_worker_has_learned_is_followed() -> None:
    with LoneWorker() as worker, three() as servers:
        worker.configure(service("rpc", *servers, pool=PERSIST))
        for name in ("ex2", "ex3"):
            worker.send(Bind(Binding("cas", f"127.0.1.{name[-1]}", name, time.monotonic() + 600)))
        assert who(worker, "rpc", "127.0.1.2") == "ex2"
        assert who(worker, "rpc", "127.0.1.3") == "ex3"
        worker.send(Bind(Binding("gone", "127.0.1.2", "ex1", time.monotonic() + 600)))
        assert who(worker, "rpc", "127.0.1.2") == "ex2"


def test_a_bound_client_waits_for_its_full_server() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1, Named("ex2") as ex2:
        worker.configure(
            service("imap", member(ex1, max_sessions=1), member(ex2), queue=Queue(5, 600), pool=PERSIST),
            bindings=(Binding("cas", "127.0.0.1", "ex1", time.monotonic() + 600),),
        )
        with worker.connect("imap") as one, worker.connect("imap") as two:
            assert ask(one) == "ex1"
            worker.eventually_counts(1, Count.QUEUED, "imap")
            one.close()
            assert ask(two) == "ex1"


def test_one_source_with_most_sessions_is_told() -> None:
    with LoneWorker() as worker, three() as servers:
        worker.configure(service("imap", *servers, pool=PERSIST))
        clients = [worker.connect("imap") for _ in range(25)]
        for client in clients:
            ask(client)
        report = worker.message(Imbalance)
        assert (report.service, report.source, report.sessions, report.total) == ("imap", "127.0.0.1", 25, 25)
        for client in clients:
            client.close()
        over = worker.message(Imbalance, lambda m: m.sessions == 0)
        assert over.source == "127.0.0.1"


# ---------------------------------------------------------------- schedule


def test_new_sessions_go_where_fewest_are_over_all_workers() -> None:
    with LoneWorker(workers=2) as worker, Named("ex1") as ex1, Named("ex2") as ex2:
        worker.configure(service("imap", ex1, ex2))
        elsewhere = worker.board.count(1, worker.slot("imap", "ex1"), Count.SESSIONS)
        worker.board.ints[elsewhere] = 3
        clients = [worker.connect("imap") for _ in range(3)]
        assert [ask(c) for c in clients] == ["ex2"] * 3
        worker.board.ints[elsewhere] = 0
        assert who(worker, "imap") == "ex1"
        for client in clients:
            client.close()


def test_weights_are_read_from_the_board() -> None:
    with LoneWorker() as worker, Named("ex1") as ex1, Named("ex2") as ex2:
        worker.configure(service("imap", member(ex1, weight=3.0), ex2))
        clients = [worker.connect("imap") for _ in range(8)]
        names = [ask(c) for c in clients]
        assert (names.count("ex1"), names.count("ex2")) == (6, 2)
        for client in clients:
            client.close()


def test_the_answer_is_the_servers_and_whole() -> None:
    with LoneWorker() as worker, Named("ex1", banner="220 ex1") as ex1:
        worker.configure(service("smtp", ex1))
        with worker.connect("smtp") as client:
            assert receive(client, 9) == b"220 ex1\r\n"
            assert ask(client) == "ex1"
