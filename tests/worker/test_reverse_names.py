"""What servers are told that a client is called: asked of a real name server, over loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from mailbalancer.model import Endpoint, Mail, Mode, ReverseNames, Schedule, Service, Smtp
from tests.support.dns_server import SERVFAIL, SILENCE, NameServer
from tests.support.lone_worker import LoneWorker, service
from tests.support.mail_servers import SmtpServer
from tests.support.smtp_client import Talk

NO_NAME, NOT_NOW = "[UNAVAILABLE]", "[TEMPUNAVAIL]"
ADDRESS = "127.0.0.5"
PTR = ("5.0.0.127.in-addr.arpa.", "PTR")


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


@pytest.fixture
def mx1() -> Iterator[SmtpServer]:
    with SmtpServer("mx1") as mx1:
        mx1.capabilities = ("PIPELINING", "XCLIENT NAME ADDR PORT")
        yield mx1


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as names:
        yield names


def told_by(server: NameServer | int, timeout_s: float = 10.0) -> ReverseNames:
    port = server if isinstance(server, int) else server.port
    return ReverseNames(timeout_s, (Endpoint("127.0.0.1", port),))


def mx(*servers: SmtpServer, names: ReverseNames | None) -> Service:
    mail = Mail("lb.test", client_address="xclient", smtp=Smtp(reverse_names=names))
    return service("mx", *servers, mode=Mode.SMTP, mail=mail, pool={"schedule": Schedule.PRIORITY})


def told(worker: LoneWorker, mx1: SmtpServer, source: str = ADDRESS) -> str:
    """The name that the server is told of one client."""
    client = Talk(worker.connect("mx", source=source))
    assert client.reply().startswith(b"220 ")
    client.sock.close()
    words = mx1.conversations[-1].xclient.decode().split()
    assert f"ADDR={source}" in words
    return next(word.partition("=")[2] for word in words if word.startswith("NAME="))


@pytest.mark.parametrize(
    ("pointer", "addresses", "name"),
    [
        (["Printer.Example.com."], ["127.0.0.9", ADDRESS], "printer.example.com"),
        (["printer.example.com.", "other.example.com."], [ADDRESS], "printer.example.com"),  # the other one has none
        (["my_host.example.com."], [ADDRESS], "my_host.example.com"),
        (["printer.example.com."], ["127.0.0.9"], NO_NAME),
        (["printer.example.com."], [], NO_NAME),
        (["printer.example.com."], None, NO_NAME),
        (["printer.example.com."], SILENCE, NOT_NOW),
        (["printer.example.com."], SERVFAIL, NOT_NOW),
        (None, None, NO_NAME),
        ([], None, NO_NAME),
        (SERVFAIL, None, NOT_NOW),
        (SILENCE, None, NOT_NOW),
        (["evil\\032ADDR\\0611.2.3.4.example.com."], [ADDRESS], NO_NAME),
        (["evil\\013\\010QUIT.example.com."], [ADDRESS], NO_NAME),
        (["1.2.3.4."], [ADDRESS], NO_NAME),
        (["[TEMPUNAVAIL]."], [ADDRESS], NO_NAME),
        (["."], [ADDRESS], NO_NAME),
    ],
)
def test_a_name_counts_when_it_is_confirmed(
    worker: LoneWorker,
    mx1: SmtpServer,
    names: NameServer,
    pointer: list[str] | str | None,
    addresses: list[str] | str | None,
    name: str,
) -> None:
    if pointer is not None:
        names.records[PTR] = pointer
    if isinstance(pointer, list) and pointer and addresses is not None:
        names.records[pointer[0].lower(), "A"] = addresses
    silent = SILENCE in (pointer, addresses)
    worker.configure(mx(mx1, names=told_by(names, 0.5 if silent else 10.0)))
    assert told(worker, mx1) == name
    asked = len(names.asked)
    assert told(worker, mx1) == name
    assert len(names.asked) == asked, "the answer is remembered"


def test_an_answer_too_long_for_a_datagram_is_asked_for_over_tcp(
    worker: LoneWorker, mx1: SmtpServer, names: NameServer
) -> None:
    names.truncates = True
    names.pointer(ADDRESS, "printer.example.com.")
    names.records["printer.example.com.", "A"] = [ADDRESS]
    worker.configure(mx(mx1, names=told_by(names)))
    assert told(worker, mx1) == "printer.example.com"


def test_a_closed_port_is_no_answer_now(worker: LoneWorker, mx1: SmtpServer) -> None:
    with NameServer() as gone:
        port = gone.port
    worker.configure(mx(mx1, names=told_by(port, 0.5)))
    assert told(worker, mx1) == NOT_NOW


def test_the_second_of_two_servers_answers(worker: LoneWorker, mx1: SmtpServer, names: NameServer) -> None:
    names.pointer(ADDRESS, "printer.example.com.")
    names.records["printer.example.com.", "A"] = [ADDRESS]
    with NameServer() as silent:
        silent.records = {PTR: SILENCE, ("printer.example.com.", "A"): SILENCE}
        asked = told_by(silent, 2.0)
        worker.configure(mx(mx1, names=replace(asked, resolvers=(*asked.resolvers, Endpoint("127.0.0.1", names.port)))))
        assert told(worker, mx1) == "printer.example.com"


def test_many_sessions_of_one_client_ask_once(worker: LoneWorker, mx1: SmtpServer, names: NameServer) -> None:
    names.records[PTR] = SILENCE
    worker.configure(mx(mx1, names=told_by(names, 1.0)))
    clients = [Talk(worker.connect("mx", source=ADDRESS)) for _ in range(8)]
    assert all(client.reply().startswith(b"220 ") for client in clients)
    assert {conversation.xclient.decode().split()[1] for conversation in mx1.conversations} == {f"NAME={NOT_NOW}"}
    assert len(names.asked) <= 2, names.asked


def test_without_it_nobody_is_asked(worker: LoneWorker, mx1: SmtpServer, names: NameServer) -> None:
    worker.configure(mx(mx1, names=None))
    assert told(worker, mx1) == NO_NAME
    assert names.asked == []
    worker.configure(mx(mx1, names=told_by(names)))
    names.pointer(ADDRESS, "printer.example.com.")
    names.records["printer.example.com.", "A"] = [ADDRESS]
    assert told(worker, mx1) == "printer.example.com"


def test_the_next_server_is_told_without_asking_again(worker: LoneWorker, mx1: SmtpServer, names: NameServer) -> None:
    names.pointer(ADDRESS, "printer.example.com.")
    names.records["printer.example.com.", "A"] = [ADDRESS]
    with SmtpServer("mx0") as mx0:
        mx0.capabilities = mx1.capabilities
        mx0.answers["XCLIENT"] = b"421 4.3.2 not now\r\n"
        worker.configure(mx(mx0, mx1, names=told_by(names)))
        assert told(worker, mx1) == "printer.example.com"
        assert len(names.asked) == 2


@pytest.mark.parametrize("leaves", ["client", "server"])
def test_who_leaves_while_the_name_is_sought_is_missed_by_nobody(
    worker: LoneWorker, mx1: SmtpServer, names: NameServer, leaves: str
) -> None:
    names.records[PTR] = SILENCE
    if leaves == "server":
        mx1.answers["GREETING"] = b"<reset>"
    worker.configure(mx(mx1, names=told_by(names, 0.5)))
    client = Talk(worker.connect("mx", source=ADDRESS))
    if leaves == "client":
        client.sock.close()
        assert worker.session_lines()[0]["end"] == "client_closed"
    else:
        assert client.end().startswith(b"421 4.3.2 ")
    mx1.answers.clear()
    assert told(worker, mx1, "127.0.0.6") == NO_NAME
