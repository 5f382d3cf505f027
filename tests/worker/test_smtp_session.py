"""Mode `smtp` through a real worker: judged by what the servers behind received, and by what the client was told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.model import Mail, Mode, Service, Smtp
from tests.support.lone_worker import LoneWorker, receive_all, service
from tests.support.mail_servers import SmtpServer
from tests.support.waiting import eventually

HOST = "lb.example.test"
MESSAGE = b"Subject: a test\r\n\r\nHello,\r\n..a dot\r\nbye\r\n"


def smtp(
    *servers: Any, mail: dict[str, Any] | None = None, smtp: dict[str, Any] | None = None, **options: Any
) -> Service:
    """An `smtp` service named mx."""
    own = Mail(HOST, smtp=Smtp(**(smtp or {})), **(mail or {}))
    return service("mx", *servers, mode=Mode.SMTP, mail=own, **options)


class Talk:
    """A client that reads replies, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._waiting = b""

    def reply(self) -> bytes:
        """The next reply, all its lines."""
        found = b""
        while True:
            while b"\r\n" not in self._waiting:
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError(found + self._waiting)
                self._waiting += data
            line, _, self._waiting = self._waiting.partition(b"\r\n")
            found += line + b"\r\n"
            if line[3:4] != b"-":
                return found

    def say(self, line: bytes) -> bytes:
        """A command and its reply."""
        self.sock.sendall(line + b"\r\n")
        return self.reply()

    def send(self, message: bytes = MESSAGE, sender: bytes = b"a@example.test") -> bytes:
        """One message; the verdict."""
        assert self.say(b"MAIL FROM:<%b>" % sender).startswith(b"250")
        assert self.say(b"RCPT TO:<b@example.test>").startswith(b"250")
        assert self.say(b"DATA").startswith(b"354")
        self.sock.sendall(message + b".\r\n")
        return self.reply()

    def begin(self) -> bytes:
        """Greeting and EHLO; the capabilities."""
        assert self.reply().startswith(b"220 ")
        return self.say(b"EHLO client.test")

    def end(self) -> bytes:
        """Everything up to the end of the connection."""
        found = self._waiting + receive_all(self.sock)
        self._waiting = b""
        return found


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def talk(worker: LoneWorker) -> Talk:
    return Talk(worker.connect("mx"))


def test_a_message_goes_through_and_is_accepted_by_the_server_itself(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        assert client.reply() == b"220 lb.example.test ESMTP\r\n"
        assert client.say(b"EHLO client.test").startswith(b"250-lb.example.test\r\n")
        assert client.send() == b"250 2.0.0 mx1 has it\r\n"
        assert client.say(b"QUIT").startswith(b"221")
        assert client.end() == b""
        assert [m.data for m in mx1.messages] == [MESSAGE]
        lines = eventually(lambda: [line for line in worker.log_lines() if line["message"] == "message"])
        assert (lines[0]["server"], lines[0]["size"], lines[0]["recipients"]) == ("mx1", len(MESSAGE), 1)
        assert worker.session_lines()[0]["end"] == "client_quit"
