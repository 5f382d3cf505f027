"""What IMAP and POP3 have in common before the login: the words for what comes next, on either side.

Decides: nothing. `imap_greeting` and `pop3_greeting` say how a session with a server is opened, `imap_dialogue` and
`pop3_dialogue` what becomes of a client's commands; a worker drives both protocols with these words.
Refuses to know: either protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class BadServer(ValueError):
    """The server is of no use for this session: try the next one."""


@dataclass(frozen=True, slots=True)
class Showing:
    """Which capabilities a client is shown now.

    Attributes:
        starttls: we offer TLS: there is a certificate and no TLS yet. The server's own offer never counts.
        login: passwords are allowed now. If not, nothing that asks for one is shown.
        hide: what the operator does not want shown, upper case.
    """

    starttls: bool = False
    login: bool = True
    hide: frozenset[bytes] = frozenset()


# ---------------------------------------------------------------- the opening with a server


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes; lines follow."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Secure:
    """Nothing may have been read behind this line: begin the TLS handshake as a client, then call `secured`."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The server waits for the client's commands; `greeting` is the line (without CRLF) to show the client."""

    greeting: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """This line changes nothing; another follows."""


Step = Send | Secure | Ready | Wait


class Opening:
    """The first words with one server: greeting, TLS, who the client is."""

    __slots__ = ()

    def line(self, line: bytes) -> Step:
        """The server's next line, without CRLF.

        Raises:
            BadServer: close, and try the next server.
        """
        raise NotImplementedError

    def secured(self) -> Step:
        """The handshake is complete."""
        raise NotImplementedError


# ---------------------------------------------------------------- the dialogue with a client


class Expect(Enum):
    """What the next bytes of the client are."""

    COMMAND = "a command line"
    REST = "the rest of a line behind a literal"
    LITERAL = "the bytes of a literal"  # `literal_bytes` of them; pass them on, then `literal_ended`
    WAIT = "nothing that is read now"  # leave it where it is until a line of the server changes this
    STARTTLS = "silence until TLS begins"  # bytes now: `OUT_OF_STEP`, close both sides
    TLS = "a TLS handshake"  # bytes read before it: close both sides (STARTTLS injection)
    AUTH_LINE = "a line of an authentication exchange"
    RELAY = "whatever follows the login"
    END = "nothing more"


@dataclass(frozen=True, slots=True)
class Rules:
    """What this service allows. `starttls`: we offer it; `tls_required`: no password without TLS."""

    starttls: bool = False
    tls_required: bool = False
    hide: frozenset[bytes] = frozenset()


class Turn(NamedTuple):
    """What one line leads to: bytes for the server, bytes for the client, and whether the session ends then."""

    to_server: bytes = b""
    to_client: bytes = b""
    closes: bool = False


class Dialogue:
    """The state of one session before its login.

    Attributes:
        expects: what the next bytes of the client are.
        secured: the client is under TLS.
        logins: attempts that the server refused.
        literal_bytes: still to come while `expects` is LITERAL.
    """

    __slots__ = ("_rules", "expects", "literal_bytes", "logins", "secured")

    def __init__(self, rules: Rules, *, secured: bool = False) -> None:
        """`secured`: under TLS from the first byte."""
        self._rules = rules
        self.secured = secured
        self.expects = Expect.COMMAND
        self.logins = 0
        self.literal_bytes = 0

    @property
    def showing(self) -> Showing:
        """The capabilities for the client as things are."""
        return Showing(
            starttls=self._rules.starttls and not self.secured,
            login=self.secured or not self._rules.tls_required,
            hide=self._rules.hide,
        )

    @property
    def idle(self) -> bool:
        """The server owes no answer."""
        raise NotImplementedError

    def greeting(self, line: bytes) -> bytes:
        """The greeting to send, CRLF included, from the server's (`Ready`)."""
        raise NotImplementedError

    def client(self, line: bytes) -> Turn:
        """A line of the client, as `expects` says."""
        raise NotImplementedError

    def literal_ended(self) -> None:
        """The bytes of the literal were passed on."""
        self.literal_bytes = 0
        self.expects = Expect.REST

    def tls_established(self) -> None:
        """The client's handshake is complete."""
        self.secured = True
        self.expects = Expect.COMMAND

    def server(self, line: bytes) -> Turn:
        """A line of the server.

        Raises:
            BadServer: it answers what nobody asked, or breaks the grammar.
        """
        raise NotImplementedError
