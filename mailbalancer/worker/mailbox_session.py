"""Modes `imap` and `pop3`: looked at line by line up to the login, and from there on bytes that nobody looks at.

Decides: where bytes go before the login, and how they are relayed after it: through the kernel where both sides are
plain, through Python where one is under TLS.
Refuses to know: which command is allowed, and what capabilities are shown (`wire.imap_dialogue`, `wire.pop3_dialogue`);
what is first said to a server (`wire.imap_greeting`, `wire.pop3_greeting`).
"""

from __future__ import annotations

import socket
from typing import Final

from mailbalancer.model import Endpoint
from mailbalancer.wire import imap_dialogue, imap_greeting, pop3_dialogue, pop3_greeting, proxy_header
from mailbalancer.wire.mail_lines import BadLine, Lines
from mailbalancer.wire.mailbox import (
    BadServer,
    Dialogue,
    Expect,
    Opening,
    Ready,
    Rules,
    Secure,
    Send,
    Step,
    Turn,
    Wait,
)
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.mail_session import MailSession, Say, Stage
from mailbalancer.worker.relay import Relay

#: The server has closed its side: a client that stays silent this long has gone.
AFTER_SERVER_CLOSED_S: Final = 60.0

_LINE: Final = frozenset((Expect.COMMAND, Expect.REST, Expect.AUTH_LINE))


