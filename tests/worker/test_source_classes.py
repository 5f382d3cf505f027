"""Which of our addresses a real server sees: classes of clients, and how many sessions of one address it is given."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.model import Endpoint, Http, Mail, Mode, Queue, Service, Source, SourceClass, SourceKey
from tests.support.lone_worker import Door, LoneWorker, receive_all, service
from tests.support.mail_servers import SmtpServer
from tests.support.smtp_client import Talk

ANY = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
PRINTERS = (ipaddress.ip_network("127.0.20.0/24"),)
RELAY = SourceClass("relay", PRINTERS, ("127.0.2.6", "127.0.2.8"))
INTERNET = SourceClass("internet", ANY, ("127.0.2.7",))


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def mx(*servers: SmtpServer, limit: int = 0, when_full: str = "spill", **options: Any) -> Service:
    source = Source(classes=(RELAY, INTERNET), per_source_limit=limit, when_full=when_full)
    return service("mx", *servers, mode=Mode.SMTP, mail=Mail("lb.test"), source=source, **options)


@pytest.mark.parametrize("mode", [Mode.TCP, Mode.IMAP, Mode.POP3, Mode.HTTP])
def test_classes_in_every_mode(worker: LoneWorker, mode: Mode) -> None:
    """The real server is a door: it sees from which address it is reached."""
    source = Source(classes=(RELAY, INTERNET), per_source_limit=1, when_full="refuse")
    more: dict[str, Any] = {"mail": Mail("lb.test")} if mode in (Mode.IMAP, Mode.POP3) else {}
    if mode is Mode.HTTP:
        more["http"] = Http()
    with Door("ex1") as ex1:
        worker.configure(service("mx", ex1, mode=mode, source=source, queue=Queue(10, 10.0), **more))
        kept = []
        for client, expected in (("127.0.20.5", "127.0.2.6"), ("127.0.20.6", "127.0.2.8"), ("127.0.0.1", "127.0.2.7")):
            kept.append(begun(worker, mode, client))
            kept.append(ex1.accept())
            assert kept[-1].getpeername()[0] == expected
        if mode is Mode.TCP:
            with pytest.raises(ConnectionResetError):
                begun(worker, mode, "127.0.20.7").recv(1)
        else:
            words = {Mode.IMAP: b"* BYE ", Mode.POP3: b"-ERR ", Mode.HTTP: b"HTTP/1.1 503 "}
            assert receive_all(begun(worker, mode, "127.0.20.7")).startswith(words[mode])
        assert [worker.board.total(slot, Count.SESSIONS) for slot in worker.source_slots.values()] == [1, 1, 1]


def begun(worker: LoneWorker, mode: Mode, source: str) -> socket.socket:
    """A client for which a server is sought."""
    sock = worker.connect("mx", source=source)
    if mode is Mode.HTTP:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: lb.test\r\n\r\n")
    return sock


def test_a_percentage_of_what_the_server_has_left(worker: LoneWorker) -> None:
    """Two of ten: as the server fills up, one address has less of it."""
    source = Source(classes=(RELAY, INTERNET), per_source_percent=30.0, server_connections=10, when_full="refuse")
    with SmtpServer("mx1") as mx1:
        worker.configure(service("mx", mx1, mode=Mode.SMTP, mail=Mail("lb.test"), source=source))
        clients = [talk(worker, "127.0.0.1") for _ in range(2)]
        for client in clients:
            client.begin()
        assert talk(worker, "127.0.0.1").end().startswith(b"421 4.3.2 ")
        clients[0].say(b"QUIT")
        worker.eventually_counts(1, Count.SESSIONS, "mx")
        talk(worker, "127.0.0.1").begin()


def talk(worker: LoneWorker, source: str) -> Talk:
    return Talk(worker.connect("mx", source=source))


def test_each_class_leaves_from_its_own_address(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(mx(mx1))
        talk(worker, "127.0.20.5").begin()
        talk(worker, "127.0.21.5").begin()
        talk(worker, "127.0.0.1").begin()
        assert [address for address, _ in mx1.peers] == ["127.0.2.6", "127.0.2.7", "127.0.2.7"]
        worker.configure(mx(mx1))  # and a reload changes nothing about it
        talk(worker, "127.0.20.6").begin()
        assert mx1.peers[-1][0] == "127.0.2.6"


def test_the_limit_spills_to_the_next_address_and_is_never_exceeded(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        worker.configure(mx(mx1, mx2, limit=2))
        clients = [talk(worker, f"127.0.20.{at}") for at in range(1, 9)]
        for client in clients:
            client.begin()
        for server in (mx1, mx2):
            peers = sorted(address for address, _ in server.peers)
            assert peers == ["127.0.2.6", "127.0.2.6", "127.0.2.8", "127.0.2.8"]
        one_more = talk(worker, "127.0.20.99")
        assert one_more.end().startswith(b"421 4.3.2 ")
        assert worker.count(Count.REFUSED, "mx") == 1
        other_class = talk(worker, "127.0.0.1")
        other_class.begin()
        slot = worker.source_slots[SourceKey("127.0.2.6", Endpoint("127.0.0.1", mx1.port))]
        assert worker.board.total(slot, Count.SESSIONS) == 2
        for client in (*clients, other_class):
            client.say(b"QUIT")
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        assert all(worker.board.total(slot, Count.SESSIONS) == 0 for slot in worker.source_slots.values())
        talk(worker, "127.0.20.1").begin()


@pytest.mark.parametrize("when_full", ["queue", "refuse"])
def test_a_class_without_room_waits_or_is_refused(worker: LoneWorker, when_full: str) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(mx(mx1, limit=1, when_full=when_full, queue=Queue(10, 10.0)))
        first = talk(worker, "127.0.0.1")
        first.begin()
        second = talk(worker, "127.0.0.2")
        if when_full == "refuse":
            assert second.end().startswith(b"421 4.3.2 ")
            return
        worker.eventually_counts(1, Count.QUEUED, "mx")
        first.say(b"QUIT")
        second.begin()
        assert second.send().startswith(b"250 ")


def test_services_that_leave_from_one_address_are_counted_together(worker: LoneWorker) -> None:
    """The server sees the address alone, whatever service of ours it comes from."""
    source = Source(classes=(RELAY, INTERNET), per_source_limit=2, when_full="refuse")
    with SmtpServer("mx1") as mx1:
        more: dict[str, Any] = {"mode": Mode.SMTP, "mail": Mail("lb.test"), "source": source}
        worker.configure(service("mx", mx1, **more), service("inside", mx1, **more))
        first = talk(worker, "127.0.0.1")
        first.begin()
        second = Talk(worker.connect("inside", source="127.0.0.2"))
        second.begin()
        assert talk(worker, "127.0.0.3").end().startswith(b"421 4.3.2 ")
        assert Talk(worker.connect("inside", source="127.0.0.3")).end().startswith(b"421 4.3.2 ")
        first.say(b"QUIT")
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        Talk(worker.connect("inside", source="127.0.0.3")).begin()


def test_an_address_that_is_not_ours_is_named(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        source = Source(classes=(SourceClass("internet", ANY, ("192.0.2.1",)),))
        worker.configure(service("mx", mx1, mode=Mode.SMTP, mail=Mail("lb.test"), source=source))
        assert talk(worker, "127.0.0.1").end().startswith(b"421 4.3.2 ")
        line = worker.session_lines()[0]
        assert (line["end"], line["failure"]) == ("local_failure", "mx1: 192.0.2.1 is not an address of ours")
        assert worker.count(Count.CONNECT_FAILED, "mx", "mx1") == 0


def test_an_ipv6_address_of_ours(worker: LoneWorker) -> None:
    with SmtpServer("mx1", "::1") as mx1:
        source = Source(classes=(SourceClass("internet", ANY, ("127.0.2.7", "::1")),), per_source_limit=1)
        worker.configure(service("mx", mx1, mode=Mode.SMTP, mail=Mail("lb.test"), source=source))
        talk(worker, "127.0.0.1").begin()
        assert [address for address, _ in mx1.peers] == ["::1"]
