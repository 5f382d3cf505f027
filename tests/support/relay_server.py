"""A mail server that relays for one address alone, as an Exchange receive connector does; for a namespace of its own.

Decides: whom it relays for, and that its log says for each recipient who asked: the address, the sender, the verdict.
Refuses to know: the balancer. Run as `python -m tests.support.relay_server NAME LOG PORT RELAYS_FOR`.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.support.mail_servers import Conversation, SmtpServer

OWN = b"@example.com>"
DENIED = b"550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain\r\n"


class RelayServer(SmtpServer):
    """Takes mail for example.com of everybody, and for other domains from one address."""

    def __init__(self, name: str, log: Path, port: int, relays_for: str) -> None:
        super().__init__(name, "0.0.0.0", port)  # the namespace is the fence
        self._log = log
        self._relays_for = relays_for
        self.answers["RCPT"] = self._verdict

    def _verdict(self, conversation: Conversation) -> bytes:
        address = conversation.connection.peer[0]
        recipient = conversation.commands[-1]
        denied = OWN not in recipient and address != self._relays_for
        sender = conversation.mail.decode().partition("<")[2].partition(">")[0]
        with self.lock, self._log.open("a") as log:
            log.write(f"{address} {sender} {'denied' if denied else 'taken'}\n")
        return DENIED if denied else b""


if __name__ == "__main__":
    name, log, port, relays_for = sys.argv[1:]
    with RelayServer(name, Path(log), int(port), relays_for):
        threading.Event().wait()
