from __future__ import annotations

import email
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from mailbalancer.admin.alarm_ways import message
from mailbalancer.admin.alarms import MOST_LINES, Alarm, Grouping
from mailbalancer.config.load import load_text
from mailbalancer.errors import ConfigError
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually


def event(text: str, level: str = "warning") -> dict[str, str]:
    return {"at": "2026-01-01T00:00:00Z", "level": level, "text": text}


def test_what_happens_together_is_told_together_with_the_gravest_first() -> None:
    grouping = Grouping("warning", 30, 20)
    for at, (text, level) in enumerate(
        [("a is down", "warning"), ("fine", "info"), ("b refuses", "error"), ("c", "warning")]
    ):
        grouping.take(event(text, level), float(at))
    assert grouping.due(29.9) is None
    alarm = grouping.due(30.0)
    assert alarm is not None
    assert alarm.text.split("\n")[0] == "b refuses"
    assert [line.split(": ")[1] for line in alarm.lines] == ["a is down", "b refuses", "c"]
    assert grouping.due(1000.0) is None


def test_there_are_never_more_messages_than_agreed() -> None:
    grouping = Grouping("warning", 0, 6)
    sent = []
    for second in range(2 * 3600):
        grouping.take(event(f"e{second}"), float(second))
        if alarm := grouping.due(float(second)):
            sent.append((second, alarm))
    assert len(sent) <= 6 + 2 * 6
    assert [second for second, _ in sent[:6]] == [0, 1, 2, 3, 4, 5]
    told = sum(len(alarm.lines) + alarm.more for _, alarm in sent)
    assert told >= 7200 - 700, "those that wait are gathered"
    assert max(len(alarm.lines) for _, alarm in sent) == MOST_LINES


def test_a_stranger_s_words_cannot_leave_their_line() -> None:
    evil = "x is down\r\n.\r\nMAIL FROM:<evil@example.com>\r\nSubject: y"
    wire = message(Alarm(evil, "error", (evil, ".", "ä\x1b[31m")), "lb@example.com", ["a@example.com"])
    assert wire.endswith(b"\r\n.\r\n")
    assert wire.count(b"\r\n.\r\n") == 1
    parsed = email.message_from_bytes(wire)
    assert parsed["Subject"].startswith("[mailbalancer] x is down")
    assert parsed.get_all("Subject") == [parsed["Subject"]]
    assert wire.isascii()
    assert b"\x1b" not in wire
    assert max(map(len, wire.split(b"\r\n"))) < 998


class Received:
    """What an SMTP server was handed."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.messages.append(envelope.content)
        return "250 OK"


@pytest.fixture
def smtp() -> Iterator[tuple[int, Received]]:
    received = Received()
    controller = Controller(received, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield controller.port, received
    controller.stop()


@pytest.fixture
def hook() -> Iterator[tuple[int, list[Any]]]:
    told: list[Any] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append((self.headers["Host"], json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, told
        server.shutdown()
        thread.join()


def test_a_server_that_goes_down_is_told_every_way(
    tmp_path: Path, smtp: tuple[int, Received], hook: tuple[int, list[Any]]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log, socket.create_server(("127.0.0.1", 0)) as real:
        log.bind(str(tmp_path / "log"))
        log.settimeout(20)
        port = real.getsockname()[1]
        config = {
            "alarms": {
                "group_s": 0,
                "level": "error",
                "mail": {"server": f"127.0.0.1:{smtp[0]}", "sender": "lb@example.com", "recipients": "pm@example.com"},
                "webhook": {"url": f"http://hook.example.com:{hook[0]}/x", "address": "127.0.0.1"},
                "syslog": str(tmp_path / "log"),
            },
            "real_servers": {"ex1": "127.0.0.1"},
            "services": {
                "smtp": {
                    "mode": "tcp",
                    "listen": f"127.0.0.1:{free_port()}",
                    "real_servers": {"ex1": port},
                    "check": {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.5, "rise": 1, "fall": 1},
                }
            },
        }
        with Balancer(config, tmp_path) as balancer:
            eventually(lambda: balancer.real_server("smtp", "ex1")["up"])
            real.close()
            cause = "smtp: ex1 is down: connection refused"
            eventually(lambda: smtp[1].messages and hook[1], 20, "mail and webhook")
            assert cause.encode() in smtp[1].messages[0]
            host, facts = hook[1][0]
            assert host == f"hook.example.com:{hook[0]}"
            assert facts["cause"].startswith(cause)
            assert f"ALARM {cause}" in log.recv(4096).decode()
            status = Path(f"/proc/{balancer.pid}/status").read_text()
            assert "Threads:\t1\n" in status, "no name was looked up"


def test_a_bell_that_cannot_ring_is_said_in_the_log(tmp_path: Path) -> None:
    config = {
        "alarms": {
            "group_s": 0,
            "mail": {"server": "127.0.0.1:9", "sender": "a@example.com", "recipients": ["b@example.com"]},
        },
        "real_servers": {"ex1": "127.0.0.2"},
        "services": {
            "s": {
                "mode": "tcp",
                "listen": f"127.0.0.1:{free_port()}",
                "real_servers": ["ex1"],
                "check": {"type": "none"},
            }
        },
    }
    with Balancer(config, tmp_path) as balancer:
        balancer.command("disable", real_server="ex1")
        eventually(lambda: "alarm by mail was not sent" in balancer.log_text(), 20)
        assert len([e for e in balancer.status()["events"] if "was not sent" in e["text"]]) == 0, (
            "it cannot ring for itself"
        )


@pytest.mark.parametrize(
    ("alarms", "said"),
    [
        ("{webhook: {url: 'https://hook.example.com/x'}}", "must not depend on DNS"),
        ("{webhook: {}}", "either url or url_file"),
        ("{webhook: {url: 'ftp://10.0.0.1/'}}", "is not a web address"),
        ("{webhook: {url: 'http://user@10.0.0.1/'}}", "is not a web address"),
        ("{webhook: {url_file: /nowhere/x, address: 10.0.0.1}}", "/nowhere/x"),
        ("{mail: {server: 'mail.example.com:25', sender: a@example.com, recipients: b@example.com}}", "server"),
        (
            "{mail: {server: '10.0.0.1:25', sender: 'a@example.com> x', recipients: b@example.com}}",
            "not a mail address",
        ),
        ("{mail: {server: '10.0.0.1:25', sender: a@example.com, recipients: []}}", "recipients"),
    ],
)
def test_alarms_that_nobody_would_get_are_refused(alarms: str, said: str) -> None:
    text = f"alarms: {alarms}\nreal_servers: {{a: 10.0.0.1}}\n"
    text += "services: {s: {mode: tcp, listen: '10.0.0.9:25', real_servers: [a]}}\n"
    with pytest.raises(ConfigError, match=said):
        load_text(text)
