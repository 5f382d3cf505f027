"""A session by hand: telnet, half-typed lines, QUIT, and a client that ends only its own half."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.real_servers import Postfix
from tests.support.servers import AnswerAtEnd
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


class Telnet:
    """`telnet 127.0.0.1 PORT` on a terminal of its own, as a person has it."""

    def __init__(self, port: int) -> None:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [require("telnet"), "127.0.0.1", str(port)], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        os.set_blocking(self._terminal, False)
        self.screen = ""

    def type(self, text: str) -> None:
        """Keys, one after another."""
        for key in text:
            os.write(self._terminal, key.encode())

    def reads(self, text: str) -> bool:
        """Whether this stands on the screen by now."""
        with contextlib.suppress(OSError):  # nothing new, or telnet has ended
            self.screen += os.read(self._terminal, 65536).decode(errors="replace")
        return text in self.screen

    def expect(self, text: str) -> None:
        eventually(lambda: self.reads(text), what=f"{text!r} on the screen")

    def ended(self) -> bool:
        self.reads("")  # telnet waits for a terminal that takes its last words
        return self._process.poll() is not None

    def kill(self) -> None:
        """The person closes the window."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        os.close(self._terminal)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def balancer(mx1: Postfix, port: int, tmp_path: Path) -> Iterator[Balancer]:
    with Balancer(config(port, "mx1", mx1.port), tmp_path) as running:
        yield running


def config(port: int, name: str, behind: int) -> dict[str, Any]:
    service = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "real_servers": {name: behind}, "check": "none"}
    return {"real_servers": {name: "127.0.0.1"}, "services": {"smtp": service}}


@pytest.fixture
def telnet(balancer: Balancer, port: int) -> Iterator[Telnet]:
    client = Telnet(port)
    yield client
    client.close()


def test_a_message_by_hand(telnet: Telnet, mx1: Postfix, balancer: Balancer) -> None:
    telnet.expect("220 mx1.example.com ESMTP Postfix")
    telnet.type("EHLO client.exa")
    telnet.type("mple.org\n")
    telnet.expect("250-mx1.example.com")
    telnet.expect("250 ")
    telnet.type("MAIL FROM:<sender@example.org>\n")
    telnet.expect("250 2.1.0 Ok")
    telnet.type("RCPT TO:<somebody@example.com>\n")
    telnet.expect("250 2.1.5 Ok")
    telnet.type("DATA\n")
    telnet.expect("354 End data with")
    telnet.type("Subject: by hand\n\nhello\n.\n")
    telnet.expect("250 2.0.0 Ok: queued as")
    assert balancer.service("smtp")["sessions"] == 1
    (session,) = balancer.command("sessions")["sessions"]
    assert session["state"] == "relaying"
    telnet.type("QUIT\n")
    telnet.expect("221 2.0.0 Bye")
    telnet.expect("Connection closed by foreign host")
    eventually(telnet.ended, what="telnet ends")
    eventually(lambda: balancer.service("smtp")["sessions"] == 0, what="the session is over")


def test_a_half_typed_line_waits_for_its_other_half(telnet: Telnet, balancer: Balancer) -> None:
    telnet.expect("220 mx1")
    telnet.type("NO")
    eventually(lambda: balancer.command("sessions")["sessions"], what="the session is listed")
    balancer.command("reload")
    telnet.type("OP\n")
    telnet.expect("250 2.0.0 Ok")


def test_a_client_that_goes_in_the_middle_of_a_line(telnet: Telnet, mx1: Postfix, balancer: Balancer) -> None:
    telnet.expect("220 mx1")
    telnet.type("MAIL FR")
    before = mx1.log_text().count("lost connection after CONNECT")
    telnet.kill()
    eventually(lambda: balancer.service("smtp")["sessions"] == 0, what="the session is over")
    eventually(lambda: mx1.log_text().count("lost connection after CONNECT") > before, what="Postfix knows of it")


def test_half_close_reaches_the_server_and_its_answer_the_client(tmp_path: Path, port: int) -> None:
    with AnswerAtEnd("ex1") as ex1, Balancer(config(port, "ex1", ex1.port), tmp_path):
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"x" * 3_000_000)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(1000), b""))
        assert answer == b"ex1 received 3000000 bytes\r\n"


def test_a_whole_pipelined_conversation_and_then_the_half_is_closed(balancer: Balancer, port: int) -> None:
    """`printf … | nc -N`: everything is said before the greeting is read."""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(b"EHLO client.example.org\r\nNOOP\r\nQUIT\r\n")
        client.shutdown(socket.SHUT_WR)
        heard = b"".join(iter(lambda: client.recv(1000), b""))
    assert heard.startswith(b"220 mx1.example.com")
    assert heard.endswith(b"221 2.0.0 Bye\r\n"), heard
