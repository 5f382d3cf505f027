"""A POP3 session before its login, as a dialogue."""

from __future__ import annotations

import pytest

from mailbalancer.wire.mailbox import BadServer, Expect, Rules, Turn
from mailbalancer.wire.pop3_dialogue import MAX_CAPABILITIES, Dialogue
from mailbalancer.wire.pop3_greeting import Own

OPEN = Rules()
STRICT = Rules(starttls=True, tls_required=True)


def passes(dialogue: Dialogue, line: bytes) -> None:
    assert dialogue.client(line) == Turn(line + b"\r\n")
    assert dialogue.expects is Expect.WAIT


@pytest.mark.parametrize(
    "commands", [[b"USER me", b"PASS a b  c"], [b"apop me c4c9334bac560ecc979e58001b3e22fb"], [b"AUTH PLAIN AGEAYg=="]]
)
def test_login_and_relay(commands: list[bytes]) -> None:
    dialogue = Dialogue(OPEN)
    for command in commands:
        assert dialogue.expects is Expect.COMMAND
        passes(dialogue, command)
        assert dialogue.server(b"+OK fine").to_client == b"+OK fine\r\n"
    assert dialogue.expects is Expect.RELAY


def test_refused_logins() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"PASS x")
    dialogue.server(b"-ERR [AUTH] no")
    assert dialogue.expects is Expect.COMMAND
    assert dialogue.logins == 1


def test_auth_exchange() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"AUTH NTLM")
    assert dialogue.server(b"+ ").to_client == b"+ \r\n"
    assert dialogue.expects is Expect.AUTH_LINE
    passes(dialogue, b"TlRMTVNTUAAB")
    dialogue.server(b"+ TlRMTVNTUAAC")
    passes(dialogue, b"*")
    dialogue.server(b"-ERR cancelled")
    assert dialogue.expects is Expect.COMMAND


def test_capabilities() -> None:
    dialogue = Dialogue(STRICT)
    passes(dialogue, b"CAPA")
    sent = b"".join(dialogue.server(line).to_client for line in (b"+OK", b"TOP", b"USER", b"STLS", b"SASL PLAIN", b"."))
    assert sent == b"+OK\r\nTOP\r\nSTLS\r\n.\r\n"
    assert dialogue.expects is Expect.COMMAND
    dialogue.tls_established()
    passes(dialogue, b"CAPA")
    sent = b"".join(dialogue.server(line).to_client for line in (b"+OK", b"TOP", b"USER", b"STLS", b"."))
    assert sent == b"+OK\r\nTOP\r\nUSER\r\n.\r\n"


def test_capabilities_are_bounded_and_may_be_unknown() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"CAPA")
    assert dialogue.server(b"-ERR unknown").to_client == b"-ERR unknown\r\n"
    passes(dialogue, b"CAPA")
    dialogue.server(b"+OK")
    with pytest.raises(BadServer):
        [dialogue.server(b"X") for _ in range(MAX_CAPABILITIES + 1)]


@pytest.mark.parametrize("line", [b"USER me", b"PASS x", b"APOP a b", b"auth PLAIN x"])
def test_no_password_before_tls(line: bytes) -> None:
    dialogue = Dialogue(STRICT)
    assert dialogue.client(line) == Turn(to_client=Own.TLS_REQUIRED.render())
    dialogue.tls_established()
    passes(dialogue, line)


def test_stls() -> None:
    dialogue = Dialogue(STRICT)
    assert dialogue.client(b"stls") == Turn(to_client=Own.TLS_READY.render())
    assert dialogue.expects is Expect.TLS
    dialogue.tls_established()
    assert dialogue.client(b"STLS") == Turn(to_client=Own.TLS_ALREADY.render())
    assert Dialogue(OPEN).client(b"STLS") == Turn(to_client=Own.TLS_NOT_OFFERED.render())
    assert Dialogue(OPEN, secured=True).client(b"STLS") == Turn(to_client=Own.TLS_ALREADY.render())


def test_no_client_says_who_it_is() -> None:
    assert Dialogue(OPEN).client(b"XCLIENT ADDR=10.0.0.1") == Turn(to_client=Own.NOT_ALLOWED.render())


@pytest.mark.parametrize(
    "line", [b"", b"LIST", b"RETR 1", b"AUTH", b"LANG", b"GET / HTTP/1.1", b" USER x", b"US\xc3\x8bR", b"XYZ"]
)
def test_other_commands_are_not_for_before_the_login(line: bytes) -> None:
    dialogue = Dialogue(OPEN)
    assert dialogue.client(line) == Turn(to_client=Own.UNKNOWN.render())
    assert dialogue.expects is Expect.COMMAND


def test_quit_and_leaving() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"QUIT")
    assert dialogue.server(b"+OK bye") == Turn(to_client=b"+OK bye\r\n", closes=True)
    assert Dialogue(OPEN).server(b"-ERR idle").closes


@pytest.mark.parametrize("line", [b"+OK surprise", b"nonsense", b"+ more"])
def test_a_server_out_of_step(line: bytes) -> None:
    with pytest.raises(BadServer):
        Dialogue(OPEN).server(line)


def test_a_server_that_answers_nonsense() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"USER x")
    with pytest.raises(BadServer):
        dialogue.server(b"+ more")
