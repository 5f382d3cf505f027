"""What must not be noticed by anybody else: reloads under load, workers that die or hang, a supervisor that goes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import Callers
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.servers import Named
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

RELOADS = 60
HELD = 50


@pytest.fixture
def pair() -> Iterator[tuple[Named, Named]]:
    with Named("ex1", banner="ex1") as ex1, Named("ex2", banner="ex2") as ex2:
        yield ex1, ex2


def config(port: int, pair: tuple[Named, Named], **more: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {server.name: server.port for server in pair},
        "check": "none",
        **more,
    }
    return {"real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.1"}, "services": {"smtp": service}}


class Held:
    """One session that stays open, and proves that it lives."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.lines = self.socket.makefile("rb")
        self.server = self.lines.readline().decode().strip()
        host, local = self.socket.getsockname()
        self.client = f"{host}:{local}"

    def lives(self) -> bool:
        try:
            self.socket.sendall(b"still here\r\n")
            return self.lines.readline() == f"{self.server}: still here\r\n".encode()
        except ConnectionError:
            return False

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@contextlib.contextmanager
def held(port: int, count: int) -> Iterator[list[Held]]:
    sessions = [Held(port) for _ in range(count)]
    try:
        yield sessions
    finally:
        for session in sessions:
            session.close()


def one_line(port: int) -> str:
    """A whole short session; the name of the server."""
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as lines:
        server = lines.readline().decode().strip()
        client.sendall(b"hello\r\n")
        answer = lines.readline().decode().strip()
    assert answer == f"{server}: hello", repr(answer)
    return server


def test_sixty_reloads_under_load_break_nothing(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port, (other, third) = free_port(), free_ports(2)
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, HELD) as sessions:
        with Callers(lambda: one_line(port)) as load:
            for turn in range(RELOADS):
                balancer.write_config(changed(turn, port, other, third, pair))
                answer = balancer.command("reload")
                assert answer["changes"], turn
                if turn % 10 == 0:
                    load.more(5)
            load.more(20)
        assert load.failures == []
        assert [session.client for session in sessions if not session.lives()] == []
        status = balancer.status()
        assert status["config_version"] == RELOADS + 1
        assert {worker["config_version"] for worker in status["workers"]} == {RELOADS + 1}
        assert [worker["restarts"] for worker in status["workers"]] == [0, 0]
        eventually(lambda: balancer.service("smtp")["sessions"] == HELD, what="the board knows the true number")
        assert "internal error" not in balancer.log_text()


def changed(turn: int, port: int, other: int, third: int, pair: tuple[Named, Named]) -> dict[str, Any]:
    """Weights and timeouts differ every time; services and real servers come and go."""
    fresh = config(port, pair, idle_timeout_s=600 + turn, ramp_s=turn % 3, connect_timeout_s=5 + turn % 2)
    fresh["real_servers"]["ex1"] = {"address": "127.0.0.1", "weight": 1 + turn % 5}
    services = fresh["services"]
    if turn % 2:
        services["other"] = {**services["smtp"], "listen": f"127.0.0.1:{other}", "persist": "source"}
    if turn % 3 == 0:
        services["third"] = {**services["smtp"], "listen": f"127.0.0.1:{third if turn % 2 else other}"} | (
            {"listen": f"127.0.0.1:{third}"} if turn % 2 else {}
        )
    if turn % 4 == 0:
        services["smtp"]["real_servers"] = {"ex1": pair[0].port}
    if turn % 5 == 0:
        services["smtp"]["persist"] = {"by": "source", "timeout_s": 60 + turn}
    return fresh


def test_sighups_in_a_storm_are_all_obeyed(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, 5) as sessions:
        for turn in range(30):
            balancer.write_config(config(port, pair, idle_timeout_s=100 + turn))
            os.kill(balancer.pid, signal.SIGHUP)
        eventually(lambda: "-> 129" in balancer.log_text(), what="the last file is applied")
        assert all(session.lives() for session in sessions)
        one_line(port)


def worker_of(balancer: Balancer) -> dict[str, int]:
    return {s["client"]: s["worker"] for s in balancer.command("sessions", limit=1000)["sessions"]}


def test_a_killed_worker_takes_only_its_own_sessions(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, HELD) as sessions:
        at = worker_of(balancer)
        victim = balancer.status()["workers"][0]["pid"]
        mine = [session for session in sessions if at[session.client] == 0]
        assert 0 < len(mine) < HELD
        with Callers(lambda: one_line(port)) as load:
            load.more(10)
            with load.held():  # those in the middle of a call would be its own too
                os.kill(victim, signal.SIGKILL)
            load.more(100)
            eventually(lambda: restarts(balancer) == [1, 0], what="a successor")
        assert load.failures == [], "connections that waited in the dead worker's queue are served by its successor"
        assert not any(session.lives() for session in mine)
        assert all(session.lives() for session in sessions if session not in mine)
        eventually(lambda: balancer.service("smtp")["sessions"] == HELD - len(mine), what="the true number")
        per_server = sum(balancer.real_server("smtp", name)["sessions"] for name in ("ex1", "ex2"))
        assert per_server == HELD - len(mine)
        assert f"worker 0 (process {victim}) was ended by SIGKILL; a new one takes its place" in balancer.log_text()


