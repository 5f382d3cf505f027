"""Small real TCP servers to stand behind a balancer: each does one thing, on a thread of its own per connection.

Decides: how the server side of a test behaves (names itself, stalls, resets, remembers).
Refuses to know: the balancer. A server keeps what it received and from whom, so that a test can ask for the facts.

Every server is a context manager, listens on a port of its own, and can be stopped and started again on that port:

    with Echo("ex1") as ex1, Echo("ex2") as ex2:
        ...
        ex1.stop()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

from tests.support.ports import free_port
from tests.support.waiting import eventually

T = TypeVar("T")

CHUNK = 65536
STOP_TIMEOUT_S = 10.0
#: SO_LINGER on with zero seconds: close() sends a reset instead of FIN.
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Connection:
    """One accepted connection, and all that is known of it."""

    socket: socket.socket
    peer: tuple[str, int]
    received: bytearray = field(default_factory=bytearray)
    count: int = 0  # bytes received, also where they are not kept
    ended: str = ""  # "" while open, then "eof", "reset" or "closed" (by this side)

    def read(self, keep: bool = True) -> bytes:
        """The next bytes; `b""` at the end, with the reason in `ended`."""
        try:
            data = self.socket.recv(CHUNK)
        except ConnectionResetError:
            self.ended = "reset"
            return b""
        except OSError:
            self.ended = self.ended or "closed"
            return b""
        if keep:
            self.received += data
        self.count += len(data)
        if not data:
            self.ended = self.ended or "eof"
        return data

    def reset(self) -> None:
        """End it with RST."""
        self.ended = "closed"
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.socket.close()


class Server:
    """Accepts, and lets `serve` of the class below talk to each connection on a thread.

    Attributes:
        name: what it calls itself in its answers.
        connections: every connection accepted since the first start, in order.
    """

    def __init__(self, name: str = "server", host: str = "127.0.0.1", port: int = 0) -> None:
        self.name = name
        self.host = host
        self.port = port or free_port(host)
        self.connections: list[Connection] = []
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def serve(self, connection: Connection) -> None:
        """Talk to one client. Returning closes the connection."""
        raise NotImplementedError

    def start(self) -> None:
        """Listen. Also after `stop`, on the same port."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.prepare_listener(listener)
        listener.bind((self.host, self.port))
        listener.listen(512)
        self._spawn(self._accept, listener)

    def prepare_listener(self, listener: socket.socket) -> None:
        """Options that accepted connections inherit."""

    def stop(self) -> None:
        """Stop listening and reset every open connection, as a machine that was switched off does."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            self._listener.close()
            self._listener = None
        eventually(self._hung_up, STOP_TIMEOUT_S, f"every connection's thread of {self.name} ends")
        self._threads.clear()

    @property
    def peers(self) -> list[tuple[str, int]]:
        """The address and port each connection came from, in order."""
        return [connection.peer for connection in self.connections]

    @property
    def open(self) -> int:
        """Connections that have not ended."""
        return sum(1 for connection in self.connections if not connection.ended)

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _hung_up(self) -> bool:
        """Hang up everywhere. Again and again: one may just have been accepted, or be on its way into TLS."""
        for connection in self.connections:
            _hang_up(connection)
        return not any(thread.is_alive() for thread in list(self._threads))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, peer = listener.accept()
            except OSError:
                return
            connection = Connection(client, peer[:2])
            self.connections.append(connection)
            self._spawn(self._run, connection)

    def _run(self, connection: Connection) -> None:
        try:
            self.serve(connection)
        except OSError as error:
            connection.ended = connection.ended or ("reset" if isinstance(error, ConnectionError) else "closed")
        finally:
            connection.ended = connection.ended or "closed"
            connection.socket.close()

    def _spawn(self, target: Callable[[T], None], argument: T) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True, name=self.name)
        self._threads.append(thread)
        thread.start()


def _hang_up(connection: Connection) -> None:
    """Reset an open connection under its thread: shutdown wakes a blocked recv, the lingering close sends RST."""
    connection.ended = connection.ended or "closed"
    with contextlib.suppress(OSError):
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.socket.shutdown(socket.SHUT_RDWR)


class Echo(Server):
    """Gives back every byte as it came."""

    def serve(self, connection: Connection) -> None:
        while data := connection.read():
            connection.socket.sendall(data)


class Named(Server):
    """Answers each line with its own name and the line: `ex1: hello`. With `banner`, it speaks first, as SMTP does."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0, banner: str = "") -> None:
        super().__init__(name, host, port)
        self.banner = banner

    def serve(self, connection: Connection) -> None:
        if self.banner:
            connection.socket.sendall(f"{self.banner}\r\n".encode())
        waiting = bytearray()
        while data := connection.read():
            waiting += data
            *lines, rest = waiting.split(b"\n")
            waiting = bytearray(rest)
            for line in lines:
                connection.socket.sendall(self.name.encode() + b": " + line.rstrip(b"\r") + b"\r\n")


class Recorder(Server):
    """Says nothing, keeps everything: `connections[i].received`."""

    def serve(self, connection: Connection) -> None:
        while connection.read():
            pass


class Sink(Server):
    """Says nothing, keeps nothing but the count: for bulk."""

    def serve(self, connection: Connection) -> None:
        while connection.read(keep=False):
            pass


class Source(Server):
    """Sends `payload` to whoever connects, then ends its half and reads what the client still has to say."""

    def __init__(self, name: str, payload: bytes, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(name, host, port)
        self.payload = payload

    def serve(self, connection: Connection) -> None:
        connection.socket.sendall(self.payload)
        connection.socket.shutdown(socket.SHUT_WR)
        while connection.read():
            pass


class AnswerAtEnd(Server):
    """Answers only when the client has ended its half: name, number of bytes. A relay that loses half-close hangs."""

    def serve(self, connection: Connection) -> None:
        while connection.read():
            pass
        connection.socket.sendall(f"{self.name} received {connection.count} bytes\r\n".encode())


class Resetting(Server):
    """Accepts and resets at once: connected, but of no use."""

    def serve(self, connection: Connection) -> None:
        connection.reset()


class Stalled(Server):
    """Accepts and reads nothing before `resume`, with small buffers: what the sender cannot pass on stays with it."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(name, host, port)
        self._resumed = threading.Event()

    def prepare_listener(self, listener: socket.socket) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def resume(self) -> None:
        """Read from now on, as fast as it comes."""
        self._resumed.set()

    def stop(self) -> None:
        self._resumed.set()
        super().stop()

    def serve(self, connection: Connection) -> None:
        self._resumed.wait()
        while connection.read(keep=False):
            pass
