"""The return of a server: which share of the new sessions it is given, second by second, beside the line it promised.

Decides: when the ramp began (the first check the returned server answered), and how far a second was above the line.
The line goes from nothing to the fair share, one half, over the ramp; a second is compared with its middle.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bench.proxies import CHECK_INTERVAL_S
from tests.support.ports import free_port

HELD = 200
NEW_PER_S = 25
FAIR_SHARE = 0.5
DOWN_TIMEOUT_S = 10.0
HELLO = b"session\n"


@dataclass(frozen=True, slots=True)
class Ramp:
    """Share of new sessions that the returned server took, for each second of the ramp."""

    shares: tuple[float, ...]

    @property
    def worst_excess(self) -> float:
        """The most that any second was above the line, in points (hundredths of all new sessions)."""
        return max(100 * (share - line(second, len(self.shares))) for second, share in enumerate(self.shares))

    def words(self) -> str:
        """The shares in percent, one number per second."""
        return " ".join(f"{100 * share:.0f}" for share in self.shares)


def line(second: int, seconds: int) -> float:
    """The linear ramp to the fair share, in the middle of this second."""
    return FAIR_SHARE * (second + 0.5) / seconds


@dataclass(slots=True)
class NamedServer:
    """Answers a session's first line with its name and holds it. A check says something else, or nothing."""

    name: bytes
    port: int = field(default_factory=free_port)
    first_seen_at: float = 0.0
    _listener: socket.socket | None = None

    def listen(self) -> None:
        """From now on it can be connected to, and so is up in the eyes of a check; `serve` answers."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)

    async def serve(self) -> asyncio.Server:
        """Answer sessions until the returned server is closed."""
        assert self._listener is not None, "listen first"
        return await asyncio.get_running_loop().create_server(lambda: _Answer(self), sock=self._listener)


class _Answer(asyncio.Protocol):
    """One connection of a NamedServer; it stays open as long as the client wants."""

    def __init__(self, server: NamedServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.first_seen_at = self._server.first_seen_at or time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._server.name if data == HELLO else b"ok")


class Clients:
    """Sessions through one proxy; every one stays open until the end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> bytes:
        """One more session: the name of the server it reached; empty when it reached none."""
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self._writers.append(writer)
                writer.write(HELLO)
                return await reader.read(1)
        except (OSError, TimeoutError):
            return b""

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


async def watch_return(port: int, stays: NamedServer, returns: NamedServer, ramp_s: int) -> Ramp:
    """Hold sessions on the one server, let the other come back, and count where new sessions go.

    The proxy at `port` has been told of both servers; `stays` listens, `returns` is down.

    Raises:
        RuntimeError: sessions were refused, or the server was never checked.
    """
    clients = Clients(port)
    servers = [await stays.serve()]
    try:
        await asyncio.sleep(3 * CHECK_INTERVAL_S)  # the proxy has seen that the other one is down
        for _ in range(HELD):
            if await clients.open() != stays.name:
                raise RuntimeError("a held session did not reach the server that is up")
        returns.listen()
        servers.append(await returns.serve())
        await _until(lambda: returns.first_seen_at > 0, "the returned server is checked")
        reached = await _new_sessions(clients, returns.first_seen_at, ramp_s)
    finally:
        clients.close()
        for server in servers:
            server.close()
    return Ramp(tuple(_share(reached[s], returns.name) for s in range(ramp_s)))


async def _new_sessions(clients: Clients, began_at: float, seconds: int) -> list[list[bytes]]:
    """New sessions at a steady pace: the names they reached, by second."""
    reached: list[list[bytes]] = [[] for _ in range(seconds)]
    start = time.monotonic()
    for number in range(NEW_PER_S * (seconds + 1)):
        await asyncio.sleep(max(0.0, start + number / NEW_PER_S - time.monotonic()))
        second = int(time.monotonic() - began_at)
        if second >= seconds:
            break
        reached[second].append(await clients.open())
    return reached


def _share(reached: list[bytes], name: bytes) -> float:
    if b"" in reached:
        raise RuntimeError(f"{reached.count(b'')} new sessions were refused during the ramp")
    return reached.count(name) / len(reached) if reached else 0.0


async def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DOWN_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {DOWN_TIMEOUT_S:g} s in vain: {what}")
        await asyncio.sleep(0.01)
