"""Both flows of a session, with real sockets: what one side sends, ends or breaks arrives at the other side."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.model import ProxyProtocol
from mailbalancer.wire import proxy_header
from tests.support.lone_worker import Door, LoneWorker, receive, receive_all, reset, service
from tests.support.servers import AnswerAtEnd, Echo, Named

MIB = 1024 * 1024
SIZES = (1, 4095, 4096, 4097, 65535, 65536, 65537, 131071, 131072, 131073, 196608, 1048577)


@contextlib.contextmanager
def session(**options: object) -> Iterator[tuple[LoneWorker, socket.socket, socket.socket]]:
    """A worker and both ends of one session through it."""
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("web", door, **options))
        with worker.connect("web") as client, door.accept() as server:
            yield worker, client, server


def test_bytes_go_both_ways() -> None:
    with session() as (_, client, server):
        client.sendall(b"EHLO client\r\n")
        assert receive(server, 13) == b"EHLO client\r\n"
        server.sendall(b"250 server\r\n")
        assert receive(client, 12) == b"250 server\r\n"


def test_server_may_speak_first() -> None:
    with LoneWorker() as worker, Named("ex1", banner="220 ex1 ready") as ex1:
        worker.configure(service("smtp", ex1))
        with worker.connect("smtp") as client:
            assert receive(client, 15) == b"220 ex1 ready\r\n"


def test_client_ends_its_half_and_still_gets_the_answer() -> None:
    with LoneWorker() as worker, AnswerAtEnd("ex1") as ex1:
        worker.configure(service("web", ex1))
        with worker.connect("web") as client:
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"ex1 received 100000 bytes\r\n"
        assert worker.session_lines()[0]["end"] == "client_closed"


def test_client_ends_its_half_without_a_byte() -> None:
    with LoneWorker() as worker, Named("ex1", banner="220 ex1 ready") as ex1:
        worker.configure(service("smtp", ex1))
        with worker.connect("smtp") as client:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"220 ex1 ready\r\n"


def test_server_ends_its_half_and_still_reads() -> None:
    with session() as (worker, client, server):
        server.sendall(b"bye")
        server.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"bye"
        for piece in (b"still ", b"here"):
            client.sendall(piece)
            assert receive(server, len(piece)) == piece
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b""
        assert worker.session_lines()[0]["end"] == "server_closed"


@pytest.mark.parametrize("buffer_bytes", [4096, 65536, 8 * MIB])
def test_every_size_around_the_buffer_arrives_whole(buffer_bytes: int) -> None:
    with LoneWorker() as worker, Echo("ex1") as ex1:
        worker.configure(service("web", ex1, buffer_bytes=buffer_bytes))
        with worker.connect("web") as client:
            for size in SIZES:
                data = os.urandom(size)
                sending = threading.Thread(target=client.sendall, args=(data,))
                sending.start()
                assert receive(client, size) == data
                sending.join()


@pytest.mark.parametrize("buffer_bytes", [4096, 65536])
@pytest.mark.parametrize("size", [0, 1, 65536, 131072, 3 * 65536, 300_000])
def test_the_end_right_behind_the_last_byte_is_passed_on(size: int, buffer_bytes: int) -> None:
    with session(buffer_bytes=buffer_bytes) as (_, client, server):
        data = os.urandom(size)

        def send_and_end() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send_and_end)
        sending.start()
        assert receive_all(server) == data
        sending.join()


def test_bulk_both_ways_at_once_is_the_same_to_the_last_bit() -> None:
    size = 64 * MIB
    block = os.urandom(MIB)
    digests: dict[str, str] = {}

    def send(sock: socket.socket) -> None:
        for number in range(size // MIB):
            sock.sendall(block[number:] + block[:number])
        sock.shutdown(socket.SHUT_WR)

    def digest(name: str, sock: socket.socket) -> None:
        found = hashlib.sha256()
        while data := sock.recv(MIB):
            found.update(data)
        digests[name] = found.hexdigest()

    expected = hashlib.sha256()
    for number in range(size // MIB):
        expected.update(block[number:] + block[:number])
    with session() as (worker, client, server):
        threads = [threading.Thread(target=send, args=(s,)) for s in (client, server)]
        threads += [threading.Thread(target=digest, args=a) for a in (("client", client), ("server", server))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert digests == dict.fromkeys(("client", "server"), expected.hexdigest())
        line = worker.session_lines()[0]
        assert (line["in"], line["out"]) == (size, size)
        assert worker.count(Count.BYTES_IN, "web", "ex1") == worker.count(Count.BYTES_OUT, "web", "ex1") == size


def fill(sock: socket.socket, worker: LoneWorker, most: int = 64 * MIB) -> hashlib._Hash:
    """Send until the other side, through the worker, takes no more; returns the digest of what went."""
    sock.setblocking(False)
    sent, digest, block = 0, hashlib.sha256(), os.urandom(262144)
    while sent < most:
        try:
            went = sock.send(block)
        except BlockingIOError:
            worker.after_beats(4)
            if not select.select([], [sock], [], 0)[1]:
                sock.settimeout(20)
                return digest
        else:
            digest.update(block[:went])
            block = block[went:] + block[:went]
            sent += went
    raise AssertionError(f"{most} bytes have gone to somebody who does not read")


def digest_all(sock: socket.socket) -> bytes:
    """The digest of everything up to the other side's orderly end."""
    return hashlib.sha256(receive_all(sock)).digest()


