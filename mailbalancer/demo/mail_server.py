"""One mail server of the demo: takes every message, keeps the newest in memory, and says who it is in every answer.

Decides: the banner and the 250 that name the server, so that a person at `telnet` sees where a connection went; and two
switches, as Exchange has them: SIGUSR1 puts it into maintenance (`421 4.3.2` to everybody), SIGUSR2 under back pressure
(`452 4.3.1` to every MAIL), and the same signal again ends it.
Refuses to know: the balancer. Run as `python -m mailbalancer.demo.mail_server NAME PORT [PEM]`, where PEM holds key and
certificate for STARTTLS; says `ready` on stdout once.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from collections import deque
from typing import cast

from aiosmtpd.smtp import SMTP, Envelope, Session

MESSAGES_KEPT = 100
INACTIVE = "421 4.3.2 Service not active"
BUSY = "452 4.3.1 Insufficient system resources"


class Mailbox:
    """Answers DATA with the server's name and the number of the message.

    Attributes:
        inactive: in maintenance.
        busy: under back pressure.
    """

    def __init__(self, name: str) -> None:
        self.inactive = self.busy = False
        self.kept: deque[bytes] = deque(maxlen=MESSAGES_KEPT)
        self._name = name
        self._taken = 0

    def turn_inactive(self) -> None:
        """Into maintenance, or out of it."""
        self.inactive = not self.inactive

    def turn_busy(self) -> None:
        """Under back pressure, or relieved of it."""
        self.busy = not self.busy

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Whether a message may begin; the name and signature are aiosmtpd's hook."""
        if self.inactive or self.busy:
            return INACTIVE if self.inactive else BUSY
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take the message; the name and signature are aiosmtpd's hook."""
        self._taken += 1
        self.kept.append(envelope.original_content or b"")
        return f"250 2.0.0 {self._name} took your message as {self._taken}"


class Closed(asyncio.Protocol):
    """Says why it is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        open_transport = cast(asyncio.Transport, transport)
        open_transport.write(f"{INACTIVE}\r\n".encode())
        open_transport.close()


async def serve(name: str, port: int, pem: str = "") -> None:
    """Serve on 127.0.0.1 until cancelled."""
    mailbox = Mailbox(name)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, mailbox.turn_inactive)
    loop.add_signal_handler(signal.SIGUSR2, mailbox.turn_busy)
    tls = None
    if pem:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)

    def session() -> asyncio.BaseProtocol:
        if mailbox.inactive:
            return Closed()
        ident = "ESMTP mailbalancer demo"
        return SMTP(mailbox, hostname=f"{name}.demo", ident=ident, loop=loop, enable_SMTPUTF8=True, tls_context=tls)

    server = await loop.create_server(session, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
