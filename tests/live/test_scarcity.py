"""What runs out on a machine: disk, descriptors, and somebody who reads the log. Mail goes on."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.servers import Named
from tests.support.tools import cannot_run, require, require_root
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


@pytest.fixture
def ex1() -> Iterator[Named]:
    with Named("ex1", banner="ex1") as server:
        yield server


def config(port: int, server: Named, **more: Any) -> dict[str, Any]:
    service = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "real_servers": {"ex1": server.port}, "check": "none"}
    return {"real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}, **more}


def greeted(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        return client.recv(100) == b"ex1\r\n"


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    require_root("mounts a small file system")
    folder.mkdir()
    mounted = subprocess.run(
        [require("mount"), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        cannot_run(f"this container may not mount: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run([require("umount"), "--lazy", str(folder)], check=True)


def test_a_full_disk_is_a_warning_and_the_old_state_stays(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    with small_disk(tmp_path / "disk") as disk:
        state = disk / "state.json"
        with Balancer(config(port, ex1, state_file=str(state)), tmp_path) as balancer:
            balancer.command("drain", real_server="ex1")
            before = state.read_bytes()
            assert b"draining" in before
            with pytest.raises(OSError, match="No space"):
                (disk / "filler").write_bytes(b"x" * 100_000)
            balancer.command("enable", real_server="ex1")
            assert state.read_bytes() == before
            assert "cannot be written (No space left on device)" in balancer.log_text()
            assert greeted(port)
            assert list(disk.iterdir()) != []
            assert not (disk / "state.json.new").exists()
            (disk / "filler").unlink()
            balancer.command("disable", real_server="ex1")
            assert b"disabled" in state.read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": 99}', b"\xff\xfe", b'{"format": 1, "wanted": [[1]]}']
)
def test_a_damaged_state_file_is_a_warning(ex1: Named, tmp_path: Path, content: bytes) -> None:
    port = free_port()
    balancer = Balancer(config(port, ex1), tmp_path)
    balancer.state_file.write_bytes(content)
    with balancer:
        assert greeted(port)
        assert f"state file {balancer.state_file} cannot be used" in balancer.log_text()


def test_a_state_file_that_is_a_directory(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    balancer = Balancer(config(port, ex1), tmp_path)
    balancer.state_file.mkdir()
    with balancer:
        assert greeted(port)
        balancer.command("drain", real_server="ex1")
        assert "cannot be written (Is a directory)" in balancer.log_text()


class SilentReader:
    """A balancer whose stderr is a pipe that nobody reads until `read`."""

    def __init__(self, balancer: Balancer) -> None:
        self._reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        command = [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(balancer.config_file)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, start_new_session=True
        )
        os.close(writing)

    def read(self) -> str:
        """Everything, to the end."""
        with os.fdopen(self._reading, "rb") as reading:
            return reading.read().decode()


def test_a_log_reader_that_does_not_read_stops_nothing(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    balancer = Balancer(config(port, ex1), tmp_path)
    silent = SilentReader(balancer)
    try:
        eventually(lambda: greeted(port), 20, "it serves")
        for _ in range(200):  # some 30 KB of lines, for a pipe of 4
            assert greeted(port)
        assert balancer.status()["services"][0]["total"] >= 201
        assert balancer.command("reload")
        silent.process.terminate()
        assert silent.process.wait(10) == 0
    finally:
        os.killpg(silent.process.pid, signal.SIGKILL) if silent.process.poll() is None else None
        silent.process.wait()
    lines = silent.read().splitlines()
    assert all(" info " in line or " warning " in line for line in lines), "whole lines only"


def test_too_few_descriptors_pause_accepting_and_nothing_is_lost(ex1: Named, tmp_path: Path) -> None:
    port = free_port()
    few = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]
    with Balancer(config(port, ex1, workers=1), tmp_path, under=few) as balancer, ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(200)]
        eventually(lambda: balancer.status()["workers"][0]["paused"], what="accepting pauses")
        eventually(lambda: "not accepting" in balancer.log_text(), what="it is said")
        (worker,) = balancer.status()["workers"]
        assert worker["alive"]
        assert worker["restarts"] == 0
        served = balancer.service("smtp")["sessions"]
        assert 0 < served < 200
        # those that wait are served as the others go
        for client in clients:
            assert client.recv(100) == b"ex1\r\n"
            client.close()
        eventually(lambda: balancer.service("smtp")["sessions"] == 0, what="all are gone")
        assert not balancer.status()["workers"][0]["paused"]
        assert balancer.service("smtp")["total"] == 200
        assert "internal error" not in balancer.log_text()
        assert balancer.real_server("smtp", "ex1")["connect_failed"] == 0
