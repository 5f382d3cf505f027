"""A server that is taken out for patching and comes back: what is said of it, and with the real program."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.admin import maintenance
from mailbalancer.admin.components import components
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually


def server(name: str, sessions: int = 0, availability: str = "ready", ramp: int = 100, **more: Any) -> dict[str, Any]:
    state = {"up": True, "admin": "enabled", "maintenance": False, "back_pressure": False, "max_sessions": 0}
    drain = {"drain_ends_in_s": None, "check": None}
    return {
        "name": name,
        "sessions": sessions,
        "availability": availability,
        "ramp_percent": ramp,
        **state,
        **drain,
        **more,
    }


def report(*pools: list[dict[str, Any]], stage: str = "draining", **more: Any) -> dict[str, Any]:
    services = [
        {"name": f"s{at}", "pools": [{"route": "", "real_servers": servers}]} for at, servers in enumerate(pools)
    ]
    one = {"real_server": "a", "services": [], "stage": stage, "until_in_s": None, "by": "operator", **more}
    return {"services": services, "maintenance": {"active": [one] if stage else [], "windows": []}}


class Script:
    """A balancer that tells one report after the other."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self.reports = list(reports)
        self.said: list[str] = []

    def ask(self, command: str, **arguments: object) -> Any:
        assert command == "status"
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]

    def empties(self, patience: int = 10) -> bool:
        rounds = iter(range(patience))
        return maintenance.until_empty(self.ask, self.said.append, lambda: next(rounds, None) is not None, "a")

    def returns(self) -> bool:
        return maintenance.until_back(self.ask, self.said.append, lambda: True, "a")


def test_it_tells_how_it_empties() -> None:
    script = Script(
        report([server("a", 2, drain_ends_in_s=61.0), server("b")]),
        report([server("a", 2, drain_ends_in_s=60.0), server("b")]),
        report([server("a", 1), server("b")]),
        report([server("a", 0), server("b")], stage="empty", until_in_s=3600.0),
    )
    assert script.empties()
    assert script.said == [
        "a: 2 sessions left (s0 2); drain ends in 1:01",
        "a: 1 session left (s0 1)",
        "a is empty: safe to reboot; comes back in 1:00:00",
    ]


def test_long_polls_say_when_the_last_one_ends() -> None:
    places = [server("a", 3, long_polls=2, long_polls_end_in_s=899.0), server("b")]
    facts = maintenance.told(report(places), report(places)["maintenance"]["active"][0])
    assert facts["says"] == "a: 3 sessions left (s0 3), 2 long polls, the last ends in 14:59 at the latest"


def test_patience_ends_and_so_may_maintenance() -> None:
    script = Script(report([server("a", 2), server("b")]))
    assert not script.empties(patience=3)
    assert script.said[-1] == "a is NOT empty yet; its sessions would be cut by a reboot now"
    stopped = Script(report([server("a", 2)], stage="returning"))
    assert not stopped.empties()
    assert stopped.said == ["maintenance of a has ended"]


def test_it_is_back_when_it_has_its_share() -> None:
    script = Script(
        report([server("a", availability="closed", admin="disabled")], [server("a", ramp=40)], stage="returning"),
        report([server("a", ramp=100)], [server("a", ramp=100)], stage=""),
    )
    assert script.returns()
    assert script.said == ["a comes back: s1 ramping 40 %", "a is back in 2 places"]


def check(kind: str, verdict: str, asks: str = "", **detail: Any) -> dict[str, Any]:
    return {"type": kind, "verdict": verdict, "asks": asks, "reason": "so it is", "detail": detail}


def test_checks_tell_the_components_of_an_exchange_server() -> None:
    places = [
        server("a", check=check("https", "up", "/owa/healthcheck.htm", status=200)),
        server("a", check=check("https", "down", "/EWS/healthcheck.htm", status=503)),
        server("a", check=check("https", "up", "/ews/healthcheck.htm", status=200)),
        server("a", check=check("https", "down", "/Microsoft-Server-ActiveSync/healthcheck.htm")),
        server("a", check=check("smtp", "maintenance"), maintenance=True),
        server("a", check=check("https", "up", "/index.html", status=200)),
        server("a", check=check("tcp", "up")),
        server("a"),
    ]
    assert {one["component"]: one["state"] for one in components(places)} == {
        "OwaProxy": "active",
        "EwsProxy": "inactive",
        "ActiveSyncProxy": "unknown",
        "HubTransport": "inactive",
    }


