"""An HTTP server to stand behind a balancer, and a client's way to read answers: what was received is what counts.

Decides: how a request and an answer are read (plainly, and loudly wrong when the bytes are), what is kept of them.
Refuses to know: the balancer. The server keeps every request with the connection it came over.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.certs import Issued
from tests.support.servers import Connection, Server

Fields = list[tuple[str, str]]


@dataclass(slots=True)
class Message:
    """A request or an answer as it arrived."""

    first_line: str
    fields: Fields
    body: bytes = b""
    connection: int = 0  # index of the connection in the server's list

    def values(self, name: str) -> list[str]:
        """Every value of this field."""
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def value(self, name: str) -> str:
        """The only value of this field; empty when it is not there."""
        values = self.values(name)
        assert len(values) <= 1, f"{name} stands there {len(values)} times: {values}"
        return values[0] if values else ""

    @property
    def method(self) -> str:
        return self.first_line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.first_line.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.first_line.split(" ")[1])


class Cut(Exception):
    """The other side ended in the middle of a message."""


class Wire:
    """Reads messages from a socket, byte for byte what came."""

    def __init__(self, sock: socket.socket, receive: Callable[[], bytes] | None = None) -> None:
        self.socket = sock
        self.waiting = bytearray()
        self._receive = receive or (lambda: sock.recv(65536))

    def more(self) -> bool:
        """Wait for more bytes. False: there are none."""
        data = self._receive()
        self.waiting += data
        return bool(data)

    def until(self, end: bytes) -> bytes:
        """Everything up to and with `end`; empty when the other side ends before it begins."""
        while end not in self.waiting:
            if not self.more():
                if self.waiting:
                    raise Cut(f"ended in the middle of {bytes(self.waiting[:200])!r}")
                return b""
        at = self.waiting.index(end) + len(end)
        return self.take(at)

    def exactly(self, size: int) -> bytes:
        while len(self.waiting) < size:
            if not self.more():
                raise Cut(f"ended {size - len(self.waiting)} bytes too early")
        return self.take(size)

    def take(self, size: int) -> bytes:
        data = bytes(self.waiting[:size])
        del self.waiting[:size]
        return data

    def head(self) -> Message | None:
        """The next head; None at the end."""
        raw = self.until(b"\r\n\r\n")
        if not raw:
            return None
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in lines]
        return Message(first, [(name, value.strip(" \t")) for name, _, value in pairs])

    def body(self, head: Message) -> bytes:
        """The body that belongs to this head, by its length or its chunks."""
        if head.value("Transfer-Encoding"):
            return self._chunks(head)
        return self.exactly(int(head.value("Content-Length") or 0))

    def _chunks(self, head: Message) -> bytes:
        body = b""
        while True:
            size = int(self._line(), 16)
            if not size:
                break
            body += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        while (line := self._line()) != b"\r\n":
            name, _, value = line[:-2].decode("latin-1").partition(":")
            head.fields.append((f"trailer:{name}", value.strip()))
        return body

    def _line(self) -> bytes:
        line = self.until(b"\r\n")
        if not line:
            raise Cut("ended within chunks")
        return line

    def answer(self, method: str = "GET") -> Message:
        """The next final answer; interim ones are skipped."""
        while True:
            head = self.head()
            assert head is not None, "no answer"
            if head.status >= 200 or head.status == 101:
                break
        if method == "HEAD" or head.status in (101, 204, 304):
            return head
        if head.value("Content-Length") or head.value("Transfer-Encoding"):
            head.body = self.body(head)
        else:
            while self.more():
                pass
            head.body = self.take(len(self.waiting))
        return head


def reply(body: bytes | str = b"", status: str = "200 OK", *fields: str) -> bytes:
    """A whole answer with its length."""
    data = body.encode() if isinstance(body, str) else body
    lines = "".join(f"{line}\r\n" for line in fields)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{lines}\r\n".encode() + data


@dataclass
class Asked:
    """A request and the connection to answer it on."""

    request: Message
    wire: Wire
    served: int = 0  # requests on this connection before
    notes: dict[str, str] = field(default_factory=dict)  # kept as long as the connection


Handler = Callable[[Asked], bytes | None]


class Web(Server):
    """Answers every request with its own name, or with what `handler` says (None: the connection is closed)."""

    def __init__(self, name: str, handler: Handler | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(name, host, port)
        self.handler = handler or (lambda asked: reply(f"{name} {asked.request.target}"))
        self.requests: list[Message] = []

    def serve(self, connection: Connection) -> None:
        """Answer until the client ends; of a request that was cut nothing is kept."""
        with contextlib.suppress(Cut):
            self._serve(connection)

    def _serve(self, connection: Connection) -> None:
        number = self.connections.index(connection)
        wire = Wire(connection.socket, connection.read)
        notes: dict[str, str] = {}
        served = 0
        while (request := wire.head()) is not None:
            request.connection = number
            if request.value("Expect"):
                connection.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.body = wire.body(request)
            self.requests.append(request)
            answer = self.handler(Asked(request, wire, served, notes))
            if answer is None:
                return
            connection.socket.sendall(answer)
            served += 1


class SecureWeb(Web):
    """Speaks TLS from the first byte."""

    def __init__(self, name: str, issued: Issued, handler: Handler | None = None) -> None:
        super().__init__(name, handler)
        self.context = issued.server_context()
        self.resumed: list[bool] = []
        self.failed = 0

    def serve(self, connection: Connection) -> None:
        try:
            tls = self.context.wrap_socket(connection.socket, server_side=True)
        except OSError:
            self.failed += 1
            connection.ended = "handshake"
            return
        self.resumed.append(bool(tls.session_reused))
        connection.socket = tls
        super().serve(connection)
