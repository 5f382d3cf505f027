"""What the sessions of one mail service share in this worker: limits per client, capabilities, remarks of servers.

Decides: whether one address has too many connections, what clients are shown of the servers' capabilities, and how
often the supervisor hears what servers say about themselves.
Refuses to know: dialogues and sockets (`mail_session` and its kin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mailbalancer import model
from mailbalancer.balance.mail_policy import Policy
from mailbalancer.balance.persist import Table
from mailbalancer.balance.source_limits import SourceLimits
from mailbalancer.ipc.board import Availability
from mailbalancer.ipc.messages import Offered, Up
from mailbalancer.model import MemberKey
from mailbalancer.wire.smtp_answers import render_greeting
from mailbalancer.wire.smtp_capabilities import (
    Capabilities,
    Showing,
    common,
    either,
    lines_of,
    parse_lines,
    render_ehlo,
    shown,
)
from mailbalancer.wire.smtp_data import BareNewlines
from mailbalancer.wire.smtp_dialogue import Rules
from mailbalancer.wire.smtp_opening import Plan
from mailbalancer.worker.engine import BUFFER_BYTES, Engine
from mailbalancer.worker.service import Service
from mailbalancer.worker.stream import RECORD_BYTES

if TYPE_CHECKING:
    from mailbalancer.worker.mail_session import MailSession
    from mailbalancer.worker.reverse_names import ReverseNames

#: Replies to EHLO whose answer is remembered. Servers say the same to everybody, or nearly so.
SHOWN_KEPT = 64
_READY = int(Availability.READY)


class MailService(Service):
    """The runtime of an `smtp`, `imap` or `pop3` service.

    Attributes:
        client_starttls: what clients are offered: "none", "offer", "require" or "implicit".
        server_starttls: what is asked of servers: "none", "opportunistic", "require" or "implicit".
    """

    def __init__(self, engine: Engine, tell: Callable[[Up], None]) -> None:
        super().__init__(engine, tell)
        self.connections = SourceLimits(0, 0)
        self.policy = Policy(model.MailPolicy())
        self.names: ReverseNames | None = None  # of clients, for XCLIENT
        self._capabilities: dict[str, Capabilities] = {}
        self._shown: dict[tuple[str, tuple[bytes, ...], bool, bool], bytes] = {}

    def configure(
        self,
        config: model.Service,
        slot: int,
        slots: Mapping[MemberKey, int],
        tables: Mapping[str, Table],
    ) -> None:
        """Follow this configuration from now on; sessions stay."""
        super().configure(config, slot, slots, tables)
        assert config.mail is not None
        mail = self.mail = config.mail
        self.client_starttls = config.client_tls.starttls if config.client_tls is not None else "none"
        self.server_starttls = config.server_tls.starttls if config.server_tls is not None else "none"
        self.read_bytes = max(RECORD_BYTES, min(config.buffer_bytes, BUFFER_BYTES))
        self.buffer = self._engine.buffer[: self.read_bytes]
        self.policy.configure(mail.smtp.policy)
        self.connections.configure(mail.smtp.policy.connections_per_source, 0)
        self.hidden = frozenset(word.upper().encode() for word in mail.hide)
        self.showing = Showing(
            hide=self.hidden,
            keep=frozenset(word.upper().encode() for word in mail.keep),
            exchange=mail.smtp.exchange,
            max_message_bytes=mail.smtp.policy.max_message_bytes,
        )
        self.rules = Rules(
            starttls=self.client_starttls in ("offer", "require"),
            tls_required=self.client_starttls == "require",
            auth_needs_tls=self.client_starttls in ("offer", "require"),
            exchange=mail.smtp.exchange,
        )
        starttls = self.server_starttls
        self.first_plan = Plan(mail.host, "none" if starttls == "implicit" else starttls)
        self.greeting = render_greeting(mail.host, mail.smtp.banner)
        self.judged = _judged(mail.smtp.policy)
        self.bare_newlines = BareNewlines(mail.smtp.bare_newlines)
        self.names = self._reverse_names(mail.smtp.reverse_names)
        self._stated = parse_lines([line.encode() for line in mail.smtp.capabilities])
        self._servers = tuple(member.real_server for member in config.pool.members)
        self._capabilities = {name: known for name, known in self._capabilities.items() if name in self._servers}
        self._shown.clear()

    def _reverse_names(self, wanted: model.ReverseNames | None) -> ReverseNames | None:
        """What asks for clients' names; what it knows is kept over a reload that does not touch it."""
        if wanted is None:
            return None
        if self.names is not None and self.names.config == wanted:
            return self.names
        from mailbalancer.worker.reverse_names import ReverseNames  # few need it, and it brings a library along

        try:
            return ReverseNames(self._engine, wanted)
        except OSError as error:
            self._engine.log.error(f"servers are not told what clients are called: {error}", service=self.name)
            return None

    # ------------------------------------------------------------ how much of one client

    def takes(self, session: MailSession) -> bool:
        """Whether the client's address may have one more connection; counted until `leaves`."""
        address = session.address
        if not self.policy.connection(address, self._engine.reactor.now) or not self.connections.opened(address):
            self.count_refused()
            return False
        session.counted = True
        return True

    def leaves(self, session: MailSession) -> None:
        """The session is over."""
        if session.counted:
            self.connections.closed(session.address)

    # ------------------------------------------------------------ the list of capabilities

    def hear_of(self, lines: Mapping[str, Sequence[bytes]]) -> None:
        """What the supervisor knows of the servers, from its checks and from all workers."""
        self._capabilities = {name: parse_lines(own) for name, own in lines.items() if name in self._servers}
        self._shown.clear()

    def learn(self, server: str, capabilities: Capabilities) -> None:
        """What a real server has offered a session; whatever is new goes to all workers."""
        if server not in self._servers:
            return
        before = self._capabilities.get(server)
        known = either(before or {}, capabilities)
        if known != before:
            self._capabilities[server] = known
            self._shown.clear()
            self._tell(Offered(self.name, server, [line.decode("ascii") for line in lines_of(capabilities)]))

    def hello(self, server: str, lines: tuple[bytes, ...], *, starttls: bool, auth: bool) -> bytes:
        """The answer to EHLO of a client of this server: one list for the service, as stated or as all servers have in
        common.

        Args:
            lines: of the server's own reply; what it does not offer this client is not promised.
        """
        found = self._shown.get((server, lines, starttls, auth))
        if found is None:
            own = parse_lines(lines)
            self.learn(server, own)
            if len(self._shown) >= SHOWN_KEPT:
                self._shown.clear()
            lists = [self._capabilities[name] for name in self._servers if name in self._capabilities]
            known = self._stated or common([*lists, own])
            told = shown(known, self.showing, starttls=starttls, auth=auth)
            found = self._shown[server, lines, starttls, auth] = render_ehlo(self.mail.host.encode("ascii"), told)
        return found

    # ------------------------------------------------------------ servers

    def has_another(self, session: MailSession) -> bool:
        """Whether a server is ready that this session has not tried and is not on."""
        view, current = self._engine.view, session.target
        return any(
            target.name not in session.tried
            and (current is None or target.name != current.name)
            and view.availability(target.slot) == _READY
            for target in self._pools[""].targets.values()
        )

    def is_leaving(self, session: MailSession) -> bool:
        """Whether the session's server takes no new sessions, and persistence does not keep it there."""
        target = session.target
        return (
            target is not None
            and self._engine.view.availability(target.slot) != _READY
            and session.held_table is None
            and self.has_another(session)
        )

    def count_refused(self) -> None:
        """A client was turned away."""
        self._refused("")


def _judged(policy: model.MailPolicy) -> frozenset[bytes]:
    """The commands that this policy has something to say about; nobody else's are held against it."""
    mail = policy.senders_allow or policy.senders_deny or policy.max_message_bytes or policy.messages_per_source_minute
    rcpt = policy.recipient_domains is not None or policy.recipients_per_source_minute
    verbs = {b"MAIL": mail, b"RCPT": rcpt, b"BDAT": policy.max_message_bytes}
    return frozenset(verb for verb, is_judged in verbs.items() if is_judged)
