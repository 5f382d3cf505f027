"""One mail server of the demo: takes every message, keeps the newest in memory, and says who it is in every answer.

Decides: the banner and the 250 that name the server, so that a person at `telnet` sees where a connection went.
Refuses to know: the balancer. Run as `python -m mailbalancer.demo.mail_server NAME PORT`; says `ready` on stdout once.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

from aiosmtpd.smtp import SMTP, Envelope, Session

MESSAGES_KEPT = 100


class Mailbox:
    """Answers DATA with the server's name and the number of the message."""

    def __init__(self, name: str) -> None:
        self.kept: deque[bytes] = deque(maxlen=MESSAGES_KEPT)
        self._name = name
        self._taken = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take the message; the name and signature are aiosmtpd's hook."""
        self._taken += 1
        self.kept.append(envelope.original_content or b"")
        return f"250 2.0.0 {self._name} took your message as {self._taken}"


async def serve(name: str, port: int) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    mailbox = Mailbox(name)
    loop = asyncio.get_running_loop()

    def session() -> SMTP:
        return SMTP(mailbox, hostname=f"{name}.demo", ident="ESMTP mailbalancer demo", loop=loop, enable_SMTPUTF8=True)

    server = await loop.create_server(session, "127.0.0.1", port, backlog=512)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
