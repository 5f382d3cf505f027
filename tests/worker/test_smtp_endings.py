"""Random endings in every state of an SMTP session: nothing is answered 250 that no server has, nothing is sent twice.

Three servers die, freeze or reset at a random moment of a random number of sessions at once; what every client was told
is compared with what every server stored.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading

from mailbalancer.ipc.board import Count
from mailbalancer.model import Mail, Mode, Service
from tests.support.lone_worker import LoneWorker, service
from tests.support.mail_servers import SmtpServer
from tests.support.servers import Connection
from tests.support.smtp_client import Talk

#: The issue's number is 2,000; `MAILBALANCER_ENDINGS` sets another.
SESSIONS = int(os.environ.get("MAILBALANCER_ENDINGS", "400"))
AT_ONCE = 16


class Mortal(SmtpServer):
    """Dies after a random number of bytes read or written on each connection, in a random way."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name)
        self._random = random.Random(seed)
        self.frozen: list[socket.socket] = []

    def serve(self, connection: Connection) -> None:
        with self.lock:
            fate = self._random.choice(["live", "live", "close", "reset", "freeze"])
            at = self._random.randrange(0, 2600)
        if fate != "live":
            connection.socket = Dying(connection.socket, fate, at)  # type: ignore[assignment]
        super().serve(connection)


class Dying:
    """A socket that fails after so many bytes in either direction."""

    def __init__(self, sock: socket.socket, fate: str, left: int) -> None:
        self._sock = sock
        self._fate = fate
        self._left = left

    def recv(self, size: int) -> bytes:
        data = self._sock.recv(min(size, max(1, self._left)))
        self._spend(len(data))
        return data

    def sendall(self, data: bytes) -> None:
        if len(data) > self._left:
            self._sock.sendall(data[: self._left])
        self._spend(len(data))
        self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def setsockopt(self, *arguments: object) -> None:
        self._sock.setsockopt(*arguments)  # type: ignore[arg-type]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left > 0:
            return
        if self._fate == "freeze":
            self._sock.settimeout(4)
            while self._sock.recv(65536):
                pass
        if self._fate == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()
        raise ConnectionResetError


class Sender:
    """Sends numbered messages, and keeps what it was told."""

    def __init__(self, worker: LoneWorker, seed: int) -> None:
        self._worker = worker
        self._random = random.Random(seed)
        self.accepted: list[bytes] = []
        self.failures: list[BaseException] = []

    def run(self, numbers: range) -> None:
        for number in numbers:
            try:
                self._session(number)
            except (EOFError, ConnectionError):
                pass
            except BaseException as error:
                self.failures.append(error)
                raise

    def _session(self, number: int) -> None:
        sock = self._worker.connect("mx")
        client = Talk(sock)
        try:
            if not client.reply().startswith(b"220") or not client.say(b"EHLO c.test").startswith(b"250"):
                return
            for at in range(2):
                mark = b"message %d.%d" % (number, at)
                for command in (b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"DATA"):
                    if client.say(command)[:1] not in b"23":
                        return
                body = mark + b"\r\n" + b"x" * self._random.randrange(900) + b"\r\n"
                cut = self._random.randrange(len(body))
                sock.sendall(body[:cut])
                sock.sendall(body[cut:] + b".\r\n")
                if client.reply().startswith(b"250"):
                    self.accepted.append(mark)
            client.say(b"QUIT")
        finally:
            sock.close()


def mx(*servers: SmtpServer) -> Service:
    mail = Mail("lb.test", greeting_timeout_s=1.0)
    return service("mx", *servers, mode=Mode.SMTP, mail=mail, idle_timeout_s=1.0)


def test_no_false_250_and_nothing_twice() -> None:
    servers = [Mortal(f"mx{at}", at) for at in range(3)]
    with LoneWorker() as worker, servers[0], servers[1], servers[2]:
        worker.configure(mx(*servers))
        share = SESSIONS // AT_ONCE
        senders = [Sender(worker, seed) for seed in range(AT_ONCE)]
        threads = [
            threading.Thread(target=sender.run, args=(range(at * share, (at + 1) * share),))
            for at, sender in enumerate(senders)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive(), "a client was neither answered nor closed"
        assert not [failure for sender in senders for failure in sender.failures]
        stored = [message.data.partition(b"\r\n")[0] for server in servers for message in server.messages]
        told = [mark for sender in senders for mark in sender.accepted]
        assert len(told) > SESSIONS // 4
        assert not set(told) - set(stored), "accepted, and no server has it"
        assert len(stored) == len(set(stored)), "sent twice"
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        assert all(worker.count(Count.SESSIONS, "mx", server.name) == 0 for server in servers)
