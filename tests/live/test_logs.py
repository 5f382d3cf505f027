"""What is logged: JSON that parses line by line, syslog on a datagram socket, and nothing a stranger can forge."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.servers import Named
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


@pytest.fixture
def ex1() -> Iterator[Named]:
    with Named("ex1", banner="ex1") as server:
        yield server


def config(port: int, server: Named, **log: Any) -> dict[str, Any]:
    service = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "real_servers": {"ex1": server.port}, "check": "none"}
    return {"real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}, "log": log}


def session(port: int) -> str:
    """One session; the client's address as the log writes it."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        assert client.recv(100) == b"ex1\r\n"
        host, local = client.getsockname()
    return f"{host}:{local}"


def test_json_lines(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, ex1, format="json"), tmp_path) as balancer:
        clients = [session(port) for _ in range(20)]
        balancer.command("drain", real_server="ex1")
        eventually(lambda: balancer.log_text().count('"message": "session"') == 20, what="a line for each")
        assert balancer.stop() == 0
        lines = [json.loads(line) for line in balancer.log_text().splitlines()]
    assert {line["level"] for line in lines} <= {"debug", "info", "warning", "error"}
    assert all(re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z", line["time"]) for line in lines)
    sessions = [line for line in lines if line["message"] == "session"]
    assert sorted(line["client"] for line in sessions) == sorted(clients)
    for line in sessions:
        assert (line["service"], line["server"], line["end"], line["out"]) == ("smtp", "ex1", "client_closed", 5)
        assert line["duration_s"] >= 0
        assert line["why"]


def test_syslog(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="mb-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(f"{folder}/log")
        log.settimeout(10)
        with Balancer(config(port, ex1, to="syslog", syslog_address=f"{folder}/log"), tmp_path):
            client = session(port)
            heard = []
            while not any(f"client={client}" in line for line in heard):
                heard.append(log.recv(65536).decode())
    assert all(re.match(r"<[0-9]+>mailbalancer\[[0-9]+\]: ", line) for line in heard), heard
    assert all("\n" not in line for line in heard)


def test_a_syslog_that_is_not_there_is_said_on_stderr(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, ex1, to="syslog", syslog_address="/no/such/log"), tmp_path) as balancer:
        session(port)
        assert "syslog at /no/such/log cannot be used" in balancer.log_text()
        eventually(lambda: "session service=smtp" in balancer.log_text(), what="lines go to stderr")


def test_the_log_follows_a_reload(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, ex1), tmp_path) as balancer:
        session(port)
        eventually(lambda: " session service=smtp" in balancer.log_text())
        balancer.reload(config(port, ex1, format="json"))
        session(port)
        eventually(lambda: '"message": "session"' in balancer.log_text(), what="JSON from now on")
        balancer.reload(config(port, ex1, sessions=False))
        before = balancer.service("smtp")["total"]
        session(port)
        eventually(lambda: balancer.service("smtp")["total"] == before + 1)
        assert balancer.log_text().count("client=") + balancer.log_text().count('"client"') == 2


def test_a_server_name_cannot_forge_a_line(tmp_path: Path) -> None:
    """What a check heard goes into the log: escaped, on its own line."""
    port = free_port()
    with Named("evil", banner="220 x\x1b[2J\x00\u2028fake 2026-01-01 error\x85forged") as evil:
        service = {
            "mode": "tcp",
            "listen": f"127.0.0.1:{port}",
            "real_servers": {"ex1": evil.port},
            "check": {"type": "smtp", "interval_s": 1, "timeout_s": 1, "fall": 1, "rise": 1},
        }
        plain = {"real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}}
        with Balancer(plain, tmp_path) as balancer:
            eventually(lambda: balancer.real_server("smtp", "ex1")["check"], what="checked")
            shown = balancer.cli("status").stdout + balancer.cli("smoke", "smtp").stdout
            log = balancer.log_text()
    for text in (shown, log):
        assert not set(text) & {"\x1b", "\x00", "\u2028", "\x85"}
