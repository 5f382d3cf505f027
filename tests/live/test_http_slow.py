"""A thousand clients that never finish a head, half of them over TLS: what they cost, and how they end."""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.web import Web, Wire

pytestmark = pytest.mark.live

NAME = "mail.example.com"
EACH = 500
#: Promised for each; the machine's own buffers are not the worker's.
MOST_BYTES = 20_000
TIMEOUT_S = 30.0
HALF_A_HEAD = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nCookie: {'x' * 1000}".encode()


def held_kib(balancer: Balancer) -> int:
    """What all workers hold for themselves (proc(5) `smaps_rollup`)."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in balancer.worker_pids]
    return sum(int(text.partition("\nPss:")[2].split()[0]) for text in texts)


def test_slow_heads_are_cheap_and_cut(authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    plain, encrypted = free_port(), free_port()
    context = authority.client_context()
    with Web("web1") as web1, ExitStack() as clients:
        common = {
            "mode": "http",
            "limits": {"head_timeout_s": 5},
            "check": "none",
            "real_servers": {"web1": web1.port},
        }
        config = {
            "certificates": {"mail": str(certificate.pem)},
            "real_servers": {"web1": "127.0.0.1"},
            "services": {
                "plain": {**common, "listen": f"127.0.0.1:{plain}"},
                "encrypted": {**common, "listen": f"127.0.0.1:{encrypted}", "client_tls": {"certificate": "mail"}},
            },
        }

        def connect(port: int) -> socket.socket:
            return clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S))

        def secure() -> ssl.SSLSocket:
            return clients.enter_context(context.wrap_socket(connect(encrypted), server_hostname=NAME))

        with Balancer(config, tmp_path) as balancer:
            good = secure(), connect(plain)
            assert [answered(client) for client in good] == [200, 200]
            before = held_kib(balancer)
            slow = [begun(connect(plain)) for _ in range(EACH)] + [begun(secure()) for _ in range(EACH)]
            assert [answered(client) for client in good] == [200, 200]
            each = (held_kib(balancer) - before) * 1024 / len(slow)
            print(f"{each:.0f} bytes each")
            assert each <= MOST_BYTES, f"{each:.0f} bytes for each slow client"
            assert {Wire(client).answer().status for client in slow} == {408}
            assert {client.recv(1) for client in slow} == {b""}
            assert [answered(client) for client in good] == [200, 200]
        assert len(web1.requests) == 6, "nothing of a slow one was passed on"


def begun(client: socket.socket) -> socket.socket:
    """At once, before its time is over: whoever says nothing at all is only closed."""
    client.sendall(HALF_A_HEAD)
    return client


def answered(client: socket.socket) -> int:
    client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
    return Wire(client).answer().status
