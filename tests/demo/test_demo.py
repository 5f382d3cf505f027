"""The demo as a person runs it: what it prints works, a killed server leaves and returns, nothing is left behind."""

from __future__ import annotations

import os
import re
import selectors
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from mailbalancer.control.client import request
from mailbalancer.demo import recipe
from tests.support.program import run_cli
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live
START_S = 30.0


class RunningDemo:
    """`mailbalancer demo` in a process group of its own, and what it has printed so far."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mailbalancer", "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(folder)},
            process_group=0,
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self.printed = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self._stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, pattern: str, timeout_s: float = START_S) -> re.Match[str]:
        """The first place in everything printed that matches, now or later."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while (found := re.search(pattern, self.printed)) is None:
                assert selector.select(max(0.0, deadline - time.monotonic())), f"no {pattern!r} in:\n{self.printed}"
                data = os.read(self._stdout.fileno(), 65536)
                assert data, f"it ended without {pattern!r}:\n{self.printed}"
                self.printed += data.decode()
        return found

    def end(self, with_signal: signal.Signals) -> int:
        """Send a signal, as a terminal does: to the whole process group."""
        os.killpg(self._process.pid, with_signal)
        return self.ended()

    def ended(self, timeout_s: float = 30.0) -> int:
        code = self._process.wait(timeout_s)
        self.printed += (self._stdout.read() or b"").decode()
        return code

    # what it printed

    def ready(self) -> Self:
        self.wait_for(r"Ctrl-C ends everything\.\n")
        return self

    @property
    def smtp_port(self) -> int:
        found = self.wait_for(r"telnet 127\.0\.0\.1 ([0-9]+)\n|'127\.0\.0\.1', ([0-9]+)\); s\.ehlo")
        return int(found.group(1) or found.group(2))

    @property
    def rpc_ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"127\.0\.0\.1(?: |', )([0-9]+)\D.*stands for", self.printed)]

    @property
    def control_socket(self) -> str:
        return self.wait_for(r"status --socket (\S+)").group(1)

    @property
    def pid_of_ex2(self) -> int:
        return int(self.wait_for(r"kill ([0-9]+)  # ex2's mail server").group(1))

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = request(self.control_socket, "status")
        return report

    def mail_server(self, name: str) -> dict[str, Any]:
        smtp = next(service for service in self.status()["services"] if service["name"] == "smtp")
        found: dict[str, Any] = next(s for s in smtp["pools"][0]["real_servers"] if s["name"] == name)
        return found


def send_mail(port: int) -> str:
    """One mail through the balancer; the name of the server that took it. Raises when the client sees any error."""
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        client.ehlo("me")
        client.mail("me@example.com")
        client.rcpt("you@example.com")
        code, words = client.data("Subject: hello\n\nhello")
    assert code == 250
    return words.decode().split()[1]


def ask_rpc(port: int, source: str = "127.0.0.1") -> str:
    """The answer to one line said on an RPC port."""
    with socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)) as connection:
        connection.sendall(b"hello\r\n")
        with connection.makefile("r") as lines:
            return lines.readline().strip()


def processes_of(pid: int) -> set[int]:
    """All descendants of a process."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket in a folder in it."""
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def needs_curl() -> None:
    require("curl")


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    """A folder in which the demo must leave nothing behind."""
    yield short_folder
    assert list(short_folder.iterdir()) == []


