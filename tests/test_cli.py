"""The command line as a process: answers, errors in one line, exit codes, pipes and terminals.

The balancer here is a stranger at the other end of a control socket that answers what the test wants, also nonsense;
`tests/demo/test_demo.py` runs the same commands against a real one.
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbalancer import __version__, cli
from mailbalancer.commands import terminal
from mailbalancer.errors import MailbalancerError

COMMAND = [sys.executable, "-m", "mailbalancer"]
Run = Callable[..., subprocess.CompletedProcess[str]]

REAL_SERVER = {
    "name": "ex2",
    "endpoint": "10.0.2.12:25",
    "up": False,
    "admin": "enabled",
    "availability": "closed",
    "ramp_percent": 100,
    "weight": 1.0,
    "configured_weight": 1.0,
    "max_sessions": 0,
    "sessions": 0,
    "total": 9,
    "connect_ok": 9,
    "connect_failed": 3,
    "bytes_in": 10,
    "bytes_out": 20,
    "moved": 0,
    "retried": 0,
    "maintenance": False,
    "back_pressure": False,
    "drain_ends_in_s": None,
    "check": None,
    "last_flip": {"up": False, "reason": "connection refused", "at": "2026-01-01T00:00:00Z"},
}
SERVICE = {
    "name": "smtp",
    "mode": "tcp",
    "listen": ["10.0.1.100:25"],
    "profile": "",
    "sessions": 0,
    "total": 9,
    "refused": 0,
    "queued": 0,
    "bytes_in": 10,
    "bytes_out": 20,
    "imbalance": None,
    "pools": [
        {"route": "", "hosts": [], "schedule": "least_connections", "persist": None, "real_servers": [REAL_SERVER]}
    ],
}
STATUS = {
    "version": "0.1.0",
    "pid": 1,
    "config": "/etc/mailbalancer/mailbalancer.yaml",
    "config_version": 1,
    "started_at": "2026-01-01T00:00:00Z",
    "uptime_s": 1.0,
    "warnings": ["\x1b[2Jclear"],
    "workers": [],
    "services": [SERVICE],
    "events": [],
}
SESSION = {
    "service": "smtp",
    "client": "192.0.2.7:40000",
    "listen": "10.0.1.100:25",
    "server": "ex1",
    "server_address": "10.0.2.11:25",
    "why": "least_connections",
    "age_s": 1.0,
    "idle_s": 1.0,
    "bytes_in": 0,
    "bytes_out": 0,
    "state": "open",
    "worker": 0,
}


class Stranger:
    """Answers control commands from a table and remembers what was asked."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rwb") as lines:
                line = lines.readline()
                if not line:
                    return
                asked = json.loads(line)
                self.asked.append(asked)
                answer = self.answers.get(asked["command"], {"ok": True, "result": {}})
                lines.write(json.dumps(answer).encode() + b"\n")

    def leave(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    balancer = Stranger(tmp_path / "s")
    balancer.answers["status"] = {"ok": True, "result": STATUS}
    yield balancer
    balancer.leave()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run mailbalancer in an empty folder with a plain environment."""

    def run_it(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        return subprocess.run(
            [*COMMAND, *arguments],
            env=plain | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )

    return run_it


def _all_commands() -> list[list[str]]:
    """Every command and subcommand, as typed."""
    found: list[list[str]] = []
    for name, command in cli.commands.commands.items():
        inner = getattr(command, "commands", {})
        found += [[name, sub] for sub in inner] if inner else [[name]]
    return found


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"mailbalancer {__version__}\n"


@pytest.mark.parametrize("command", _all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(command: list[str]) -> None:
    found: Any = cli.commands
    for name in command:
        found = found.commands[name]
    assert "Example:" in found.help
    assert f"mailbalancer {' '.join(command)}" in found.help


def test_help_imports_no_room() -> None:
    """`--help` stays fast because nothing heavy is loaded for it."""
    code = (
        "import sys, mailbalancer.cli; print([m for m in sys.modules if m.startswith(('rich', 'pydantic', 'uvloop'))])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["drain"], ["drain", "a", "b", "c"], ["sessions", "--limit", "0"], ["status", "--nonsense"]],
)
def test_a_command_that_does_not_exist_like_that_exits_2(run: Run, arguments: list[str]) -> None:
    answer = run(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "Usage: mailbalancer" in answer.stderr


def test_a_missing_configuration_is_one_line_with_a_remedy(run: Run) -> None:
    answer = run("status", "-c", "absent.yaml")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == (
        "mailbalancer: absent.yaml cannot be read (No such file or directory); name the running balancer's "
        "configuration with -c FILE or its control socket with --socket PATH\n"
    )


def test_no_balancer_behind_the_socket_is_one_line(run: Run, tmp_path: Path) -> None:
    answer = run("status", "--socket", str(tmp_path / "nobody"))
    assert (answer.returncode, answer.stdout) == (1, "")
    assert re.fullmatch(rf"mailbalancer: .*{tmp_path}/nobody.*\n", answer.stderr)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("control_socket: /run/a.sock\n", "/run/a.sock"),
        ("version: 1\ncontrol_socket:   /run/a.sock   # here\nservices: {}\n", "/run/a.sock"),
        ("control_socket: '/run/a b.sock'\n", "/run/a b.sock"),
        ('"control_socket": "/run/#a.sock" # here\r\n', "/run/#a.sock"),
        ("control_socket: /run/a.sock\nservices: [\n  broken: {", "/run/a.sock"),
        ("control_socket: run/a.sock\n", "FOLDER/run/a.sock"),
        ("version: 1\n", terminal.DEFAULT_CONTROL_SOCKET),
        ("x:\n  control_socket: /run/inner.sock\n", terminal.DEFAULT_CONTROL_SOCKET),
        ("# control_socket: /run/comment.sock\n", terminal.DEFAULT_CONTROL_SOCKET),
        ("control_socket:\n", terminal.DEFAULT_CONTROL_SOCKET),
        ("\udcff binary", terminal.DEFAULT_CONTROL_SOCKET),
    ],
)
def test_the_control_socket_is_found_in_any_file(tmp_path: Path, text: str, path: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert terminal.control_socket(str(file)) == path.replace("FOLDER", str(tmp_path))


def test_the_control_socket_of_a_folder_is_an_error_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(MailbalancerError, match="Is a directory"):
        terminal.control_socket(str(tmp_path))


VALID = """\
version: 1
real_servers: {ex1: 10.0.2.11, ex2: 10.0.2.12}
services:
  rpc: {mode: tcp, listen: 10.0.1.100:135, real_servers: [ex1, ex2], persist: {by: source, group: cas}}
"""


def test_check_of_a_valid_file_says_its_services(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(VALID)
    answer = run("check", "f.yaml")
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert lines[0] == "OK: f.yaml: 1 service, 2 real servers"
    assert "rpc tcp 10.0.1.100:135 least_connections source, group cas tcp" in " ".join(lines[2].split())
    assert run("check", MAILBALANCER_CONFIG="f.yaml").stdout == answer.stdout


def test_check_warns_on_stderr(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(VALID.replace("ex2: 10.0.2.12}", "ex2: 10.0.2.12, ex3: 10.0.2.13}"))
    answer = run("check", "f.yaml")
    assert answer.returncode == 0
    assert answer.stdout.startswith("OK: ")
    assert re.fullmatch(r"warning: .*ex3.*\n", answer.stderr)


def test_check_prints_every_problem_with_its_place(run: Run, tmp_path: Path) -> None:
    wrong = VALID.replace("mode: tcp", "mode: tcp, schedule: leastconn, idle_timeout_s: -1")
    (tmp_path / "f.yaml").write_text(wrong)
    answer = run("check", "f.yaml")
    assert answer.returncode == 1
    problems = answer.stdout.splitlines()
    assert len(problems) == 2
    assert problems[0].startswith("f.yaml:4: services.rpc.schedule: ")
    assert "least_connections" in problems[0]
    assert problems[1].startswith("f.yaml:4: services.rpc.idle_timeout_s: ")


def test_run_with_a_wrong_file_says_so_and_exits(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(VALID.replace("10.0.2.11", "ex1.example.com"))
    answer = run("run", "-c", "f.yaml")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert re.fullmatch(r"mailbalancer: /.*f\.yaml:2: real_servers\.ex1.*\n", answer.stderr)
    assert run("run", "-c", "absent.yaml").stderr.startswith(f"mailbalancer: {tmp_path}/absent.yaml:1: ")


def test_schema_is_a_json_schema(run: Run) -> None:
    answer = run("schema")
    assert answer.returncode == 0
    assert "services" in json.loads(answer.stdout)["properties"]


PROFILE = """\
profile: plain
title: A plain one
# a comment for people
parameters:
  host: {description: name that clients use, type: host, example: mail.example.com}
  delay: {description: seconds, type: seconds, default: 5}
services:
  smtp: {mode: tcp, port: 25}
  imap: {mode: tcp, port: 143}
checklist:
  - {title: Name, why: clients look it up, platform: dns, services: [smtp], commands: ["${host}. IN A ${vip}"]}
  - {title: Wait, why: it takes a while, platform: exchange, services: [imap], commands: ["Start-Sleep ${delay}"]}
"""


@pytest.fixture
def own_profiles(tmp_path: Path) -> dict[str, str]:
    """The environment in which the profile `plain` is found."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "plain.yaml").write_text(PROFILE)
    return {"MAILBALANCER_PROFILES": str(folder)}


def test_profiles_list_and_show(run: Run, own_profiles: dict[str, str]) -> None:
    listed = run("profiles", "list", **own_profiles)
    assert any(line.split() == ["plain", "smtp,", "imap", "A", "plain", "one"] for line in listed.stdout.splitlines())
    rows = json.loads(run("profiles", "list", "--json", **own_profiles).stdout)
    assert "plain" in [row["profile"] for row in rows]
    assert run("profiles", "show", "plain", **own_profiles).stdout == PROFILE
    absent = run("profiles", "show", "plian", **own_profiles)
    assert absent.returncode == 1
    assert re.fullmatch(r"mailbalancer: .*plian.*plain.*\n", absent.stderr)


def test_profiles_checklist_fills_in_names(run: Run, own_profiles: dict[str, str]) -> None:
    command = ["profiles", "checklist", "plain", "--set", "host=mail.example.com"]
    answer = run(*command, "--vip", "192.0.2.9", "--set", "delay=2.5", **own_profiles)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == (
        "; ===== DNS: records to make =====\n\n"
        "; 1. Name\n;    clients look it up\nmail.example.com. IN A 192.0.2.9\n\n"
        "# ===== Exchange Management Shell: once, on any server =====\n\n"
        "# 2. Wait\n#    it takes a while\nStart-Sleep 2.5\n"
    )
    only = json.loads(run(*command, "--service", "imap", "--json", **own_profiles).stdout)
    assert [item["commands"] for item in only] == [["Start-Sleep 5"]]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "host"),
        (["--set", "host=a.example", "--set", "delay=soon"], 1, "delay: 'soon' is not a number"),
        (["--set", "host=a.example", "--set", "hots=b"], 1, "hots"),
        (["--set", "host=a.example", "--service", "pop3"], 1, "it has: smtp, imap"),
        (["--set", "host"], 2, "write --set NAME=VALUE"),
    ],
)
def test_profiles_checklist_refuses(
    run: Run, own_profiles: dict[str, str], arguments: list[str], code: int, said: str
) -> None:
    answer = run("profiles", "checklist", "plain", *arguments, **own_profiles)
    assert (answer.returncode, answer.stdout) == (code, "")
    assert said in answer.stderr
    assert code == 2 or answer.stderr.count("\n") == 1


