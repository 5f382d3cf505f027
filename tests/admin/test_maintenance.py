"""A server is taken out for patching and comes back: as decisions, and with the real program."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.admin import maintenance
from mailbalancer.errors import MailbalancerError
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually


def server(name: str, sessions: int = 0, availability: str = "ready", ramp: int = 100) -> dict[str, Any]:
    state = {"up": True, "admin": "enabled", "maintenance": False, "back_pressure": False, "max_sessions": 0}
    return {"name": name, "sessions": sessions, "availability": availability, "ramp_percent": ramp, **state}


def report(*pools: list[dict[str, Any]]) -> dict[str, Any]:
    services = [
        {"name": f"s{at}", "pools": [{"route": "", "real_servers": servers}]} for at, servers in enumerate(pools)
    ]
    return {"services": services}


class Script:
    """A balancer that tells one report after the other, and remembers what was asked of it."""

    def __init__(self, *reports: dict[str, Any]) -> None:
        self.reports = list(reports)
        self.asked: list[str] = []
        self.said: list[str] = []

    def ask(self, command: str, **arguments: object) -> Any:
        if command != "status":
            self.asked.append(command)
            return {}
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]

    def start(self, patience: int = 10, minimum: int = 1, force: bool = False) -> bool:
        rounds = iter(range(patience))
        return maintenance.start(
            self.ask, self.said.append, lambda: next(rounds, None) is not None, "a", minimum, force
        )


def test_it_is_empty_only_after_nobody_can_come_any_more() -> None:
    script = Script(
        report([server("a", 2), server("b")]),
        report([server("a", 2), server("b")]),
        report([server("a", 0), server("b")]),
        report([server("a", 1), server("b")]),  # a returning client came in between
        report([server("a", 0), server("b")]),
    )
    assert script.start()
    assert script.asked == ["drain", "disable"]
    assert script.said == ["a: 2 sessions left (s0 2)", "a: 1 session left (s0 1)", "a is empty: safe to reboot"]


def test_patience_ends() -> None:
    script = Script(report([server("a", 2), server("b")]))
    assert not script.start(patience=3)
    assert script.said[-1] == "a is NOT empty yet; its sessions would be cut by a reboot now"
    assert "disable" not in script.asked


def test_a_server_that_is_needed_stays() -> None:
    for facts, minimum in (
        (report([server("a")]), 1),
        (report([server("a"), server("b", availability="closed")]), 1),
        (report([server("a"), server("b")], [server("a"), server("c")]), 2),
    ):
        script = Script(facts)
        with pytest.raises(MailbalancerError, match="a is needed: s0 would have"):
            script.start(minimum=minimum)
        assert script.asked == []
        assert script.start(minimum=minimum, force=True)


def test_an_unknown_server_is_named() -> None:
    with pytest.raises(MailbalancerError, match="there are: b"):
        Script(report([server("b")])).start()


def test_it_is_back_when_it_has_its_share() -> None:
    script = Script(
        report([server("a", availability="closed")]), report([server("a", ramp=40)]), report([server("a", ramp=100)])
    )
    assert maintenance.stop(script.ask, script.said.append, lambda: True, "a")
    assert script.asked == ["enable"]
    assert script.said[-2:] == ["s0 ramping 40 %", "a is back in 1 place"]


@pytest.mark.live
def test_with_a_real_balancer(tmp_path: Path) -> None:
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
                client.close()
                real.accept()[0].close()
            done = balancer.cli("maintenance", "start", "ex1", "--patience", "20")
            assert done.stdout.endswith("ex1 is empty: safe to reboot\n"), done
            assert balancer.real_server("smtp", "ex1")["admin"] == "disabled"
            back: subprocess.CompletedProcess[str] = balancer.cli("maintenance", "stop", "ex1", "--patience", "20")
            assert back.stdout == "ex1 is back in 1 place\n"
            assert balancer.real_server("smtp", "ex1")["availability"] == "ready"
