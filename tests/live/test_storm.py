"""Clients and servers that misbehave in every way at once, hundreds of them: afterwards the books are right."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.model import Endpoint
from mailbalancer.wire import proxy_header
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.servers import AnswerAtEnd, Echo, Named, Resetting, Server, Source
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

CLIENTS = 600
THREADS = 12
RESET = struct.pack("ii", 1, 0)
HELLO = bytes.fromhex("16030100c8010000c40303")  # how a ClientHello begins


def behaviours() -> list[bytes]:
    """What a client may say first."""
    header = proxy_header.encode("v2", Endpoint("203.0.113.9", 1), Endpoint("203.0.113.1", 25))
    return [
        b"",
        b"EHLO x\r\n",
        b"QUIT\r\n" * 1000,
        b"x" * 300_000,
        b"P",
        b"PROXY TCP4 1.2.3.4 ",
        b"PROXY UNKNOWN\r\nEHLO x\r\n",
        header[:11],
        header + b"EHLO x\r\n",
        HELLO,
        HELLO + os.urandom(400),
        b"\x16\x03",
        os.urandom(2000),
    ]


def misbehave(port: int, chance: random.Random) -> None:
    """One client: says something, perhaps listens, and goes in one of four ways."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
        client.settimeout(0.05)
        said = chance.choice(behaviours())
        cut = chance.randint(0, len(said))
        client.sendall(said[:cut])
        if chance.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                client.recv(chance.choice([1, 100, 100_000]))
        with contextlib.suppress(TimeoutError):
            client.sendall(said[cut:])
        match chance.randrange(4):
            case 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case 1:
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(TimeoutError):
                    client.recv(100)
            case 2:
                client.shutdown(socket.SHUT_RD)


def storm(ports: list[int], seed: int) -> None:
    def run(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        for _ in range(CLIENTS // THREADS):
            misbehave(chance.choice(ports), chance)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def config(ports: list[int], servers: list[Server], nobody: int) -> dict[str, Any]:
    members = {server.name: server.port for server in servers}
    base = {
        "real_servers": {**members, "gone": nobody},
        "check": "none",
        "connect_timeout_s": 1,
        "idle_timeout_s": 1,
        "ramp_s": 0,
    }
    header = {"accept_from": ["127.0.0.0/8"], "send": "v1", "header_timeout_s": 0.2}
    services = {
        "plain": {"mode": "tcp", **base},
        "pinned": {"mode": "tcp", **base, "persist": "source"},
        "told": {"mode": "tcp", **base, "proxy_protocol": header, "persist": "source"},
        "named": {"mode": "tls", **base, "persist": "tls_session_id"},
        "full": {"mode": "tcp", **base, "max_sessions": 20, "queue": {"size": 5, "timeout_s": 0.2}},
    }
    services["full"]["real_servers"] = {servers[0].name: {"port": servers[0].port, "max_sessions": 3}}
    for service, port in zip(services.values(), ports, strict=True):
        service["listen"] = f"127.0.0.1:{port}"
    return {"real_servers": dict.fromkeys([*members, "gone"], "127.0.0.1"), "services": services}


@pytest.mark.parametrize("seed", range(2))
def test_after_the_storm_the_books_are_right(seed: int, tmp_path: Path) -> None:
    ports = free_ports(5)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(server)
            for server in (
                Named("ex1", banner="220 ex1"),
                Echo("ex2"),
                Resetting("ex3"),
                AnswerAtEnd("ex4"),
                Source("ex5", b"y" * 200_000),
            )
        ]
        balancer = stack.enter_context(Balancer(config(ports, servers, free_port()), tmp_path))
        before = [worker["open_files"] for worker in balancer.status()["workers"]]
        storm(ports, seed)
        eventually(lambda: counted(balancer) == 0, 30, "nobody is counted any more")
        status = balancer.status()
        assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
        # what is above may be idle pipes, two descriptors each, kept for the next bulk
        assert all(w["open_files"] < b + 200 for w, b in zip(status["workers"], before, strict=True))
        assert sum(service["total"] for service in status["services"]) > CLIENTS * 0.9
        total = sum(service["total"] for service in status["services"])
        eventually(lambda: balancer.log_text().count(" session service=") == total, what="one line for each session")
        assert "internal error" not in balancer.log_text()
        assert "fault in mailbalancer" not in balancer.log_text()


def counted(balancer: Balancer) -> int:
    """Sessions, waiting ones included, of services and of real servers."""
    total = 0
    for service in balancer.status()["services"]:
        total += abs(service["sessions"]) + abs(service["queued"])
        total += sum(abs(server["sessions"]) for pool in service["pools"] for server in pool["real_servers"])
    return total
