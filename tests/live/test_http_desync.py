"""Damaged requests through the balancer to nginx and to Apache: they must have read the requests that we passed on.

Whoever makes two of our one, or one of our two, has been brought out of step, and would give somebody's answer to
somebody else. `MAILBALANCER_DAMAGED=20000` sends more than the few that are sent every time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.support.apache import Apache
from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.real_servers import Nginx
from tests.support.waiting import eventually
from tests.wire.damage import NOISE, edited
from tests.wire.http_corpus import REQUESTS, request

pytestmark = pytest.mark.live

NAME = "mail.example.com"
DAMAGED = int(os.environ.get("MAILBALANCER_DAMAGED", "600"))
BATCH = 100
SMALL = [case.data for case in REQUESTS if len(case.data) < 3000]
#: Behind each payload: whoever reads that in another way finds it elsewhere.
PROBE = request(b"GET /probe HTTP/1.1", b"Connection: close")


def damaged(rng: random.Random) -> bytes:
    """One or two payloads of the corpus, changed in up to three places."""
    data = b"".join(rng.choices(SMALL, k=rng.choice((1, 1, 2))))
    changes = [
        (rng.randrange(2000), rng.choice((0, 0, 1, 1, 2, 5)), rng.choice((b"", *NOISE)))
        for _ in range(rng.randrange(4))
    ]
    return edited(data, changes) + PROBE


def send(port: int, data: bytes) -> None:
    """Say all of it, whatever is answered, and wait for the end."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def passed_on(balancer: Balancer) -> list[str]:
    """Methods and paths of the requests that were sent to a server, by our log."""
    lines = [json.loads(line) for line in balancer.log_text().splitlines() if line.startswith("{")]
    lines = [line for line in lines if line["message"] == "request" and line["server"]]
    return [plain(f"{line['method']} {line['path'] or '*'}") for line in lines]


def received(server: Nginx | Apache) -> list[str]:
    """The same of the requests that the server read, by its own log."""
    found = re.findall(r'^127\.0\.0\.1 - - \[[^]]*\] "(.*?) HTTP/1\.1"', server.log_text(), re.MULTILINE)
    return [plain(line.partition("?")[0]) for line in found]


def plain(line: str) -> str:
    """Without what each log escapes in a way of its own, and as far as ours tells a path; CONNECT has none."""
    method, _, _ = line.partition(" ")
    return method if method == "CONNECT" else re.sub(r"\\x[0-9A-F]{2}|[^A-Za-z0-9/._* -]", "", line)[:100]


def agree(passed: list[str], read: list[str]) -> bool:
    ours, theirs = Counter(passed), Counter(read)
    assert ours == theirs, f"only passed on: {ours - theirs}; only received: {theirs - ours}"
    return True


@pytest.mark.parametrize("kind", [Nginx, Apache], ids=["nginx", "apache"])
def test_servers_read_the_requests_that_we_passed_on(
    kind: type[Nginx | Apache], authority: Authority, certificate: Issued, tmp_path: Path
) -> None:
    rng, port = random.Random(20), free_port()
    with kind("web", certificate) as server:
        service = {
            "mode": "http",
            "listen": f"127.0.0.1:{port}",
            "server_tls": {"verify": {"ca": str(authority.file), "name": NAME}},
            "check": "none",
            "real_servers": {"web": server.https_port},
        }
        config = {
            "log": {"format": "json"},
            "real_servers": {"web": "127.0.0.1"},
            "services": {"web": service},
            "workers": 1,
        }
        with Balancer(config, tmp_path) as balancer:
            before = len(received(server))
            for _ in range(0, DAMAGED, BATCH):
                for _ in range(BATCH):
                    send(port, damaged(rng))
                eventually(lambda: agree(passed_on(balancer), received(server)[before:]), what="the same there as here")
            assert len(passed_on(balancer)) > DAMAGED // 20, "and not because nothing was passed on"
