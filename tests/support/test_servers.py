"""The servers that stand behind the balancer in tests do what their names say."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.support import servers
from tests.support.waiting import eventually


def _read_all(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def named() -> Iterator[servers.Named]:
    with servers.Named("ex1", banner="220 ex1 ready") as server:
        yield server


def test_named_speaks_first_and_names_itself(named: servers.Named) -> None:
    with socket.create_connection(named.address, 5) as client:
        client.sendall(b"hello\r\nsecond\nrest")
        client.shutdown(socket.SHUT_WR)
        assert _read_all(client) == b"220 ex1 ready\r\nex1: hello\r\nex1: second\r\n"
        assert named.peers == [client.getsockname()]


def test_stop_resets_open_connections_and_start_takes_the_same_port(named: servers.Named) -> None:
    with socket.create_connection(named.address, 5) as client:
        assert client.recv(100) == b"220 ex1 ready\r\n"
        named.stop()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""  # the shutdown's FIN may come before the reset
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(named.address, 5)
    named.start()
    with socket.create_connection(named.address, 5) as client:
        assert client.recv(100) == b"220 ex1 ready\r\n"


def test_answer_at_end_needs_half_close() -> None:
    with servers.AnswerAtEnd("ex1") as server, socket.create_connection(server.address, 5) as client:
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert _read_all(client) == b"ex1 received 1000 bytes\r\n"


def test_resetting_resets() -> None:
    with (
        servers.Resetting() as server,
        socket.create_connection(server.address, 5) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


def test_recorder_keeps_what_came_and_how_it_ended() -> None:
    with servers.Recorder(host="::1") as server:
        with socket.create_connection(server.address, 5) as client:
            client.sendall(b"kept")
        eventually(lambda: server.connections)
        connection = server.connections[0]
        eventually(lambda: connection.ended == "eof")
        assert bytes(connection.received) == b"kept"
        assert server.open == 0


def test_stalled_reads_only_after_resume() -> None:
    with servers.Stalled("ex1") as server, socket.create_connection(server.address, 5) as client:
        client.setblocking(False)
        sent = _send_until_full(client)
        eventually(lambda: server.connections)
        assert server.connections[0].count == 0
        server.resume()
        eventually(lambda: server.connections[0].count == sent)


def _send_until_full(client: socket.socket) -> int:
    """Send until the other side's buffers and our own are full; how much that was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += client.send(b"x" * 65536)
    return sent


def test_source_sends_all_and_ends() -> None:
    payload = bytes(range(256)) * 4096
    with servers.Source("ex1", payload) as server, socket.create_connection(server.address, 5) as client:
        assert _read_all(client) == payload
