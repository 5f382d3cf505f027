"""IMAP greetings, capabilities, and the first words with a server."""

from __future__ import annotations

import pytest

from mailbalancer.wire.imap_greeting import (
    Client,
    Opening,
    Own,
    capabilities,
    id_command,
    read_greeting,
    show,
    without_capabilities,
)
from mailbalancer.wire.mail_lines import Lines
from mailbalancer.wire.mailbox import BadServer, Ready, Secure, Send, Showing, Step, Wait

DOVECOT = (
    b"* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS AUTH=PLAIN] Dovecot ready."
)
CLIENT = Client("192.0.2.7", 50000, "10.0.1.100", 143)


@pytest.mark.parametrize("line", [DOVECOT, b"* OK", b"* ok The Microsoft Exchange IMAP4 service is ready."])
def test_good_greetings(line: bytes) -> None:
    assert read_greeting(line) == line


@pytest.mark.parametrize(
    "line",
    [
        b"* BYE down",
        b"* PREAUTH hello",
        b"+OK pop",
        b"220 mx",
        b"",
        b"* OKAY",
        b"* OK[X",
        b"* NO",
        b"a OK x",
        b"*  OK x",
    ],
)
def test_bad_greetings(line: bytes) -> None:
    with pytest.raises(BadServer):
        read_greeting(line)


BEFORE_TLS = Showing(starttls=True, login=False)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            DOVECOT,
            DOVECOT.replace(b"STARTTLS AUTH=PLAIN", b"LOGINDISABLED STARTTLS"),
        ),
        (b"* CAPABILITY IMAP4rev1 auth=plain starttls", b"* CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS"),
        (b"* CAPABILITY IMAP4rev1 LOGINDISABLED", b"* CAPABILITY IMAP4rev1 LOGINDISABLED STARTTLS"),
        (b"a1 OK [capability IMAP4rev1 AUTH=NTLM] x", b"a1 OK [capability IMAP4rev1 LOGINDISABLED STARTTLS] x"),
        (b"* OK hello [CAPABILITY AUTH=PLAIN]", b"* OK hello [CAPABILITY AUTH=PLAIN]"),
        (b"* ID NIL", b"* ID NIL"),
    ],
)
def test_shown_before_tls(line: bytes, shown: bytes) -> None:
    assert show(line, BEFORE_TLS) == shown


def test_shown_under_tls() -> None:
    line = b"* CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN AUTH=NTLM"
    assert show(line, Showing()) == b"* CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=NTLM"
    assert show(line, Showing(hide=frozenset({b"AUTH=NTLM"}))) == b"* CAPABILITY IMAP4rev1 AUTH=PLAIN"
    assert show(b"* CAPABILITY IMAP4rev1 LOGINDISABLED", Showing()) == b"* CAPABILITY IMAP4rev1 LOGINDISABLED"


def test_capabilities() -> None:
    assert b"LITERAL+" in capabilities(DOVECOT)
    assert capabilities(b"* CAPABILITY a b") == {b"A", b"B"}
    assert capabilities(b"* OK ready") == frozenset()
    assert without_capabilities(DOVECOT) == b"* OK Dovecot ready."
    assert without_capabilities(b"* OK [CAPABILITY X]") == b"* OK ready"
    assert without_capabilities(b"* OK [ALERT] x") == b"* OK [ALERT] x"


def converse(opening: Opening, *lines: bytes) -> list[Step]:
    steps: list[Step] = []
    for line in lines:
        steps.append(opening.line(line))
        if isinstance(steps[-1], Secure):
            steps.append(opening.secured())
    return steps


def test_nothing_to_say() -> None:
    assert converse(Opening(), DOVECOT) == [Ready(DOVECOT)]


def test_tls_and_the_clients_address() -> None:
    assert converse(
        Opening("require", CLIENT), DOVECOT, b"mb1 OK Begin", b'* ID ("name" "Dovecot")', b"mb1 OK done"
    ) == [
        *(Send(b"mb1 STARTTLS\r\n"), Secure(), Send(id_command(CLIENT)), Wait()),
        Ready(b"* OK Dovecot ready."),
    ]
    assert id_command(CLIENT) == (
        b'mb1 ID ("x-originating-ip" "192.0.2.7" "x-originating-port" "50000" '
        b'"x-connected-ip" "10.0.1.100" "x-connected-port" "143")\r\n'
    )


def test_no_tls_to_be_had() -> None:
    assert converse(Opening("opportunistic"), DOVECOT, b"mb1 BAD no")[-1] == Ready(DOVECOT)
    with pytest.raises(BadServer, match="STARTTLS"):
        converse(Opening("require"), DOVECOT, b"mb1 NO no")


@pytest.mark.parametrize("line", [b"mb1 BAD unknown", b"* BYE", b"mb2 OK other", b"+ go on", b"nonsense"])
def test_the_clients_address_is_refused(line: bytes) -> None:
    with pytest.raises(BadServer):
        converse(Opening(client=CLIENT), DOVECOT, line)


@pytest.mark.parametrize("own", list(Own))
def test_own_sentences_are_single_lines(own: Own) -> None:
    lines = Lines(512)
    lines.feed(own.render(b"a1"))
    line = lines.next()
    assert line is not None
    assert line.split(b" ")[1] in (b"OK", b"NO", b"BAD", b"BYE")
    assert len(lines) == 0