def test_smtp_speaks_for_exchange_only_when_it_is_exchange() -> None:
    for banner, expected in (
        ("220 ex1 Microsoft ESMTP MAIL Service ready", ["HubTransport"]),
        ("220 mx ESMTP Postfix", []),
    ):
        found = components([server("a", check=check("smtp", "up", banner=banner))])
        assert [one["component"] for one in found] == expected


@pytest.mark.live
def test_with_a_real_balancer(tmp_path: Path) -> None:
    """Out while a session is open, through a restart of the balancer, empty, and back."""
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as real:
        behind = real.getsockname()[1]
        service = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "check": {"type": "none"}, "ramp_s": 0}
        config = {
            "real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.2"},
            "services": {
                "smtp": {**service, "real_servers": {"ex1": {"port": behind}, "ex2": {"port": 9, "weight": 0.01}}}
            },
        }
        with Balancer(config, tmp_path) as balancer:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
                eventually(lambda: balancer.real_server("smtp", "ex1")["sessions"] == 1)
                impatient = balancer.cli("maintenance", "start", "ex1", "--patience", "0")
                assert (impatient.returncode, "NOT empty" in impatient.stdout) == (1, True)
                needed = balancer.cli("maintenance", "start", "ex2", "--patience", "0")
                assert (needed.returncode, needed.stderr) == (
                    1,
                    "mailbalancer: ex2 is needed: smtp would have 0 ready real servers; bring others back first, or "
                    "insist with --force (`minimum_ready` says how many a service needs)\n",
                )
                client.close()
                real.accept()[0].close()
            eventually(lambda: balancer.status()["maintenance"]["active"][0]["stage"] == "empty")
            assert balancer.real_server("smtp", "ex1")["admin"] == "disabled"
            shown = json.loads(balancer.cli("maintenance", "status", "--json").stdout)
            assert shown["active"][0]["says"] == "ex1 is empty: safe to reboot"
            again = balancer.cli("maintenance", "start", "ex1", "--until", "23:59", "--patience", "20")
            assert "ex1 is empty: safe to reboot; comes back in" in again.stdout
            back = balancer.cli("maintenance", "stop", "ex1", "--patience", "20")
            assert back.stdout.endswith("ex1 is back in 1 place\n"), back
            assert balancer.real_server("smtp", "ex1")["availability"] == "ready"
            assert "no real server is in maintenance" in balancer.cli("maintenance", "status").stdout


@pytest.mark.live
def test_a_balancer_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """The drain ends when it would have ended, and what is in maintenance stays there until its time."""
    service = {"mode": "tcp", "listen": f"127.0.0.1:{free_port()}", "check": {"type": "none"}, "ramp_s": 0}
    members = {"ex1": 9, "ex2": 9, "ex3": 9}
    config = {
        "real_servers": {"ex1": "127.0.0.1", "ex2": "127.0.0.2", "ex3": "127.0.0.3"},
        "services": {"smtp": {**service, "drain_s": 600, "real_servers": members}},
    }
    with Balancer(config, tmp_path) as balancer:
        balancer.command("drain", real_server="ex2", service="")
        balancer.command("maintenance_start", real_server="ex1", until="23:59")
        eventually(lambda: balancer.status()["maintenance"]["active"][0]["stage"] == "empty")
        before = balancer.real_server("smtp", "ex2")["drain_ends_in_s"]
        balancer.kill()
        balancer.start()
        assert 0 < balancer.real_server("smtp", "ex2")["drain_ends_in_s"] <= before
        (one,) = balancer.status()["maintenance"]["active"]
        assert (one["real_server"], one["stage"], one["until_in_s"] > 0) == ("ex1", "empty", True)
        assert balancer.real_server("smtp", "ex1")["availability"] == "closed"
        balancer.command("maintenance_stop", real_server="ex1")
        eventually(lambda: balancer.real_server("smtp", "ex1")["availability"] == "ready")
        eventually(lambda: balancer.status()["maintenance"]["active"] == [])
