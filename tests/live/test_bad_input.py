"""Wrong configurations, at a start and a reload: one line each with its remedy, exit code 1, nothing half applied."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailbalancer.config.load import load_text
from mailbalancer.errors import ConfigError
from tests.support.ports import free_port
from tests.support.program import Balancer, Refused, run_cli
from tests.support.real_servers import Nginx
from tests.support.servers import Named

pytestmark = pytest.mark.live

Config = dict[str, Any]


@pytest.fixture
def right(tmp_path: Path) -> Config:
    """A configuration that is right; each test spoils one thing."""
    service = {"mode": "tcp", "listen": f"127.0.0.1:{free_port()}", "real_servers": {"ex1": 9}, "check": "none"}
    return {"version": 1, "user": "", "real_servers": {"ex1": "127.0.0.1"}, "services": {"smtp": service}}


def change(part: str, value: Any) -> Callable[[Config], None]:
    """Set `services.smtp.PART`."""
    return lambda config: config["services"]["smtp"].update({part: value})


def a_second_service_on_the_same_address(config: Config) -> None:
    config["services"]["again"] = dict(config["services"]["smtp"])


def a_profile_without_its_parameter(config: Config) -> None:
    config["services"]["owa"] = {"profile": "exchange-2019-smtp", "listen": "127.0.0.1:1", "real_servers": ["ex1"]}


def a_certificate_that_is_not_there(config: Config) -> None:
    config["certificates"] = {"mail": "/no/such/mail.pem"}


def a_certificate_that_is_none(config: Config) -> None:
    config["certificates"] = {"mail": "/etc/passwd"}


def an_authority_that_is_not_there(config: Config) -> None:
    config["services"]["smtp"]["check"] = {"type": "https", "verify": {"ca": "/no/such/ca.pem"}}


def an_address_that_is_not_ours(config: Config) -> None:
    config["services"]["smtp"]["listen"] = "203.0.113.1:2525"


WRONG = [
    (change("shedule", "priority"), "services.smtp.shedule: unknown key 'shedule' (did you mean schedule?)"),
    (change("schedule", "leastconn"), "services.smtp.schedule: 'leastconn'"),
    (change("real_servers", {"ex2": 25}), "'ex2' is not in real_servers (did you mean ex1?)"),
    (a_second_service_on_the_same_address, "already belongs to service smtp (line "),
    (a_profile_without_its_parameter, "needs 'host' (name that clients use"),
    (
        a_certificate_that_is_not_there,
        "certificates.mail: /no/such/mail.pem cannot be read: No such file or directory; ",
    ),
    (a_certificate_that_is_none, "certificates.mail: /etc/passwd holds no certificate in PEM form"),
    (an_authority_that_is_not_there, "check.verify.ca: /no/such/ca.pem cannot be read: No such file or directory; "),
    (an_address_that_is_not_ours, "203.0.113.1 is not an address of this machine; correct `listen`"),
]


def by_name(value: Any) -> str:
    return getattr(value, "__name__", "").replace("<lambda>", "") or str(value)[:40]


@pytest.mark.parametrize(("spoil", "said"), WRONG, ids=by_name)
def test_a_wrong_file_is_one_line_and_exit_code_1(
    right: Config, tmp_path: Path, spoil: Callable[[Config], None], said: str
) -> None:
    spoil(right)
    balancer = Balancer(right, tmp_path)
    started = run_cli("run", "-c", str(balancer.config_file))
    assert_one_error(started.returncode, started.stderr, said)
    assert not balancer.control_socket.exists()
    assert not balancer.state_file.exists()


def assert_one_error(code: int, stderr: str, said: str) -> None:
    assert code == 1, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("mailbalancer: ")]
    assert len(errors) == 1, stderr
    assert said in errors[0]


def test_several_problems_are_all_said_at_once(right: Config, tmp_path: Path) -> None:
    for spoil in (change("shedule", "x"), change("ramp_s", -1), change("queue", {"size": -5})):
        spoil(right)
    checked = run_cli("check", str(Balancer(right, tmp_path).config_file))
    assert checked.returncode == 1
    assert len(checked.stdout.splitlines()) == 3, checked.stdout


def test_a_port_that_nginx_has(right: Config, web1: Nginx, tmp_path: Path) -> None:
    right["services"]["smtp"]["listen"] = f"127.0.0.1:{web1.http_port}"
    started = run_cli("run", "-c", str(Balancer(right, tmp_path).config_file))
    said = f"127.0.0.1:{web1.http_port} is already in use by another program; see `ss -ltnp"
    assert_one_error(started.returncode, started.stderr, said)


FILES = {
    "empty": (b"", "the file is empty"),
    "binary": (bytes(range(256)) * 20, "is not UTF-8"),
    "elf": (b"\x7fELF\x02\x01\x01\0", "is not allowed in YAML"),
    "utf-16": ("version: 1\n".encode("utf-16"), "is not UTF-8"),
    "list": (b"- 1\n", "it must be a mapping"),
    "word": (b"hello", "it must be a mapping"),
    "tab": (b"services:\n\tsmtp: {}\n", "a tab indents this line"),
    "unclosed": (b"services: {smtp: [\n", "YAML"),
    "two": (b"version: 1\n---\nversion: 1\n", "document"),
    "recursive": (b"a: &a [*a]\n", "contains itself"),
    "deep": (b"a: " + b"[" * 9000, "nested deeper"),
    "huge": (b"#" + b"x" * (20 * 1024 * 1024), "large"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration(tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    file = tmp_path / "m.yaml"
    file.write_bytes(content)
    started = run_cli("run", "-c", str(file))
    assert_one_error(started.returncode, started.stderr, said)


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    started = run_cli("run", "-c", str(tmp_path / "none.yaml"))
    assert_one_error(started.returncode, started.stderr, "No such file or directory; correct the path")
    started = run_cli("run", "-c", str(tmp_path))
    assert_one_error(started.returncode, started.stderr, "Is a directory; name a file in it")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/tmp/" + "x" * 120, "longer than the 107 bytes that Linux allows"),
        ("/tmp", "exists and is no socket; remove it, or set another"),
    ],
)
def test_a_control_socket_that_cannot_be(right: Config, tmp_path: Path, path: str, said: str) -> None:
    right["control_socket"] = path
    started = run_cli("run", "-c", str(Balancer(right, tmp_path).config_file))
    assert_one_error(started.returncode, started.stderr, said)


def facts(balancer: Balancer) -> Any:
    """What must be the same before and after a reload that was refused."""
    status = balancer.status()
    return status["config_version"], status["warnings"], [configured(service) for service in status["services"]]


def configured(service: dict[str, Any]) -> Any:
    pools = [
        (pool["schedule"], pool["persist"], [(s["name"], s["endpoint"], s["weight"]) for s in pool["real_servers"]])
        for pool in service["pools"]
    ]
    return service["name"], service["mode"], service["listen"], pools


def test_a_reload_of_anything_wrong_keeps_everything(right: Config, web1: Nginx, tmp_path: Path) -> None:
    with Named("ex1", banner="ex1") as ex1:
        right["services"]["smtp"]["real_servers"] = {"ex1": ex1.port}
        port = int(right["services"]["smtp"]["listen"].rpartition(":")[2])
        with Balancer(right, tmp_path) as balancer, socket.create_connection(("127.0.0.1", port), 10) as client:
            assert client.recv(100) == b"ex1\r\n"
            before = facts(balancer)
            for spoil, said in WRONG:
                wrong = yaml.safe_load(yaml.safe_dump(right))
                wrong["services"]["first"] = {**wrong["services"]["smtp"], "listen": f"127.0.0.1:{free_port()}"}
                spoil(wrong)
                refuse(balancer, wrong, said)
                assert facts(balancer) == before
            taken = yaml.safe_load(yaml.safe_dump(right))
            taken["services"]["first"] = {**taken["services"]["smtp"], "listen": f"127.0.0.1:{free_port()}"}
            taken["services"]["other"] = {**taken["services"]["smtp"], "listen": f"127.0.0.1:{web1.http_port}"}
            refuse(balancer, taken, "already in use by another program")
            assert facts(balancer) == before
            for content, said in FILES.values():
                balancer.config_file.write_bytes(content)
                with pytest.raises(Refused) as refused:
                    balancer.command("reload")
                assert said in str(refused.value)
                assert facts(balancer) == before
            balancer.config_file.unlink()
            assert balancer.cli("reload", "--socket", str(balancer.control_socket)).returncode == 1
            assert facts(balancer) == before
            client.sendall(b"still here\r\n")
            assert client.recv(100) == b"ex1: still here\r\n"
            with socket.create_connection(("127.0.0.1", port), 10) as another:
                assert another.recv(100) == b"ex1\r\n"
            balancer.write_config(right)
            balancer.command("reload")


def refuse(balancer: Balancer, config: Config, said: str) -> None:
    balancer.write_config(config)
    with pytest.raises(Refused) as refused:
        balancer.command("reload")
    assert said in str(refused.value)


def mutated(text: str, chance: random.Random) -> str:
    """The text with a few characters, words or lines lost, doubled or exchanged."""
    for _ in range(chance.randint(1, 3)):
        at, to = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + 30)
        match chance.randrange(5):
            case 0:
                text = text[:at] + text[to:]
            case 1:
                text = text[:to] + text[at:]
            case 2:
                text = (
                    text[:at]
                    + chance.choice(["\0", "\t", ": ", "- ", "{", "[", "&a ", "*a", "!!", "\n", "é", "-1"])
                    + text[at:]
                )
            case 3:
                lines = text.split("\n")
                chance.shuffle(lines)
                text = "\n".join(lines)
            case 4:
                text = text[:at] + text[at:to][::-1] + text[to:]
        text = text or "x"
    return text


def test_two_hundred_mutated_files_are_refused_or_run_whole(tmp_path: Path) -> None:
    """Each is reloaded by the running balancer, which afterwards is either as before or all that the file says."""
    with Named("ex1", banner="ex1") as ex1, Named("ex2", banner="ex2") as ex2:
        port, other = free_port(), free_port()
        # never mutated: an address with a digit more or less would be somebody else's
        head = """\
