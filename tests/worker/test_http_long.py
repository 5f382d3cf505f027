"""What lasts: requests that wait for news, channels that belong together, slow bodies, the queue, reloads, the log."""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.ipc.messages import DropSessions
from mailbalancer.model import Http, HttpLimits, HttpRoute, Member, Mode, Pool, Queue, Redirect, Route, Service
from tests.support.lone_worker import Door, LoneWorker, Place, member, receive_all, reset, service
from tests.support.waiting import eventually
from tests.support.web import Message, Web, Wire, reply

COOKIE = bytes(range(16))
CONN = struct.pack("<BBBB4sHHIHH", 5, 0, 20, 3, b"\x10\0\0\0", 76, 0, 0, 0, 4) + struct.pack("<III", 6, 1, 3) + COOKIE


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def web(*servers: Place | Member, http: Http | None = None, **options: object) -> Service:
    return service("web", *servers, mode=Mode.HTTP, http=http or Http(), **options)  # type: ignore[arg-type]


def request(target: str, *fields: str, method: str = "POST", body: bytes = b"") -> bytes:
    lines = "".join(f"{line}\r\n" for line in fields)
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    return f"{method} {target} HTTP/1.1\r\nHost: m\r\n{lines}{length}\r\n".encode() + body


PING = base64.b64encode(bytes((141, 18, 4, 9, 3)) + b"dev" + bytes((0, 1)) + b"t").decode()
EWS = b"<soap:Envelope><soap:Body><m:GetStreamingEvents/></soap:Body></soap:Envelope>"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (request("/Microsoft-Server-ActiveSync?Cmd=Ping&DeviceId=d"), "activesync"),
        (request("/Microsoft-Server-ActiveSync?User=u&Cmd=Sync"), "activesync"),
        (request(f"/microsoft-server-activesync?{PING}"), "activesync"),
        (request("/EWS/Exchange.asmx", body=EWS), "ews"),
        (request("/mapi/emsmdb/?MailboxId=m", "X-RequestType: NotificationWait"), "mapi"),
        (request("/rpc/rpcproxy.dll?a:6001", "Content-Length: 76", method="RPC_OUT_DATA", body=bytes(76)), "rpc"),
        (request("/Microsoft-Server-ActiveSync?Cmd=FolderSync"), ""),
        (request("/EWS/Exchange.asmx", body=b"<GetFolder/>"), ""),
        (request("/mapi/emsmdb/", "X-RequestType: Execute"), ""),
        (request("/rpc/rpcproxy.dll", "Content-Length: 0", method="RPC_IN_DATA"), ""),
        (request("/owa/", method="GET"), ""),
    ],
    ids=range(11),
)
def test_long_polls_are_recognised(worker: LoneWorker, data: bytes, what: str) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(data)
            with door.accept() as server:
                assert Wire(server).head() is not None
                (session,) = worker.list_sessions().sessions
                assert session["long_poll"] == what
                assert worker.count(Count.LONG_POLLS, "web") == (1 if what else 0)
                assert worker.count(Count.LONG_POLLS, "web", "ex1") == (1 if what else 0)
                ends_at = worker.board.latest(worker.slot("web", "ex1"), Count.POLLS_END_AT)
                assert bool(what) == (0 < ends_at - time.monotonic() <= 660.0)
                server.sendall(reply("news"))
                assert Wire(client).answer().body == b"news"
        worker.eventually_counts(0, Count.LONG_POLLS, "web")
        worker.eventually_counts(0, Count.LONG_POLLS, "web", "ex1")