def test_profiles_export_gives_a_profile_back(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(VALID)
    exported = run("profiles", "export", "rpc", "-c", "f.yaml")
    assert exported.returncode == 0
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "rpc.yaml").write_text(exported.stdout)
    assert "Service rpc" in run("profiles", "list", MAILBALANCER_PROFILES=str(folder)).stdout
    absent = run("profiles", "export", "rcp", "-c", "f.yaml")
    assert (absent.returncode, absent.stderr.count("\n")) == (1, 1)


def test_smoke_of_a_service_that_is_not_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(VALID)
    answer = run("smoke", "smtp", "-c", "f.yaml")
    assert (answer.returncode, answer.stderr) == (
        1,
        "mailbalancer: there is no service 'smtp' in f.yaml; there are: rpc\n",
    )


def test_status_by_socket_by_configuration_and_by_environment(run: Run, stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(f"control_socket: {stranger.path}\nnot: [valid\n")
    by_socket = run("status", "--socket", stranger.path)
    assert (by_socket.returncode, by_socket.stderr) == (0, "")
    assert "down: connection refused" in by_socket.stdout
    assert "\x1b" not in by_socket.stdout
    assert run("status", "-c", "f.yaml").stdout == by_socket.stdout
    assert run("status", MAILBALANCER_CONFIG="f.yaml").stdout == by_socket.stdout


def test_status_as_json_is_the_report_itself(run: Run, stranger: Stranger) -> None:
    answer = run("status", "--json", "--socket", stranger.path)
    assert json.loads(answer.stdout) == STATUS
    assert "\x1b" not in answer.stdout


@pytest.mark.parametrize("columns", ["60", "80", "300"])
def test_status_keeps_to_the_width(run: Run, stranger: Stranger, columns: str) -> None:
    lines = run("status", "--socket", stranger.path, COLUMNS=columns).stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)