class MailboxSession(MailSession):
    """One client of either protocol; the two classes below know which.

    Attributes:
        out_of_step: what a client is told that speaks while our answer to STARTTLS is due.
        bad_line: and one whose line nobody should read.
    """

    __slots__ = ("_dialogue", "_half_closed", "_heard", "_lines", "_opening", "_relay", "_shakes")
    out_of_step = b""
    bad_line = b""

    def __init__(
        self,
        engine: Engine,
        service: MailService,
        endpoint: Endpoint,
        client: socket.socket,
        address: str,
        port: int,
        dialogue: Dialogue,
        lines: tuple[Lines, Lines],
    ) -> None:
        """`lines`: readers for the client's lines and for the server's."""
        self._dialogue = dialogue
        self._lines, self._heard = lines
        self._opening: Opening | None = None
        self._relay: Relay | None = None
        self._half_closed = False
        self._shakes = False
        super().__init__(engine, service, endpoint, client, address, port)

    def make_opening(self, starttls: str) -> Opening:
        """The first words with a server."""
        raise NotImplementedError

    def idle_limit_s(self) -> float:
        if self.stage == Stage.RELAYING:
            return self.service.config.idle_timeout_s
        return self.service.mail.login_timeout_s

    # ------------------------------------------------------------ the first words with a server

    def begin_opening(self) -> None:
        starttls = self.service.server_starttls
        self._heard.take()
        self._opening = self.make_opening("none" if starttls == "implicit" else starttls)

    def server_secured(self) -> None:
        assert self._opening is not None
        self._do(self._opening.secured())
        self._go_on()  # a client that did not wait for the greeting has said something already

    def _do(self, step: Step) -> None:
        match step:
            case Send(data):
                self.tell_server(data)
            case Secure():
                if self._heard:
                    self.pass_over("sent more behind its answer to STARTTLS", tls=True)
                else:
                    self.secure_server()
            case Ready(greeting):
                self._opening = None
                self.vouch()
                self.opened()
                self.greeted = True
                self.tell_client(self._dialogue.greeting(greeting))
            case Wait():
                pass

    # ------------------------------------------------------------ bytes of the client

    def from_client(self, data: bytes) -> None:
        if self.stage == Stage.RELAYING:
            self.tell_server(data)
            self._regulate()
            return
        early = not self.greeted and not self._lines
        if early and proxy_header.looks_like(data):
            self.last_failure = "the client is not in proxy_protocol.accept_from"
            self.end("spoofed_proxy_header", reset=True)
            return
        self._lines.feed(data)
        if self.greeted:
            self._go_on()
        else:
            self.client.pause()  # it does not wait for the greeting; what it has said is for later

    def _go_on(self) -> None:
        """Everything the client has said that can be dealt with now."""
        while self.stage == Stage.TALKING and self.link is not None and not self.link.blocked and self._step():
            pass
        if self.stage == Stage.TALKING:
            self._regulate()
            if self._half_closed and self._has_had_its_answers():
                self.end("client_closed")

    def _has_had_its_answers(self) -> bool:
        """The client has ended its half, and nothing more will be said to it."""
        return self._dialogue.idle and (self.link is None or not self.link.blocked)

    def _step(self) -> bool:
        """The next thing. False: nothing can be done now."""
        expects = self._dialogue.expects
        if expects in _LINE:
            return self._read_line()
        if expects is Expect.LITERAL:
            return self._read_literal()
        if expects is Expect.TLS:
            self._begin_tls()
        elif expects is Expect.RELAY:
            self._begin_relay()
        elif expects is Expect.STARTTLS and self._lines:
            self.dismiss(self.out_of_step, "unsynchronised")
        return False

    def _read_line(self) -> bool:
        try:
            line = self._lines.next()
        except BadLine as error:
            self.last_failure = f"client: {error.fault.value}"
            self.dismiss(self.bad_line, "bad_line")
            return False
        if line is None:
            return False
        self._carry_out(self._dialogue.client(line))
        return True

    def _read_literal(self) -> bool:
        dialogue = self._dialogue
        data = self._lines.take()
        taken = min(len(data), dialogue.literal_bytes)
        if not taken:
            return False
        dialogue.literal_bytes -= taken
        self._lines.feed(memoryview(data)[taken:])
        if not dialogue.literal_bytes:
            dialogue.literal_ended()
        return self.tell_server(memoryview(data)[:taken])

    def _carry_out(self, turn: Turn) -> None:
        if turn.to_server and not self.tell_server(turn.to_server):
            return
        if turn.to_client and not self.tell_client(turn.to_client):
            return
        if turn.closes:
            self.dismiss(b"", "logout")

    def _begin_tls(self) -> None:
        if self._lines:
            self.last_failure = "the client sent more behind STARTTLS"
            self.end("starttls_injection", reset=True)
        elif self.client.blocked:
            self._shakes = True
        else:
            self._shakes = False
            self.shake_hands()

    def client_secured(self) -> None:
        self._dialogue.tls_established()
        self._regulate()

    def _regulate(self) -> None:
        """Read the client only while what it says can go somewhere."""
        if self._half_closed or self._shakes or (self.link is not None and self.link.blocked):
            self.client.pause()
        elif self.stage == Stage.TALKING and self._dialogue.expects not in _LINE and self._lines:
            self.client.pause()  # it has pipelined enough
        else:
            self.client.resume()

    def client_ended(self) -> None:
        """Under TLS there is no half-close, and a logged-in client that has closed wants nothing more."""
        if self.stage == Stage.TALKING:
            self._half_closed = True
            self._go_on()
        elif self.link is not None and self.link.blocked:
            self._half_closed = True
            self.client.pause()
        else:
            self.end("client_closed")

    def went_through(self) -> None:
        self.active_at = self._engine.reactor.now
        if self.link is not None and not self.client.blocked:
            self.link.resume()
        if self.stage == Stage.RELAYING:
            if self._half_closed and self.link is not None and not self.link.blocked:
                self.end("client_closed")
            else:
                self._regulate()
        else:
            self._go_on()

    # ------------------------------------------------------------ bytes of the server

    def from_server(self, data: bytes) -> None:
        if self.stage == Stage.RELAYING:
            self.tell_client(data)
            return
        self._heard.feed(data)
        link = self.link
        try:
            while self.link is link and self._hear():
                pass
        except (BadServer, BadLine) as error:
            self._confused(str(error))
            return
        self._go_on()

    def _hear(self) -> bool:
        """The server's next line. False: it is not complete, or no line any more."""
        if self._opening is None and self._dialogue.expects is Expect.RELAY:
            return False
        line = self._heard.next()
        if line is None:
            return False
        if self._opening is not None:
            self._do(self._opening.line(line))
        else:
            self._carry_out(self._dialogue.server(line))
        return True

    def _confused(self, reason: str) -> None:
        assert self.target is not None
        if self.stage == Stage.OPENING:
            self.pass_over(reason, tls="STARTTLS" in reason or "STLS" in reason)
        else:
            self.last_failure = f"{self.target.name}: {reason}"
            self.dismiss(self.sentence(Say.SERVER_LOST), "server_confused")

    def server_ended(self, why: str) -> None:
        assert self.target is not None
        if self.stage == Stage.RELAYING:
            self.dismiss(b"", "server_closed")
        else:
            self.last_failure = f"{self.target.name}: {why}"
            self.dismiss(self.sentence(Say.SERVER_LOST), "server_lost")

    # ------------------------------------------------------------ after the login

    def _begin_relay(self) -> None:
        """Nothing is left to decide: what either side has said already goes on, and then everything."""
        assert self.link is not None
        self.stage = Stage.RELAYING
        self.wait_until(self._engine.reactor.now + self.idle_limit_s())
        to_client, to_server = self._heard.take(), self._lines.take()
        if self.client.tls is None and self.link.tls is None and not self._half_closed:
            self._join(to_client, to_server)
            return
        if self.tell_client(to_client) and self.tell_server(to_server):
            self._regulate()
            if self._half_closed and not self.link.blocked:
                self.end("client_closed")

    def _join(self, to_client: bytes, to_server: bytes) -> None:
        assert self.link is not None
        self.stop_counting()
        relay = Relay(self._engine, self, self.client.sock, self.link.sock, self.service.buffer, self.slot)
        self._relay = relay
        to_client = self.client.hand_over(relay.on_client) + to_client
        to_server = self.link.hand_over(relay.on_server) + to_server
        if to_server:
            relay.up.push(to_server)
        if to_client and self.stage == Stage.RELAYING:
            relay.down.push(to_client)

    def half_closed(self, by: str) -> None:
        """A client whose server has closed does not keep its place for the whole idle time."""
        if by == "server_closed":
            self.wait_until(self._engine.reactor.now + min(AFTER_SERVER_CLOSED_S, self.idle_limit_s()))

    def note(self, failure: str) -> None:
        """Words of the relay for the log line."""
        self.last_failure = failure

    def talking_due(self, now: float) -> None:
        relay = self._relay
        if relay is None:
            super().talking_due(now)
            return
        limit = self.idle_limit_s()
        if relay.first_end == "server_closed":
            limit = min(limit, AFTER_SERVER_CLOSED_S)
        if relay.active_at + limit <= now:
            self.end(relay.first_end or "idle_timeout", reset=relay.up.blocked or relay.down.blocked)
            return
        relay.rest()
        self.wait_until(relay.active_at + limit)

    def about_to_end(self, reason: str) -> None:
        relay = self._relay
        if relay is not None:
            self.active_at = relay.active_at
            self.bytes_in += relay.up.bytes
            self.bytes_out += relay.down.bytes
            relay.close()

    def facts(self) -> dict[str, str | int | float]:
        found = super().facts()
        relay = self._relay
        if relay is not None:
            found["idle_s"] = round(self._engine.reactor.now - relay.active_at, 3)
            found["bytes_in"] = self.bytes_in + relay.up.bytes
            found["bytes_out"] = self.bytes_out + relay.down.bytes
        return found


