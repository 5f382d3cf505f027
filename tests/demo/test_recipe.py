"""The demo on paper: a configuration that the program accepts, lines that a shell can run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mailbalancer.config.load import load
from mailbalancer.demo import authority, recipe
from mailbalancer.demo.ports import Ports
from mailbalancer.model import Mode, Schedule

PORTS = Ports(
    smtp=2500,
    rpc={"rpc-mapper": 2501, "rpc-cas": 2502, "rpc-ab": 2503},
    mail_servers={"ex1": 2511, "ex2": 2512, "ex3": 2513},
    rpc_servers={"ex1": (2521, 2522, 2523), "ex2": (2531, 2532, 2533), "ex3": (2541, 2542, 2543)},
    web=2550,
    web_servers={"ex1": (2551, 2552), "ex2": (2553, 2554), "ex3": (2555, 2556)},
    page=2560,
    mailboxes=(2561, 2562, 2563),
    mailbox_servers={"ex1": (2571, 2572), "ex2": (2573, 2574), "ex3": (2575, 2576)},
)


def scene(*tools: str, folder: str = "/tmp/demo") -> recipe.Scene:
    return recipe.Scene(
        PORTS, {"ex1": 71, "ex2": 72, "ex3": 73}, ".venv/bin/mailbalancer", folder, frozenset(tools), "mb_secret"
    )


def commands(*tools: str) -> list[str]:
    return [line.strip() for line in recipe.what_to_try(scene(*tools)) if line.startswith("  ") and line[2] != "("]


def test_the_program_accepts_the_configuration(tmp_path: Path) -> None:
    authority.make(tmp_path)
    path = tmp_path / "demo.yaml"
    path.write_text(recipe.configuration(PORTS, str(tmp_path), workers=3))
    config = load(str(path))
    assert (config.workers, config.control_socket) == (3, f"{tmp_path}/control.sock")
    assert config.warnings == ()
    smtp = config.service("smtp")
    assert smtp is not None
    assert smtp.pool.schedule is Schedule.LEAST_CONNECTIONS
    assert (smtp.pool.check.type, smtp.pool.check.interval_s, smtp.pool.ramp_s) == ("smtp", 2.0, 30.0)
    assert smtp.mode is Mode.SMTP
    assert smtp.client_tls is not None
    assert smtp.server_tls is not None
    assert (smtp.client_tls.starttls, smtp.server_tls.starttls) == ("offer", "require")
    assert smtp.server_tls.verify.kind == "ca"
    assert [str(member.endpoint) for member in smtp.pool.members] == [
        f"127.0.0.1:{port}" for port in (2511, 2512, 2513)
    ]
    web = config.service("web")
    assert web is not None
    assert {route.name: [member.endpoint.port for member in route.pool.members] for route in web.routes}["rpc"] == [
        2552,
        2554,
        2556,
    ]
    owa = next(route for route in web.routes if route.name == "owa")
    assert (owa.pool.persist and owa.pool.persist.by, owa.pool.check.type) == ("cookie", "https")
    assert web.server_tls is not None
    assert web.server_tls.verify.kind == "ca"
    boxes = {name: config.service(name) for name in ("imap", "imaps", "pop3")}
    assert {
        name: service and service.client_tls and service.client_tls.starttls for name, service in boxes.items()
    } == {
        "imap": "offer",
        "imaps": "implicit",
        "pop3": "offer",
    }
    assert [member.endpoint.port for member in boxes["pop3"].pool.members if boxes["pop3"]] == [2572, 2574, 2576]
    rpc = [config.service(name) for name in ("rpc-mapper", "rpc-cas", "rpc-ab")]
    assert {service.pool.persist.group for service in rpc if service and service.pool.persist} == {"cas"}
    assert [service.pool.members[2].endpoint.port for service in rpc if service] == [2541, 2542, 2543]


def test_every_line_to_try_names_real_ports_and_processes() -> None:
    lines = commands("swaks", "telnet")
    assert "swaks --server 127.0.0.1:2500 --to you@example.com --from me@example.com" in lines
    assert "telnet 127.0.0.1 2500" in lines
    assert "telnet 127.0.0.1 2563  # in clear: USER me, PASS x, RETR 1, QUIT" in lines
    assert any(line.startswith("openssl s_client") and " -connect 127.0.0.1:2562  # a LOGIN" in line for line in lines)
    assert "telnet 127.0.0.1 2502  # rpc-cas, stands for 59531" in lines
    assert "telnet -b 127.0.0.2 127.0.0.1 2501  # another client address" in lines
    assert "kill 72  # ex2's mail server" in lines
    assert "kill -USR1 71  # ex1's mail server: 421 4.3.2" in lines
    assert "kill -USR2 73  # ex3's mail server: 452 4.3.1" in lines
    assert ".venv/bin/mailbalancer status --socket /tmp/demo/control.sock" in lines
    assert ".venv/bin/mailbalancer drain smtp ex3 --socket /tmp/demo/control.sock" in lines


def test_missing_tools_are_named_and_replaced() -> None:
    page = "\n".join(recipe.what_to_try(scene()))
    assert "(swaks is not installed: apt install swaks, or:)" in page
    assert "(telnet is not installed: apt install telnet, or:)" in page
    assert not any(line.startswith(("swaks", "telnet")) for line in commands())


@pytest.mark.parametrize("tools", [(), ("swaks", "telnet")])
def test_a_shell_can_read_every_command(tools: tuple[str, ...]) -> None:
    for line in commands(*tools):
        words = shlex.split(line, comments=True)
        if words[:2] == ["python3", "-c"]:
            compile(words[2], line, "exec")
            assert len(words) == 3


def test_a_folder_with_a_blank_is_quoted() -> None:
    page = recipe.what_to_try(scene(folder="/tmp/my demo"))
    assert any(line.endswith(" top --socket '/tmp/my demo/control.sock'") for line in page)
