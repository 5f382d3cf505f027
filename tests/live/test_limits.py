"""Limits and what checks and traffic say of a server, with four workers that share one board."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.servers import Named
from tests.support.turned_away import is_turned_away
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


@pytest.fixture
def pair() -> Iterator[tuple[Named, Named]]:
    with Named("ex1", banner="220 ex1") as ex1, Named("ex2", banner="220 ex2") as ex2:
        yield ex1, ex2


def config(port: int, pair: tuple[Named, Named], **more: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {server.name: server.port for server in pair},
        "check": "none",
        "ramp_s": 0,
        **more,
    }
    return {"workers": 4, "real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.1"}, "services": {"smtp": service}}


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def greeted(client: socket.socket) -> str:
    return client.recv(100).decode().strip().removeprefix("220 ")


def places(balancer: Balancer) -> tuple[list[int], int]:
    """Sessions of each real server, and how many wait."""
    service = balancer.service("smtp")
    return [server["sessions"] for server in service["pools"][0]["real_servers"]], service["queued"]


def server_of_a_new_client(port: int) -> str:
    with connect(port) as client:
        return greeted(client)


def sessions_of(balancer: Balancer) -> list[int]:
    return [balancer.real_server("smtp", name)["sessions"] for name in ("ex1", "ex2")]


def test_a_limit_holds_over_all_workers_and_the_queue_is_served(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    limited = config(port, pair, queue={"size": 50, "timeout_s": 60})
    for name in ("ex1", "ex2"):
        limited["real_servers"][name] = {"address": "127.0.0.1", "max_sessions": 5}
    with Balancer(limited, tmp_path) as balancer:
        clients = [connect(port) for _ in range(30)]
        eventually(lambda: places(balancer)[1] + sum(places(balancer)[0]) == 30, what="all have a server or wait")
        # a worker counts before it looks, so the sum may be one too high for a moment, but nobody is served above it
        eventually(lambda: list(places(balancer)[0]) == [5, 5], what="the limit is reached and kept")
        served = 0
        while clients:  # whoever has a server leaves, and somebody who waits has its place
            ready = [client for client in clients if is_greeted(client)]
            for client in ready:
                client.close()
                clients.remove(client)
                served += 1
        assert served == 30
        eventually(lambda: sessions_of(balancer) == [0, 0] and balancer.service("smtp")["queued"] == 0)
        assert balancer.service("smtp")["refused"] == 0


def is_greeted(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(100).startswith(b"220 ex")
    except BlockingIOError:
        return False


def filled(port: int) -> list[socket.socket]:
    """Twenty sessions, one after another: ten on each server."""
    clients, servers = [], []
    for _ in range(20):
        clients.append(connect(port))
        servers.append(greeted(clients[-1]))
    assert sorted(servers) == ["ex1"] * 10 + ["ex2"] * 10
    return clients


def test_a_full_queue_refuses_and_a_dead_workers_places_are_free_again(
    pair: tuple[Named, Named], tmp_path: Path
) -> None:
    port = free_port()
    limited = config(port, pair)
    for name in ("ex1", "ex2"):
        limited["real_servers"][name] = {"address": "127.0.0.1", "max_sessions": 10}
    with Balancer(limited, tmp_path) as balancer:
        clients = filled(port)
        assert is_turned_away(port)
        eventually(lambda: "end=servers_full" in balancer.log_text(), what="its line")
        for worker in balancer.status()["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        eventually(lambda: [w["restarts"] for w in balancer.status()["workers"]] == [1] * 4, what="all are replaced")
        eventually(lambda: sessions_of(balancer) == [0, 0], what="nobody is counted any more")
        for client in clients:
            client.close()
        for client in filled(port):
            client.close()


def test_traffic_finds_a_dead_server_long_before_its_next_check(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    seldom = {"type": "tcp", "interval_s": 3600, "fall": 3}
    with Balancer(config(port, pair, check=seldom, schedule="round_robin"), tmp_path) as balancer:
        eventually(lambda: balancer.real_server("smtp", "ex1")["check"], what="checked once")
        pair[0].stop()
        for _ in range(12):
            assert server_of_a_new_client(port) == "ex2"
        down = eventually(lambda: is_down(balancer, "ex1"), what="down")
        assert "connection refused" in down["last_flip"]["reason"]
        assert down["retried"] >= 3


def is_down(balancer: Balancer, name: str) -> dict[str, Any] | None:
    server = balancer.real_server("smtp", name)
    return server if server["up"] is False else None


def test_a_server_in_maintenance_gets_no_new_clients(pair: tuple[Named, Named], tmp_path: Path) -> None:
    """Exchange greets with 421 4.3.2 when its administrator has put it into maintenance."""
    port = free_port()
    often = {"type": "smtp", "interval_s": 0.5, "timeout_s": 0.5}
    answering = [Answering("ex1", banner="220 ex1"), Answering("ex2", banner="220 ex2")]
    with answering[0] as ex1, answering[1] as ex2:
        with Balancer(config(port, (ex1, ex2), check=often), tmp_path) as balancer:
            eventually(lambda: balancer.real_server("smtp", "ex1")["check"], what="checked")
            held = [connect(port) for _ in range(6)]
            assert {greeted(client) for client in held} == {"ex1", "ex2"}
            ex1.banner = "421 4.3.2 Service not active"
            eventually(lambda: balancer.real_server("smtp", "ex1")["maintenance"], what="maintenance is seen")
            assert balancer.real_server("smtp", "ex1")["availability"] == "returning"
            assert {server_of_a_new_client(port) for _ in range(8)} == {"ex2"}
            for client in held:
                client.sendall(b"NOOP\r\n")
                assert client.recv(100) == b"250 ok\r\n"
                client.close()
            ex1.banner = "220 ex1"
            eventually(lambda: balancer.real_server("smtp", "ex1")["availability"] == "ready", what="it is back")
            assert "ex1" in {server_of_a_new_client(port) for _ in range(8)}
        assert "maintenance" in balancer.log_text()


class Answering(Named):
    """Answers every line with 250, as far as a check wants to know."""

    def serve(self, connection: Any) -> None:
        connection.socket.sendall(f"{self.banner}\r\n".encode())
        while connection.read():
            connection.socket.sendall(b"250 ok\r\n")
