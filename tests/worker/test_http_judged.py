"""A head that is remembered is passed on as one that is read for the first time: the same bytes, the same decisions.

Readers that have seen much are asked beside new ones, which remember nothing, over random sequences of heads that
repeat, differ in little, come in pieces or with something behind them. And through a real worker, whose memory of one
client's head must tell the server nothing about another client.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.balance.http_routes import Ambiguous, Routes, Rule
from mailbalancer.ipc.board import Availability
from mailbalancer.model import HeaderEdits, Http, HttpRoute, Mode, Persist, Pool, Redirect
from mailbalancer.model import Route as RouteConfig
from mailbalancer.wire.http_head import BadMessage, RequestReader, ResponseReader
from mailbalancer.worker.http_judged import Answers, JudgedAnswer, JudgedRequest, Requests
from mailbalancer.worker.http_route import Route
from mailbalancer.worker.service import ServicePool
from tests.support.lone_worker import LoneWorker, member, service
from tests.support.web import Web, Wire, reply

EDITS = HttpRoute(
    request_headers=HeaderEdits((("X-Route", "owa"),), ("X-Gone",)),
    response_headers=HeaderEdits((("Server", "mail"),), ()),
)
REQUESTS = [
    b"GET /owa/ HTTP/1.1\r\nHost: mail.example.com\r\nX-Gone: 1\r\n\r\n",
    b"GET /owa/ HTTP/1.1\r\nHost: mail.example.com\r\nX-Gone: 2\r\n\r\n",
    b"GET /owa/a HTTP/1.1\r\nHost: mail.example.com\r\nX-Gone: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: mail.example.com\r\nAuthorization: NTLM abc\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: mail.example.com\r\nConnection: close, X-Named\r\nX-Named: 1\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: mail.example.com\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: mail.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /ews/ HTTP/1.1\r\nHost: mail.example.com\r\nContent-Length: 5\r\n\r\n",
    b"GET http://mail.example.com/owa/ HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"CONNECT mail.example.com:443 HTTP/1.1\r\nHost: mail.example.com:443\r\n\r\n",
    b"GET /old HTTP/1.1\r\nHost: mail.example.com\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: mail.example.com\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /owa/..%2fold HTTP/1.1\r\nHost: mail.example.com\r\n\r\n",
]
#: Of which the answers differ.
ASKED = [REQUESTS[0], REQUESTS[5], REQUESTS[6], REQUESTS[8], REQUESTS[10]]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: IIS\r\n\r\n",
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\nWWW-Authenticate: Negotiate\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
]
#: A sequence is gone through so often: the first times fill the memory, the last ones use it.
TIMES = 5
#: What is changed about a head: nothing mostly, so that it comes again.
CHANGES: list[Callable[[bytes], bytes]] = [
    lambda data: data,
    lambda data: data,
    lambda data: data[:-2],
    lambda data: b"\r\n" + data,
    lambda data: data + b"hello",
    lambda data: data + data,
    lambda data: data.replace(b": ", b":\t", 1),
]


@pytest.fixture(scope="module")
def routes() -> Routes[Route]:
    places = (("ex1", "127.0.0.1", 1), ("ex2", "127.0.0.1", 2))
    told = [
        RouteConfig("owa", (), _pool("owa", places, Persist("cookie", group="owa")), ("/owa",), EDITS),
        RouteConfig("old", (), Pool("web", "old", ()), ("/old",), HttpRoute(redirect=Redirect("/new"))),
    ]
    config = service("web", *places, mode=Mode.HTTP, http=Http(), routes=tuple(told))
    slots = {pool.key(m): slot for slot, (pool, m) in enumerate((p, m) for p in config.pools() for m in p.members)}
    secrets = {"": [bytes(32)]}
    made = {
        pool.route: Route(config, next((r for r in told if r.name == pool.route), None), _runtime(pool, slots), secrets)
        for pool in (config.pool, *(route.pool for route in told))
    }
    rules = [Rule(route.hosts, route.paths, made[route.name]) for route in told]
    return Routes(rules, made[""])


def _pool(name: str, places: tuple[tuple[str, str, int], ...], persist: Persist) -> Pool:
    return Pool("web", name, tuple(member(place) for place in places), persist=persist)


def _runtime(pool: Pool, slots: Mapping[Any, int]) -> ServicePool:
    return ServicePool(pool, slots, None, shared=False)


def request_facts(judged: JudgedRequest | None) -> object:
    if judged is None:
        return None
    return [getattr(judged, name) for name in JudgedRequest.__slots__]


def answer_facts(judged: JudgedAnswer | None) -> object:
    if judged is None:
        return None
    return [getattr(judged, name) for name in JudgedAnswer.__slots__ if name != "finished"]


def said(facts: Callable[[Any], object], read: Callable[..., object], *arguments: object) -> object:
    """What came of it, refusals included."""
    try:
        return facts(read(*arguments))
    except (BadMessage, Ambiguous) as bad:
        return type(bad), str(bad)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(REQUESTS[:3] + REQUESTS), st.sampled_from(CHANGES)), max_size=8))
def test_a_remembered_request_is_judged_as_a_new_one(
    routes: Routes[Route], heads: list[tuple[bytes, Callable[[bytes], bytes]]]
) -> None:
    picked = ("x-gone", "x-route", "cookie")
    memory = Requests(RequestReader(picked), routes)
    for head, change in heads * TIMES:
        data = change(head)
        fresh = Requests(RequestReader(picked), routes)
        expected = said(request_facts, fresh.read, data)
        assert said(request_facts, memory.read, data) == expected
        assert said(request_facts, memory.read, bytearray(data)) == expected


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ASKED), st.sampled_from(ANSWERS), st.sampled_from(CHANGES)), max_size=8))
def test_a_remembered_answer_is_judged_as_a_new_one(
    routes: Routes[Route], heads: list[tuple[bytes, bytes, Callable[[bytes], bytes]]]
) -> None:
    memory = Answers(ResponseReader(("server",)))
    requests = Requests(RequestReader(), routes)
    for request, head, change in heads * TIMES:
        asked = requests.read(request)
        assert asked is not None
        data = memoryview(change(head))
        fresh = Answers(ResponseReader(("server",)))
        expected = said(answer_facts, fresh.read, data, 0, asked)
        assert said(answer_facts, memory.read, data, 0, asked) == expected


def test_what_comes_again_is_remembered(routes: Routes[Route]) -> None:
    requests, answers = Requests(RequestReader(), routes), Answers(ResponseReader())
    asked = [requests.read(REQUESTS[0]) for _ in range(5)]
    assert asked[4] is asked[3]
    assert asked[0] is not None
    told = [answers.read(memoryview(ANSWERS[0] + b"hello"), 0, asked[0]) for _ in range(5)]
    assert told[4] is told[3]


def test_heads_far_longer_than_usual_are_read(routes: Routes[Route]) -> None:
    requests, answers = Requests(RequestReader(), routes), Answers(ResponseReader())
    asked = requests.read(REQUESTS[0])
    assert asked is not None
    data = memoryview(ANSWERS[0][:-2] + b"X-Long: " + bytes(40000).replace(b"\0", b"x") + b"\r\n\r\nhello")
    for _ in range(3):
        answer = answers.read(data, 0, asked)
        assert answer is not None
        assert answer.head.length == len(data) - 5


# ------------------------------------------------------------ through a worker


def test_the_same_head_of_two_clients_names_each_client(worker: LoneWorker) -> None:
    """One from each address: what the server is told of the client is never remembered with the head."""
    head = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"
    with Web("ex1") as ex1:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http()))
        clients = []
        for source in ("127.0.0.1", "127.0.0.2"):
            sock = socket.create_connection(worker.address("web"), 10, source_address=(source, 0))
            clients.append((source, sock, Wire(sock)))
        for _ in range(6):
            for source, sock, wire in clients:
                sock.sendall(head)
                assert wire.answer().status == 200
                assert ex1.requests[-1].values("X-Forwarded-For") == [source]
        for _, sock, _ in clients:
            sock.close()


def test_the_same_answer_is_finished_for_each_client_as_it_must_be(worker: LoneWorker) -> None:
    """With and without a cookie of ours, and with `Connection: close` once the server drains."""
    head = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n%b\r\n"
    with Web("ex1", lambda asked: reply("x")) as ex1:
        persist = Persist("cookie", group="web")
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), pool={"persist": persist}))
        sock = worker.connect("web")
        wire = Wire(sock)
        cookie = b""
        for number in range(12):
            sock.sendall(head % cookie)
            answer = wire.answer()
            assert answer.body == b"x"
            assert not answer.value("Connection")
            assert bool(answer.value("Set-Cookie")) == (number < 6)
            if number == 5:
                cookie = b"Cookie: %b\r\n" % answer.value("Set-Cookie").partition(";")[0].encode()
        worker.make_available(worker.slot("web", "ex1"), Availability.RETURNING)
        sock.sendall(head % cookie)
        assert wire.answer().value("Connection") == "close"
        assert not wire.more()
        sock.close()


def test_new_routes_hold_for_a_head_that_was_remembered(worker: LoneWorker) -> None:
    head = b"GET /owa/ HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"
    with Web("ex1") as ex1, Web("ex2") as ex2:
        own = Pool("web", "owa", (member(ex2),))
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http()))
        sock = worker.connect("web")
        wire = Wire(sock)
        for _ in range(4):
            sock.sendall(head)
            assert wire.answer().body == b"ex1 /owa/"
        routed = (RouteConfig("owa", (), own, ("/owa",)),)
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(), routes=routed))
        for _ in range(4):
            sock.sendall(head)
            assert wire.answer().body == b"ex2 /owa/"
        sock.close()


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker
