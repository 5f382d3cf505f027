"""An IMAP session before its login, as a dialogue."""

from __future__ import annotations

import pytest

from mailbalancer.wire.imap_dialogue import MAX_LITERAL_BYTES, MAX_OUTSTANDING, Dialogue
from mailbalancer.wire.imap_greeting import Own
from mailbalancer.wire.mailbox import BadServer, Expect, Rules, Turn

OPEN = Rules()
STRICT = Rules(starttls=True, tls_required=True)


def passes(dialogue: Dialogue, line: bytes) -> None:
    assert dialogue.client(line) == Turn(line + b"\r\n")


def test_login_and_relay() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a1 CAPABILITY")
    assert dialogue.server(b"* CAPABILITY IMAP4rev1 STARTTLS").to_client == b"* CAPABILITY IMAP4rev1\r\n"
    dialogue.server(b"a1 OK done")
    passes(dialogue, b'a2 LOGIN "us er" "p\tass{3}x"')
    assert dialogue.expects is Expect.WAIT
    assert (
        dialogue.server(b"a2 OK [CAPABILITY IMAP4rev1 IDLE] in").to_client
        == b"a2 OK [CAPABILITY IMAP4rev1 IDLE] in\r\n"
    )
    assert dialogue.expects is Expect.RELAY


def test_a_refused_login_stays_before_the_login() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a login u p")
    dialogue.server(b"a NO [AUTHENTICATIONFAILED] no")
    assert dialogue.expects is Expect.COMMAND
    assert dialogue.logins == 1


def test_another_answer_while_the_login_waits() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a CAPABILITY")
    passes(dialogue, b"b LOGIN u p")
    dialogue.server(b"a OK x")
    assert dialogue.expects is Expect.WAIT
    dialogue.server(b"b OK x")
    assert dialogue.expects is Expect.RELAY


def test_authenticate() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a AUTHENTICATE GSSAPI")
    assert dialogue.server(b"+ ").to_client == b"+ \r\n"
    assert dialogue.expects is Expect.AUTH_LINE
    passes(dialogue, b"YII{5}")
    assert dialogue.expects is Expect.WAIT
    dialogue.server(b"+ abc")
    passes(dialogue, b"")
    dialogue.server(b"a OK in")
    assert dialogue.expects is Expect.RELAY


def test_synchronizing_literals() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a LOGIN {4}")
    assert dialogue.expects is Expect.WAIT
    dialogue.server(b"+ go")
    assert (dialogue.expects, dialogue.literal_bytes) == (Expect.LITERAL, 4)
    dialogue.literal_ended()
    assert dialogue.expects is Expect.REST
    passes(dialogue, b" {0}")
    dialogue.server(b"+ go")
    assert dialogue.expects is Expect.REST
    passes(dialogue, b"")
    assert dialogue.expects is Expect.WAIT
    dialogue.server(b"a OK in")
    assert dialogue.expects is Expect.RELAY


def test_a_server_may_refuse_a_literal() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a LOGIN {4000}")
    assert not dialogue.server(b"a NO too long").closes
    assert dialogue.expects is Expect.COMMAND


def test_literals_that_do_not_wait() -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a LOGIN {4+}")
    assert (dialogue.expects, dialogue.literal_bytes) == (Expect.LITERAL, 4)
    dialogue.literal_ended()
    passes(dialogue, b" {3+}")
    assert dialogue.server(b"a NO early").closes, "what follows cannot be told from commands"
    assert dialogue.expects is Expect.END


@pytest.mark.parametrize("line", [b"a LOGIN {%d}" % (MAX_LITERAL_BYTES + 1), b"a LOGIN {999999999+}"])
def test_literals_are_bounded(line: bytes) -> None:
    turn = Dialogue(OPEN).client(line)
    assert turn.closes
    assert not turn.to_server


@pytest.mark.parametrize(
    "line", [b"a LOGIN {+4}", b"a LOGIN {1_0}", b"a LOGIN {07}", "a LOGIN {４}".encode(), b"a LOGIN {9999999999}"]
)
def test_what_is_no_literal_passes_as_text(line: bytes) -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, line)
    assert dialogue.expects is Expect.WAIT
    assert dialogue.literal_bytes == 0


def test_literals_elsewhere_are_refused() -> None:
    assert Dialogue(OPEN).client(b"a ID {5}") == Turn(to_client=Own.BAD.render(b"a"))
    assert Dialogue(OPEN).client(b"a APPEND x {5+}").closes


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"a LOGIN u p", b"a AUTHENTICATE PLAIN", b"a authenticate PLAIN xyz"])
def test_no_password_before_tls(line: bytes) -> None:
    dialogue = Dialogue(STRICT)
    assert dialogue.client(line) == Turn(to_client=Own.TLS_REQUIRED.render(b"a"))
    dialogue.tls_established()
    passes(dialogue, line)


def test_a_password_that_does_not_wait_for_the_refusal_is_not_read_as_commands() -> None:
    turn = Dialogue(STRICT).client(b"a LOGIN {20+}")
    assert turn.closes
    assert turn.to_client.startswith(b"a NO [PRIVACYREQUIRED]")


def test_starttls() -> None:
    dialogue = Dialogue(STRICT)
    assert dialogue.greeting(b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi") == (
        b"* OK [CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS] hi\r\n"
    )
    assert dialogue.client(b"a STARTTLS") == Turn(to_client=Own.TLS_READY.render(b"a"))
    assert dialogue.expects is Expect.TLS
    dialogue.tls_established()
    assert dialogue.server(b"* CAPABILITY IMAP4rev1 AUTH=PLAIN").to_client == b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"
    assert dialogue.client(b"b STARTTLS") == Turn(to_client=Own.TLS_ALREADY.render(b"b"))


def test_starttls_waits_for_the_answers_before_it() -> None:
    dialogue = Dialogue(STRICT)
    passes(dialogue, b"a CAPABILITY")
    assert dialogue.client(b"b STARTTLS") == Turn()
    assert dialogue.expects is Expect.STARTTLS
    assert dialogue.server(b"a OK x").to_client == b"a OK x\r\n" + Own.TLS_READY.render(b"b")
    assert dialogue.expects is Expect.TLS


def test_starttls_refused() -> None:
    assert Dialogue(OPEN).client(b"a STARTTLS").to_client == Own.TLS_NOT_OFFERED.render(b"a")
    assert Dialogue(STRICT).client(b"a STARTTLS now").to_client == Own.BAD.render(b"a")


# --- who the client is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b'a ID ("x-originating-ip" "10.0.0.1")',
        b"a id (X-Forward-User me)",
        b'a ID ("name" "x" "x-\\originating-ip" "10.0.0.1")',
        b'a ID ("x-session-id" "1")',
        b'a ID ("x-proxy-ttl" "1")',
    ],
)
def test_no_client_says_who_it_is(line: bytes) -> None:
    turn = Dialogue(OPEN).client(line)
    assert turn == Turn(to_client=b"* ID NIL\r\na OK ID completed\r\n")


def test_an_honest_id_passes() -> None:
    passes(Dialogue(OPEN), b'a ID ("name" "Thunderbird")')


# --- what is no IMAP -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", [b"", b"a", b"a  LOGIN x", b"* OK", b"+ CAPABILITY", b"a\xff CAPABILITY", b"(a LOGIN x y", b" a NOOP"]
)
def test_not_a_command(line: bytes) -> None:
    dialogue = Dialogue(OPEN)
    turn = dialogue.client(line)
    assert not turn.to_server
    assert b" BAD " in turn.to_client
    assert turn.to_client.count(b"\r\n") == 1


@pytest.mark.parametrize("line", [b"zz OK x", b"+ go", b"", b"* x {5}", b"nonsense"])
def test_a_server_out_of_step(line: bytes) -> None:
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a NOOP")
    with pytest.raises(BadServer):
        dialogue.server(line)


def test_bye() -> None:
    assert Dialogue(OPEN).server(b"* BYE idle").closes
    dialogue = Dialogue(OPEN)
    passes(dialogue, b"a LOGOUT")
    assert not dialogue.server(b"* BYE bye").closes, "its answer follows"


def test_only_so_many_commands_at_once() -> None:
    dialogue = Dialogue(OPEN)
    for number in range(MAX_OUTSTANDING):
        assert dialogue.expects is Expect.COMMAND
        passes(dialogue, b"a%d NOOP" % number)
    assert dialogue.expects is Expect.WAIT
    dialogue.server(b"a3 OK x")
    assert dialogue.expects is Expect.COMMAND


def test_logout_is_answered_and_the_session_is_over() -> None:
    dialogue = Dialogue(Rules())
    passes(dialogue, b"a NOOP")
    passes(dialogue, b"b LOGOUT")
    assert not dialogue.server(b"a OK done").closes
    assert not dialogue.server(b"* BYE see you").closes
    turn = dialogue.server(b"b OK done")
    assert (turn.to_client, turn.closes) == (b"b OK done\r\n", True)
