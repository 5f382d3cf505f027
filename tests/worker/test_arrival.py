"""A proxy's PROXY header in front of a mode that speaks first: nobody is served before it is complete."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.ipc.messages import Stop
from mailbalancer.model import Endpoint, Http, Mail, Mode, ProxyProtocol, Service
from mailbalancer.wire import proxy_header
from tests.support.lone_worker import Door, LoneWorker, receive, receive_all, reset, service
from tests.support.servers import Named
from tests.support.web import Web, Wire, reply

LOCAL = (ipaddress.ip_network("127.0.0.0/8"),)
GREETING = b"220 lb.example.test ESMTP\r\n"
CLIENT, OURS = Endpoint("198.51.100.7", 40000), Endpoint("203.0.113.25", 25)
HEADERS = [proxy_header.encode(version, CLIENT, OURS) for version in ("v1", "v2")]


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


@pytest.fixture
def ex1() -> Iterator[Named]:
    with Named("ex1", banner="220 ex1") as server:
        yield server


def smtp(server: Named, accept_from: tuple[ipaddress.IPv4Network, ...] = LOCAL, **options: float) -> Service:
    own = ProxyProtocol(accept_from=accept_from, **options)
    return service("mx", server, mode=Mode.SMTP, mail=Mail("lb.example.test"), proxy_protocol=own)


@pytest.mark.parametrize("header", HEADERS)
def test_the_client_is_who_the_header_names(worker: LoneWorker, ex1: Named, header: bytes) -> None:
    worker.configure(smtp(ex1))
    with worker.connect("mx") as client:
        client.sendall(header)
        assert receive(client, len(GREETING)) == GREETING
        worker.eventually_counts(1, Count.TOTAL, "mx")
    assert worker.session_lines()[0]["client"] == str(CLIENT)
    worker.eventually_counts(0, Count.SESSIONS, "mx")


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_in_single_bytes(worker: LoneWorker, ex1: Named, header: bytes) -> None:
    worker.configure(smtp(ex1))
    with worker.connect("mx") as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(header)):
            client.sendall(header[at : at + 1])
        assert receive(client, len(GREETING)) == GREETING


@pytest.mark.parametrize("header", HEADERS)
def test_exactly_the_header_is_taken(worker: LoneWorker, ex1: Named, header: bytes) -> None:
    """What follows belongs to the mode, which finds that this client did not wait for the greeting."""
    worker.configure(smtp(ex1))
    with worker.connect("mx") as client:
        client.sendall(header + b"EHLO early.test\r\n")
        assert receive_all(client).startswith(b"521 5.5.1")


def test_what_is_no_header_is_reset(worker: LoneWorker, ex1: Named) -> None:
    worker.configure(smtp(ex1))
    with worker.connect("mx") as client:
        client.sendall(b"EHLO stranger.test\r\n")
        with pytest.raises(ConnectionResetError):
            receive_all(client)
    line = worker.session_lines()[0]
    assert line["end"] == "bad_proxy_header"
    assert "EHLO" in line["failure"]
    assert line["proxy"].startswith("127.0.0.1:")


def test_silence_ends_in_time(worker: LoneWorker, ex1: Named) -> None:
    worker.configure(smtp(ex1, header_timeout_s=0.2))
    with worker.connect("mx") as client, pytest.raises(ConnectionResetError):
        receive_all(client)
    assert worker.session_lines()[0]["end"] == "no_proxy_header"
    worker.eventually_counts(0, Count.SESSIONS, "mx")
    assert worker.count(Count.TOTAL, "mx") == 0


def test_a_proxy_that_goes_away_leaves_nothing(worker: LoneWorker, ex1: Named) -> None:
    worker.configure(smtp(ex1))
    for leave in (socket.socket.close, reset):
        client = worker.connect("mx")
        client.sendall(b"PROXY TCP4 ")
        worker.eventually_counts(1, Count.SESSIONS, "mx")
        leave(client)
        worker.eventually_counts(0, Count.SESSIONS, "mx")
    assert [line["end"] for line in worker.session_lines(2)] == ["client_closed", "client_reset"]


def test_others_are_served_at_once(worker: LoneWorker, ex1: Named) -> None:
    worker.configure(smtp(ex1, accept_from=(ipaddress.ip_network("192.0.2.0/24"),)))
    with worker.connect("mx") as client:
        assert receive(client, len(GREETING)) == GREETING


def test_who_has_not_said_is_listed_and_ends_with_the_worker(worker: LoneWorker, ex1: Named) -> None:
    worker.configure(smtp(ex1))
    with worker.connect("mx") as client:
        worker.eventually_counts(1, Count.SESSIONS, "mx")
        assert [facts["state"] for facts in worker.list_sessions().sessions] == ["proxy_header"]
        worker.send(Stop(0.0))
        with pytest.raises(ConnectionResetError):
            receive_all(client)


# ---------------------------------------------------------------- what it says goes on to the servers

PROXIED, REACHED = Endpoint("203.0.113.9", 4711), Endpoint("198.51.100.7", 8443)
ACCEPTS = ProxyProtocol(accept_from=(ipaddress.ip_network("127.0.0.0/8"),))
ASK = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"


def test_the_port_that_the_client_had_connected_to_is_told() -> None:
    with LoneWorker() as worker, Web("ex1", lambda asked: reply("yes")) as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), proxy_protocol=ACCEPTS))
        with worker.connect("web") as client:
            client.sendall(proxy_header.encode("v2", PROXIED, REACHED) + ASK)
            assert Wire(client).answer().body == b"yes"
        (request,) = ex1.requests
        assert request.value("X-Forwarded-For") == PROXIED.host
        assert request.value("X-Forwarded-Port") == "8443"


def test_the_port_is_ours_when_the_proxy_speaks_for_itself() -> None:
    with LoneWorker() as worker, Web("ex1", lambda asked: reply("yes")) as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), proxy_protocol=ACCEPTS))
        with worker.connect("web") as client:
            client.sendall(proxy_header.encode_local("v2", PROXIED, REACHED) + ASK)
            assert Wire(client).answer().body == b"yes"
        (request,) = ex1.requests
        assert request.value("X-Forwarded-For") == "127.0.0.1"
        assert request.value("X-Forwarded-Port") == str(worker.address("web")[1])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_addresses_are_passed_on_by_another_header(version: str) -> None:
    both = ProxyProtocol(accept_from=ACCEPTS.accept_from, send=version)
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("web", door, mode=Mode.HTTP, http=Http(), proxy_protocol=both))
        with worker.connect("web") as client:
            client.sendall(proxy_header.encode("v1", PROXIED, REACHED) + ASK)
            with door.accept() as server:
                sent = b""
                while (header := proxy_header.parse(sent)) is None:
                    sent += server.recv(4096)
        assert (header.source, header.destination) == (PROXIED, REACHED)
