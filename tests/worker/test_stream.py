"""A stream under TLS: several records at one go, an end that OpenSSL has taken in already, and writing as it fits."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from mailbalancer.ipc.board import Board
from mailbalancer.log import Log
from mailbalancer.model import Logging, Verify
from mailbalancer.tls import verify
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.stream import NOTHING, RECORD_BYTES, Stream
from tests.support.certs import Authority

NAME = "mail.example.com"
BUFFER_BYTES = 4 * RECORD_BYTES
TIMEOUT_S = 10.0


Serve = Callable[[ssl.SSLSocket], None]


class Owner:
    """Reads as an `http` link reads an answer that comes fast."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.received = bytearray()
        self.reads: list[int] = []
        self.pauses = False
        self.expects = 0  # bytes after which a test has seen enough; 0: the end

    def readable(self, stream: Stream) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
        n = stream.receive(buffer)
        if n > 0:
            n = stream.fill(buffer, n)
            self.received += buffer[:n]
            if self.pauses:
                stream.pause()
                self._loop.call_later(0.05, stream.resume)
        if n != NOTHING:
            self.reads.append(n)
        if not n or (self.expects and len(self.received) == self.expects):
            self._loop.stop()

    def writable(self, stream: Stream) -> None:
        self._loop.stop()

    def broken(self, stream: Stream, error: OSError) -> None:
        raise error

    def secured(self, stream: Stream) -> None:
        self._loop.stop()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), TIMEOUT_S)
        return ours, listener.accept()[0]


class Pair:
    """A stream that is the client of a TLS server of Python's own, which a thread runs."""

    def __init__(
        self,
        papers: Authority,
        serve: Serve,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        client: ssl.SSLContext | None = None,
    ) -> None:
        """`version` is the only one that the server speaks; `client` is the stream's context, trusting by default."""
        self.loop = asyncio.new_event_loop()
        self.engine = Engine(0, Board(1, 4), Log(Logging()), self.loop, 1000)
        self.owner = Owner(self.loop)
        context = papers.issue(NAME).server_context(version)
        context.maximum_version = version
        ours, theirs = tcp_pair()
        theirs.settimeout(TIMEOUT_S)
        self._thread = threading.Thread(
            target=lambda: serve(context.wrap_socket(theirs, server_side=True)), daemon=True
        )
        self._thread.start()
        ours.setblocking(False)
        self.stream = Stream(self.engine, ours, self.owner)
        self.stream.secure(client or papers.client_context(), server_side=False, name=NAME)
        self.run()

    def run(self) -> None:
        """Until the owner stops it."""
        late = self.loop.call_later(TIMEOUT_S, self.loop.stop)
        self.loop.run_forever()
        assert not late.cancelled()
        assert self.loop.time() < late.when(), "nothing more happened"
        late.cancel()

    def served(self) -> None:
        """Wait until the server has done all it had to."""
        self._thread.join(TIMEOUT_S)

    def close(self) -> None:
        self.stream.close()
        self.served()
        self.engine.reactor.stop()
        self.loop.close()


class Make(Protocol):
    def __call__(self, serve: Serve, version: ssl.TLSVersion = ..., client: ssl.SSLContext | None = ...) -> Pair: ...


@pytest.fixture
def papers(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(papers: Authority) -> Iterator[Make]:
    made: list[Pair] = []

    def make(
        serve: Serve, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, client: ssl.SSLContext | None = None
    ) -> Pair:
        made.append(Pair(papers, serve, version, client))
        return made[-1]

    yield make
    for one in made:
        one.close()


WHOLE = bytes(range(256)) * (3 * RECORD_BYTES // 256)


@pytest.mark.parametrize("pauses", [False, True], ids=["reading on", "pausing in between"])
def test_an_end_behind_whole_records_is_told_although_the_socket_says_no_more(pair: Make, pauses: bool) -> None:
    """close_notify without the end of the connection: OpenSSL takes it in with the records, and epoll keeps silent."""
    said, silent = threading.Event(), threading.Event()

    def serve(server: ssl.SSLSocket) -> None:
        server.recv(1)
        server.sendall(WHOLE)
        server.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            server.unwrap()  # says close_notify and waits for ours
        said.set()
        silent.wait(3 * TIMEOUT_S)
        server.close()

    made = pair(serve)
    made.owner.pauses = pauses
    made.stream.write(b"!")
    assert said.wait(TIMEOUT_S)
    made.run()
    assert made.owner.received == WHOLE
    assert made.owner.reads[-1] == 0
    assert not made.stream.truncated
    silent.set()


@pytest.fixture(params=["full", "ca", "pin"])
def verified(request: pytest.FixtureRequest, papers: Authority, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A context for connections to servers, as the data plane has it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(papers.file))  # for `full`: whom the system trusts
    return verify.context(Verify(request.param, ca_file=str(papers.file)))


@pytest.mark.parametrize("pauses", [False, True], ids=["reading on", "pausing in between"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_records_that_came_together_are_all_read_although_the_socket_says_no_more(
    pair: Make, verified: ssl.SSLContext, version: ssl.TLSVersion, pauses: bool
) -> None:
    """One is read per event. What OpenSSL took in beyond that one would lie where epoll does not see it."""
    records = [bytes([n]) * 1000 for n in range(5)]
    said, silent = threading.Event(), threading.Event()

    def serve(server: ssl.SSLSocket) -> None:
        server.recv(1)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        for record in records:
            server.sendall(record)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        said.set()
        silent.wait(3 * TIMEOUT_S)
        server.close()

    made = pair(serve, version, verified)
    made.owner.pauses = pauses
    made.owner.expects = sum(map(len, records))
    made.stream.write(b"!")
    assert said.wait(TIMEOUT_S)
    try:
        made.run()
        assert made.owner.received == b"".join(records)
        assert made.stream.is_quiet()
    finally:
        silent.set()


def test_what_does_not_fit_the_buffer_is_read_at_the_next_turn(pair: Make) -> None:
    sent = WHOLE * 5

    def serve(server: ssl.SSLSocket) -> None:
        server.recv(1)
        server.sendall(sent)
        server.unwrap()

    made = pair(serve)
    made.stream.write(b"!")
    made.run()
    assert made.owner.received == sent
    assert max(made.owner.reads) <= BUFFER_BYTES


def test_many_records_are_written_as_the_peer_takes_them(pair: Make) -> None:
    sent = WHOLE * 200
    got = bytearray()
    may_read = threading.Event()

    def serve(server: ssl.SSLSocket) -> None:
        may_read.wait(TIMEOUT_S)
        while len(got) < len(sent):
            got.extend(server.recv(65536))

    made = pair(serve)
    made.stream.write(sent)
    assert made.stream.blocked
    assert made.stream.room() == 0
    may_read.set()
    made.run()
    made.served()
    assert got == sent
