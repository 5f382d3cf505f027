"""The corpus of damaged messages through a real worker, judged by what the server behind received.

The verdict of each case is known from `tests/wire`; here it must hold with sockets, heads that are rewritten and a
server that reads what it is sent by the plainest rules.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest

from mailbalancer.model import Http, HttpLimits, Mode
from mailbalancer.wire.http_head import Limits
from tests.support.lone_worker import Door, LoneWorker, service
from tests.support.waiting import eventually
from tests.support.web import Web, Wire, reply
from tests.wire.http_corpus import MORE, REQUESTS, RESPONSES, Case, Ok

#: Sent behind each payload that may be followed by one: whoever reads the payload in another way sees it elsewhere.
PROBE = b"GET /probe HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"
BATCH = 40
#: The limit that the corpus knows.
AS_IN_WIRE = Http(limits=HttpLimits(head_bytes=Limits().head_bytes))


def batches(cases: list[Case]) -> list[list[Case]]:
    return [cases[at : at + BATCH] for at in range(0, len(cases), BATCH)]


@pytest.fixture(scope="module")
def behind() -> Iterator[Web]:
    with Web("behind", lambda asked: reply(asked.request.target)) as server:
        yield server


@pytest.fixture(scope="module")
def worker(behind: Web) -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        worker.configure(service("web", behind, mode=Mode.HTTP, http=AS_IN_WIRE))
        yield worker


def statuses(client: socket.socket) -> list[int]:
    """The answers until the connection ends."""
    data = b""
    with contextlib.suppress(OSError):
        while piece := client.recv(65536):
            data += piece
    return [int(part[9:12]) for part in data.split(b"HTTP/1.1 ")[1:] for part in [b"HTTP/1.1 " + part]]


def received(behind: Web, connections: int) -> list[bytes]:
    """The bodies of the complete requests since then, when every connection has ended."""
    eventually(lambda: all(c.ended for c in behind.connections), what="the server's connections end")
    return [request.body for request in behind.requests if request.connection >= connections]


@pytest.mark.parametrize("number", range(len(batches(REQUESTS))))
def test_requests(worker: LoneWorker, behind: Web, number: int) -> None:
    for case in batches(REQUESTS)[number]:
        judge(worker, behind, case)


def judge(worker: LoneWorker, behind: Web, case: Case) -> None:
    connections = len(behind.connections)
    follows = isinstance(case.verdict, Ok) and case.verdict.then == 0 and not asks_to_close(case)
    with worker.connect("web") as client:
        client.settimeout(5)
        with contextlib.suppress(OSError):
            client.sendall(case.data + (PROBE if follows else b""))
            client.shutdown(socket.SHUT_WR)
        told = statuses(client)
    bodies = received(behind, connections)
    if isinstance(case.verdict, int):
        assert bodies == [], case.name
        assert told == [case.verdict], case.name
        return
    expected = list(case.verdict.bodies)
    if case.verdict.then == MORE:
        expected = expected[:-1] if len(expected) > len(bodies) else expected
    assert bodies == expected + ([b""] if follows else []), case.name
    if case.verdict.then > 0:
        assert told[-1] == case.verdict.then, case.name
    if follows:
        assert behind.requests[-1].target == "/probe", case.name
        assert told[-1] == 200, case.name


def asks_to_close(case: Case) -> bool:
    """Whether the client wants the connection to end, so that nothing can follow."""
    return re.search(rb" HTTP/1\.0\r|\nConnection:[ ,]*close", case.data) is not None


@pytest.mark.parametrize("number", range(len(batches(RESPONSES))))
def test_responses(number: int) -> None:
    with Door("ex1") as door, LoneWorker() as worker:
        worker.configure(service("web", door, mode=Mode.HTTP, http=AS_IN_WIRE))
        for case in batches(RESPONSES)[number]:
            judge_response(worker, door, case)


def judge_response(worker: LoneWorker, door: Door, case: Case) -> None:
    """What a server says becomes 502, or the body it has; what it says beyond its answer reaches nobody."""
    upgrade = b"Connection: upgrade\r\nUpgrade: websocket\r\n" if case.upgrading else b""
    target = b"mail.example.com:443" if case.method == b"CONNECT" else b"/"
    host = b"mail.example.com:443" if case.method == b"CONNECT" else b"mail.example.com"
    with worker.connect("web") as client:
        client.settimeout(5)
        client.sendall(b"%b %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (case.method, target, host, upgrade))
        client.shutdown(socket.SHUT_WR)
        with door.accept() as server:
            assert Wire(server).head() is not None
            with contextlib.suppress(OSError):
                server.sendall(case.data)
                server.shutdown(socket.SHUT_WR)
            data, cut = b"", False
            try:
                while piece := client.recv(65536):
                    data += piece
            except OSError:
                cut = True
    finals = [part for part in data.split(b"HTTP/1.1 ")[1:] if not part.startswith((b"100", b"102", b"103"))]
    if isinstance(case.verdict, int):
        refused = cut or (not data.endswith(b"0\r\n\r\n") and (not finals or finals[0].startswith(b"502")))
        assert refused, (case.name, data[-300:])
    elif case.verdict.then == MORE and not case.closed:
        assert cut or not finals or finals[0].startswith(b"502"), (case.name, data[-300:])
    else:
        assert not cut, case.name
        assert len(finals) == 1 or case.upgrading or case.method == b"CONNECT", (case.name, data)
