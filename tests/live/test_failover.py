"""A server dies under load, is seen to be down, and returns gently; the operator drains, disables and enables."""

from __future__ import annotations

import smtplib
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.callers import Callers
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Postfix
from tests.support.servers import Named
from tests.support.swaks import deliver
from tests.support.turned_away import is_turned_away
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

INTERVAL_S = 0.5


def smtp_config(port: int, *servers: Postfix, **more: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {server.name: server.port for server in servers},
        "check": {"type": "smtp", "interval_s": INTERVAL_S, "timeout_s": 5, "rise": 2, "fall": 3},
        **more,
    }
    return {"real_servers": {s.name: "127.0.0.1" for s in servers}, "services": {"smtp": service}}


def message_through(port: int) -> str:
    """Hand one message over; the name of the server that took it."""
    with smtplib.SMTP(timeout=10) as client:
        _, greeting = client.connect("127.0.0.1", port)
        client.sendmail("sender@example.org", ["somebody@example.com"], "Subject: load\r\n\r\nhello\r\n")
    return greeting.split(b".")[0].decode()


def test_a_server_dies_under_load_and_returns(mx1: Postfix, mx2: Postfix, mx3: Postfix, tmp_path: Path) -> None:
    port = free_port()
    config = smtp_config(port, mx1, mx2, mx3, ramp_s=3600, schedule="round_robin")
    with Balancer(config, tmp_path) as balancer:
        eventually(lambda: all(s["check"] for s in servers(balancer, "smtp")), what="all are checked")
        with Callers(lambda: message_through(port)) as load:
            assert set(load.more(30)) == {"mx1", "mx2", "mx3"}
            with load.held():
                mx2.kill()
            after = load.more(30)  # the first of them find the port closed, and another server
            flip = eventually(lambda: is_up(balancer, "mx2", False), what="mx2 is down")
            assert "mx2" not in after
            deliver(port)  # also for a client that knows nothing of all this
            assert flip["retried"] + flip["connect_failed"] > 0
            assert load.failures == []

            mx2.start()
            eventually(lambda: is_up(balancer, "mx2", True), what="mx2 is back")
            # an hour of ramp has only begun: of these it may take a few, never its third
            shares = load.more(200)
            assert shares.count("mx2") <= len(shares) * 0.1, f"{shares.count('mx2')} of {len(shares)}"
            assert load.failures == []
            returned = balancer.real_server("smtp", "mx2")
            assert (returned["availability"], returned["ramp_percent"]) == ("ready", 0)
        log = balancer.log_text()
        assert "smtp: mx2 is down: " in log
        assert "2 of 3 real servers are ready" in log
        assert "smtp: mx2 is up: " in log
        assert "tried=mx2" in log


def servers(balancer: Balancer, service: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = balancer.service(service)["pools"][0]["real_servers"]
    return found


def is_up(balancer: Balancer, name: str, up: bool) -> dict[str, Any] | None:
    server = balancer.real_server("smtp", name)
    return server if server["up"] is up else None


def test_down_within_three_checks_also_without_any_traffic(
    mx1: Postfix, certificate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a line is not folded
    with (
        Postfix("victim", certificate) as victim,
        Balancer(smtp_config(free_port(), mx1, victim), tmp_path) as balancer,
    ):
        eventually(lambda: balancer.real_server("smtp", "victim")["check"], what="checked")
        victim.kill()
        down = eventually(lambda: is_up(balancer, "victim", False), what="down")
        assert "connection refused" in down["last_flip"]["reason"]
        assert "3 of 3 checks failed" in down["last_flip"]["reason"]
        row, *below = [line for line in balancer.cli("status").stdout.splitlines() if "victim" in line]
        assert "down" in row
        assert any("connection refused" in line for line in below)


def test_every_server_down_is_a_reset_and_an_error_in_the_log(tmp_path: Path) -> None:
    port, (nobody, none) = free_port(), free_ports(2)
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {"ex1": nobody, "ex2": none},
        "check": {"type": "tcp", "interval_s": INTERVAL_S},
    }
    config = {"real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.1"}, "services": {"smtp": service}}
    with Balancer(config, tmp_path) as balancer:
        eventually(lambda: all(s["up"] is False for s in servers(balancer, "smtp")), what="both are down")
        assert is_turned_away(port)
        eventually(lambda: "end=no_server" in balancer.log_text(), what="the session's line")
        assert "0 of 2 real servers are ready: new sessions are refused" in balancer.log_text()
        assert balancer.service("smtp")["refused"] >= 1