version: 1
user: ""
workers: 2
real_servers:
  ex1: {address: 127.0.0.1, weight: 2}
  ex2: 127.0.0.1
"""
        text = f"""\
services:
  smtp:
    mode: tcp
    listen: 127.0.0.1:{port}
    real_servers: {{ex1: {ex1.port}, ex2: {{port: {ex2.port}, weight: 3}}}}
    schedule: weighted_round_robin
    check: none
    idle_timeout_s: 300
  other:
    mode: tcp
    listen: [127.0.0.1:{other}]
    persist: {{by: source, timeout_s: 60, group: both}}
    proxy_protocol: {{accept_from: [10.0.0.0/8], send: none}}
    real_servers: {{ex1: {ex1.port}}}
    check: {{type: tcp, interval_s: 30}}
"""
        with Balancer(head + text, tmp_path) as balancer:
            chance = random.Random(20)
            whole = balancer.config_file.read_text()
            own = whole[len(head + text) :]
            refused = 0
            for _ in range(200):
                before = facts(balancer)
                wrong = head + mutated(text, chance)
                balancer.config_file.write_text(wrong + "\n" + own, errors="surrogatepass")
                expected = services_of(wrong + "\n" + own, tmp_path)
                try:
                    balancer.command("reload")
                except Refused:
                    refused += 1
                    assert facts(balancer) == before, wrong
                else:
                    assert expected is not None, wrong
                    assert {s["name"] for s in balancer.status()["services"]} == expected, wrong
            assert refused > 100
            balancer.config_file.write_text(whole)
            balancer.command("reload")
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                assert client.recv(100) in (b"ex1\r\n", b"ex2\r\n")
            assert all(worker["restarts"] == 0 for worker in balancer.status()["workers"])
            assert "fault in mailbalancer" not in balancer.log_text()


def services_of(text: str, folder: Path) -> set[str] | None:
    """The services of a right file; None for a wrong one."""
    try:
        return {service.name for service in load_text(text, folder=folder).services}
    except ConfigError:
        return None
