"""Real Postfix behind `tcp` services, with the PROXY header on and off, driven by swaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Postfix
from tests.support.swaks import deliver, swaks
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

SMTP_CHECK = {"type": "smtp", "interval_s": 0.5, "timeout_s": 5, "rise": 1, "fall": 1}
#: What Postfix writes about a client or a check that does not behave.
COMPLAINTS = re.compile(r"warning|error|lost connection|timeout|improper|non-SMTP|panic|fatal")


def service(port: int, server: Postfix, **more: Any) -> dict[str, Any]:
    """One service in front of one Postfix; with `proxy_protocol` it goes to the port that wants a header."""
    behind = server.proxied_port if more.get("proxy_protocol") else server.port
    base = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "real_servers": {server.name: behind}, "check": SMTP_CHECK}
    return {**base, **more}


def config(services: dict[str, Any], *servers: Postfix) -> dict[str, Any]:
    return {"real_servers": {server.name: "127.0.0.1" for server in servers}, "services": services}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip(("plain", "v1", "v2"), free_ports(3), strict=True))


@pytest.fixture(scope="module")
def balancer(mx1: Postfix, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balancer]:
    services = {
        "plain": service(ports["plain"], mx1),
        "v1": service(ports["v1"], mx1, proxy_protocol={"send": "v1"}),
        "v2": service(ports["v2"], mx1, proxy_protocol={"send": "v2"}),
    }
    with Balancer(config(services, mx1), tmp_path_factory.mktemp("balancer")) as running:
        for name in services:
            eventually(lambda name=name: running.real_server(name, "mx1")["check"], what=f"{name} was checked")
        yield running


@pytest.mark.parametrize(
    ("name", "source", "seen"),
    [("plain", "127.0.0.7", "127.0.0.1"), ("v1", "127.0.0.8", "127.0.0.8"), ("v2", "127.0.0.9", "127.0.0.9")],
)
def test_postfix_takes_mail_and_sees_the_address_that_is_configured(
    balancer: Balancer, mx1: Postfix, ports: dict[str, int], name: str, source: str, seen: str
) -> None:
    before = len(mx1.clients())
    queued = re.search(r"queued as (\w+)", deliver(ports[name], source=source))
    assert queued is not None
    eventually(lambda: f"{queued.group(1)}: removed" in mx1.log_text(), what="Postfix has delivered it")
    assert mx1.clients()[before:] == [seen]
    line = eventually(lambda: session_lines(balancer, name, source), what="the session's line")[-1]
    assert "server=mx1" in line
    assert "end=" in line


def session_lines(balancer: Balancer, service: str, source: str) -> list[str]:
    lines = balancer.log_text().splitlines()
    return [line for line in lines if f" session service={service} client={source}:" in line]


@pytest.mark.parametrize("name", ["plain", "v1", "v2"])
def test_starttls_passes_through(balancer: Balancer, authority: Authority, ports: dict[str, int], name: str) -> None:
    said = deliver(
        ports[name], "--tls", "--tls-verify", "--tls-ca-path", str(authority.file), "--tls-sni", "mail.example.com"
    )
    assert "TLS started with cipher" in said
    assert "CN=mail.example.com" in said


def test_the_servers_own_refusal_reaches_the_client(balancer: Balancer, ports: dict[str, int]) -> None:
    refused = swaks(ports["plain"], "--to", "somebody@elsewhere.example")
    assert refused.returncode == 24  # no recipient was taken
    assert "554 5.7.1" in refused.stdout


@pytest.mark.parametrize("version", ["none", "v1", "v2"])
def test_checks_leave_no_complaint_in_the_log_of_postfix(version: str, tmp_path: Path) -> None:
    """Each check is a client that says EHLO and QUIT, also behind a PROXY header."""
    with Postfix("quiet") as server:
        more = {} if version == "none" else {"proxy_protocol": {"send": version}}
        with Balancer(config({"smtp": service(free_port(), server, **more)}, server), tmp_path) as balancer:
            eventually(lambda: server.log_text().count("disconnect from") >= 3, what="three checks")
            assert balancer.real_server("smtp", "quiet")["up"] is True
            log = server.log_text()  # before the balancer stops in the middle of a check
    assert not COMPLAINTS.search(log), log
    assert all("quit=1" in line for line in log.splitlines() if "disconnect from" in line), log
    assert "unknown[127.0.0.1]" in log


@pytest.mark.parametrize("kind", ["smtp", "tcp"])
def test_a_check_without_the_header_that_postfix_wants_is_down_and_says_why(
    kind: str, mx1: Postfix, tmp_path: Path
) -> None:
    """The check is told to send no header: Postfix waits for one, and the check for a greeting that never comes."""
    check = {**SMTP_CHECK, "type": kind, "timeout_s": 1, "proxy_header": "none"}
    expects = {"expect": "220"} if kind == "tcp" else {}
    one = service(free_port(), mx1, proxy_protocol={"send": "v2"}, check={**check, **expects})
    with Balancer(config({"smtp": one}, mx1), tmp_path) as balancer:
        server = eventually(lambda: down(balancer, "smtp", "mx1"), what="down")
        reason = server["last_flip"]["reason"]
        assert re.search(r"banner|greeting|answer|220", reason), reason
        shown = balancer.cli("status").stdout
        assert "down" in shown


def down(balancer: Balancer, service: str, server: str) -> dict[str, Any] | None:
    found = balancer.real_server(service, server)
    return found if found["up"] is False else None


def test_a_header_that_postfix_does_not_expect_is_down_and_says_why(mx1: Postfix, tmp_path: Path) -> None:
    one = service(free_port(), mx1, proxy_protocol={"send": "v1"})
    one["real_servers"] = {"mx1": mx1.port}  # the one that knows no PROXY header
    with Balancer(config({"smtp": one}, mx1), tmp_path) as balancer:
        server = eventually(lambda: down(balancer, "smtp", "mx1"), what="down")
        assert "answer to EHLO was '500" in server["last_flip"]["reason"], server["last_flip"]


def test_smoke_shows_the_way_through_and_direct_side_by_side(balancer: Balancer) -> None:
    for name in ("plain", "v2"):
        shown = balancer.cli("smoke", name)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert shown.stdout.count("220 mx1.example.com ESMTP Postfix") == 2, shown.stdout
        assert "QUIT" in shown.stdout
