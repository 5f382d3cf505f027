"""Which class serves which mode, also after a reload has given a listener's service another mode."""

from __future__ import annotations

import pytest

from mailbalancer.model import Mail, Mode
from mailbalancer.worker.http_service import HttpService
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.modes import handler_of, runtime_of
from mailbalancer.worker.service import Service
from mailbalancer.worker.session import Session
from tests.support.lone_worker import LoneWorker, receive, service
from tests.support.servers import Named

MAIL = Mail("lb.example.test")


@pytest.mark.parametrize(
    ("mode", "runtime"),
    [
        (Mode.TCP, Service),
        (Mode.TLS, Service),
        (Mode.HTTP, HttpService),
        (Mode.SMTP, MailService),
        (Mode.IMAP, MailService),
        (Mode.POP3, MailService),
    ],
)
def test_the_runtime_of_a_mode(mode: Mode, runtime: type[Service]) -> None:
    assert runtime_of(mode) is runtime


def test_tcp_and_tls_read_a_proxy_header_themselves() -> None:
    assert handler_of(Mode.TCP) is Session
    assert handler_of(Mode.TLS) is Session


GREETINGS = {Mode.SMTP: b"220 ", Mode.IMAP: b"* OK", Mode.POP3: b"+OK "}
SERVERS = {Mode.SMTP: "220 ex1 ESMTP", Mode.IMAP: "* OK ex1 IMAP4rev1", Mode.POP3: "+OK ex1"}


@pytest.mark.parametrize("mode", GREETINGS)
def test_a_listener_serves_the_mode_that_its_service_has_now(mode: Mode) -> None:
    with LoneWorker() as worker, Named("ex1", banner=SERVERS[mode]) as ex1:
        worker.configure(service("mail", ex1))  # tcp: the server's own words
        with worker.connect("mail") as client:
            assert receive(client, len(SERVERS[mode])) == SERVERS[mode].encode()
        worker.configure(service("mail", ex1, mode=mode, mail=MAIL))
        with worker.connect("mail") as client:
            greeting = receive(client, 4)
            assert greeting == GREETINGS[mode]
        worker.configure(service("mail", ex1))
        with worker.connect("mail") as client:
            assert receive(client, len(SERVERS[mode])) == SERVERS[mode].encode()


def test_two_modes_of_one_runtime_follow_each_other_in_place() -> None:
    with LoneWorker() as worker, Named("ex1", banner="* OK ex1") as imap, Named("ex2", banner="+OK ex2") as pop:
        worker.configure(service("mail", imap, mode=Mode.IMAP, mail=MAIL))
        with worker.connect("mail") as client:
            assert receive(client, 4) == b"* OK"
        worker.configure(service("mail", pop, mode=Mode.POP3, mail=MAIL))
        with worker.connect("mail") as client:
            assert receive(client, 4) == b"+OK "
