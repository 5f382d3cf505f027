"""What a PROXY header says goes on to the servers: whose connection it is, and what that client had connected to."""

from __future__ import annotations

import ipaddress

import pytest

from mailbalancer.model import Endpoint, Http, Mode, ProxyProtocol
from mailbalancer.wire import proxy_header
from tests.support.lone_worker import Door, LoneWorker, service
from tests.support.web import Web, Wire, reply

CLIENT, REACHED = Endpoint("203.0.113.9", 4711), Endpoint("198.51.100.7", 8443)
ACCEPTS = ProxyProtocol(accept_from=(ipaddress.ip_network("127.0.0.0/8"),))
ASK = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"


def test_the_port_that_the_client_had_connected_to_is_told() -> None:
    with LoneWorker() as worker, Web("ex1", lambda asked: reply("yes")) as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), proxy_protocol=ACCEPTS))
        with worker.connect("web") as client:
            client.sendall(proxy_header.encode("v2", CLIENT, REACHED) + ASK)
            assert Wire(client).answer().body == b"yes"
        (request,) = ex1.requests
        assert request.value("X-Forwarded-For") == CLIENT.host
        assert request.value("X-Forwarded-Port") == "8443"


def test_the_port_is_ours_when_the_proxy_speaks_for_itself() -> None:
    with LoneWorker() as worker, Web("ex1", lambda asked: reply("yes")) as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), proxy_protocol=ACCEPTS))
        with worker.connect("web") as client:
            client.sendall(proxy_header.encode_local("v2", CLIENT, REACHED) + ASK)
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
            client.sendall(proxy_header.encode("v1", CLIENT, REACHED) + ASK)
            with door.accept() as server:
                sent = b""
                while (header := proxy_header.parse(sent)) is None:
                    sent += server.recv(4096)
        assert (header.source, header.destination) == (CLIENT, REACHED)
