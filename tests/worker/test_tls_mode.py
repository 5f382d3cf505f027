"""Services in `tls` mode: routed by what the ClientHello says, bound by what the ServerHello says, bytes untouched."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.ipc.messages import Bound
from mailbalancer.model import Mode, Persist, ProxyProtocol, Schedule
from mailbalancer.wire import proxy_header
from tests.support.certs import Authority
from tests.support.lone_worker import Door, LoneWorker, receive, receive_all, reset, route, service
from tests.support.servers import Connection, Recorder, Server

ALERT = bytes.fromhex("15030300020270")  # fatal, unrecognized_name
SESSION_ID = {"persist": Persist(by="tls_session_id", group="tls", timeout_s=600), "schedule": Schedule.ROUND_ROBIN}


class TlsNamed(Server):
    """Ends TLS, says its name and whether the session was resumed, and closes. Without tickets, as Exchange 2010."""

    def __init__(self, name: str, context: ssl.SSLContext) -> None:
        super().__init__(name)
        self.context = context

    def serve(self, connection: Connection) -> None:
        connection.socket.settimeout(20)
        with self.context.wrap_socket(connection.socket, server_side=True) as tls:
            tls.sendall(f"{self.name} {tls.session_reused}".encode())
            tls.recv(1)
            tls.unwrap()  # OpenSSL forgets a session that did not end in order


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certs"))


def server_context(authority: Authority) -> ssl.SSLContext:
    context = authority.issue("mail.example.com", "127.0.0.1").server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    return context


def talk(worker: LoneWorker, context: ssl.SSLContext, session: Any = None) -> tuple[str, Any]:
    """One TLS connection through the service: the server's words, and the session for the next time."""
    plain = worker.connect("web")
    with context.wrap_socket(plain, server_hostname="mail.example.com", session=session) as tls:
        answer = tls.recv(100).decode()
        tls.sendall(b".")
        known = tls.session
        tls.unwrap()
        return answer, known


def hello(sni: str = "") -> bytes:
    """A real ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = False
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(inward, outward, server_hostname=sni or None).do_handshake()
    return outward.read()


@contextlib.contextmanager
def routed(unknown_sni: str = "default", **options: Any) -> Iterator[tuple[LoneWorker, dict[str, Recorder]]]:
    """A service with three pools: its own, `mail` for two names, `any` for a wildcard."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(Recorder(name)) for name in ("own", "mail", "any")}
        worker = stack.enter_context(LoneWorker())
        routes = (
            route("web", "mail", ("mail.example.com", "owa.example.com"), servers["mail"]),
            route("web", "any", ("*.example.com",), servers["any"]),
        )
        own = servers["own"]
        worker.configure(service("web", own, mode=Mode.TLS, routes=routes, unknown_sni=unknown_sni, **options))
        yield worker, servers


@pytest.mark.parametrize("step", [1, 50, 10_000])
@pytest.mark.parametrize(
    ("sni", "pool"),
    [
        ("mail.example.com", "mail"),
        ("OWA.Example.Com", "mail"),
        ("imap.example.com", "any"),
        ("a.b.example.com", "own"),
        ("example.com", "own"),
        ("", "own"),
    ],
)
def test_the_server_name_decides_the_pool_and_the_bytes_arrive_untouched(sni: str, pool: str, step: int) -> None:
    with routed() as (worker, servers):
        data = hello(sni) + b"and what follows"
        with worker.connect("web") as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(data), step):
                client.sendall(data[start : start + step])
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        assert bytes(servers[pool].connections[0].received) == data
        line = worker.session_lines()[0]
        assert (line["server"], line.get("sni", ""), line["in"]) == (pool, sni.lower(), len(data))


@pytest.mark.parametrize("sni", ["other.org", ""])
def test_an_unknown_name_is_refused_with_the_alert_it_deserves(sni: str) -> None:
    with routed(unknown_sni="refuse") as (worker, servers):
        with worker.connect("web") as client:
            client.sendall(hello(sni))
            assert receive_all(client) == ALERT
        assert worker.session_lines()[0]["end"] == "unknown_sni"
        assert not any(server.connections for server in servers.values())


def test_a_client_that_is_gone_before_its_alert_harms_nobody() -> None:
    with routed(unknown_sni="refuse") as (worker, _):
        for _ in range(50):
            client = worker.connect("web")
            client.sendall(hello("other.org"))
            reset(client)
        worker.session_lines(50)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x00", b"\x80\x2e\x01\x00\x02" * 9, b"\0" * 9]
)
def test_what_is_no_client_hello_is_reset(garbage: bytes) -> None:
    with routed() as (worker, servers):
        with worker.connect("web") as client:
            client.sendall(garbage)
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        line = worker.session_lines()[0]
        assert line["end"] == "bad_client_hello"
        assert line["failure"]
        assert not any(server.connections for server in servers.values())


