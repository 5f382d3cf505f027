"""Sixty reloads, each with another configuration, under sessions of every kind: none of them may notice.

500 HTTPS connections that are kept alive, 500 IMAP sessions after their login and 100 SMTP messages in the middle of
DATA; on each of them something goes both ways between the reloads, and every message is stored whole in the end.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority, Issued
from tests.support.mail_servers import ImapServer, SmtpServer
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually
from tests.support.web import Web, Wire

pytestmark = pytest.mark.live

NAME = "mail.example.com"
RELOADS = 60
HTTPS, IMAP, SMTP = 500, 500, 100
TIMEOUT_S = 30.0


class Site:
    """Three services in front of two servers each."""

    def __init__(self, stack: ExitStack, certificate: Issued) -> None:
        self.web = [stack.enter_context(Web(name)) for name in ("s1", "s2")]
        self.imap = [stack.enter_context(ImapServer(name)) for name in ("s1", "s2")]
        self.smtp = [stack.enter_context(SmtpServer(name)) for name in ("s1", "s2")]
        self.ports = {"https": free_port(), "imap": free_port(), "smtp": free_port()}
        self._certificate = certificate

    def config(self, turn: int) -> dict[str, Any]:
        """Another one each turn: weights and timeouts change, a server comes and goes, and so does a service."""

        def service(name: str, mode: str, *servers: Web | ImapServer | SmtpServer, **more: Any) -> dict[str, Any]:
            return {
                "mode": mode,
                "listen": f"127.0.0.1:{self.ports[name]}",
                "idle_timeout_s": 600 + turn,
                "check": "none",
                "real_servers": {server.name: {"port": server.port, "weight": 1 + turn % 3} for server in servers},
                **more,
            }

        services = {
            "https": service("https", "http", *self.web, client_tls={"certificate": "mail"}, hsts_s=turn),
            "imap": service("imap", "imap", *self.imap, server_tls={"starttls": "none"}),
            "smtp": service("smtp", "smtp", *self.smtp, server_tls={"starttls": "none"}),
        }
        for one in services.values():
            if turn % 4 == 3:
                one["real_servers"]["s3"] = {"port": 9, "state": "disabled"}
        if turn % 5 == 4:
            services["passing"] = service("https", "tcp", self.web[0]) | {"listen": f"127.0.0.1:{free_port()}"}
        return {
            "certificates": {"mail": str(self._certificate.pem)},
            "real_servers": dict.fromkeys(("s1", "s2", "s3"), "127.0.0.1"),
            "services": services,
        }

    def connect(self, service: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[service]), timeout=TIMEOUT_S)


class Https:
    """One connection that is kept alive."""

    def __init__(self, site: Site, context: ssl.SSLContext) -> None:
        self._wire = Wire(context.wrap_socket(site.connect("https"), server_hostname=NAME))
        self.server = ""

    def goes_on(self) -> bool:
        """Whether it is answered, by the server that answered before."""
        self._wire.socket.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        answer = self._wire.answer()
        before, self.server = self.server, answer.body.decode()
        return answer.status == 200 and before in ("", self.server)


class Imap:
    """One session after its login."""

    def __init__(self, site: Site) -> None:
        self._wire = Wire(site.connect("imap"))
        assert self._wire.until(b"\r\n").startswith(b"* OK")
        self._wire.socket.sendall(b"a LOGIN user secret\r\n")
        assert self._wire.until(b"\r\n").startswith(b"a OK")

    def goes_on(self) -> bool:
        self._wire.socket.sendall(b"b NOOP\r\n")
        return self._wire.until(b"\r\n") == b"b NOOP\r\n"


class Smtp:
    """One message in the middle of DATA."""

    def __init__(self, site: Site, number: int) -> None:
        self._wire = Wire(site.connect("smtp"))
        self._number = number
        self.sent = b""
        assert self._wire.until(b"\r\n").startswith(b"220")
        for command in (b"HELO client", b"MAIL FROM:<a@b.example>", b"RCPT TO:<c@d.example>"):
            self._wire.socket.sendall(command + b"\r\n")
            assert self._wire.until(b"\r\n").startswith(b"250")
        self._wire.socket.sendall(b"DATA\r\n")
        assert self._wire.until(b"\r\n").startswith(b"354")

    def goes_on(self) -> bool:
        """Send a line more. That it has arrived is seen in the end."""
        line = f"message {self._number}, byte {len(self.sent)}\r\n".encode()
        self._wire.socket.sendall(line)
        self.sent += line
        return True

    def ends(self) -> bool:
        """Whether the message is accepted."""
        self._wire.socket.sendall(b".\r\n")
        return self._wire.until(b"\r\n").startswith(b"250")


def test_no_session_notices_sixty_reloads(authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    context = authority.client_context()
    with ExitStack() as stack:
        site = Site(stack, certificate)
        balancer = stack.enter_context(Balancer(site.config(0), tmp_path))
        messages = [Smtp(site, number) for number in range(SMTP)]
        sessions = [Https(site, context) for _ in range(HTTPS)] + [Imap(site) for _ in range(IMAP)]
        everybody = [*sessions, *messages]
        assert all(session.goes_on() for session in everybody)
        for turn in range(1, RELOADS + 1):
            balancer.reload(site.config(turn))
            assert [session for session in everybody[turn::RELOADS] if not session.goes_on()] == []
        assert [session for session in everybody if not session.goes_on()] == []
        counts = {"https": HTTPS, "imap": IMAP, "smtp": SMTP}
        eventually(lambda: {name: balancer.service(name)["sessions"] for name in counts} == counts, what="all counted")
        assert [message for message in messages if not message.ends()] == []
        stored = sorted(message.data for server in site.smtp for message in server.messages)
        assert stored == sorted(message.sent for message in messages)
        assert [worker["restarts"] for worker in balancer.status()["workers"]] == [0, 0]