@pytest.mark.parametrize("buffer_bytes", [4096, 65536, 8 * MIB])
def test_a_client_that_does_not_read_stops_the_server(buffer_bytes: int) -> None:
    with session(buffer_bytes=buffer_bytes) as (worker, client, server):
        sent = fill(server, worker)  # the kernel's buffers of four sockets, and one of ours
        server.shutdown(socket.SHUT_WR)
        assert digest_all(client) == sent.digest()


def test_a_server_that_does_not_read_stops_the_client_and_a_half_close_waits_behind() -> None:
    with session() as (worker, client, server):
        sent = fill(client, worker)
        client.shutdown(socket.SHUT_WR)
        assert digest_all(server) == sent.digest()
        server.sendall(b"got it")
        assert receive(client, 6) == b"got it"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_bytes_that_wait_keep_their_order_behind_a_header(version: str) -> None:
    with session(buffer_bytes=MIB, proxy_protocol=ProxyProtocol(send=version)) as (worker, client, server):
        sent = fill(client, worker)
        client.shutdown(socket.SHUT_WR)
        data = receive_all(server)
        header = proxy_header.parse(data)
        assert header is not None
        assert hashlib.sha256(data[header.length :]).digest() == sent.digest()


def test_when_the_pipes_are_used_up_bulk_still_flows() -> None:
    """At this limit of descriptors there are six pipes; twelve flows want one."""
    size = 4 * MIB
    data = os.urandom(size)
    with LoneWorker(max_files=100) as worker, Echo("ex1") as ex1, contextlib.ExitStack() as stack:
        worker.configure(service("web", ex1))
        clients = [stack.enter_context(worker.connect("web")) for _ in range(6)]
        threads = [threading.Thread(target=client.sendall, args=(data,)) for client in clients]
        answers: dict[int, bytes] = {}

        def collect(number: int, client: socket.socket) -> None:
            answers[number] = receive(client, size)

        threads += [threading.Thread(target=collect, args=pair) for pair in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [answers[n] == data for n in range(6)] == [True] * 6


def test_one_direction_is_blocked_and_the_other_is_not() -> None:
    with session() as (worker, client, server):
        sent = fill(client, worker)
        for _ in range(50):
            server.sendall(b"220 here\r\n")
            assert receive(client, 10) == b"220 here\r\n"
        client.shutdown(socket.SHUT_WR)
        assert digest_all(server) == sent.digest()


def test_a_small_session_is_served_beside_bulk() -> None:
    with session() as (worker, client, server):
        stop = threading.Event()

        def pour() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    server.sendall(bytes(MIB))

        def drain() -> None:
            with contextlib.suppress(OSError):
                while client.recv(MIB):
                    pass

        threads = [threading.Thread(target=t) for t in (pour, drain)]
        for thread in threads:
            thread.start()
        with Echo("ex2") as ex2:
            worker.configure(service("web", ("ex1", "127.0.0.1", 1)), service("small", ex2))
            with worker.connect("small") as other:
                for _ in range(200):
                    other.sendall(b"NOOP\r\n")
                    assert receive(other, 6) == b"NOOP\r\n"
            stop.set()
            for sock in (client, server):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)


# ---------------------------------------------------------------- resets


def assert_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        receive_all(sock)


def test_a_client_reset_reaches_the_server_as_one() -> None:
    with session() as (worker, client, server):
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
        reset(client)
        assert_reset(server)
        assert worker.session_lines()[0]["end"] == "client_reset"


def test_a_server_that_dies_in_the_middle_of_an_answer_never_looks_finished() -> None:
    with session() as (worker, client, server):
        client.sendall(b"RETR 1\r\n")
        receive(server, 8)
        server.sendall(b"half of it")
        assert receive(client, 10) == b"half of it"
        reset(server)
        assert_reset(client)
        assert worker.session_lines()[0]["end"] == "server_reset"


@pytest.mark.parametrize("size", [1, 65536, 131072, 5 * MIB])
def test_data_and_then_a_reset_never_looks_finished(size: int) -> None:
    for _ in range(5):
        with session() as (_, client, server):
            server.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                server.send(bytes(size))
            reset(server)
            assert_reset(client)


def test_a_client_reset_is_seen_while_the_server_does_not_read() -> None:
    with session() as (worker, client, server):
        fill(client, worker)
        reset(client)
        assert worker.session_lines()[0]["end"] == "client_reset"
        assert_reset(server)


def test_a_server_reset_is_seen_while_the_client_does_not_read() -> None:
    with session() as (worker, client, server):
        fill(server, worker)
        reset(server)
        assert worker.session_lines()[0]["end"] == "server_reset"
        assert_reset(client)


def test_a_client_that_ended_its_half_and_then_breaks_is_told_to_the_server() -> None:
    with session() as (worker, client, server):
        client.shutdown(socket.SHUT_WR)
        assert receive_all(server) == b""
        reset(client)
        assert worker.session_lines()[0]["end"] == "client_reset"
        with pytest.raises(ConnectionError):  # the end was read already, so only sending can show the reset
            server.sendall(b"answer")


def test_a_server_that_ended_its_half_and_then_breaks_is_told_to_the_client() -> None:
    with session() as (worker, client, server):
        server.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
        client.sendall(b"unread")
        worker.eventually_counts(6, Count.BYTES_IN, "web", "ex1")
        server.close()  # with unread data: the kernel resets
        assert worker.session_lines()[0]["end"] == "server_reset"