def test_mail_goes_through_and_every_server_takes_some(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        names = set()
        eventually(lambda: names.add(send_mail(demo.smtp_port)) or len(names) == 3, 30, "all three take mail")
        status = run_cli("status", "--socket", demo.control_socket)
        assert (status.returncode, status.stderr) == (0, "")
        assert "workers: 2 of 2 running" in status.stdout
        smoke = run_cli("smoke", "smtp", "--socket", demo.control_socket)
        assert (smoke.returncode, smoke.stderr) == (0, "")
        assert "ex1.demo" in smoke.stdout


def test_mail_is_read_as_printed(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        lines = re.findall(r"^  (curl .* '?(?:imap|pop3)://\S+)$", demo.printed, re.MULTILINE)
        assert len(lines) == 2
        for line in lines:
            names = {name for _ in range(6) for name in re.findall(r"the mailbox on (ex\d)", shell(line))}
            assert names <= {"ex1", "ex2", "ex3"}
            assert names
        (line,) = re.findall(r"^  (openssl .*)  # a LOGIN me secret, b LOGOUT$", demo.printed, re.MULTILINE)
        said = "a LOGIN me secret\nb LOGOUT\n"
        assert re.search(r"a OK .*logged in on ex\d\n\* BYE from ex\d\nb OK", shell(f"(sleep 1; cat) | {line}", said))


def shell(line: str, said: str = "") -> str:
    """What a line prints that the demo has printed."""
    done = subprocess.run(line, shell=True, input=said, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\r", "")


def test_one_client_stays_on_one_server_over_three_ports(folder: Path) -> None:
    with RunningDemo(folder, "--workers", "3") as demo:
        demo.ready()
        assert len(demo.rpc_ports) == 3
        servers = {}
        for last in range(1, 21):
            source = f"127.0.0.{last}"
            answers = [ask_rpc(port, source) for port in demo.rpc_ports * 2]
            assert [answer.split(",")[0].split(" ", 1)[1] for answer in answers[:3]] == [
                f"port {port}" for port in (135, 59531, 59532)
            ]
            assert all(answer.endswith("you are 127.0.0.1: hello") for answer in answers)
            names = {answer.split()[0] for answer in answers}
            assert len(names) == 1, f"{source} met {names}"
            servers[source] = names.pop()
        assert set(servers.values()) == {"ex1", "ex2", "ex3"}
        listed = run_cli("persistence", "list", "--group", "cas", "--socket", demo.control_socket).stdout
        assert all(re.search(rf"{re.escape(source)} +{name} ", listed) for source, name in servers.items()), listed


def test_a_killed_server_leaves_and_returns_gently(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        killed = demo.pid_of_ex2
        os.kill(killed, signal.SIGTERM)
        intervals_s = 3.0 * recipe.CHECK_INTERVAL_S
        eventually(lambda: demo.mail_server("ex2")["up"] is False, intervals_s + 2, "ex2 is down in the status")
        assert "down: " in run_cli("status", "--socket", demo.control_socket).stdout
        assert {send_mail(demo.smtp_port) for _ in range(20)} == {"ex1", "ex3"}
        demo.wait_for(rf"\[demo\] ex2's mail server \(pid {killed}\) is gone; it starts again in 20 s")
        demo.wait_for(r"\[balancer\] .*ex2.*down", 10)
        back = demo.wait_for(r"ex2's mail server is back as pid ([0-9]+)", recipe.RETURN_S + 20)
        assert alive(int(back.group(1)))
        eventually(lambda: demo.mail_server("ex2")["up"], 15, "ex2 is up again")
        assert demo.mail_server("ex2")["ramp_percent"] < 100
        demo.wait_for(r"\[balancer\] .*ex2.*up", 10)
        eventually(lambda: send_mail(demo.smtp_port) == "ex2", 40, "ex2 takes mail again")


def test_maintenance_and_back_pressure_as_printed(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        for pid in re.findall(r"kill -USR[12] ([0-9]+)  #", demo.printed):
            os.kill(int(pid), signal.SIGUSR1 if f"kill -USR1 {pid} " in demo.printed else signal.SIGUSR2)
        eventually(lambda: demo.mail_server("ex1")["maintenance"], 10, "ex1 is in maintenance")
        eventually(lambda: demo.mail_server("ex3")["back_pressure"], 10, "ex3 is under back pressure")
        assert {send_mail(demo.smtp_port) for _ in range(10)} == {"ex2"}
        shown = " ".join(run_cli("status", "--socket", demo.control_socket).stdout.split())
        assert "ex1: draining: in maintenance: banner was '421 4.3.2 Service not active'" in shown
        assert "452 4.3.1 Insufficient system resources" in shown


def test_drain_and_enable_as_printed(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        assert run_cli("drain", "smtp", "ex3", "--socket", demo.control_socket).returncode == 0
        eventually(lambda: demo.mail_server("ex3")["admin"] == "draining", 5)
        assert "ex3" not in {send_mail(demo.smtp_port) for _ in range(20)}
        assert run_cli("enable", "smtp", "ex3", "--socket", demo.control_socket).returncode == 0
        eventually(lambda: demo.mail_server("ex3")["admin"] == "enabled", 5)


def curl_lines(demo: RunningDemo, having: str) -> str:
    """What the printed commands with these words print, run one after the other by a shell."""
    lines = [line.strip() for line in demo.printed.splitlines() if line.startswith("  curl ") and having in line]
    assert lines, f"no curl with {having!r} in:\n{demo.printed}"
    command = " && ".join(line.partition("  #")[0].rstrip(" &") for line in lines)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def directory(demo: RunningDemo, route: str, name: str) -> bool | None:
    """Whether one server is up in one route of the web service."""
    web = next(service for service in demo.status()["services"] if service["name"] == "web")
    pool = next(pool for pool in web["pools"] if pool["route"] == route)
    up: bool | None = next(server["up"] for server in pool["real_servers"] if server["name"] == name)
    return up


@pytest.mark.usefixtures("needs_curl")
def test_web_mail_stays_and_logins_belong_to_connections(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        first = re.findall(r"<title>(ex[123])", curl_lines(demo, "owa/"))
        again = re.findall(r"<title>(ex[123])", curl_lines(demo, "owa/"))
        assert len(first) == 2  # the login page, then the mailbox
        assert len({*first, *again}) == 1
        assert "Mailbox of me" in curl_lines(demo, "owa/  ")
        logins = re.findall(r"<User>(.*?)</User><Server>(ex[123])", curl_lines(demo, "--ntlm"))
        assert len(logins) == 2
        assert len(set(logins)) == 1
        assert logins[0][0] == "me"


@pytest.mark.usefixtures("needs_curl")
def test_one_broken_directory_leaves_the_others_in_service(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        name = curl_lines(demo, "break").split()[2]
        eventually(lambda: directory(demo, "ews", name) is False, 15, "its /ews is out")
        assert directory(demo, "owa", name) is True
        page = run_cli("status", "--socket", demo.control_socket).stdout
        assert "404" in page
        assert curl_lines(demo, "mend").split()[2] == name
        eventually(lambda: directory(demo, "ews", name), 15, "its /ews is back")


@pytest.mark.usefixtures("needs_curl")
def test_the_page_and_its_token(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        page = found(demo, r"in a browser: (http\S+)")
        token = found(demo, r"log in with the token (\S+)")
        assert b"<!doctype html>" in urllib.request.urlopen(page, timeout=10).read()
        assert "mailbalancer_service_sessions{" in curl_lines(demo, "metrics")
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        drain = urllib.request.Request(f"{page}api/v1/real-servers/ex3/drain", b"{}", headers)
        assert urllib.request.urlopen(drain, timeout=10).status == 200


def found(demo: RunningDemo, pattern: str) -> str:
    match = re.search(pattern, demo.printed)
    assert match, demo.printed
    return match[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(folder: Path, number: signal.Signals) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        family = processes_of(demo.pid)
        assert len(family) == 15, "twelve servers, the supervisor and two workers"
        assert demo.end(number) == 0
        assert demo.printed.endswith("The demo ends.\n")
        assert [pid for pid in family if alive(pid)] == []


def test_a_signal_during_the_start_ends_everything(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        eventually(lambda: len(processes_of(demo.pid)) >= 3, 10, "the first servers are started")
        family = processes_of(demo.pid)
        assert demo.end(signal.SIGINT) == 0
        eventually(lambda: not [pid for pid in family if alive(pid)], 5)


def test_time_ends_it_and_keep_keeps_the_folder(short_folder: Path) -> None:
    with RunningDemo(short_folder, "--seconds", "0.5", "--keep") as demo:
        demo.ready()
        family = processes_of(demo.pid)
        assert demo.ended() == 0
        assert [pid for pid in family if alive(pid)] == []
        kept = Path(demo.wait_for(r"stay in (\S+)\n").group(1))
        assert {"mailbalancer.yaml", "mailbalancer.log"} <= {path.name for path in kept.iterdir()}
        assert "Traceback" not in (kept / "mailbalancer.log").read_text() + (kept / "servers.log").read_text()


def test_a_long_name_of_the_temporary_folder_is_no_obstacle(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with RunningDemo(long, "--seconds", "0.1") as demo:
        demo.ready()
        assert demo.ended() == 0
        assert not Path(demo.control_socket).parent.exists()


def test_everything_ends_with_a_demo_that_was_killed(short_folder: Path) -> None:
    with RunningDemo(short_folder) as demo:
        demo.ready()
        family = processes_of(demo.pid)
        assert demo.end(signal.SIGKILL) == -signal.SIGKILL
        eventually(lambda: not [pid for pid in family if alive(pid)], 15, "the kernel ended every process")


def test_a_balancer_that_dies_ends_the_demo_with_the_reason(folder: Path) -> None:
    with RunningDemo(folder) as demo:
        demo.ready()
        os.kill(demo.status()["pid"], signal.SIGKILL)
        assert demo.ended() == 1
        assert "mailbalancer: the balancer ended with code -9: " in demo.printed
