"""Requests through a real worker, judged by what the server behind received and what the client got."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.model import (
    Answer,
    HeaderEdits,
    Http,
    HttpLimits,
    HttpRoute,
    Member,
    Mode,
    Pool,
    Redirect,
    Route,
    Service,
)
from tests.support.lone_worker import TIMEOUT_S, Door, LoneWorker, Place, member, receive, receive_all, reset, service
from tests.support.waiting import eventually
from tests.support.web import Asked, Message, Web, Wire, reply


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def web(*servers: Place | Member, http: Http | None = None, **options: object) -> Service:
    return service("web", *servers, mode=Mode.HTTP, http=http or Http(), **options)  # type: ignore[arg-type]


def get(target: str = "/", *fields: str, host: str = "mail.example.com", method: str = "GET") -> bytes:
    lines = "".join(f"{line}\r\n" for line in fields)
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()


def post(body: bytes, target: str = "/", *fields: str) -> bytes:
    return get(target, f"Content-Length: {len(body)}", *fields, method="POST") + body


class Client:
    """A client on one connection."""

    def __init__(self, worker: LoneWorker, name: str = "web") -> None:
        self.socket = worker.connect(name)
        self.wire = Wire(self.socket)

    def ask(self, data: bytes, method: str = "GET") -> Message:
        self.socket.sendall(data)
        return self.wire.answer(method)

    def is_closed(self) -> bool:
        """Whether the connection ends here in order, with nothing more said."""
        return not self.wire.waiting and not self.wire.more()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


# ------------------------------------------------------------ one request after another


def test_keep_alive_on_one_connection_each_way(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            for number in range(5):
                answer = client.ask(get(f"/owa/{number}?q=1", "X-Strange: a b", "Accept: */*"))
                assert answer.status == 200
                assert answer.body == f"ex1 /owa/{number}?q=1".encode()
                assert not answer.value("Connection")
        assert len(ex1.connections) == 1
        request = ex1.requests[3]
        assert request.first_line == "GET /owa/3?q=1 HTTP/1.1"
        assert request.value("X-Strange") == "a b"
        assert request.value("X-Forwarded-For") == "127.0.0.1"
        assert request.value("X-Forwarded-Proto") == "http"
        assert request.value("X-Forwarded-Host") == "mail.example.com"
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")
        worker.eventually_counts(0, Count.SESSIONS, "web")
        worker.eventually_counts(5, Count.REQUESTS, "web")


def test_pipelined_requests_are_answered_in_order(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            client.socket.sendall(b"".join(get(f"/{n}") for n in range(200)) + post(b"body", "/last"))
            for n in range(200):
                assert client.wire.answer().body == f"ex1 /{n}".encode()
            assert client.wire.answer().body == b"ex1 /last"
        assert [request.target for request in ex1.requests] == [*(f"/{n}" for n in range(200)), "/last"]
        assert ex1.requests[-1].body == b"body"


def test_a_request_in_single_bytes(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            for byte in post(b"abc", "/x"):
                client.socket.send(bytes((byte,)))
            assert client.wire.answer().body == b"ex1 /x"
        assert ex1.requests[0].body == b"abc"


@pytest.mark.parametrize("method", ["RPC_IN_DATA", "RPC_OUT_DATA", "PROPFIND", "X-MS-ENUMATTS", "OPTIONS", "DELETE"])
def test_methods_pass(worker: LoneWorker, method: str) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/rpc/rpcproxy.dll?ex1:6001", method=method)).status == 200
        assert ex1.requests[0].method == method


def test_answers_without_body(worker: LoneWorker) -> None:
    def answers(asked: Asked) -> bytes:
        target = asked.request.target
        if asked.request.method == "HEAD":
            return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        return f"HTTP/1.1 {target[1:]} Whatever\r\n\r\n".encode()

    with Web("ex1", answers) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            head = client.ask(get("/", method="HEAD"), "HEAD")
            assert head.value("Content-Length") == "1000"
            assert client.ask(get("/204")).status == 204
            assert client.ask(get("/304")).status == 304
        assert len(ex1.connections) == 1


def test_connection_close_of_the_client(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            answer = client.ask(get("/", "Connection: close"))
            assert answer.value("Connection") == "close"
            assert client.is_closed()
        assert not ex1.requests[0].value("Connection")
        eventually(lambda: ex1.connections[0].ended == "eof", what="the server's connection ends")


def test_http_1_0(worker: LoneWorker) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    with Web("ex1", lambda asked: chunked) as ex1:
        worker.configure(web(ex1))
        with worker.connect("web") as client:
            client.sendall(b"GET /old HTTP/1.0\r\n\r\n")
            answer = receive_all(client)
            assert answer.endswith(b"\r\n\r\nabcde")
            assert b"ransfer-Encoding" not in answer
            assert b"Connection: close" in answer
        assert ex1.requests[0].first_line == "GET /old HTTP/1.1"
        assert ex1.requests[0].value("Host")


def test_http_1_0_keep_alive(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            for _ in range(2):
                answer = client.ask(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
                assert answer.value("Connection") == "keep-alive"
        assert len(ex1.connections) == 1


def test_a_server_of_http_1_0(worker: LoneWorker) -> None:
    def answers(asked: Asked) -> None:
        asked.wire.socket.sendall(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    with Web("ex1", answers) as ex1:
        worker.configure(web(ex1))
        with worker.connect("web") as client:
            client.sendall(get("/"))
            answer = receive_all(client)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\nuntil the end")
        assert b"Connection: close" in answer


def test_an_absolute_target_becomes_a_path(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("http://mail.example.com/x?y")).status == 200
        assert ex1.requests[0].target == "/x?y"


# ------------------------------------------------------------ bodies


def test_chunks_and_trailers_both_ways(worker: LoneWorker) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Good: 1\r\nSet-Cookie: a=b\r\n\r\n"
    )
    with Web("ex1", lambda asked: chunked) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            request = get("/", "Transfer-Encoding: chunked", method="POST")
            body = b"5;ext=1\r\nhello\r\n0\r\nX-Trailer: yes\r\nHost: evil\r\n\r\n"
            answer = client.ask(request + body)
            assert answer.body == b"abc"
            assert answer.value("trailer:X-Good") == "1"
            assert not answer.value("trailer:Set-Cookie")
            assert client.ask(get("/")).body == b"abc"
        assert ex1.requests[0].body == b"hello"
        assert ex1.requests[0].value("trailer:X-Trailer") == "yes"
        assert not ex1.requests[0].value("trailer:Host")


def test_large_bodies_both_ways_at_once(worker: LoneWorker) -> None:
    """The server answers while the request is still coming, and neither is held back by the other."""
    size = 40 * 1024 * 1024
    worker_socket = socket.socket
    assert worker_socket
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(get("/rpc/rpcproxy.dll", f"Content-Length: {size}", method="RPC_IN_DATA"))
        server = door.accept()
        wire = Wire(server)
        head = wire.head()
        assert head is not None
        assert head.value("Content-Length") == str(size)
        server.sendall(b"HTTP/1.1 200 Success\r\nContent-Length: %d\r\n\r\n" % size)
        threads = [
            threading.Thread(target=client.sendall, args=(b"u" * size,)),
            threading.Thread(target=server.sendall, args=(b"d" * size,)),
        ]
        received = {"up": 0}

        def count_up() -> None:
            received["up"] = len(wire.waiting)
            while received["up"] < size:
                received["up"] += len(server.recv(262144))

        threads.append(threading.Thread(target=count_up))
        for thread in threads:
            thread.start()
        answer = Wire(client)
        assert answer.head() is not None
        down = len(answer.waiting)
        while down < size:
            down += len(client.recv(262144))
        for thread in threads:
            thread.join(20)
        assert (received["up"], down) == (size, size)
        client.sendall(get("/next"))
        assert wire.head() is not None
        client.close()
        server.close()


def test_the_first_byte_waits_for_nothing(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/", "Content-Length: 10", method="POST") + b"1")
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                assert wire.exactly(1) == b"1"
                client.sendall(b"2")
                assert wire.exactly(1) == b"2"
                server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na")
                answer = Wire(client)
                assert answer.head() is not None
                assert answer.exactly(1) == b"a"
                client.sendall(b"34567890")
                assert wire.exactly(8) == b"34567890"
                server.sendall(b"bc")
                assert answer.exactly(2) == b"bc"
                client.sendall(get("/next"))
                head = wire.head()
                assert head is not None
                assert head.target == "/next"


def test_a_slow_reader_holds_the_server_back_and_not_our_memory(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(get("/"))
        server = door.accept()
        assert Wire(server).head() is not None
        size = 64 * 1024 * 1024
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        server.setblocking(False)
        sent = 0
        stalled = 0
        while stalled < 3:  # three heartbeats of the worker without a byte taken: everything is full
            try:
                sent += server.send(bytes(262144))
                stalled = 0
            except BlockingIOError:
                worker.after_beats(1)
                stalled += 1
        assert sent < size // 2
        server.setblocking(True)
        thread = threading.Thread(target=server.sendall, args=(bytes(size - sent),))
        thread.start()
        answer = Wire(client)
        assert answer.head() is not None
        got = len(answer.waiting)
        while got < size:
            got += len(client.recv(1 << 20))
        thread.join()
        client.close()
        server.close()


def test_expect_100_continue(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client, Client(worker):
            client.sendall(get("/", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
            with door.accept() as server:
                wire = Wire(server)
                head = wire.head()
                assert head is not None
                assert head.value("Expect") == "100-continue"
                server.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                answer = Wire(client)
                interim = answer.head()
                assert interim is not None
                assert interim.status == 100
                client.sendall(b"body")
                assert wire.exactly(4) == b"body"
                server.sendall(reply("done"))
                assert answer.answer().body == b"done"


def test_interim_answers_pass(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                server.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + reply("ok"))
                wire = Wire(client)
                statuses = [head.status for head in (wire.head(), wire.head()) if head]
                assert statuses == [103, 102]
                assert wire.answer().body == b"ok"


def test_an_early_refusal_reaches_a_client_that_is_still_sending(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/", "Content-Length: 100000000", method="POST"))
            server = door.accept()
            assert Wire(server).head() is not None
            server.sendall(reply("too large", "413 Content Too Large", "Connection: close"))
            server.close()
            thread = threading.Thread(target=_send_quietly, args=(client, bytes(100_000_000)))
            thread.start()
            answer = Wire(client).answer()
            assert answer.status == 413
            assert answer.body == b"too large"
            client.close()
            thread.join(20)


def test_a_server_that_answers_early_and_leaves(worker: LoneWorker) -> None:
    """The client has its answer; what it still sends is for nobody, and its connection ends."""
    with Door("ex1") as door:
        worker.configure(web(door))
        with Client(worker) as client:
            client.socket.sendall(get("/", "Content-Length: 100", method="POST") + b"abc")
            server = door.accept()
            wire = Wire(server)
            assert wire.head() is not None
            assert wire.exactly(3) == b"abc"
            server.sendall(reply("no"))
            assert client.wire.answer().body == b"no"
            server.close()
            client.socket.sendall(b"d" * 97)
            assert client.is_closed()
        worker.eventually_counts(0, Count.SESSIONS, "web")


def test_the_end_of_an_answer_waits_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailbalancer.worker.http_lifetime.LINGER_S", 0.2)
    size = 16 * 1024 * 1024
    with LoneWorker() as worker, Web("ex1", lambda asked: reply(bytes(size))) as ex1:
        worker.configure(web(ex1))
        with worker.connect("web") as client:
            client.sendall(get("/", "Connection: close"))
            eventually(lambda: worker.count(Count.BYTES_OUT, "web", "ex1") > 0, what="the answer begins")
            worker.after_beats(20)
            wire = Wire(client)
            head = wire.head()
            assert head is not None
            left = size - len(wire.waiting)
            while worker.count(Count.BYTES_OUT, "web", "ex1") < size:  # just until the worker has all of it
                left -= len(client.recv(16384))
            worker.after_beats(20)  # the rest is here, or waits in the worker, which has let its server go
            assert len(receive(client, left)) == left


def _send_quietly(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        return


def test_an_early_answer_leaves_the_connection_usable_when_the_body_comes(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with Client(worker) as client:
            client.socket.sendall(get("/", "Content-Length: 6", method="POST") + b"abc")
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                server.sendall(reply("early", "401 Unauthorized", "WWW-Authenticate: Basic"))
                assert client.wire.answer().status == 401
                client.socket.sendall(b"def" + get("/next"))
                assert wire.exactly(6) == b"abcdef"
                head = wire.head()
                assert head is not None
                assert head.target == "/next"


# ------------------------------------------------------------ upgrades


def test_websocket(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(get("/chat", "Connection: Upgrade", "Upgrade: websocket") + b"early")
        server = door.accept()
        wire = Wire(server)
        head = wire.head()
        assert head is not None
        assert (head.value("Upgrade"), head.value("Connection")) == ("websocket", "upgrade")
        worker.after_beats(3)
        assert not wire.waiting  # nothing goes on as upgraded before the server has agreed
        server.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        answer = Wire(client)
        switched = answer.head()
        assert switched is not None
        assert (switched.status, switched.value("Upgrade")) == (101, "websocket")
        assert answer.exactly(5) == b"hello"
        assert wire.exactly(5) == b"early"
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert wire.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"
        client.shutdown(socket.SHUT_WR)
        assert not wire.more()
        server.sendall(b"still here")
        assert answer.exactly(10) == b"still here"
        server.close()
        assert not answer.more()
        client.close()
        worker.eventually_counts(0, Count.SESSIONS, "web")


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_tunnel_is_over_when_both_sides_have_ended(worker: LoneWorker, first: str) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/chat", "Connection: Upgrade", "Upgrade: websocket"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                server.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                assert Wire(client).head() is not None
                one, other = (client, server) if first == "client" else (server, client)
                one.shutdown(socket.SHUT_WR)
                assert not other.recv(1)
                other.sendall(b"last words")
                assert Wire(one).exactly(10) == b"last words"
                other.shutdown(socket.SHUT_WR)
                worker.eventually_counts(0, Count.SESSIONS, "web")


def test_a_refused_upgrade_is_an_answer_like_any_other(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/", "Connection: Upgrade", "Upgrade: websocket")).status == 200
            assert client.ask(get("/")).status == 200
        assert len(ex1.connections) == 1


def test_an_upgrade_nobody_asked_for(worker: LoneWorker) -> None:
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with Web("ex1", lambda asked: switch) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/")).status == 502
            assert client.is_closed()


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (get("/" + "a" * 20000), 414),
        (get("/", *(f"X-{n}: {'a' * 1000}" for n in range(120))), 431),
        (get("/", "Expect: something"), 417),
        (get("/", "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (b"\x16\x03\x01\x00\x05hello", 400),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\n", 400),
    ],
    ids=range(8),
)
def test_refused(worker: LoneWorker, data: bytes, status: int) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            client.socket.sendall(data)
            answer = client.wire.answer()
            assert answer.status == status
            assert answer.value("Connection") == "close"
            assert client.is_closed()
        assert not ex1.connections


def test_a_head_of_64_kilobytes_passes(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            ticket = "Negotiate " + "A" * 65000
            assert client.ask(get("/", f"Authorization: {ticket}")).status == 200
        assert ex1.requests[0].value("Authorization") == ticket


def test_a_body_that_goes_wrong_on_its_way(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with Client(worker) as client:
            client.socket.sendall(get("/", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                assert wire.exactly(8) == b"3\r\nabc\r\n"
                client.socket.sendall(b"nonsense\r\n")
                assert client.wire.answer().status == 400
                assert not wire.more()  # closed, and no final chunk came


# ------------------------------------------------------------ servers that fail


def test_a_failed_connect_goes_to_the_next_server(worker: LoneWorker) -> None:
    with Web("ex2") as ex2, Door("ex1") as door:
        dead = ("ex1", "127.0.0.1", door.port)
        door.close()
        worker.configure(web(dead, ex2))
        for _ in range(6):
            with Client(worker) as client:
                assert client.ask(post(b"x")).body == b"ex2 /"
        assert worker.count(Count.CONNECT_FAILED, "web", "ex1") > 0
        assert worker.count(Count.RETRIED, "web", "ex1") == worker.count(Count.CONNECT_FAILED, "web", "ex1")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")


def test_no_server_is_left(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        page = Answer(503, b"<h1>Back soon</h1>", "text/html; charset=utf-8")
        worker.configure(web(ex1, http=Http(sorry=page)))
        worker.make_available(worker.slot("web", "ex1"), Availability.CLOSED)
        with Client(worker) as client:
            answer = client.ask(get("/"))
            assert answer.status == 503
            assert answer.body == b"<h1>Back soon</h1>"
            assert answer.value("Content-Type").startswith("text/html")
            assert client.is_closed()
        assert not ex1.connections


def test_a_server_that_dies_before_it_answers(worker: LoneWorker) -> None:
    with Web("ex1", lambda asked: None) as ex1, Web("ex2", lambda asked: None) as ex2:
        worker.configure(web(ex1, ex2))
        with Client(worker) as client:
            assert client.ask(get("/")).status == 502
            assert client.is_closed()
        assert len(ex1.requests) + len(ex2.requests) == 1


def test_a_request_is_never_sent_twice_even_on_a_reused_connection(worker: LoneWorker) -> None:
    def answers(asked: Asked) -> bytes | None:
        if asked.served:
            reset(asked.wire.socket)
            return None
        return reply("first")

    with Web("ex1", answers) as ex1, Web("ex2", answers) as ex2:
        worker.configure(web(ex1, ex2))
        with Client(worker) as client:
            assert client.ask(get("/1")).status == 200
            assert client.ask(get("/2")).status == 502
        assert sorted(r.target for r in (*ex1.requests, *ex2.requests)) == ["/1", "/2"]


def test_a_server_that_closes_an_idle_connection_costs_no_request(worker: LoneWorker) -> None:
    with Web("ex1", lambda asked: reply(str(asked.request.connection))) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/")).body == b"0"
            ex1.connections[0].socket.shutdown(socket.SHUT_RDWR)
            worker.after_beats(2)
            assert client.ask(get("/")).body == b"1"


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
def test_an_answer_that_was_cut_never_looks_complete(worker: LoneWorker, framing: str) -> None:
    def answers(asked: Asked) -> None:
        asked.wire.socket.sendall(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n3\r\nabc".encode())

    with Web("ex1", answers) as ex1:
        worker.configure(web(ex1))
        with worker.connect("web") as client:
            client.sendall(get("/"))
            with pytest.raises(ConnectionResetError):
                receive_all(client)
            assert ex1.requests


def test_what_a_server_says_beyond_its_answer_reaches_nobody(worker: LoneWorker) -> None:
    def answers(asked: Asked) -> bytes:
        return reply("mine") + reply("smuggled")

    with Web("ex1", answers) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            for _ in range(3):
                assert client.ask(get("/")).body == b"mine"
                worker.after_beats(1)
        assert len(ex1.connections) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/2 200\r\n\r\n",
    ],
)
def test_an_answer_that_is_none(worker: LoneWorker, answer: bytes) -> None:
    with Web("ex1", lambda asked: answer) as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/")).status == 502
            assert client.is_closed()
        assert ex1.requests


def test_a_server_that_does_not_answer_in_time(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door, idle_timeout_s=0.3))
        with Client(worker) as client:
            client.socket.sendall(get("/"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                assert client.wire.answer().status == 504
                assert server.recv(1) == b""


# ------------------------------------------------------------ clients that leave, and those that are slow


def test_a_client_that_leaves_in_the_middle_of_a_request(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(get("/", "Content-Length: 10", method="POST") + b"abc")
        with door.accept() as server:
            wire = Wire(server)
            assert wire.head() is not None
            client.close()
            assert wire.exactly(3) == b"abc"
            assert not wire.more()
        worker.eventually_counts(0, Count.SESSIONS, "web")


def test_a_client_that_resets_while_it_waits(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(get("/"))
        with door.accept() as server:
            wire = Wire(server)
            assert wire.head() is not None
            reset(client)
            assert not wire.more()


def test_a_half_closed_client_gets_its_answer(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/"))
            client.shutdown(socket.SHUT_WR)
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                worker.after_beats(2)
                server.sendall(reply("for you"))
                assert receive_all(client).endswith(b"for you")


def test_a_head_that_does_not_come(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1, http=Http(limits=HttpLimits(head_timeout_s=0.3))))
        with Client(worker) as client:
            client.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
            assert client.wire.answer().status == 408
            assert client.is_closed()
        with Client(worker) as client:
            assert client.is_closed()  # a silent one is closed without a word
        assert not ex1.connections


def test_connections_of_one_source(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1, http=Http(limits=HttpLimits(connections_per_source=2))))
        with Client(worker) as one, Client(worker) as two:
            assert one.ask(get("/")).status == 200
            assert two.ask(get("/")).status == 200
            assert worker.refuses("web")
        worker.eventually_counts(0, Count.SESSIONS, "web")
        with Client(worker) as three:
            assert three.ask(get("/")).status == 200


def test_requests_of_one_source(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1, http=Http(limits=HttpLimits(requests_per_source_s=5))))
        with Client(worker) as client:
            statuses = []
            for _ in range(20):
                statuses.append(client.ask(get("/")).status)
                if statuses[-1] == 429:
                    break
            assert statuses[-1] == 429
            assert len(statuses) >= 11


# ------------------------------------------------------------ routes


def route(
    name: str, *servers: Place, hosts: tuple[str, ...] = (), paths: tuple[str, ...] = (), **http: object
) -> Route:
    pool = Pool("web", name, tuple(member(server) for server in servers))
    return Route(name, hosts, pool, paths, HttpRoute(**http))  # type: ignore[arg-type]


def test_routes_by_host_and_path(worker: LoneWorker) -> None:
    with Web("main") as main, Web("owa") as owa, Web("auto") as auto:
        routes = (
            route("owa", owa, paths=("/owa", "/ecp")),
            route("auto", auto, hosts=("autodiscover.example.com",)),
        )
        worker.configure(web(main, routes=routes))
        with Client(worker) as client:
            assert client.ask(get("/OWA/x")).body == b"owa /OWA/x"
            assert client.ask(get("/owaxyz")).body == b"main /owaxyz"
            assert client.ask(get("/owa?x")).body == b"owa /owa?x"
            assert client.ask(get("/owa", host="Autodiscover.example.com:443")).body == b"auto /owa"
            assert client.ask(get("/owa/../ews")).status == 400


def test_actions(worker: LoneWorker) -> None:
    with Web("main") as main:
        routes = (
            route("root", paths=("/old",), redirect=Redirect("/owa/", 301)),
            route("secure", hosts=("plain.example.com",), redirect=Redirect("https://{host}{path}")),
            route("closed", paths=("/closed",), respond=Answer(503, b"closed today")),
            route("denied", main, paths=("/ecp",), deny=(_network("127.0.0.0/8"),)),
        )
        worker.configure(web(main, routes=routes))
        with Client(worker) as client:
            answer = client.ask(get("/old/x"))
            assert (answer.status, answer.value("Location")) == (301, "/owa/")
            answer = client.ask(get("/a?b=c", host="plain.example.com:80"))
            assert (answer.status, answer.value("Location")) == (302, "https://plain.example.com/a?b=c")
            answer = client.ask(get("/closed", method="HEAD"), "HEAD")
            assert (answer.status, answer.value("Content-Length")) == (503, "12")
            assert client.ask(get("/closed")).body == b"closed today"
            assert client.ask(get("/")).status == 200
            assert client.ask(get("/ecp/")).status == 403
            assert client.is_closed()


def _network(text: str) -> object:
    import ipaddress

    return ipaddress.ip_network(text)


def test_headers_are_set_and_removed(worker: LoneWorker) -> None:
    def answers(asked: Asked) -> bytes:
        return reply("x", "200 OK", "Server: IIS", "X-Powered-By: ASP", "X-Kept: 1")

    edits = Http(
        request_headers=HeaderEdits((("X-Set", "new"),), ("X-Gone",)),
        response_headers=HeaderEdits((("Server", "mail"),), ("X-Powered-By",)),
    )
    with Web("ex1", answers) as ex1:
        worker.configure(web(ex1, http=edits))
        with Client(worker) as client:
            answer = client.ask(get("/", "x-set: old", "X-SET: older", "x-gone: 1"))
        assert answer.values("Server") == ["mail"]
        assert not answer.value("X-Powered-By")
        assert answer.value("X-Kept") == "1"
        assert ex1.requests[0].values("X-Set") == ["new"]
        assert not ex1.requests[0].values("X-Gone")


def test_one_client_keeps_its_server_over_routes(worker: LoneWorker) -> None:
    with Web("ex1") as ex1, Web("ex2") as ex2, Web("ex3") as ex3:
        routes = (route("owa", ex1, ex2, ex3, paths=("/owa",)), route("ews", ex1, ex2, ex3, paths=("/ews",)))
        worker.configure(web(ex1, ex2, ex3, routes=routes))
        for _ in range(5):
            with Client(worker) as client:
                names = {client.ask(get(path)).body.split()[0] for path in ("/owa", "/ews", "/", "/ews", "/owa")}
                assert len(names) == 1
        assert len(ex1.connections) + len(ex2.connections) + len(ex3.connections) == 5


# ------------------------------------------------------------ draining


def test_draining_finishes_the_answer_and_then_closes(worker: LoneWorker) -> None:
    with Door("ex1") as door, Web("ex2") as ex2:
        worker.configure(web(door, ex2))
        worker.make_available(worker.slot("web", "ex2"), Availability.CLOSED)
        with Client(worker) as client:
            client.socket.sendall(get("/"))
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                worker.make_available(worker.slot("web", "ex1"), Availability.RETURNING)
                worker.make_available(worker.slot("web", "ex2"), Availability.READY)
                server.sendall(reply("last"))
                answer = client.wire.answer()
                assert answer.value("Connection") == "close"
                assert client.is_closed()
        with Client(worker) as client:
            assert client.ask(get("/")).body == b"ex2 /"


def test_a_stopping_worker_lets_idle_connections_go(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with Client(worker) as client:
            assert client.ask(get("/")).status == 200
            worker.stop(sessions_may_last_s=20)
            assert client.is_closed()
            eventually(worker.ended, 5, "the worker ends")


def test_a_slow_reader_may_ask_again_on_the_same_connection(worker: LoneWorker) -> None:
    """The end of an answer waits in the worker, so nothing was read from the server just then."""
    body = bytes(60_000)  # in one piece into the worker, but not out of it: small segments make small buffers
    with Web("ex1", lambda asked: reply(body)) as ex1, socket.socket() as client:
        worker.configure(web(ex1))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(TIMEOUT_S)
        client.connect(worker.address("web"))
        wire = Wire(client)
        for _ in range(3):
            before = worker.count(Count.BYTES_OUT, "web", "ex1")
            client.sendall(get("/"))
            eventually(lambda before=before: worker.count(Count.BYTES_OUT, "web", "ex1") - before > len(body))
            assert wire.answer().body == body