def test_status_without_unicode(run: Run, stranger: Stranger) -> None:
    answer = run("status", "--socket", stranger.path, PYTHONIOENCODING="ascii", LANG="C")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.isascii()


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["drain", "smtp", "ex2"], {"command": "drain", "real_server": "ex2", "service": "smtp"}),
        (["drain", "ex2"], {"command": "drain", "real_server": "ex2", "service": ""}),
        (["disable", "smtp", "ex2"], {"command": "disable", "real_server": "ex2", "service": "smtp"}),
        (["enable", "ex2"], {"command": "enable", "real_server": "ex2", "service": ""}),
    ],
)
def test_operating_says_what_has_changed_and_warns(
    run: Run, stranger: Stranger, arguments: list[str], asked: dict[str, str]
) -> None:
    result = {"state": "draining", "members": ["smtp/ex2", "imap/ex2"], "warnings": ["imap: nobody is left\x1b[2J"]}
    stranger.answers[arguments[0]] = {"ok": True, "result": result}
    answer = run(*arguments, "--socket", stranger.path)
    assert (answer.returncode, answer.stdout) == (0, "smtp/ex2: draining\nimap/ex2: draining\n")
    assert answer.stderr == "warning: imap: nobody is left?[2J\n"
    assert stranger.asked == [asked]