def _rules(service: MailService) -> Rules:
    starttls = service.client_starttls
    return Rules(starttls in ("offer", "require"), starttls == "require", service.hidden)


class ImapSession(MailboxSession):
    """One client of mode `imap`."""

    __slots__ = ()
    out_of_step = imap_greeting.Own.OUT_OF_STEP.render()
    bad_line = imap_greeting.Own.BAD_LINE.render()

    def __init__(
        self, engine: Engine, service: MailService, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        dialogue = imap_dialogue.Dialogue(_rules(service), secured=service.client_starttls == "implicit")
        lines = (
            Lines(imap_dialogue.MAX_CLIENT_LINE_BYTES, controls=True),
            Lines(imap_greeting.MAX_SERVER_LINE_BYTES, controls=True),
        )
        super().__init__(engine, service, endpoint, client, address, port, dialogue, lines)

    def make_opening(self, starttls: str) -> Opening:
        client = None
        if self.service.mail.client_address == "id":
            reached = self.reached()
            client = imap_greeting.Client(self.address, self.port, reached.host, reached.port)
        return imap_greeting.Opening(starttls, client)

    def sentence(self, say: Say) -> bytes:
        return _IMAP[say].render()


class Pop3Session(MailboxSession):
    """One client of mode `pop3`."""

    __slots__ = ()
    out_of_step = pop3_greeting.Own.OUT_OF_STEP.render()
    bad_line = pop3_greeting.Own.BAD_LINE.render()

    def __init__(
        self, engine: Engine, service: MailService, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        dialogue = pop3_dialogue.Dialogue(_rules(service), secured=service.client_starttls == "implicit")
        lines = (Lines(pop3_dialogue.MAX_CLIENT_LINE_BYTES), Lines(pop3_greeting.MAX_SERVER_LINE_BYTES))
        super().__init__(engine, service, endpoint, client, address, port, dialogue, lines)

    def make_opening(self, starttls: str) -> Opening:
        client = None
        if self.service.mail.client_address == "xclient":
            client = pop3_greeting.Client(self.address, self.port)
        return pop3_greeting.Opening(starttls, client)

    def sentence(self, say: Say) -> bytes:
        return _POP3[say].render()


_IMAP: Final = {
    Say.NO_SERVER: imap_greeting.Own.NO_SERVER,
    Say.STOPPING: imap_greeting.Own.STOPPING,
    Say.DENIED: imap_greeting.Own.DENIED,
    Say.TOO_MANY_CONNECTIONS: imap_greeting.Own.TOO_MANY_CONNECTIONS,
    Say.SERVER_LOST: imap_greeting.Own.SERVER_LOST,
    Say.IDLE: imap_greeting.Own.IDLE,
    Say.TLS_UNAVAILABLE: imap_greeting.Own.NO_SERVER,
}
_POP3: Final = {
    Say.NO_SERVER: pop3_greeting.Own.NO_SERVER,
    Say.STOPPING: pop3_greeting.Own.STOPPING,
    Say.DENIED: pop3_greeting.Own.DENIED,
    Say.TOO_MANY_CONNECTIONS: pop3_greeting.Own.TOO_MANY_CONNECTIONS,
    Say.SERVER_LOST: pop3_greeting.Own.SERVER_LOST,
    Say.IDLE: pop3_greeting.Own.IDLE,
    Say.TLS_UNAVAILABLE: pop3_greeting.Own.TLS_UNAVAILABLE,
}
