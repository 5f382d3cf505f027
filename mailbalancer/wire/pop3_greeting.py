"""What a POP3 server says first, what it can do, and the first words with it (RFC 1939, RFC 2449, RFC 2595).

Decides: whether a greeting means a server that takes clients, which capabilities a client is shown before it is logged
in, what is said to the server before a client's command reaches it, and the balancer's own sentences.
Refuses to know: sockets, certificates, and the dialogue after the greeting (`pop3_dialogue`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mailbalancer.wire import mailbox
from mailbalancer.wire.mailbox import BadServer, Ready, Secure, Send, Showing, Step

#: RFC 2449 says 512; lists of mechanisms in CAPA exceed it.
MAX_SERVER_LINE_BYTES: Final = 2048

_XCLIENT: Final = re.compile(rb"(\+OK )\[XCLIENT\] ?")


class Own(Enum):
    """Sentences of the balancer. Response codes: RFC 3206."""

    NO_SERVER = b"-ERR [SYS/TEMP] No mail server is available now, try again later"
    STOPPING = b"-ERR [SYS/TEMP] Service is stopping, try again later"
    DENIED = b"-ERR [SYS/PERM] Access denied"
    TOO_MANY_CONNECTIONS = b"-ERR [SYS/TEMP] Too many connections from your address"
    SERVER_LOST = b"-ERR [SYS/TEMP] Lost the connection to the mail server"
    IDLE = b"-ERR [SYS/TEMP] Timeout, closing the connection"
    BAD_LINE = b"-ERR Line too long, or with a bare CR, a bare LF or NUL"
    OUT_OF_STEP = b"-ERR Wait for the answer to STLS"
    UNKNOWN = b"-ERR Unknown command"
    NOT_ALLOWED = b"-ERR [SYS/PERM] Insufficient authorization"
    TLS_READY = b"+OK Begin TLS negotiation now"
    TLS_ALREADY = b"-ERR TLS is already active"
    TLS_NOT_OFFERED = b"-ERR STLS is not available"
    TLS_UNAVAILABLE = b"-ERR [SYS/TEMP] TLS is not available now, try again later"
    TLS_REQUIRED = b"-ERR [SYS/PERM] Use STLS first"

    def render(self) -> bytes:
        """The line, CRLF included."""
        return self.value + b"\r\n"


def positive(line: bytes) -> bool:
    """Whether a line of a server is `+OK`.

    Raises:
        BadServer: it is neither `+OK` nor `-ERR`.
    """
    word = line.split(b" ", 1)[0].upper()
    if word not in (b"+OK", b"-ERR"):
        raise BadServer(f"no POP3 answer: {line[:80]!r}")
    return word == b"+OK"


def show(lines: list[bytes], showing: Showing) -> list[bytes]:
    """The capability lines between the `+OK` and the dot of a CAPA answer, as the client is to see them."""
    hidden = {b"STLS", b"XCLIENT"} | showing.hide | (set() if showing.login else {b"USER", b"SASL"})
    found = [line for line in lines if line.split(b" ", 1)[0].upper() not in hidden]
    return [*found, b"STLS"] if showing.starttls else found


@dataclass(frozen=True, slots=True)
class Client:
    """Who the client is: an IP literal and a port."""

    address: str
    port: int


class Opening(mailbox.Opening):
    """The first words with one POP3 server. The greeting stays as it is: APOP makes its digest from the time in it."""

    __slots__ = ("_asked", "_client", "_greeting", "_starttls")

    def __init__(self, starttls: str = "none", client: Client | None = None) -> None:
        """`starttls`: "none" (also when TLS began before), "opportunistic" or "require"; `client` to be told (XCLIENT).

        Dovecot takes XCLIENT from hosts in `login_trusted_networks`, before and after STLS.
        """
        self._starttls = starttls
        self._client = client
        self._greeting: bytes | None = None
        self._asked = ""

    def line(self, line: bytes) -> Step:
        accepted = positive(line)
        if self._greeting is None:
            if not accepted:
                raise BadServer(f"greeted with {line[:80]!r}")
            self._greeting = _XCLIENT.sub(rb"\1", line, count=1)
            return self.secured()
        if self._asked == "STLS":
            return self._on_stls(accepted, line)
        if not accepted:
            raise BadServer(f"answered XCLIENT with {line[:80]!r}; the client's address would not be known there")
        self._client = None
        return self.secured()

    def secured(self) -> Step:
        """What is missing now."""
        if self._starttls != "none":
            self._asked = "STLS"
            return Send(b"STLS\r\n")
        if self._client is not None:
            self._asked = "XCLIENT"
            return Send(f"XCLIENT ADDR={self._client.address} PORT={self._client.port}\r\n".encode("ascii"))
        assert self._greeting is not None
        return Ready(self._greeting)

    def _on_stls(self, accepted: bool, line: bytes) -> Step:
        wanted, self._starttls = self._starttls, "none"
        if accepted:
            return Secure()
        if wanted == "require":
            raise BadServer(f"answered STLS with {line[:80]!r}")
        return self.secured()
