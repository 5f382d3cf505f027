"""The whole program: started, reloaded, hurt and stopped as an operator or an accident does it."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer, Refused, run_cli
from tests.support.waiting import eventually


class Greeter:
    """A real server that says who it is and keeps the connection, in this process and without a thread."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self.socket.getsockname()[1]

    def accept(self) -> socket.socket:
        self.socket.settimeout(10)
        connection, _ = self.socket.accept()
        connection.settimeout(10)
        return connection


@pytest.fixture
def real() -> Iterator[Greeter]:
    greeter = Greeter()
    with greeter.socket:
        yield greeter


def settings(port: int, behind: int, **more: Any) -> dict[str, Any]:
    """One service on `port`, one real server without a check, so that every connect is a session's."""
    service = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "real_servers": {"ex1": behind}, "check": {"type": "none"}}
    return {"user": "", "real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}, **more}


def connected(port: int, real: Greeter) -> tuple[socket.socket, socket.socket]:
    """A session through the balancer: its client end and its server end."""
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    server = real.accept()
    talk(client, server)
    return client, server


def talk(client: socket.socket, server: socket.socket) -> None:
    client.sendall(b"ping")
    assert server.recv(100) == b"ping"
    server.sendall(b"pong")
    assert client.recv(100) == b"pong"


def children(pid: int) -> set[int]:
    listed = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return set(map(int, listed.stdout.split()))


def test_workers_are_the_only_children_and_die_with_their_sessions_alone(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        assert children(balancer.pid) == set(balancer.worker_pids)
        assert status_line(balancer.pid, "Threads") == "1", "it forks"
        sessions = [connected(port, real) for _ in range(12)]
        listed = balancer.command("sessions")["sessions"]
        by_worker = {session["client"]: session["worker"] for session in listed}
        workers = {name(client): by_worker[name(client)] for client, _ in sessions}
        victim = balancer.worker_pids[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(pids := balancer.worker_pids) == 2 and victim not in pids, what="a successor")
        for client, server in sessions:
            if workers[name(client)] == 0:
                assert gone(client)
            else:
                talk(client, server)
        connected(port, real)[0].close()
        status = balancer.status()
        assert [worker["restarts"] for worker in status["workers"]] == [1, 0]
        for pair in sessions:
            for end in pair:
                end.close()


def name(client: socket.socket) -> str:
    host, port = client.getsockname()
    return f"{host}:{port}"


def gone(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_ten_reloads_leave_a_session_alone(tmp_path: Path, real: Greeter) -> None:
    port, others = free_port(), free_ports(10)
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        client, server = connected(port, real)
        for other in others:
            changed = settings(port, real.port)
            changed["services"]["another"] = {**changed["services"]["smtp"], "listen": f"127.0.0.1:{other}"}
            balancer.reload(changed)
            talk(client, server)
        assert balancer.service("another")["listen"] == [f"127.0.0.1:{others[-1]}"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", others[0]))
        client.close()
        server.close()


def test_sighup_reloads_and_says_what_changed(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        changed = settings(port, real.port)
        changed["services"]["smtp"]["ramp_s"] = 7
        balancer.write_config(changed)
        os.kill(balancer.pid, signal.SIGHUP)
        eventually(lambda: balancer.status()["config_version"] == 2)
        assert "ramp_s 300 -> 7" in balancer.log_text()


def test_a_wrong_file_changes_nothing_and_names_every_problem(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        wrong = settings(port, real.port)
        wrong["services"]["smtp"]["schedule"] = "leastconn"
        wrong["services"]["smtp"]["ramp_s"] = -1
        balancer.write_config(wrong)
        with pytest.raises(Refused) as refused:
            balancer.command("reload")
        assert "leastconn" in refused.value.error
        assert "ramp_s" in refused.value.error
        assert balancer.status()["config_version"] == 1
        connected(port, real)[0].close()


def test_a_listener_that_is_taken_changes_nothing(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer, socket.create_server(("127.0.0.1", 0)) as taken:
        other = settings(taken.getsockname()[1], real.port)
        balancer.write_config(other)
        with pytest.raises(Refused, match="already in use by another program"):
            balancer.command("reload")
        connected(port, real)[0].close()


def test_a_changed_number_of_workers_waits_for_a_restart(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        balancer.write_config(settings(port, real.port, workers=3))
        answer = balancer.command("reload")
        assert answer["warnings"] == ["workers 2 -> 3 (needs a restart)"]
        status = balancer.status()
        assert len(status["workers"]) == 2
        assert status["warnings"][-1] == "workers 2 -> 3 (needs a restart)"


def test_stop_lets_sessions_finish(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        client, server = connected(port, real)
        os.kill(balancer.pid, signal.SIGTERM)
        eventually(lambda: not listening(port), what="no new connection is taken")
        talk(client, server)
        assert balancer.service("smtp")["sessions"] == 1
        with pytest.raises(Refused, match="is stopping"):
            balancer.command("drain", real_server="ex1")
        client.close()
        server.close()
        eventually(lambda: not balancer.running)
        assert balancer.stop() == 0
        assert not balancer.control_socket.exists()
        assert "stopped" in balancer.log_text()


def listening(port: int) -> bool:
    """Asked of the kernel: a connection that tries would be one session more."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = [line.split() for line in lines]
    return any(fields[3] == "0A" and fields[1].endswith(f":{port:04X}") for fields in sockets)


def test_a_second_signal_does_not_wait(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        client, server = connected(port, real)
        os.kill(balancer.pid, signal.SIGTERM)
        eventually(lambda: not listening(port))
        assert balancer.running
        assert balancer.stop(signal.SIGINT) == 0
        assert gone(client)
        client.close()
        server.close()


def test_workers_end_when_the_supervisor_is_killed(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    with Balancer(settings(port, real.port), tmp_path) as balancer:
        workers = balancer.worker_pids
        os.kill(balancer.pid, signal.SIGKILL)
        eventually(lambda: not listening(port), what="nobody listens any more")
        eventually(lambda: not any(alive(pid) for pid in workers), what="no worker is left")
        with contextlib.suppress(FileNotFoundError):
            balancer.control_socket.unlink()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_what_the_operator_wanted_survives_a_restart(tmp_path: Path, real: Greeter) -> None:
    with Balancer(settings(free_port(), real.port), tmp_path) as balancer:
        balancer.command("drain", real_server="ex1")
        assert balancer.stop() == 0
        balancer.start()
        assert balancer.real_server("smtp", "ex1")["admin"] == "draining"
        balancer.command("enable", real_server="ex1")
        assert balancer.real_server("smtp", "ex1")["availability"] == "ready"
        assert balancer.real_server("smtp", "ex1")["ramp_percent"] < 100


def test_persistence_survives_a_worker_and_a_restart(tmp_path: Path, real: Greeter) -> None:
    port = free_port()
    persistent = settings(port, real.port)
    persistent["services"]["smtp"]["persist"] = {"by": "source", "group": "cas", "timeout_s": 600}
    with Balancer(persistent, tmp_path) as balancer:
        connected(port, real)[0].close()
        eventually(lambda: bound_keys(balancer) == ["127.0.0.1"], what="the binding is reported")
        assert balancer.stop() == 0
        balancer.start()
        assert bound_keys(balancer) == ["127.0.0.1"]
        assert balancer.command("persistence_clear", group="cas")["cleared"] == 1
        assert bound_keys(balancer) == []


def bound_keys(balancer: Balancer) -> list[str]:
    (group,) = balancer.command("persistence")["groups"]
    return [entry["key"] for entry in group["entries"]]


def test_a_second_balancer_with_the_same_socket_is_refused(tmp_path: Path, real: Greeter) -> None:
    with Balancer(settings(free_port(), real.port), tmp_path) as balancer:
        second = run_cli("run", "-c", str(balancer.config_file))
        assert second.returncode == 1
        assert "another mailbalancer already answers" in second.stderr
        assert "Traceback" not in second.stderr
        assert balancer.status()


def test_a_taken_port_ends_the_start_with_one_line(tmp_path: Path, real: Greeter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        balancer = Balancer(settings(port, real.port), tmp_path)
        started = run_cli("run", "-c", str(balancer.config_file))
    assert started.returncode == 1
    errors = [line for line in started.stderr.splitlines() if "already in use" in line]
    assert len(errors) == 1
    assert f"ss -ltnp 'sport = :{port}'" in errors[0]
    assert not balancer.control_socket.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives privileges up")
def test_root_becomes_the_configured_user(real: Greeter) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        Path(folder).chmod(0o755)
        own = f"{folder}/run/control"
        config = settings(free_port(), real.port, user="nobody", control_socket=own, state_file=f"{folder}/lib/state")
        balancer = Balancer(config, Path(folder))
        balancer.control_socket = Path(own)
        with balancer:
            for pid in (balancer.pid, *balancer.worker_pids):
                assert Path(f"/proc/{pid}").stat().st_uid in (nobody, 0)  # /proc hides the owner of some processes
                uids = status_line(pid, "Uid").split()
                assert uids == [str(nobody)] * 4
            assert int(status_line(balancer.pid, "CapEff"), 16) == 1 << 10
            assert all(int(status_line(pid, "CapPrm"), 16) == 0 for pid in balancer.worker_pids)
            connected(int(balancer.service("smtp")["listen"][0].rpartition(":")[2]), real)[0].close()
            balancer.command("reload")


def status_line(pid: int, word: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(word + ":")).partition(":")[2].strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a user to become")
def test_a_user_that_does_not_exist(tmp_path: Path, real: Greeter) -> None:
    balancer = Balancer(settings(free_port(), real.port, user="mb-missing"), tmp_path)
    started = run_cli("run", "-c", str(balancer.config_file))
    assert started.returncode == 1
    assert "user mb-missing does not exist" in started.stderr
    assert "adduser --system" in started.stderr


def test_systemd_is_told(tmp_path: Path, real: Greeter, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="mb-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{folder}/notify")
        sock.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        with Balancer(settings(free_port(), real.port), tmp_path) as balancer:
            assert sock.recv(100) == b"READY=1"
            balancer.command("reload")
            assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert sock.recv(100) == b"READY=1"
            balancer.stop()
            assert sock.recv(100) == b"STOPPING=1"
