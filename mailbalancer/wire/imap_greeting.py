"""What an IMAP server says first, what it can do, and the first words with it (RFC 3501, RFC 9051, RFC 2971).

Decides: whether a greeting means a server that takes clients, which capabilities a client is shown before it is logged
in, what is said to the server before a client's command reaches it, and the balancer's own sentences.
Refuses to know: sockets, certificates, and the dialogue after the greeting (`imap_dialogue`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mailbalancer.wire import mailbox
from mailbalancer.wire.mailbox import BadServer, Ready, Secure, Send, Showing, Step, Wait

#: Longest line of a server before the login; lists of capabilities grow.
MAX_SERVER_LINE_BYTES: Final = 16384

_GREETING: Final = re.compile(rb"\* (OK|PREAUTH|BYE)(?: (.*))?", re.IGNORECASE | re.DOTALL)
_CAPABILITY: Final = re.compile(
    rb"(\* CAPABILITY )(.*)()|([^ ]+ OK \[CAPABILITY )([^\]]*)(\].*)", re.IGNORECASE | re.DOTALL
)
_TAG: Final = b"mb1"


class Own(Enum):
    """Sentences of the balancer. With a tag they answer a command, without one they are untagged."""

    NO_SERVER = b"BYE [UNAVAILABLE] No mail server is available now, try again later"
    STOPPING = b"BYE [UNAVAILABLE] Service is stopping, try again later"
    DENIED = b"BYE Access denied"
    TOO_MANY_CONNECTIONS = b"BYE [LIMIT] Too many connections from your address"
    SERVER_LOST = b"BYE [UNAVAILABLE] Lost the connection to the mail server"
    IDLE = b"BYE Timeout, closing the connection"
    BAD_LINE = b"BYE Line too long, or with a bare CR, a bare LF or NUL"
    BAD_LITERAL = b"BYE Literal not allowed here"
    OUT_OF_STEP = b"BYE Wait for the answer to STARTTLS"
    BAD = b"BAD Not a command"
    TLS_READY = b"OK Begin TLS negotiation now"
    TLS_ALREADY = b"BAD TLS is already active"
    TLS_NOT_OFFERED = b"BAD STARTTLS is not available"
    TLS_UNAVAILABLE = b"NO [UNAVAILABLE] TLS is not available now, try again later"
    TLS_REQUIRED = b"NO [PRIVACYREQUIRED] Use STARTTLS first"
    ID_IGNORED = b"OK ID completed"

    def render(self, tag: bytes = b"*") -> bytes:
        """The line, CRLF included."""
        return b"%b %b\r\n" % (tag, self.value)


def read_greeting(line: bytes) -> bytes:
    """The server's first line without CRLF, when it means that it waits for clients; returned as it is.

    Raises:
        BadServer: BYE, no IMAP, or PREAUTH (every client would be logged in as whoever the balancer is).
    """
    match = _GREETING.fullmatch(line)
    if match is None:
        raise BadServer(f"no IMAP greeting: {line[:80]!r}")
    if match[1].upper() != b"OK":
        raise BadServer(f"greeted with {line[:80]!r}")
    return line


def show(line: bytes, showing: Showing) -> bytes:
    """A line of the server, with its capabilities as the client is to see them; other lines unchanged."""
    match = _CAPABILITY.fullmatch(line)
    if match is None:
        return line
    head, words, tail = match.groups()[:3] if match[1] else match.groups()[3:]
    return head + b" ".join(_shown(words.split(), showing)) + tail


def without_capabilities(line: bytes) -> bytes:
    """A greeting from before TLS: what it lists is forgotten, so the client has to ask."""
    match = _CAPABILITY.fullmatch(line)
    if match is None or not match[4]:
        return line
    return match[4][: -len(b"[CAPABILITY ")] + (match[6][1:].lstrip() or b"ready")


def capabilities(line: bytes) -> frozenset[bytes]:
    """The capabilities a line lists, in upper case; empty when it lists none."""
    match = _CAPABILITY.fullmatch(line)
    return frozenset() if match is None else frozenset((match[2] or match[5] or b"").upper().split())


def _shown(words: list[bytes], showing: Showing) -> list[bytes]:
    found = [word for word in words if word.upper() != b"STARTTLS" and word.upper() not in showing.hide]
    if not showing.login:
        found = [word for word in found if not word.upper().startswith(b"AUTH=") and word.upper() != b"LOGINDISABLED"]
        found.append(b"LOGINDISABLED")
    return [*found, b"STARTTLS"] if showing.starttls else found


# --- the opening -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """Who the client is and where it came to: IP literals and ports."""

    address: str
    port: int
    listen_address: str
    listen_port: int


def id_command(client: Client) -> bytes:
    """ID with the fields by which Dovecot learns the client's address from hosts in `login_trusted_networks`."""
    fields = {
        "x-originating-ip": client.address,
        "x-originating-port": str(client.port),
        "x-connected-ip": client.listen_address,
        "x-connected-port": str(client.listen_port),
    }
    words = " ".join(f'"{name}" "{value}"' for name, value in fields.items())
    return b"%b ID (%b)\r\n" % (_TAG, words.encode("ascii"))


class Opening(mailbox.Opening):
    """The first words with one IMAP server."""

    __slots__ = ("_asked", "_client", "_greeting", "_starttls")

    def __init__(self, starttls: str = "none", client: Client | None = None) -> None:
        """`starttls`: "none" (also when TLS began before), "opportunistic" or "require"; `client` to be told by ID."""
        self._starttls = starttls
        self._client = client
        self._greeting = b""
        self._asked = ""

    def line(self, line: bytes) -> Step:
        if not self._greeting:
            self._greeting = read_greeting(line)
            return self._go_on()
        if not line.startswith(_TAG + b" "):
            if not line.startswith(b"* ") or line[2:5].upper() == b"BYE":
                raise BadServer(f"answered {self._asked} with {line[:80]!r}")
            return Wait()
        accepted = line[len(_TAG) + 1 :].upper().split(b" ", 1)[0] == b"OK"
        return self._answered(accepted, line)

    def secured(self) -> Step:
        # what the server listed before the handshake is forgotten
        self._greeting = without_capabilities(self._greeting)
        return self._go_on()

    def _go_on(self) -> Step:
        if self._starttls != "none":
            return self._ask("STARTTLS", b"%b STARTTLS\r\n" % _TAG)
        if self._client is not None:
            return self._ask("ID", id_command(self._client))
        return Ready(self._greeting)

    def _ask(self, what: str, data: bytes) -> Send:
        self._asked = what
        return Send(data)

    def _answered(self, accepted: bool, line: bytes) -> Step:
        if self._asked == "STARTTLS":
            wanted, self._starttls = self._starttls, "none"
            if accepted:
                return Secure()
            if wanted == "require":
                raise BadServer(f"answered STARTTLS with {line[:80]!r}")
            return self._go_on()
        if not accepted:
            raise BadServer(f"answered ID with {line[:80]!r}; the client's address would not be known there")
        self._client = None
        return self._go_on()
