"""What a connection costs that does nothing: mail clients are mostly idle, and there are thousands of them.

Decides: the difference a proxy's memory makes between no connection and many, each after one answered request, so
that buffers which are only made when needed have been needed once.
"""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import time
from dataclasses import dataclass

from tests.bench.machine import memory
from tests.bench.proxies import Running

CONNECTIONS = 3000
AT_ONCE = 100
DEADLINE_S = 30.0
REQUEST = b"GET /small HTTP/1.1\r\nHost: bench\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes per idle connection."""

    pss: float
    rss: float


def idle_cost(proxy: Running, connections: int = CONNECTIONS) -> Cost:
    """Hold idle connections through the proxy, and divide what its processes grew by their number."""
    allow_files(connections + 200)
    with contextlib.ExitStack() as clients:
        _open(clients, proxy.port, AT_ONCE)  # what is made once, at the first connections, belongs to nobody
        before = memory(proxy.pid)
        for _ in range(0, connections, AT_ONCE):
            _open(clients, proxy.port, AT_ONCE)
        after = memory(proxy.pid)
    return Cost((after.pss - before.pss) / connections, (after.rss - before.rss) / connections)


def allow_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard) if hard > 0 else count, hard))


def _open(clients: contextlib.ExitStack, port: int, count: int) -> None:
    """Open `count` connections, ask once on each, read the whole answer, and leave them open."""
    deadline = time.monotonic() + DEADLINE_S
    with selectors.DefaultSelector() as waiting:
        for _ in range(count):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            client.sendall(REQUEST)
            waiting.register(client, selectors.EVENT_READ, bytearray())
        while waiting.get_map():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(waiting.get_map())} of {count} connections got no answer in {DEADLINE_S:g} s")
            for key, _ in waiting.select(1):
                if _answered(key.fileobj, key.data):
                    waiting.unregister(key.fileobj)


def _answered(client: object, received: bytearray) -> bool:
    assert isinstance(client, socket.socket)
    data = client.recv(4096)
    if not data:
        raise RuntimeError("a connection was closed before it was answered")
    received += data
    _head, found, body = received.partition(b"\r\n\r\n")
    return bool(found) and len(body) >= 1024
