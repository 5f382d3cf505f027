"""One session from accept to its log line: the next server, PROXY headers, deadlines."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.ipc.messages import DropSessions
from mailbalancer.model import Endpoint, ProxyProtocol, RealServer, Schedule
from mailbalancer.wire import proxy_header
from tests.support.lone_worker import Door, LoneWorker, member, receive, receive_all, reset, service
from tests.support.ports import free_port
from tests.support.servers import Echo, Named, Recorder, Resetting
from tests.support.waiting import eventually

LOCAL = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
ELSEWHERE = (ipaddress.ip_network("192.0.2.0/24"),)
PRIORITY = {"schedule": Schedule.PRIORITY}


def dead(name: str) -> tuple[str, str, int]:
    """A place where nobody listens."""
    return name, "127.0.0.1", free_port()


def assert_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        receive_all(sock)


# ---------------------------------------------------------------- connecting


def test_a_refused_connect_goes_to_the_next_server_unseen() -> None:
    with LoneWorker() as worker, Echo("ex2") as ex2:
        worker.configure(service("web", member(dead("ex1")), member(ex2, priority=1), pool=PRIORITY))
        with worker.connect("web") as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            assert worker.count(Count.SESSIONS, "web", "ex1") == 0
            assert worker.count(Count.SESSIONS, "web", "ex2") == 1
        line = worker.session_lines()[0]
        assert (line["server"], line["tried"], line["end"]) == ("ex2", "ex1", "client_closed")
        assert "refused" in line["failure"]
        assert worker.count(Count.CONNECT_FAILED, "web", "ex1") == worker.count(Count.RETRIED, "web", "ex1") == 1
        assert worker.count(Count.CONNECT_OK, "web", "ex2") == 1
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex2")


def test_when_every_server_refuses_the_client_is_reset() -> None:
    with LoneWorker() as worker:
        worker.configure(service("web", dead("ex1"), dead("ex2")))
        assert worker.refuses("web")
        line = worker.session_lines()[0]
        assert (line["end"], sorted(line["tried"].split(","))) == ("no_server", ["ex1", "ex2"])
        assert worker.count(Count.REFUSED, "web") == 1
        assert sum(worker.count(Count.CONNECT_FAILED, "web", s) for s in ("ex1", "ex2")) == 2
        assert sum(worker.count(Count.RETRIED, "web", s) for s in ("ex1", "ex2")) == 1  # the last was rescued by nobody
        worker.eventually_counts(0, Count.SESSIONS, "web")


def test_without_any_server_the_client_is_reset() -> None:
    with LoneWorker() as worker:
        worker.configure(service("web"))
        assert worker.refuses("web")
        assert worker.session_lines()[0]["end"] == "no_server"


def test_a_server_that_does_not_answer_is_left_after_the_connect_timeout() -> None:
    with LoneWorker() as worker, Echo("ex2") as ex2, Door("ex1", backlog=0) as full:
        held = [socket.socket() for _ in range(8)]
        for sock in held:  # fill the backlog: from here on the kernel drops SYNs
            sock.setblocking(False)
            sock.connect_ex((full.host, full.port))
        worker.configure(service("web", member(full), member(ex2, priority=1), pool=PRIORITY, connect_timeout_s=0.3))
        with worker.connect("web") as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
        line = worker.session_lines()[0]
        assert (line["server"], line["failure"]) == ("ex2", "ex1: no answer in 0.3 s")
        assert worker.count(Count.CONNECT_FAILED, "web", "ex1") == 1
        for sock in held:
            sock.close()


def test_a_failure_of_this_machine_is_not_blamed_on_the_server() -> None:
    with LoneWorker() as worker, Echo("ex2") as ex2:
        broadcast = ("ex1", "255.255.255.255", 25)  # connect(2): EACCES or ENETUNREACH, at once
        worker.configure(service("web", member(broadcast), member(ex2, priority=1), pool=PRIORITY))
        with worker.connect("web") as client:
            client.sendall(b"x")
            try:
                answered = receive(client, 1) == b"x"
            except ConnectionResetError:
                answered = False
        line = worker.session_lines()[0]
        if answered:  # a kernel that says "network unreachable": the next server is tried
            assert line["server"] == "ex2"
        else:
            assert line["end"] == "local_failure"
            assert worker.count(Count.CONNECT_FAILED, "web", "ex1") == 0
        assert worker.count(Count.SESSIONS, "web", "ex1") == 0


def test_a_server_that_resets_at_once_never_looks_like_an_orderly_end() -> None:
    with LoneWorker() as worker, Resetting("ex1") as ex1:
        worker.configure(service("web", ex1))
        for _ in range(20):
            assert worker.refuses("web")


def test_what_the_client_says_before_the_server_is_connected_arrives() -> None:
    with LoneWorker() as worker, Recorder("ex2") as ex2:
        worker.configure(service("web", member(dead("ex1")), member(ex2, priority=1), pool=PRIORITY))
        data = os.urandom(300_000)
        with worker.connect("web") as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        assert bytes(ex2.connections[0].received) == data


def test_thousands_of_short_sessions_leave_nothing_behind() -> None:
    with LoneWorker() as worker, Named("ex1", banner="220") as ex1:
        worker.configure(service("smtp", ex1))
        with worker.connect("smtp") as client:
            receive(client, 5)
        worker.session_lines(1)
        files = worker.files()
        for _ in range(250):
            clients = [worker.connect("smtp") for _ in range(20)]
            for number, client in enumerate(clients):
                assert receive(client, 5) == b"220\r\n"
                if number % 4 == 0:
                    reset(client)
                else:
                    client.close()
        eventually(lambda: worker.count(Count.SESSIONS, "smtp") == 0, what="every session is over")
        worker.eventually_counts(0, Count.SESSIONS, "smtp", "ex1")
        assert worker.count(Count.TOTAL, "smtp") == 5001
        eventually(lambda: worker.files() == files, what="every descriptor is given back")
        assert not worker.list_sessions().sessions


# ---------------------------------------------------------------- PROXY headers


def v1(source: str = "198.51.100.7", port: int = 4711) -> bytes:
    return proxy_header.encode("v1", Endpoint(source, port), Endpoint("203.0.113.25", 25))


V6 = proxy_header.encode("v2", Endpoint("2001:db8::7", 9), Endpoint("2001:db8::1", 25))


def v2(source: str = "198.51.100.7", port: int = 4711) -> bytes:
    return proxy_header.encode("v2", Endpoint(source, port), Endpoint("203.0.113.25", 25))


def send_pieces_and_wait(client: socket.socket, pieces: list[bytes]) -> None:
    """Send as far as it goes, then read to the end: somewhere on the way a reset raises."""
    for piece in pieces:
        client.sendall(piece)
    receive_all(client)


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("header", [v1(), v2(), V6])
def test_a_header_is_taken_off_and_believed(header: bytes, step: int) -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=LOCAL)))
        with worker.connect("smtp") as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = header + b"EHLO client\r\n"
            for start in range(0, len(data), step):
                client.sendall(data[start : start + step])
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
        assert bytes(ex1.connections[0].received) == b"EHLO client\r\n"
        assert worker.session_lines()[0]["client"] in ("198.51.100.7:4711", "[2001:db8::7]:9")


def test_a_header_that_names_nobody_leaves_the_peer() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=LOCAL)))
        for header in (b"PROXY UNKNOWN\r\n", proxy_header.SIGNATURE_V2 + b"\x20\0\0\0"):
            with worker.connect("smtp") as client:
                client.sendall(header + b"x")
                assert receive(client, 1) == b"x"
        assert all(line["client"].startswith("127.0.0.1:") for line in worker.session_lines(2))


@pytest.mark.parametrize("bad", [b"EHLO x\r\n", b"PROXY TCP9 a b 1 2\r\n", b"PROXY " + b"x" * 200])
def test_a_malformed_header_ends_the_connection(bad: bytes) -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=LOCAL)))
        with worker.connect("smtp") as client:
            client.sendall(bad)
            assert_reset(client)
        assert worker.session_lines()[0]["end"] == "bad_proxy_header"
        assert not ex1.connections


def test_a_header_that_does_not_come_ends_the_connection() -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=LOCAL, header_timeout_s=0.2)))
        with worker.connect("smtp") as client, worker.connect("smtp") as slow:
            slow.sendall(b"PROXY TCP4 ")
            assert_reset(client)
            assert_reset(slow)
        assert [line["end"] for line in worker.session_lines(2)] == ["no_proxy_header"] * 2
        assert not ex1.connections


@pytest.mark.parametrize("accept_from", [(), ELSEWHERE])
@pytest.mark.parametrize("step", [1, 5, 10_000])
@pytest.mark.parametrize("header", [v1(), v2()])
@pytest.mark.parametrize("send", ["", "v1"])
def test_a_forged_header_ends_the_connection_and_never_arrives(
    accept_from: tuple[ipaddress.IPv4Network, ...], header: bytes, step: int, send: str
) -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=accept_from, send=send)))
        with worker.connect("smtp") as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pieces = [header[start : start + step] for start in range(0, len(header), step)]
            with pytest.raises(ConnectionError):
                send_pieces_and_wait(client, pieces)
        assert worker.session_lines()[0]["end"] == "spoofed_proxy_header"
        received = b"".join(bytes(c.received) for c in ex1.connections)
        assert b"198.51" not in received
        assert proxy_header.SIGNATURE_V2 not in received


@pytest.mark.parametrize("pressed", [b"\r\n", b"P"])
def test_somebody_who_presses_enter_and_waits_gets_an_answer(pressed: bytes) -> None:
    """An empty line is the beginning of a PROXY header too, and yet nobody may wait for the rest of it for ever."""
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("smtp", ex1))
        with worker.connect("smtp") as client:
            client.sendall(pressed)
            assert receive(client, len(pressed)) == pressed
            client.sendall(b"PROXY is a word like any other now")
            assert receive(client, 34) == b"PROXY is a word like any other now"


@pytest.mark.parametrize(
    "pieces",
    [[b"P"], [b"P", b"ROXYish\n"], [b"PROXY"], [b"\r", b"\n", b"\r\nEHLO"], [b"\r\n\r\n\0\r\nQUIT"], [b"PR", b"OP"]],
)
def test_what_only_begins_like_a_header_is_passed_on(pieces: list[bytes]) -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(service("smtp", ex1))
        for wait in (False, True):
            with worker.connect("smtp") as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for piece in pieces:
                    client.sendall(piece)
                    if wait:
                        worker.after_beats(1)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b""
            assert bytes(ex1.connections[-1].received) == b"".join(pieces)


def test_a_slow_first_byte_does_not_hold_up_the_server() -> None:
    """The client has said one byte that might begin a header, and reads what the server pours out."""
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("smtp", door))
        with worker.connect("smtp") as client, door.accept() as server:
            server.setblocking(False)
            sent = 0
            while True:
                try:
                    sent += server.send(bytes(262144))
                except BlockingIOError:
                    break
            client.sendall(b"P")
            worker.after_beats(2)
            assert len(receive(client, sent)) == sent
            client.shutdown(socket.SHUT_WR)
            server.settimeout(20)
            assert receive_all(server) == b"P"


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("listen", "host"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "::1")],
)
def test_the_server_is_told_who_the_client_is(version: str, listen: str, host: str) -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("smtp", door, hosts=(listen,), proxy_protocol=ProxyProtocol(send=version)))
        with worker.connect("smtp", host) as client, door.accept() as server:
            client.sendall(b"EHLO x\r\n")
            client.shutdown(socket.SHUT_WR)
            data = receive_all(server)
            header = proxy_header.parse(data)
            assert header is not None
            assert header.source == Endpoint(*client.getsockname()[:2])
            assert header.destination == Endpoint(*client.getpeername()[:2])
            assert data[header.length :] == b"EHLO x\r\n"
            server.close()
        assert worker.session_lines()[0]["in"] == 8


def test_a_believed_header_is_passed_on_with_its_addresses() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("smtp", door, proxy_protocol=ProxyProtocol(accept_from=LOCAL, send="v1")))
        with worker.connect("smtp") as client:
            client.sendall(v2() + b"EHLO x\r\n")
            with door.accept() as server:
                assert receive(server, len(v1()) + 8) == v1() + b"EHLO x\r\n"


def test_a_header_waits_for_a_server_that_speaks_first() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("smtp", door, proxy_protocol=ProxyProtocol(send="v1")))
        with worker.connect("smtp") as client, door.accept() as server:
            server.sendall(b"220 x\r\n")
            assert receive(client, 7) == b"220 x\r\n"
            assert receive(server, 11) == b"PROXY TCP4 "


# ---------------------------------------------------------------- deadlines and drops


def test_an_idle_session_is_ended_and_a_busy_one_is_not() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1, idle_timeout_s=0.4))
        with worker.connect("imap") as idle, worker.connect("imap") as busy:
            while not any(line["message"] == "session" for line in worker.log_lines()):
                busy.sendall(b"NOOP")
                assert receive(busy, 4) == b"NOOP"
            assert receive_all(idle) == b""  # an orderly end: nothing was under way
            line = worker.session_lines()[0]
            assert line["end"] == "idle_timeout"
            assert line["client"].endswith(f":{idle.getsockname()[1]}")


def test_an_idle_end_with_bytes_on_hand_is_a_reset() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("imap", door, idle_timeout_s=0.4))
        with worker.connect("imap") as client, door.accept() as server:
            server.setblocking(False)
            while not any(line["message"] == "session" for line in worker.log_lines()):
                with contextlib.suppress(OSError):  # full, and at last: reset
                    server.send(bytes(262144))
            assert worker.session_lines()[0]["end"] == "idle_timeout"
            assert_reset(client)


def test_a_client_that_stays_after_the_server_has_closed_is_ended() -> None:
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("imap", door, idle_timeout_s=0.3))
        with worker.connect("imap"), door.accept() as server:
            server.shutdown(socket.SHUT_WR)
            assert receive_all(server) == b""
            assert worker.session_lines()[0]["end"] == "server_closed"


def test_drop_sessions_ends_those_of_one_slot() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1, Echo("ex2") as ex2:
        worker.configure(service("imap", ex1, ex2))
        with worker.connect("imap") as one, worker.connect("imap") as two:
            for client in (one, two):
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
            worker.send(DropSessions(worker.slot("imap", "ex1"), 'drain time "over"\nand more'))
            line = worker.session_lines()[0]
            assert (line["server"], line["end"]) == ("ex1", 'drain time "over"\nand more')
            dropped, kept = (one, two) if line["client"].endswith(f":{one.getsockname()[1]}") else (two, one)
            assert_reset(dropped)
            kept.sendall(b"y")
            assert receive(kept, 1) == b"y"


def test_sessions_are_listed_with_their_facts() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("imap", ex1), service("pop", ex1))
        with worker.connect("imap") as client, worker.connect("pop") as other:
            for sock in (client, other):
                sock.sendall(b"abc")
                receive(sock, 3)
            (found,) = worker.list_sessions("imap").sessions
            assert found["service"] == "imap"
            assert found["client"] == f"127.0.0.1:{client.getsockname()[1]}"
            assert found["listen"] == f"127.0.0.1:{client.getpeername()[1]}"
            assert (found["server"], found["server_address"]) == ("ex1", f"127.0.0.1:{ex1.port}")
            assert (found["bytes_in"], found["bytes_out"], found["state"], found["worker"]) == (3, 3, "relaying", 0)
            assert found["why"] == "least_connections"
            assert found["left_from"].startswith("127.0.0.1:")
            assert 0 <= found["idle_s"] <= found["age_s"]
            both = worker.list_sessions(limit=1)
            assert (len(both.sessions), both.more) == (1, 1)


def test_no_server_limit_is_passed_by_two_services() -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(
            service("imap", ex1), service("pop", ex1), real_servers=(RealServer("ex1", "127.0.0.1", max_sessions=1),)
        )
        with worker.connect("imap") as client:
            client.sendall(b"x")
            receive(client, 1)
            assert worker.refuses("pop")
        assert worker.session_lines(2)[0]["end"] == "servers_full"
        worker.eventually_counts(0, Count.SESSIONS, "imap", "ex1")
        with worker.connect("pop") as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"


def test_ipv6_end_to_end() -> None:
    with LoneWorker() as worker, Echo("ex1", host="::1") as ex1:
        worker.configure(service("imap", ex1, hosts=("::1",)))
        with worker.connect("imap", "::1") as client:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        line = worker.session_lines()[0]
        assert line["client"].startswith("[::1]:")
        assert line["address"] == f"[::1]:{ex1.port}"


def test_a_client_that_resets_before_anything_is_said() -> None:
    with LoneWorker() as worker, Recorder("ex1") as ex1:
        worker.configure(
            service("imap", ex1), service("smtp", ex1, proxy_protocol=ProxyProtocol(accept_from=LOCAL, send="v2"))
        )
        for name in ("imap", "smtp"):
            for _ in range(50):
                client = worker.connect(name)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
        ends = {line["end"] for line in worker.session_lines(100)}
        assert ends <= {"client_reset", "client_closed"}, ends