def test_reload_says_what_has_changed(run: Run, stranger: Stranger) -> None:
    result = {"version": 2, "changes": ["smtp: ramp_s", "imap: new"], "warnings": ["workers: needs a restart"]}
    stranger.answers["reload"] = {"ok": True, "result": result}
    answer = run("reload", "--socket", stranger.path)
    assert (answer.stdout, answer.stderr) == ("smtp: ramp_s\nimap: new\n", "warning: workers: needs a restart\n")
    stranger.answers["reload"]["result"] = {"version": 2, "changes": [], "warnings": []}
    assert run("reload", "--socket", stranger.path).stdout == "nothing has changed\n"


def test_persistence_clear(run: Run, stranger: Stranger) -> None:
    stranger.answers["persistence_clear"] = {"ok": True, "result": {"cleared": 3}}
    answer = run("persistence", "clear", "--group", "cas", "--key", "192.0.2.1", "--socket", stranger.path)
    assert (answer.returncode, answer.stdout) == (0, "3 forgotten\n")
    assert stranger.asked == [{"command": "persistence_clear", "group": "cas", "key": "192.0.2.1"}]


def test_a_refusal_is_one_line_and_nothing_of_it_is_obeyed(run: Run, stranger: Stranger) -> None:
    stranger.answers["drain"] = {"ok": False, "error": "no \x1b[31mex9\n in smtp", "remedy": "there are ex1 and ex2"}
    answer = run("drain", "smtp", "ex9", "--socket", stranger.path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "mailbalancer: no ?[31mex9? in smtp; there are ex1 and ex2\n"


def test_sessions_persistence_and_events(run: Run, stranger: Stranger) -> None:
    stranger.answers |= {
        "sessions": {"ok": True, "result": {"sessions": [SESSION], "more": 3}},
        "persistence": {"ok": True, "result": {"groups": []}},
        "events": {"ok": True, "result": {"events": [{"at": "now", "level": "info", "text": "smtp/ex2 is up"}]}},
    }
    shown = run("sessions", "smtp", "--limit", "1", "--socket", stranger.path).stdout
    assert "192.0.2.7:40000" in shown
    assert "and 3 more" in shown
    assert stranger.asked[-1] == {"command": "sessions", "service": "smtp", "limit": 1}
    assert run("persistence", "list", "--socket", stranger.path).stdout == "no service persists\n"
    assert run("events", "--socket", stranger.path).stdout == "now  smtp/ex2 is up\n"
    for command in (["sessions"], ["persistence", "list"], ["events"]):
        as_json = run(*command, "--json", "--socket", stranger.path).stdout
        assert json.loads(as_json) == stranger.answers[command[0]]["result"]


def test_a_reader_who_leaves_is_no_error(stranger: Stranger) -> None:
    stranger.answers["sessions"] = {"ok": True, "result": {"sessions": [SESSION] * 5000, "more": 0}}
    reading, writing = os.pipe()
    with subprocess.Popen(
        [*COMMAND, "sessions", "--socket", stranger.path], stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        os.read(reading, 10)
        os.close(reading)
        assert process.communicate(timeout=30)[1] == b""
        assert process.returncode in (0, 1)  # whether Python notices depends on where its buffer was cut


def test_top_in_a_pipe_is_one_table(run: Run, stranger: Stranger) -> None:
    answer = run("top", "--interval", "0.1", "--socket", stranger.path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("new/s") == 1
    assert len(stranger.asked) == 2


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_top_on_a_terminal_redraws_until_a_key_ends_it(stranger: Stranger, key: bytes) -> None:
    arguments = [*COMMAND, "top", "--interval", "0.1", "--socket", stranger.path]
    process, terminal, shown = _on_a_terminal(arguments, until=b"new/s", TERM="xterm")
    os.write(terminal, key)
    rest = _rest_of(terminal)
    assert process.wait(30) == 0
    assert b"\x1b[?1049h" in shown, "the reader's screen is left alone"
    assert b"\x1b[?1049l" in rest, "and given back"
    os.close(terminal)


def test_top_on_a_dumb_terminal_is_one_table(stranger: Stranger) -> None:
    arguments = [*COMMAND, "top", "--interval", "0.1", "--socket", stranger.path]
    process, terminal, shown = _on_a_terminal(arguments, until=b"new/s", TERM="dumb")
    assert b"\x1b" not in shown + _rest_of(terminal)
    assert process.wait(30) == 0
    os.close(terminal)


@pytest.mark.parametrize(
    ("variables", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]
)
def test_colour_on_a_terminal(stranger: Stranger, variables: dict[str, str], coloured: bool) -> None:
    process, terminal, shown = _on_a_terminal(
        [*COMMAND, "status", "--socket", stranger.path], until=b"refused", **variables
    )
    shown += _rest_of(terminal)
    assert process.wait(30) == 0
    assert (b"31m" in shown) is coloured
    os.close(terminal)


def _on_a_terminal(
    arguments: list[str], until: bytes, **environment: str
) -> tuple[subprocess.Popen[bytes], int, bytes]:
    """Start a command on a new terminal of its own and read until it has shown something."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "COLUMNS": "100", "LINES": "30"} | environment,
    )
    os.close(theirs)
    shown = b""
    while until not in shown:
        assert select.select([ours], [], [], 30)[0], shown
        shown += os.read(ours, 65536)
    return process, ours, shown


def _rest_of(terminal: int) -> bytes:
    """What is shown until nobody has the terminal open any more."""
    rest = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            rest += os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed
            return rest
    raise AssertionError(f"still open after {rest!r}")