def restarts(balancer: Balancer) -> list[int]:
    return [worker["restarts"] for worker in balancer.status()["workers"]]


def test_connections_that_wait_while_a_worker_hangs_are_served(pair: tuple[Named, Named], tmp_path: Path) -> None:
    """SIGSTOP: it does not beat, is replaced, and its successor finds the queue as it was."""
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer:
        victims = [worker["pid"] for worker in balancer.status()["workers"]]
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)
        waiting = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(20)]
        for client in waiting:
            assert client.recv(100).strip() in (b"ex1", b"ex2")
            client.close()
        eventually(lambda: restarts(balancer) == [1, 1], what="both are replaced")
        assert not set(victims) & set(balancer.worker_pids)
        assert "is hung" in balancer.log_text()


def test_a_worker_killed_again_and_again(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer:
        for turn in range(1, 6):
            os.kill(balancer.status()["workers"][1]["pid"], signal.SIGKILL)
            eventually(lambda turn=turn: restarts(balancer) == [0, turn], what=f"successor {turn}")
            eventually(lambda: len(balancer.worker_pids) == 2, what="two workers")
            assert {one_line(port) for _ in range(20)} == {"ex1", "ex2"}


def test_a_worker_dies_in_the_middle_of_a_reload(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, Callers(lambda: one_line(port), 1) as load:
        load.more(5)
        with load.held():
            balancer.write_config(config(port, pair, idle_timeout_s=77))
            os.kill(balancer.status()["workers"][0]["pid"], signal.SIGKILL)
            os.kill(balancer.pid, signal.SIGHUP)
        load.more(20)
        eventually(lambda: "-> 77" in balancer.log_text(), what="the reload")
        eventually(lambda: {w["config_version"] for w in balancer.status()["workers"]} == {2}, what="both run it")
        assert load.failures == []


def listening(port: int) -> bool:
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(fields[3] == "0A" and fields[1].endswith(f":{port:04X}") for fields in sockets)


def test_sigterm_drains_then_stops(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, 6) as sessions:
        os.kill(balancer.pid, signal.SIGTERM)
        eventually(lambda: not listening(port), what="no new connection is taken")
        assert all(session.lives() for session in sessions)
        status = balancer.cli("status")
        assert status.returncode == 0, status.stderr
        for session in sessions[:-1]:
            session.close()
        assert sessions[-1].lives()
        assert balancer.running
        sessions[-1].close()
        assert balancer.stop() == 0
        assert not balancer.control_socket.exists()


def test_a_second_sigterm_ends_at_once(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer({**config(port, pair), "stop_timeout_s": 600}, tmp_path) as balancer, held(port, 4) as sessions:
        os.kill(balancer.pid, signal.SIGTERM)
        eventually(lambda: not listening(port))
        assert sessions[0].lives()
        assert balancer.stop(signal.SIGTERM) == 0
        assert not any(session.lives() for session in sessions)
        assert not balancer.control_socket.exists()
        assert balancer.log_text().count("end=stopped") == 4


def test_the_stop_timeout_ends_what_does_not_finish(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with Balancer({**config(port, pair), "stop_timeout_s": 0.5}, tmp_path) as balancer, held(port, 2) as sessions:
        assert balancer.stop() == 0
        assert not any(session.lives() for session in sessions)


def test_workers_outlive_a_killed_supervisor_until_their_sessions_end(
    pair: tuple[Named, Named], tmp_path: Path
) -> None:
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, 4) as sessions:
        workers = balancer.worker_pids
        os.kill(balancer.pid, signal.SIGKILL)
        eventually(lambda: "the supervisor is gone" in balancer.log_text(), what="the workers notice")
        assert all(session.lives() for session in sessions)
        eventually(lambda: not listening(port), what="nobody listens any more")
        for session in sessions:
            session.close()
        eventually(lambda: not any(alive(pid) for pid in workers), what="the workers end")
        # the socket file is still there: a new start must not take it for a running balancer
        balancer.start()
        one_line(port)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_new_balancer_starts_while_old_workers_finish(pair: tuple[Named, Named], tmp_path: Path) -> None:
    """The supervisor was killed; systemd starts it again at once, while old sessions go on."""
    port = free_port()
    with Balancer(config(port, pair), tmp_path) as balancer, held(port, 4) as sessions:
        os.kill(balancer.pid, signal.SIGKILL)
        eventually(lambda: not listening(port), what="the old listeners are closed")
        balancer.start()
        one_line(port)
        assert all(session.lives() for session in sessions)
