"""Clients come back to their server, also with four workers, three services and a worker that dies meanwhile."""

from __future__ import annotations

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_ports
from tests.support.program import Balancer
from tests.support.servers import Named
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

SOURCES = [f"127.0.{n % 4}.{10 + n}" for n in range(40)]
SERVERS = ("cas1", "cas2", "cas3")


@pytest.fixture
def mappers() -> Iterator[list[Named]]:
    """Three machines; each answers on the three ports of Exchange RPC with its own name."""
    with ExitStack() as stack:
        yield [stack.enter_context(Named(name, banner=name)) for name in SERVERS]


def config(ports: list[int], machines: list[Named], **more: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "real_servers": {machine.name: machine.port for machine in machines},
        "check": "none",
        "persist": {"by": "source", "group": "rpc", "timeout_s": 600},
        "ramp_s": 0,
    }
    services = {
        name: {**service, "listen": f"127.0.0.1:{port}"}
        for name, port in zip(("mapper", "cas", "book"), ports, strict=True)
    }
    return {"workers": 4, "real_servers": dict.fromkeys(SERVERS, "127.0.0.1"), "services": services, **more}


def answered_by(port: int, source: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 10, (source, 0)) as client:
        return client.recv(100).decode().strip()


def homes(ports: list[int]) -> dict[str, str]:
    """Which server each source has, the same on all ports or the test fails."""
    found = {}
    for source in SOURCES:
        (found[source],) = {answered_by(port, source) for port in ports}
    return found


def test_one_server_per_client_over_three_services_and_four_workers(mappers: list[Named], tmp_path: Path) -> None:
    ports = free_ports(3)
    with Balancer(config(ports, mappers), tmp_path) as balancer:
        first = homes(ports)
        assert set(first.values()) == set(SERVERS)
        assert homes(ports) == first
        assert homes(list(reversed(ports))) == first
        (group,) = balancer.command("persistence", limit=100)["groups"]
        assert {entry["key"]: entry["real_server"] for entry in group["entries"]} == first
        assert busy_workers(ports, balancer) == 4, "the sources are spread over the workers"


def busy_workers(ports: list[int], balancer: Balancer) -> int:
    """How many workers hold sessions when every source has one; and one source is always at one worker."""
    with ExitStack() as stack:
        for source in SOURCES:
            for port in ports:
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10, (source, 0)))
                client.recv(100)
        sessions = balancer.command("sessions", limit=1000)["sessions"]
        assert len(sessions) == len(SOURCES) * len(ports)
        workers = {(s["client"].rpartition(":")[0], s["worker"]) for s in sessions}
        assert max(Counter(client for client, _ in workers).values()) == 1
    return len({worker for _, worker in workers})


def test_clients_keep_their_server_when_workers_die(mappers: list[Named], tmp_path: Path) -> None:
    ports = free_ports(3)
    with Balancer(config(ports, mappers), tmp_path) as balancer:
        first = homes(ports)
        eventually(lambda: entries(balancer) == len(SOURCES), what="the supervisor knows every client")
        for turn in range(4):
            os.kill(balancer.status()["workers"][turn]["pid"], signal.SIGKILL)
            eventually(lambda turn=turn: balancer.status()["workers"][turn]["restarts"] == 1, what="a successor")
            assert homes(ports) == first


def entries(balancer: Balancer) -> int:
    (group,) = balancer.command("persistence", limit=100)["groups"]
    return len(group["entries"])


def test_clients_keep_their_server_over_reloads_and_a_restart(mappers: list[Named], tmp_path: Path) -> None:
    ports = free_ports(3)
    with Balancer(config(ports, mappers), tmp_path) as balancer:
        first = homes(ports)
        changed = config(ports, mappers)
        del changed["services"]["book"]
        balancer.reload(changed)
        balancer.reload(config(ports, mappers))
        assert homes(ports) == first
        eventually(lambda: entries(balancer) == len(SOURCES), what="the supervisor knows every client")
        assert balancer.stop() == 0
        balancer.start()
        assert homes(ports) == first


def test_clients_of_a_dead_server_move_together_and_stay_there(mappers: list[Named], tmp_path: Path) -> None:
    ports = free_ports(3)
    with Balancer(config(ports, mappers), tmp_path) as balancer:
        first = homes(ports)
        mappers[0].stop()
        second = homes(ports)
        assert all(second[s] == first[s] for s in SOURCES if first[s] != "cas1")
        assert "cas1" not in second.values()
        mappers[0].start()
        assert homes(ports) == second, "nobody moves back"
        moved = sum(balancer.real_server(name, "cas2")["moved"] for name in ("mapper", "cas", "book"))
        moved += sum(balancer.real_server(name, "cas3")["moved"] for name in ("mapper", "cas", "book"))
        assert moved == list(first.values()).count("cas1")