@pytest.fixture
def pair() -> Any:
    with Named("ex1", banner="ex1") as ex1, Named("ex2", banner="ex2") as ex2:
        yield ex1, ex2


def persistent(port: int, pair: tuple[Named, Named]) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {server.name: server.port for server in pair},
        "check": "none",
        "persist": "source",
        "ramp_s": 0,
    }
    return {"real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.1"}, "services": {"smtp": service}}


def greeted(port: int, source: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 10, (source, 0)) as client:
        return client.recv(100).decode().strip()


def test_the_operator_drains_disables_and_enables(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    clients = [f"127.0.0.{n}" for n in range(10, 30)]
    with Balancer(persistent(port, pair), tmp_path) as balancer:
        home = {client: greeted(port, client) for client in clients}
        assert set(home.values()) == {"ex1", "ex2"}
        at_ex1 = [client for client in clients if home[client] == "ex1"]

        assert balancer.cli("drain", "smtp", "ex1").stdout.strip() == "smtp/ex1: draining"
        assert {client: greeted(port, client) for client in clients} == home, "returning clients still go there"
        assert {greeted(port, f"127.0.1.{n}") for n in range(1, 20)} == {"ex2"}, "new ones do not"

        balancer.cli("disable", "ex1")
        held = socket.create_connection(("127.0.0.1", port), 10, (at_ex1[0], 0))
        assert held.recv(100).strip() == b"ex2"
        assert {greeted(port, client) for client in at_ex1} == {"ex2"}, "closed to everybody"
        assert balancer.real_server("smtp", "ex2")["moved"] == len(at_ex1)

        assert balancer.cli("enable", "smtp", "ex1").returncode == 0
        assert "ex1" in {greeted(port, f"127.0.2.{n}") for n in range(1, 20)}
        held.sendall(b"still here\r\n")
        assert held.recv(100) == b"ex2: still here\r\n"
        held.close()
        for word in ("draining", "disabled", "enabled"):
            assert word in balancer.log_text()


@pytest.mark.parametrize("command", [("drain", "smtp", "ex9"), ("drain", "nosuch", "ex1"), ("enable", "ex9")])
def test_a_name_that_does_not_exist_is_an_error_with_the_names_that_do(
    pair: tuple[Named, Named], tmp_path: Path, command: tuple[str, ...]
) -> None:
    with Balancer(persistent(free_port(), pair), tmp_path) as balancer:
        answer = balancer.cli(*command)
        assert answer.returncode == 1
        assert len(answer.stderr.splitlines()) == 1
        assert "did you mean ex" in answer.stderr or "smtp" in answer.stderr, answer.stderr


def test_sessions_shows_who_is_where_and_why(pair: tuple[Named, Named], tmp_path: Path) -> None:
    port = free_port()
    with (
        Balancer(persistent(port, pair), tmp_path) as balancer,
        socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.9", 0)) as client,
    ):
        server = client.recv(100).decode().strip()
        shown = " ".join(balancer.cli("sessions").stdout.split())
        assert f"127.0.0.9:{client.getsockname()[1]}" in shown
        assert server in shown
        (listed,) = balancer.command("sessions", service="smtp")["sessions"]
        assert listed["server"] == server
        assert listed["why"] in ("least_connections", "persistence")
        listing = balancer.cli("persistence", "list").stdout
        assert "127.0.0.9" in listing
        assert balancer.cli("persistence", "clear", "--key", "127.0.0.9").stdout.strip() == "1 forgotten"
