"""The first words with a mail server, before a client's command reaches it: greeting, TLS, who the client is.

Decides: what is said next, and when the server is ready or of no use for this session. Also used when a session moves
to another server: then the client's own hello is said again, and its reply kept back.
Refuses to know: sockets, certificates, time.

How a worker drives it: feed each reply to `reply`, do what the step says, until Ready or Failed. After `Secure` make
sure that nothing was read behind the reply (`Replies.clean`), begin TLS, and call `secured`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from mailbalancer.wire.smtp_capabilities import Capabilities, parse_ehlo
from mailbalancer.wire.smtp_command import Command
from mailbalancer.wire.smtp_reply import Reply
from mailbalancer.wire.smtp_xclient import Client, NoXclient, xclient_lines

_STARTTLS: Final = b"STARTTLS\r\n"


@dataclass(slots=True)
class Send:
    """Send these bytes; a reply follows."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Secure:
    """Begin the TLS handshake as a client now."""


@dataclass(slots=True)
class Ready:
    """The server waits for the client's commands.

    Attributes:
        greeting: the server's 220.
        capabilities: of the last EHLO in this opening; None: there was none.
    """

    greeting: Reply
    capabilities: Capabilities | None


@dataclass(slots=True)
class Failed:
    """Close, and try the next server. `reason` is for the log; `reply` is the server's, when it was one."""

    reason: str
    reply: Reply | None = None


Step = Send | Secure | Ready | Failed


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to happen before the client's commands.

    Attributes:
        name: what we call ourselves in EHLO.
        starttls: "none", "opportunistic" or "require" ("implicit": TLS began before, pass "none").
        client: to be told by XCLIENT; None: not told.
        helo: the client's hello, when it was said to another server before.
    """

    name: str
    starttls: str = "none"
    client: Client | None = None
    helo: Command | None = None


class Opening:
    """One opening with one server."""

    __slots__ = ("_capabilities", "_greeting", "_next", "_plan", "_tried_tls", "_xclient")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        # a function and no method of ours, which would be a cycle for the garbage collector
        self._next: Callable[[Opening, Reply], Step] = Opening._on_greeting
        self._greeting: Reply | None = None
        self._capabilities: Capabilities | None = None
        self._tried_tls = plan.starttls == "none"
        self._xclient: list[bytes] | None = None  # lines that are still to be sent; None: not begun

    def reply(self, reply: Reply) -> Step:
        """The server's next reply."""
        return self._next(self, reply)

    def secured(self) -> Step:
        """The handshake is complete; what the server said before it is forgotten (RFC 3207 section 4.2)."""
        self._capabilities = None
        return self._go_on()

    def _go_on(self) -> Step:
        """The next thing that is missing."""
        if not self._tried_tls or (self._plan.client is not None and self._xclient is None):
            if self._capabilities is None:
                return self._send(b"EHLO %b\r\n" % self._plan.name.encode("ascii"), Opening._on_ehlo)
            return self._begin_tls() if not self._tried_tls else self._begin_xclient()
        if self._xclient:
            return self._send(self._xclient.pop(0), Opening._on_xclient)
        if self._plan.helo is not None and self._next is not Opening._on_helo:
            return self._send(self._plan.helo.raw, Opening._on_helo)
        assert self._greeting is not None
        return Ready(self._greeting, self._capabilities)

    def _send(self, data: bytes, then: Callable[[Opening, Reply], Step]) -> Send:
        self._next = then
        return Send(data)

    def _on_greeting(self, reply: Reply) -> Step:
        if reply.code != 220:
            return Failed("greeted with", reply)
        self._greeting = reply
        return self._go_on()

    def _on_ehlo(self, reply: Reply) -> Step:
        if reply.code == 421 or (not reply.positive and self._plan.starttls != "opportunistic"):
            return Failed("answered EHLO with", reply)
        self._capabilities = parse_ehlo(reply) if reply.positive else {}
        return self._go_on()

    def _begin_tls(self) -> Step:
        assert self._capabilities is not None
        if b"STARTTLS" in self._capabilities:
            return self._send(_STARTTLS, Opening._on_starttls)
        return self._without_tls("offers no STARTTLS", None)

    def _on_starttls(self, reply: Reply) -> Step:
        if reply.code != 220:
            return self._without_tls("answered STARTTLS with", reply)
        self._tried_tls = True
        return Secure()

    def _without_tls(self, reason: str, reply: Reply | None) -> Step:
        if self._plan.starttls == "require" or (reply is not None and reply.code == 421):
            return Failed(reason, reply)
        self._tried_tls = True
        return self._go_on()

    def _begin_xclient(self) -> Step:
        assert self._capabilities is not None
        assert self._plan.client is not None
        try:
            self._xclient = xclient_lines(self._capabilities.get(b"XCLIENT", ()), self._plan.client)
        except NoXclient as error:
            return Failed(str(error))
        return self._go_on()

    def _on_xclient(self, reply: Reply) -> Step:
        if reply.code != 220:
            return Failed("answered XCLIENT with", reply)
        return self._go_on()

    def _on_helo(self, reply: Reply) -> Step:
        if not reply.positive:
            return Failed("answered the client's hello with", reply)
        return self._go_on()
