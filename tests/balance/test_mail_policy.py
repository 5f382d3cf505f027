"""Who may send what to whom."""

from __future__ import annotations

import ipaddress

import pytest

from mailbalancer.balance.mail_policy import Mailbox, Objection, Patterns, Policy
from mailbalancer.model import MailPolicy

NULL = Mailbox("", "")


@pytest.mark.parametrize(
    ("entry", "local", "domain", "matches"),
    [
        ("user@example.com", "User", "example.com", True),
        ("user@example.com", "other", "example.com", False),
        ("@example.com", "x", "example.com", True),
        ("Example.com", "x", "example.com", True),
        ("example.com", "x", "a.example.com", False),
        ("*.example.com", "x", "a.example.com", True),
        ("*.example.com", "x", "example.com", False),
        ("*.example.com", "x", "b.a.example.com", False),
        ("*.com", "x", "com", False),
        ("<>", "", "", True),
        ("<>", "x", "", False),
        ("example.com", "", "", False),
    ],
)
def test_patterns(entry: str, local: str, domain: str, matches: bool) -> None:
    assert Patterns([entry]).matches(Mailbox(local, domain)) is matches


def test_without_settings_nothing_is_read_and_nothing_refused() -> None:
    policy = Policy(MailPolicy())
    assert not policy.reads_senders
    assert not policy.reads_recipients
    assert policy.sender(Mailbox("a", "b"), 10**12) is None
    assert policy.recipient(Mailbox("a", "b", routed=True), "192.0.2.1", authenticated=False) is None
    assert all(policy.connection("192.0.2.1", 0.0) for _ in range(100))


def test_senders() -> None:
    policy = Policy(MailPolicy(senders_allow=frozenset({"example.com"}), senders_deny=frozenset({"x@example.com"})))
    assert policy.sender(Mailbox("a", "example.com"), None) is None
    assert policy.sender(Mailbox("x", "example.com"), None) is Objection.SENDER
    assert policy.sender(Mailbox("a", "other.test"), None) is Objection.SENDER
    assert policy.sender(NULL, None) is Objection.SENDER


def test_announced_sizes() -> None:
    policy = Policy(MailPolicy(max_message_bytes=100))
    assert policy.sender(NULL, 100) is policy.sender(NULL, None) is None
    assert policy.sender(NULL, 101) is Objection.TOO_BIG


@pytest.mark.parametrize(
    ("mailbox", "refused"),
    [
        (Mailbox("a", "example.com"), False),
        (Mailbox("a", "b.example.net"), False),
        (Mailbox("postmaster", ""), False),
        (Mailbox("a", "example.net"), True),
        (Mailbox("a%other.test", "example.com", routed=True), True),
        (Mailbox("postmaster%other.test", "", routed=True), True),
        (Mailbox("a", "[192.0.2.1]"), True),
    ],
)
def test_recipient_domains(mailbox: Mailbox, refused: bool) -> None:
    relay = (ipaddress.ip_network("10.1.0.0/16"),)
    policy = Policy(MailPolicy(frozenset({"example.com", "*.example.net"}), relay))
    expected = Objection.RECIPIENT if refused else None
    assert policy.recipient(mailbox, "192.0.2.1", authenticated=False) is expected
    assert policy.recipient(mailbox, "::ffff:192.0.2.1", authenticated=False) is expected
    assert policy.recipient(mailbox, "192.0.2.1", authenticated=True) is None
    assert policy.recipient(mailbox, "::ffff:10.1.2.3", authenticated=False) is None


def test_an_empty_list_of_domains_permits_none() -> None:
    policy = Policy(MailPolicy(recipient_domains=frozenset()))
    assert policy.recipient(Mailbox("a", "b.test"), "192.0.2.1", authenticated=False) is Objection.RECIPIENT


def test_rates_survive_a_reload() -> None:
    policy = Policy(MailPolicy(messages_per_source_minute=1, recipients_per_source_minute=2))
    assert policy.message_rate("a", 0.0) is None
    policy.configure(MailPolicy(messages_per_source_minute=1, recipients_per_source_minute=2))
    assert policy.message_rate("a", 0.0) is Objection.MESSAGE_RATE
    assert [policy.recipient_rate("a", 0.0) for _ in range(3)] == [None, None, Objection.RECIPIENT_RATE]
