"""What must hold for one `http` service over two workers: limits per address, and RPC sessions that end as a whole."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.lone_worker import Door, reset
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually
from tests.support.web import Web, Wire, reply

pytestmark = pytest.mark.live

TIMEOUT_S = 20.0
#: So many sources, or connections, that all of them on one of two workers would be a wonder.
MANY = 24
COOKIE = bytes(range(16))
#: MS-RPCH 2.2.4.2: the packet that begins a channel, with its virtual connection's cookie.
CONN = b"\x05\x00\x14\x03\x10\x00\x00\x00" + bytes(12) + struct.pack("<III", 6, 1, 3) + COOKIE + bytes(24)


def config(port: int, server: int, **service: Any) -> dict[str, Any]:
    made = {"mode": "http", "listen": f"127.0.0.1:{port}", "check": "none", "real_servers": {"ex1": server}}
    return {"real_servers": {"ex1": "127.0.0.1"}, "services": {"web": made | service}}


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT_S, (source, 0))


def status_of(port: int, source: str) -> int:
    """The status of one answer on a connection of its own; 0: the connection was reset."""
    try:
        with connect(port, source) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
            return Wire(client).answer().status
    except ConnectionError:
        return 0


def holds(port: int, source: str, stack: contextlib.ExitStack) -> bool:
    """Whether one more connection of this address is served; it stays open."""
    try:
        client = stack.enter_context(connect(port, source))
        client.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
        return Wire(client).answer().status == 200
    except ConnectionError:
        return False


def test_connections_of_one_address_are_limited_over_all_workers(tmp_path: Path) -> None:
    port = free_port()
    with Web("ex1", lambda asked: reply("yes")) as ex1, contextlib.ExitStack() as stack:
        limits = {"connections_per_source": 3}
        with Balancer(config(port, ex1.port, limits=limits), tmp_path) as balancer:
            sources = [f"127.0.7.{number}" for number in range(1, MANY + 1)]
            served = {source: [holds(port, source, stack) for _ in range(5)] for source in sources}
            workers = {
                session["worker"] for session in balancer.command("sessions", service="web", limit=500)["sessions"]
            }
    assert workers == {0, 1}
    assert set(map(tuple, served.values())) == {(True, True, True, False, False)}


def test_requests_of_one_address_are_limited_over_all_workers(tmp_path: Path) -> None:
    port = free_port()
    with Web("ex1", lambda asked: reply("yes")) as ex1:
        limits = {"requests_per_source_s": 1000}
        with Balancer(config(port, ex1.port, limits=limits), tmp_path) as balancer:
            assert {status_of(port, "127.0.7.1") for _ in range(10)} == {200}
            limits["requests_per_source_s"] = 1  # one a second, and two at once
            balancer.reload(config(port, ex1.port, limits=limits))
            begun_at = time.monotonic()
            answers = [status_of(port, "127.0.7.2") for _ in range(MANY)]
            took_s = time.monotonic() - begun_at
    assert set(answers) <= {200, 429}
    assert 0 < answers.count(200) <= 2 + took_s  # two workers that count for themselves let at least four through


# ------------------------------------------------------------ RPC over HTTP


def channel(port: int, door: Door, method: str, length: int) -> tuple[socket.socket, socket.socket]:
    client = connect(port)
    client.sendall(
        f"{method} /rpc/rpcproxy.dll HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n".encode() + CONN
    )
    server = door.accept()
    wire = Wire(server)
    assert wire.head() is not None
    assert wire.exactly(len(CONN)) == CONN
    return client, server


@pytest.fixture
def door() -> Iterator[Door]:
    with Door("ex1") as door:
        yield door


def worker_of(balancer: Balancer, client: socket.socket) -> int:
    name = "{}:{}".format(*client.getsockname()[:2])
    sessions = balancer.command("sessions", service="web", limit=100)["sessions"]
    return next(int(session["worker"]) for session in sessions if session["client"] == name)


@pytest.mark.parametrize("broken", ["RPC_IN_DATA", "RPC_OUT_DATA"])
def test_the_channels_of_a_session_end_together_in_different_workers(tmp_path: Path, door: Door, broken: str) -> None:
    port = free_port()
    with Balancer(config(port, door.port, persist="none"), tmp_path) as balancer, contextlib.ExitStack() as stack:
        outgoing, server_out = map(stack.enter_context, channel(port, door, "RPC_OUT_DATA", len(CONN)))
        server_out.sendall(b"HTTP/1.1 200 Success\r\nContent-Length: 1073741824\r\n\r\nhello")
        wire = Wire(outgoing)
        assert wire.head() is not None
        assert wire.exactly(5) == b"hello"
        here = worker_of(balancer, outgoing)
        for _ in range(MANY):
            incoming, server_in = map(stack.enter_context, channel(port, door, "RPC_IN_DATA", 1 << 30))
            if worker_of(balancer, incoming) != here:
                break
        else:
            pytest.fail("every channel landed on the same worker")
        bystander = stack.enter_context(connect(port))
        reset(incoming if broken == "RPC_IN_DATA" else outgoing)
        other = outgoing if broken == "RPC_IN_DATA" else incoming
        with pytest.raises(ConnectionResetError):
            other.recv(1)
        server = server_out if broken == "RPC_IN_DATA" else server_in
        server.settimeout(TIMEOUT_S)
        with contextlib.suppress(ConnectionError):
            assert not server.recv(1)
        eventually(lambda: balancer.service("web")["sessions"] == 1, what="the channels are gone")
        bystander.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
        assert Wire(stack.enter_context(door.accept())).head() is not None
