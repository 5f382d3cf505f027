"""What clients of an `smtp` service are shown after EHLO: one list, whichever worker and whichever server they meet."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail_servers import SmtpServer
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.smtp_client import Talk
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

ROUNDS = 12


@pytest.fixture
def servers() -> Iterator[list[SmtpServer]]:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2, SmtpServer("mx3") as mx3:
        mx1.capabilities = ("SIZE 30000000", "PIPELINING", "CHUNKING", "BINARYMIME", "AUTH PLAIN LOGIN")
        mx2.capabilities = ("PIPELINING", "AUTH LOGIN", "SIZE 20000000", "CHUNKING")
        mx3.capabilities = ("PIPELINING", "SIZE 10000000", "AUTH LOGIN CRAM-MD5")
        yield [mx1, mx2, mx3]


def config(port: int, *servers: SmtpServer, check: str = "smtp") -> dict[str, Any]:
    mx = {
        "mode": "smtp",
        "listen": f"127.0.0.1:{port}",
        "hostname": "lb.test",
        "schedule": "round_robin",
        "ramp_s": 0,
        "real_servers": {server.name: server.port for server in servers},
        "check": {"type": check, "interval_s": 0.5, "timeout_s": 5},
    }
    return {"workers": 2, "real_servers": {s.name: "127.0.0.1" for s in servers}, "services": {"mx": mx}}


def shown(port: int) -> list[str]:
    """What one client is shown."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        talk = Talk(sock)
        lines = talk.begin().decode().splitlines()
        talk.say(b"QUIT")
        assert lines[0] == "250-lb.test"
        return [line[4:] for line in lines[1:]]


def known(balancer: Balancer) -> list[str]:
    found: list[str] = balancer.service("mx")["capabilities"]
    return found


def test_every_client_sees_one_list_before_anybody_has_come(tmp_path: Path, servers: list[SmtpServer]) -> None:
    port = free_port()
    mx1, mx2, mx3 = servers
    two = ["SIZE 20000000", "PIPELINING", "CHUNKING", "AUTH LOGIN"]
    with Balancer(config(port, mx1, mx2), tmp_path) as balancer:
        eventually(lambda: known(balancer) == two, what="the checks have heard both")
        assert [shown(port) for _ in range(ROUNDS)] == [two] * ROUNDS
        balancer.reload(config(port, mx1, mx2, mx3))
        three = ["SIZE 10000000", "PIPELINING", "AUTH LOGIN"]
        eventually(lambda: known(balancer) == three, what="the third has joined")
        assert [shown(port) for _ in range(ROUNDS)] == [three] * ROUNDS
        assert "mx: clients are not shown CHUNKING, because mx3 does not offer it" in balancer.log_text()
        balancer.reload(config(port, mx1, mx2))
        eventually(lambda: known(balancer) == two, what="the third has left")
        mx2.capabilities = ("PIPELINING", "SIZE 50")
        eventually(lambda: known(balancer) == ["SIZE 50", "PIPELINING"], what="the check has heard that it has changed")
        eventually(lambda: shown(port) == ["SIZE 50", "PIPELINING"])


def test_without_a_check_workers_share_what_sessions_hear(tmp_path: Path, servers: list[SmtpServer]) -> None:
    port = free_port()
    mx1, mx2, _ = servers
    with Balancer(config(port, mx1, mx2, check="tcp"), tmp_path) as balancer:
        assert known(balancer) == []
        two = ["SIZE 20000000", "PIPELINING", "CHUNKING", "AUTH LOGIN"]

        def heard() -> bool:
            shown(port)
            return known(balancer) == two

        eventually(heard, what="sessions have met both servers")
        eventually(lambda: all(shown(port) == two for _ in range(ROUNDS)), what="both workers show the same")


def test_a_server_never_promises_more_than_it_offers_this_client(tmp_path: Path, servers: list[SmtpServer]) -> None:
    """It may show strangers less than it shows the check."""
    port = free_port()
    mx1, _, _ = servers
    with Balancer(config(port, mx1, check="tcp"), tmp_path) as balancer:
        assert "AUTH PLAIN LOGIN" in shown(port)
        mx1.capabilities = ("PIPELINING",)
        assert shown(port) == ["PIPELINING"]
        mx1.capabilities = ("PIPELINING", "DSN")
        assert shown(port) == ["PIPELINING", "DSN"]
        eventually(lambda: "DSN" in known(balancer))


def test_a_worker_that_is_replaced_knows_the_list(tmp_path: Path, servers: list[SmtpServer]) -> None:
    port = free_port()
    mx1, mx2, _ = servers
    two = ["SIZE 20000000", "PIPELINING", "CHUNKING", "AUTH LOGIN"]
    with Balancer(config(port, mx1, mx2), tmp_path) as balancer:
        eventually(lambda: known(balancer) == two)
        before = balancer.worker_pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(balancer.worker_pids) == 2 and not set(before) & set(balancer.worker_pids))
        eventually(lambda: all(w["config_version"] for w in balancer.status()["workers"]))
        assert [shown(port) for _ in range(ROUNDS)] == [two] * ROUNDS
