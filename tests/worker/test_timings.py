"""How long things took: into which bucket, and that every mode says so at the end of each phase."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbalancer.ipc.board import BOUNDS_S, Board, Count, Phase
from mailbalancer.model import ClientTls, Http, Mail, Mode, Queue
from mailbalancer.worker.timings import Timings
from tests.support.certs import Authority
from tests.support.lone_worker import LoneWorker, front, member, receive, receive_all, service
from tests.support.mail_servers import ImapServer
from tests.support.servers import Echo
from tests.support.waiting import eventually
from tests.support.web import Web, Wire

GET = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def timed(worker: LoneWorker, phase: Phase, name: str, real_server: str = "") -> int:
    """How many were timed, at a real server or at the service itself."""
    slot = worker.slot(name, real_server) if real_server else worker.service_slots[name]
    return sum(worker.board.timings(slot)[phase].counts)


def test_a_bound_belongs_to_its_own_bucket() -> None:
    board = Board(2, 3)
    timings = Timings(board, 1)
    for seconds in (0.0, 0.001, 0.0011, 60.0, 60.1):
        timings.took(2, Phase.CONNECT, seconds)
    found = board.timings(2)[Phase.CONNECT]
    assert (found.counts[:2], found.counts[-2:]) == ([2, 1], [1, 1])
    assert found.sum_s == pytest.approx(120.1021)
    assert len(found.counts) == len(BOUNDS_S) + 1


def test_an_exchange_without_a_server_has_no_first_byte() -> None:
    board = Board(1, 1)
    timings = Timings(board, 0)
    timings.exchanged(0, -1.0, 0.3)
    timings.exchanged(0, 0.0, 0.3)
    first, total = (board.timings(0)[phase] for phase in (Phase.FIRST_BYTE, Phase.TOTAL))
    assert (sum(first.counts), sum(total.counts), total.counts[BOUNDS_S.index(0.5)]) == (1, 2, 2)
    assert (first.sum_s, total.sum_s) == (0.0, pytest.approx(0.6))


def test_tcp(worker: LoneWorker) -> None:
    with Echo("ex1") as ex1:
        worker.configure(service("web", ex1))
        with worker.connect("web") as client:
            eventually(lambda: timed(worker, Phase.CONNECT, "web", "ex1") == 1)
            assert timed(worker, Phase.FIRST_BYTE, "web", "ex1") == 0, "an echo says nothing by itself"
            for _ in range(3):
                client.sendall(b"hello")
                assert receive(client, 5) == b"hello"
            assert timed(worker, Phase.FIRST_BYTE, "web", "ex1") == 1
        eventually(lambda: timed(worker, Phase.TOTAL, "web", "ex1") == 1)
        assert timed(worker, Phase.QUEUE, "web") == timed(worker, Phase.TOTAL, "web") == 0


def test_the_queue_is_timed_for_those_who_wait(worker: LoneWorker) -> None:
    with Echo("ex1") as ex1:
        worker.configure(service("web", member(ex1, max_sessions=1), queue=Queue(5, 600)))
        with worker.connect("web") as first, worker.connect("web") as second:
            worker.eventually_counts(1, Count.QUEUED, "web")
            assert timed(worker, Phase.QUEUE, "web") == 0
            for client in (first, second):
                client.sendall(b"x")
            assert receive(first, 1) == b"x"
            first.shutdown(socket.SHUT_WR)
            assert receive(second, 1) == b"x"
        assert timed(worker, Phase.QUEUE, "web") == 1


def test_http(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http()))
        with worker.connect("web") as client:
            wire = Wire(client)
            for _ in range(3):
                client.sendall(GET)
                assert wire.answer().status == 200
            client.sendall(b"nonsense\r\n\r\n")
            assert wire.answer().status == 400
        counts = [timed(worker, phase, "web", "ex1") for phase in (Phase.CONNECT, Phase.FIRST_BYTE, Phase.TOTAL)]
        assert counts == [1, 3, 3]


def test_mail(worker: LoneWorker) -> None:
    with ImapServer("ex1") as ex1:
        worker.configure(service("box", ex1, mode=Mode.IMAP, mail=Mail("lb.test")))
        with worker.connect("box") as client:
            assert receive(client, 4) == b"* OK"
            counts = [timed(worker, phase, "box", "ex1") for phase in (Phase.CONNECT, Phase.FIRST_BYTE, Phase.TOTAL)]
            assert counts == [1, 1, 0]
        eventually(lambda: timed(worker, Phase.TOTAL, "box", "ex1") + timed(worker, Phase.TOTAL, "box") == 1)


def test_handshakes_are_counted_by_version(worker: LoneWorker, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("mail.example.com")
    with Web("ex1") as ex1:
        web = service("web", ex1, mode=Mode.HTTP, http=Http(), client_tls=ClientTls(("mail",)))
        worker.configure(web, fronts={"web": front("web", issued)})
        context = ssl.create_default_context(cafile=str(authority.file))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        session = None
        for _ in range(2):
            sock = worker.connect("web")
            with context.wrap_socket(sock, server_hostname="mail.example.com", session=session) as client:
                client.sendall(GET)
                assert Wire(client).answer().status == 200
                session = client.session
        context.maximum_version = ssl.TLSVersion.TLSv1_3
        with context.wrap_socket(worker.connect("web"), server_hostname="mail.example.com") as client:
            client.sendall(GET)
            assert Wire(client).answer().status == 200
        with worker.connect("web") as client:
            client.sendall(GET)
            with contextlib.suppress(ConnectionResetError):
                receive_all(client)
        expected = {Count.TLS_1_2: 2, Count.TLS_1_3: 1, Count.TLS_RESUMED: 1, Count.TLS_FAILED: 1, Count.TLS_OLDER: 0}
        assert {cell: worker.count(cell, "web") for cell in expected} == expected