def test_a_client_that_ends_in_its_hello_reaches_no_server() -> None:
    with routed() as (worker, servers):
        with worker.connect("web") as client:
            client.sendall(hello("mail.example.com")[:40])
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        assert worker.session_lines()[0]["end"] == "client_closed"
        assert not any(server.connections for server in servers.values())


def test_a_hostile_name_cannot_break_the_log() -> None:
    with routed() as (worker, _):
        name = b"mail.example.com"
        for evil in (b'a"b\n{"x":1}\r\n.', b"\xff\xfe\x00\x1b[2Jxx.com", b"a b=c end=ok....", b"................"):
            with worker.connect("web") as client:
                client.sendall(hello(name.decode()).replace(name, evil[:16].ljust(16, b"x")))
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                    receive_all(client)
        worker.session_lines(4)  # each one line, each one JSON object


def test_a_proxy_header_comes_before_the_hello() -> None:
    trusted = ProxyProtocol(accept_from=(ipaddress.ip_network("127.0.0.0/8"),))
    with routed(proxy_protocol=trusted) as (worker, servers):
        header = b"PROXY TCP4 198.51.100.7 203.0.113.25 4711 443\r\n"
        data = hello("mail.example.com")
        for step in (1, 10_000):
            with worker.connect("web") as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(header + data), step):
                    client.sendall((header + data)[start : start + step])
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b""
        assert [bytes(c.received) for c in servers["mail"].connections] == [data, data]
        assert {line["client"] for line in worker.session_lines(2)} == {"198.51.100.7:4711"}


def test_the_hello_follows_the_header_that_is_sent() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("web", door, mode=Mode.TLS, proxy_protocol=ProxyProtocol(send="v2")))
        with worker.connect("web") as client:
            data = hello("mail.example.com")
            client.sendall(data)
            with door.accept() as server:
                got = receive(server, 28 + len(data))
                header = proxy_header.parse(got)
                assert header is not None
                assert header.source is not None
                assert header.source.port == client.getsockname()[1]
                assert got[header.length :] == data


def test_a_resumed_session_goes_back_to_the_server_that_knows_it(authority: Authority) -> None:
    context = authority.client_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    servers = [TlsNamed(name, server_context(authority)) for name in ("ex1", "ex2", "ex3")]
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        worker = stack.enter_context(LoneWorker())
        worker.configure(service("web", *servers, mode=Mode.TLS, pool=SESSION_ID))
        homes = set()
        for _ in range(3):
            answer, session = talk(worker, context)
            home = answer.split()[0]
            homes.add(home)
            for _ in range(4):
                assert talk(worker, context, session)[0] == f"{home} True"
        assert homes == {"ex1", "ex2", "ex3"}
        assert {bound.group for bound in worker.said(Bound)} == {"tls"}
        worker.eventually_counts(0, Count.SESSIONS, "web")


def test_without_resumption_nothing_is_bound_and_nothing_breaks(authority: Authority) -> None:
    server = TlsNamed("ex1", authority.issue("mail.example.com").server_context())
    with server, LoneWorker() as worker:
        worker.configure(service("web", server, mode=Mode.TLS, pool=SESSION_ID))
        for _ in range(3):
            assert talk(worker, authority.client_context())[0] == "ex1 False"
        assert not worker.said(Bound)


@pytest.mark.parametrize(
    "answer", [b"", b"\x16", b"\x16\x03\x03\x00\x40\x02\x00", b"HTTP/1.1 400 no\r\n", b"x" * 200_000]
)
def test_whatever_the_server_answers_is_passed_on_to_its_end(answer: bytes) -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("web", door, mode=Mode.TLS, pool=SESSION_ID))
        with worker.connect("web") as client:
            client.sendall(hello())
            with door.accept() as server:
                receive(server, 10)
                server.sendall(answer[:3])
                worker.after_beats(1)
                server.sendall(answer[3:])
                server.shutdown(socket.SHUT_WR)
                assert receive_all(client) == answer


@pytest.mark.parametrize("answer", [b"", b"\x16", b"\x16\x03\x03\x00\x40\x02\x00"])
def test_a_server_that_breaks_in_its_hello_breaks_the_client(answer: bytes) -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("web", door, mode=Mode.TLS, pool=SESSION_ID))
        for wait in (False, True):
            with worker.connect("web") as client:
                data = hello()
                client.sendall(data)
                server = door.accept()
                assert receive(server, len(data)) == data
                server.sendall(answer)
                if wait:
                    worker.after_beats(1)
                reset(server)
                with pytest.raises(ConnectionResetError):
                    receive_all(client)
