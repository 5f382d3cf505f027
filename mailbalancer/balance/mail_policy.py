"""Who may send what to whom: the policy of an `smtp` service, asked before a server is.

Decides: whether a sender, a recipient, a size or a rate is refused, and in which of a few ways.
Refuses to know: the words and codes of a refusal, SMTP's grammar, and the connection.

Domains are compared as the client wrote them, in lower case. `*.example.com` stands for exactly one label in front.
An address that asks to be sent on elsewhere (a source route, `%` or `!` in its local part) has the domain that it
shows and may mean another: where recipient domains are restricted it is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from mailbalancer.balance.admit import AddressLists
from mailbalancer.balance.source_rates import SourceRate
from mailbalancer.model import MailPolicy


class Objection(Enum):
    """Why something is refused; the value says it in the log."""

    SENDER = "sender_denied"
    RECIPIENT = "recipient_denied"
    TOO_BIG = "too_big"
    MESSAGE_RATE = "message_rate"
    RECIPIENT_RATE = "recipient_rate"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """An address as far as policy needs it; an empty local part is the null sender `<>`."""

    local: str
    domain: str
    routed: bool = False


class Patterns:
    """A set of `user@example.com`, `example.com`, `*.example.com` and `<>`."""

    def __init__(self, entries: Collection[str]) -> None:
        self._entries = frozenset(entry.lower().removeprefix("@") for entry in entries)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def matches_domain(self, domain: str) -> bool:
        """Whether the domain, or its parent's wildcard, is one of them."""
        return domain in self._entries or f"*.{domain.partition('.')[2]}" in self._entries

    def matches(self, mailbox: Mailbox) -> bool:
        """Whether the address or its domain is one of them."""
        if not mailbox.local:
            return "<>" in self._entries
        return f"{mailbox.local.lower()}@{mailbox.domain}" in self._entries or self.matches_domain(mailbox.domain)


class Policy:
    """The policy of one service in one worker. A reload configures it; what was counted stays."""

    def __init__(self, config: MailPolicy) -> None:
        self._connections = SourceRate(0)
        self._messages = SourceRate(0)
        self._recipients = SourceRate(0)
        self.configure(config)

    def configure(self, config: MailPolicy) -> None:
        """Follow this configuration from now on."""
        self.config = config
        self._connections.per_minute = config.connections_per_source_minute
        self._messages.per_minute = config.messages_per_source_minute
        self._recipients.per_minute = config.recipients_per_source_minute
        self._allow = Patterns(config.senders_allow)
        self._deny = Patterns(config.senders_deny)
        self._domains = None if config.recipient_domains is None else Patterns(config.recipient_domains)
        self._relay = AddressLists(config.relay_clients, ()) if config.relay_clients else None
        #: Whether addresses have to be understood at all; if not, those we cannot read are the server's to judge.
        self.reads_senders = bool(self._allow or self._deny or config.max_message_bytes)
        self.reads_recipients = self._domains is not None

    def connection(self, source: str, now: float) -> bool:
        """Whether this address may connect once more this minute."""
        return self._connections.take(source, now)

    def message_rate(self, source: str, now: float) -> Objection | None:
        """One more message of this address."""
        return None if self._messages.take(source, now) else Objection.MESSAGE_RATE

    def recipient_rate(self, source: str, now: float) -> Objection | None:
        """One more recipient of this address."""
        return None if self._recipients.take(source, now) else Objection.RECIPIENT_RATE

    def sender(self, mailbox: Mailbox, size: int | None) -> Objection | None:
        """A sender and the size that is announced with it."""
        if self._deny.matches(mailbox) or (self._allow and not self._allow.matches(mailbox)):
            return Objection.SENDER
        limit = self.config.max_message_bytes
        return Objection.TOO_BIG if limit and size is not None and size > limit else None

    def recipient(self, mailbox: Mailbox, source: str, *, authenticated: bool) -> Objection | None:
        """A recipient. Who has logged in, or is a relay client, may send to every domain."""
        if self._domains is None or authenticated or (self._relay is not None and self._relay.admits(source)):
            return None
        if not mailbox.domain and not mailbox.routed:
            return None  # <postmaster>: RFC 5321 section 4.5.1 wants it accepted everywhere
        if mailbox.routed or not self._domains.matches_domain(mailbox.domain):
            return Objection.RECIPIENT
        return None
