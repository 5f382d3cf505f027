"""Every answer the balancer itself can give to an SMTP client, in one table.

Decides: code, enhanced status code (RFC 3463, 5248), words, and whether the connection is closed behind it.
Refuses to know: when an answer is due. There is no 250 in this table and there must never be one: only a real server
says that a message, a sender or a recipient is accepted.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_MAX_TEXT: Final = 400


class Answer(Enum):
    """(code, enhanced status code, words, closes the connection)."""

    # before the greeting
    NO_SERVER = (421, "4.3.2", "No mail server is available now, try again later", True)
    STOPPING = (421, "4.3.2", "Service is stopping, try again later", True)
    TOO_MANY_CONNECTIONS = (421, "4.7.0", "Too many connections from your address, try again later", True)
    DENIED = (554, "5.7.1", "Access denied", True)
    EARLY_TALKER = (521, "5.5.1", "Protocol error: you spoke before the greeting", True)

    # the connection cannot go on
    SERVER_LOST = (421, "4.4.2", "Lost the connection to the mail server, try again later", True)
    SERVER_CONFUSED = (421, "4.3.0", "The mail server broke the protocol, try again later", True)
    IDLE = (421, "4.4.2", "Timeout, closing the connection", True)
    UNSYNCHRONISED = (554, "5.5.0", "Protocol synchronization error: wait for the reply before you go on", True)
    FOREIGN_PROTOCOL = (521, "5.5.1", "This is a mail server", True)
    TOO_MANY_COMMANDS = (421, "4.7.0", "Too many commands without mail", True)
    LINE_TOO_LONG = (500, "5.5.2", "Line too long", True)
    BAD_BYTES = (500, "5.5.2", "Bare CR, bare LF, NUL or control byte in a command", True)
    GOODBYE = (221, "2.0.0", "Goodbye", True)

    # commands
    BAD_SYNTAX = (500, "5.5.2", "Syntax error", False)
    UNKNOWN_COMMAND = (500, "5.5.1", "Command not recognized", False)
    NOT_IMPLEMENTED = (502, "5.5.1", "Command not implemented", False)
    BAD_ARGUMENTS = (501, "5.5.4", "Syntax error in the arguments", False)
    BAD_SENDER = (501, "5.1.7", "Syntax error in the sender address", False)
    BAD_RECIPIENT = (501, "5.1.3", "Syntax error in the recipient address", False)
    SEND_HELO = (503, "5.5.1", "Send HELO or EHLO first", False)
    IN_TRANSACTION = (503, "5.5.1", "Not during a mail transaction", False)
    ALREADY_AUTHENTICATED = (503, "5.5.1", "Already authenticated", False)
    XCLIENT_REFUSED = (550, "5.7.0", "Insufficient authorization", False)

    # TLS (RFC 3207, RFC 4954)
    TLS_READY = (220, "2.0.0", "Ready to start TLS", False)
    TLS_ALREADY = (503, "5.5.1", "TLS is already active", False)
    TLS_REQUIRED = (530, "5.7.0", "Must issue a STARTTLS command first", False)
    TLS_UNAVAILABLE = (454, "4.7.0", "TLS is not available now, try again later", False)
    AUTH_NEEDS_TLS = (538, "5.7.11", "Encryption is required for authentication", False)

    # policy at the door
    SENDER_DENIED = (550, "5.7.1", "Sender address rejected", False)
    RECIPIENT_DENIED = (550, "5.7.1", "Relay access denied", False)
    TOO_MANY_RECIPIENTS = (452, "4.5.3", "Too many recipients", False)
    TOO_MANY_MESSAGES = (450, "4.7.1", "Too many messages from your address, try again later", False)
    TOO_BIG = (552, "5.3.4", "Message is larger than the limit", False)

    # content: the connection to the server behind was closed to refuse it, so this one goes too
    BARE_NEWLINE = (550, "5.5.2", "Bare CR, bare LF or NUL byte in the message", True)
    TOO_BIG_CONTENT = (552, "5.3.4", "Message is larger than the limit", True)
    BAD_CHUNK = (501, "5.5.4", "BDAT needs a size in octets, and optionally LAST", True)

    @property
    def code(self) -> int:
        return self.value[0]

    @property
    def enhanced(self) -> str:
        return self.value[1]

    @property
    def text(self) -> str:
        return self.value[2]

    @property
    def closes(self) -> bool:
        """The connection is closed once this is sent."""
        return self.value[3]

    def render(self, text: str = "") -> bytes:
        """The bytes of this answer; `text` replaces the words (an operator's sentence, a detail)."""
        return _line(f"{self.code} {self.enhanced} ", text or self.text)


def render_greeting(host: str, text: str = "ESMTP") -> bytes:
    """The 220 for clients, given only after a real server has said its own. `host` is the name of the service."""
    return _line("220 ", f"{host} {text}")


def _line(code: str, text: str) -> bytes:
    """One line that nothing put into it can turn into two."""
    return f"{code}{_UNPRINTABLE.sub('?', text)[:_MAX_TEXT]}\r\n".encode("ascii")