def test_a_body_in_pieces_tells_what_it_is(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(
                f"POST /ews/exchange.asmx HTTP/1.1\r\nHost: m\r\nContent-Length: {len(EWS)}\r\n\r\n".encode()
            )
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                assert worker.count(Count.LONG_POLLS, "web") == 0
                client.sendall(EWS)
                assert wire.exactly(len(EWS)) == EWS
                assert worker.count(Count.LONG_POLLS, "web") == 1
                assert worker.count(Count.LONG_POLLS, "web", "ex1") == 1
        worker.eventually_counts(0, Count.LONG_POLLS, "web", "ex1")


def channel(worker: LoneWorker, door: Door, method: str, length: int) -> tuple[socket.socket, socket.socket]:
    client = worker.connect("web")
    client.sendall(
        f"{method} /rpc/rpcproxy.dll HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n".encode() + CONN
    )
    server = door.accept()
    wire = Wire(server)
    assert wire.head() is not None
    assert wire.exactly(len(CONN)) == CONN
    return client, server


@pytest.mark.parametrize("broken", ["RPC_IN_DATA", "RPC_OUT_DATA"])
def test_the_channels_of_one_session_end_together(worker: LoneWorker, broken: str) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        incoming, server_in = channel(worker, door, "RPC_IN_DATA", 1 << 30)
        outgoing, server_out = channel(worker, door, "RPC_OUT_DATA", len(CONN))
        server_out.sendall(b"HTTP/1.1 200 Success\r\nContent-Length: 1073741824\r\n\r\nhello")
        wire = Wire(outgoing)
        assert wire.head() is not None
        assert wire.exactly(5) == b"hello"
        incoming.sendall(b"more")
        assert server_in.recv(4) == b"more"
        reset(incoming if broken == "RPC_IN_DATA" else outgoing)
        other = outgoing if broken == "RPC_IN_DATA" else incoming
        with pytest.raises(ConnectionResetError):
            receive_all(other)
        for server in (server_in, server_out):
            server.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert server.recv(1) == b""
            server.close()
        other.close()
        worker.eventually_counts(0, Count.SESSIONS, "web")
        worker.eventually_counts(0, Count.LONG_POLLS, "web")


def test_a_replaced_out_channel_leaves_its_session_alone(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        incoming, server_in = channel(worker, door, "RPC_IN_DATA", 1 << 30)
        outgoing, server_out = channel(worker, door, "RPC_OUT_DATA", len(CONN))
        server_out.sendall(reply("the end of this channel"))
        assert Wire(outgoing).answer().status == 200
        outgoing.close()
        incoming.sendall(b"more")
        assert server_in.recv(4) == b"more"
        for sock in (incoming, server_in, server_out):
            sock.close()


# ------------------------------------------------------------ slow bodies, limits, queue


def test_a_body_that_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailbalancer.worker.http_deadlines.RATE_WINDOW_S", 0.4)
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(web(door, http=Http(limits=HttpLimits(body_bytes_per_s=1000))))
        with worker.connect("web") as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: 1000000\r\n\r\nabc")
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                assert Wire(client).answer().status == 408
                assert wire.exactly(3) == b"abc"
                assert not wire.more()
        with worker.connect("web") as client:
            client.sendall(b"RPC_IN_DATA / HTTP/1.1\r\nHost: m\r\nContent-Length: 1000000\r\n\r\nabc")
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                worker.after_beats(20)
                client.sendall(b"def")
                assert wire.exactly(6) == b"abcdef"


def test_requests_wait_in_the_queue(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        only = member(door, max_sessions=1)
        worker.configure(web(only, queue=Queue(5, 10.0)))
        first = worker.connect("web")
        first.sendall(request("/1", method="GET"))
        server = door.accept()
        assert Wire(server).head() is not None
        with worker.connect("web") as second:
            second.sendall(request("/2", method="GET"))
            eventually(lambda: worker.count(Count.QUEUED, "web") == 1, what="the second waits")
            reset(first)
            with door.accept() as other:
                head = Wire(other).head()
                assert head is not None
                assert head.target == "/2"
                other.sendall(reply("at last"))
                assert Wire(second).answer().body == b"at last"
        server.close()
        worker.eventually_counts(0, Count.QUEUED, "web")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")


def test_the_queue_has_an_end(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        only = member(door, max_sessions=1)
        worker.configure(web(only, queue=Queue(1, 0.3)))
        with worker.connect("web") as first, worker.connect("web") as second, worker.connect("web") as third:
            first.sendall(request("/1", method="GET"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                second.sendall(request("/2", method="GET"))
                eventually(lambda: worker.count(Count.QUEUED, "web") == 1, what="the second waits")
                third.sendall(request("/3", method="GET"))
                assert Wire(third).answer().status == 503
                assert Wire(second).answer().status == 503
                server.sendall(reply("1"))
                assert Wire(first).answer().body == b"1"


def test_sessions_are_dropped_when_their_drain_is_over(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(request("/Microsoft-Server-ActiveSync?Cmd=Ping"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                worker.make_available(worker.slot("web", "ex1"), Availability.CLOSED)
                worker.send(DropSessions(worker.slot("web", "ex1"), "drained"))
                with pytest.raises(ConnectionResetError):
                    receive_all(client)
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")


# ------------------------------------------------------------ reloads


def test_connections_survive_reloads(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        clients = [worker.connect("web") for _ in range(50)]
        wires = [Wire(client) for client in clients]
        for round_ in range(20):
            worker.configure(web(ex1, idle_timeout_s=600.0 + round_))
            for client, wire in zip(clients, wires, strict=True):
                client.sendall(request(f"/{round_}", method="GET"))
                assert wire.answer().body == f"ex1 /{round_}".encode()
        assert len(ex1.connections) == 50
        for client in clients:
            client.close()


def test_a_service_that_is_gone_lets_its_connections_end(worker: LoneWorker) -> None:
    with Door("ex1") as door, Web("ex2") as ex2:
        other = service("other", ex2, mode=Mode.HTTP, http=Http())
        worker.configure(web(door), other)
        with worker.connect("web") as idle, worker.connect("web") as busy:
            idle.sendall(b"")
            busy.sendall(request("/", method="GET"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                worker.configure(other)
                assert receive_all(idle) == b""
                server.sendall(reply("last"))
                answer = Wire(busy).answer()
                assert answer.body == b"last"
                assert answer.value("Connection") == "close"


# ------------------------------------------------------------ the access log


def test_the_access_log(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1))
        with worker.connect("web") as client:
            agent = 'User-Agent: evil"\\x \u00e9'.encode("latin-1")
            head = b"POST /a?secret=1 HTTP/1.1\r\nHost: m\r\nclient-request-id: {1}\r\nContent-Length: 3\r\n"
            client.sendall(head + agent + b"\r\n\r\nabc")
            assert Wire(client).answer().status == 200
        (line,) = eventually(
            lambda: [line for line in worker.log_lines() if line["message"] == "request"], what="a line in the log"
        )
    assert line["client"].startswith("127.0.0.1:")
    expected = {
        "service": "web", "route": None, "method": "POST", "host": "m", "path": "/a", "status": 200, "server": "ex1",
        "why": "least_connections", "request_id": "{1}", "agent": 'evil"\\x \u00e9',
    }  # fmt: skip
    assert {name: line[name] for name in expected} == expected
    assert line["in"] > 3
    assert line["out"] > 0
    assert all(line[name] >= 0 for name in ("queue_s", "connect_s", "first_byte_s", "total_s"))
    assert "secret" not in str(line)


def test_what_we_answer_ourselves_is_told_of_no_server(worker: LoneWorker) -> None:
    """On a connection that has a server from a request before."""
    rules = Route("go", (), Pool("web", "go", ()), ("/go",), HttpRoute(redirect=Redirect("/", 302)))
    with Web("ex1") as ex1:
        worker.configure(web(ex1, routes=(rules,)))
        with worker.connect("web") as client:
            wire = Wire(client)
            for target, status in (("/a", 200), ("/go", 302), ("/b", 200)):
                client.sendall(request(target, method="GET"))
                assert wire.answer().status == status
            client.sendall(b"GET /c HTTP/1.1\r\nHost: m\r\nContent-Length: +1\r\n\r\n")
            assert wire.answer().status == 400
        lines = eventually(
            lambda: [line for line in worker.log_lines() if line["message"] == "request"][3:], what="four lines"
        )
        lines = [line for line in worker.log_lines() if line["message"] == "request"]
    told = [(line["status"], line["path"], line["server"], line["route"]) for line in lines]
    assert told == [
        (200, "/a", "ex1", None),
        (302, "/go", None, "go"),
        (200, "/b", "ex1", None),
        (400, None, None, None),
    ]
    assert not {"queue_s", "connect_s", "first_byte_s"} & lines[3].keys()
    assert lines[3]["in"] == len(b"GET /c HTTP/1.1\r\nHost: m\r\nContent-Length: +1\r\n\r\n")


def test_no_access_log(worker: LoneWorker) -> None:
    with Web("ex1") as ex1:
        worker.configure(web(ex1, http=Http(access_log=False)))
        with worker.connect("web") as client:
            client.sendall(request("/", method="GET"))
            assert Wire(client).answer().status == 200
            client.sendall(b"nonsense\r\n\r\n")
            receive_all(client)
        assert not [line for line in worker.log_lines() if line["message"] == "request"]


def test_memory_stays_flat_while_a_gigabyte_goes_through(worker: LoneWorker) -> None:
    """Scaled down to what a test may take: what is held does not grow with what has passed."""
    size = 200 * 1024 * 1024
    with Door("ex1") as door:
        worker.configure(web(door))
        client = worker.connect("web")
        client.sendall(f"RPC_IN_DATA / HTTP/1.1\r\nHost: m\r\nContent-Length: {size}\r\n\r\n".encode())
        server = door.accept()
        assert Wire(server).head() is not None
        before = resident(worker)
        thread = threading.Thread(target=client.sendall, args=(bytes(size),))
        thread.start()
        got = 0
        while got < size:
            got += len(server.recv(1 << 20))
        thread.join()
        assert resident(worker) - before < 8 * 1024
        server.sendall(reply("done"))
        answer: Message = Wire(client).answer()
        assert answer.body == b"done"
        client.close()
        server.close()


def resident(worker: LoneWorker) -> int:
    """KiB of memory that the worker holds (proc(5) `status`)."""
    with open(f"/proc/{worker.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
