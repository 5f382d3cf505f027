"""The real program is started, asked, reloaded and stopped by tests as this module does it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer, Refused, run_cli
from tests.support.servers import Named
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


@pytest.fixture
def ex1() -> Iterator[Named]:
    with Named("ex1", banner="220 ex1 ready") as server:
        yield server


def config_for(server: Named, port: int) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "check": {"type": "tcp", "interval_s": 1, "timeout_s": 1},
        "real_servers": {"ex1": server.port},
    }
    return {"real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}}


def test_a_session_is_served_and_counted_and_outlives_a_reload(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    config = config_for(ex1, port)
    with Balancer(config, tmp_path) as balancer:
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            assert client.recv(100) == b"220 ex1 ready\r\n"
            assert balancer.real_server("smtp", "ex1")["sessions"] == 1
            config["services"]["smtp"]["idle_timeout_s"] = 77
            assert balancer.reload(config)["config_version"] == 2
            client.sendall(b"still here\r\n")
            assert client.recv(100) == b"ex1: still here\r\n"
        eventually(lambda: balancer.real_server("smtp", "ex1")["sessions"] == 0, what="the session is gone")
        assert len(balancer.worker_pids) == 2
        assert balancer.cli("status", "--json").returncode == 0
        assert balancer.stop() == 0
        assert not balancer.running


def test_a_wrong_file_is_refused_and_the_old_one_goes_on(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config_for(ex1, port), tmp_path) as balancer:
        with pytest.raises(Refused, match="nonsense"):
            balancer.reload("version: 1\nnonsense: true\n")
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            assert client.recv(100) == b"220 ex1 ready\r\n"


def test_a_start_that_fails_shows_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exit code 1"), Balancer("nonsense: true\n", tmp_path):
        pass


def test_the_command_line_ends_with_its_exit_code() -> None:
    assert run_cli("--version").stdout.startswith("mailbalancer ")
    assert run_cli("no-such-command").returncode == 2
