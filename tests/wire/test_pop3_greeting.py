"""POP3 greetings, capabilities, and the first words with a server."""

from __future__ import annotations

import pytest

from mailbalancer.wire.mail_lines import Lines
from mailbalancer.wire.mailbox import BadServer, Ready, Secure, Send, Showing, Step
from mailbalancer.wire.pop3_greeting import Client, Opening, Own, positive, show

CLIENT = Client("2001:db8::1", 50000)


def converse(opening: Opening, *lines: bytes) -> list[Step]:
    steps: list[Step] = []
    for line in lines:
        steps.append(opening.line(line))
        if isinstance(steps[-1], Secure):
            steps.append(opening.secured())
    return steps


def test_the_time_stamp_of_apop_stays() -> None:
    assert converse(Opening(), b"+OK [XCLIENT] ready <1896.697@mail>") == [Ready(b"+OK ready <1896.697@mail>")]


@pytest.mark.parametrize("line", [b"-ERR busy", b"* OK imap", b"220 mx", b"", b"+OKAY", b" +OK"])
def test_bad_greetings(line: bytes) -> None:
    with pytest.raises(BadServer):
        converse(Opening(), line)


def test_tls_and_the_clients_address() -> None:
    assert converse(Opening("require", CLIENT), b"+OK hi", b"+OK go", b"+OK Updated") == [
        *(Send(b"STLS\r\n"), Secure(), Send(b"XCLIENT ADDR=2001:db8::1 PORT=50000\r\n")),
        Ready(b"+OK hi"),
    ]


def test_no_tls_to_be_had() -> None:
    assert converse(Opening("opportunistic"), b"+OK hi", b"-ERR no")[-1] == Ready(b"+OK hi")
    with pytest.raises(BadServer, match="STLS"):
        converse(Opening("require"), b"+OK hi", b"-ERR no")


def test_the_clients_address_is_refused() -> None:
    with pytest.raises(BadServer, match="XCLIENT"):
        converse(Opening(client=CLIENT), b"+OK hi", b"-ERR Unknown command.")


def test_capabilities() -> None:
    lines = [b"TOP", b"UIDL", b"STLS", b"user", b"SASL PLAIN", b"XCLIENT", b"IMPLEMENTATION x"]
    assert show(lines, Showing(starttls=True, login=False)) == [b"TOP", b"UIDL", b"IMPLEMENTATION x", b"STLS"]
    assert show(lines, Showing(hide=frozenset({b"TOP", b"IMPLEMENTATION"}))) == [b"UIDL", b"user", b"SASL PLAIN"]


@pytest.mark.parametrize("own", list(Own))
def test_own_sentences_are_single_lines(own: Own) -> None:
    lines = Lines(512)
    lines.feed(own.render())
    line = lines.next()
    assert line is not None
    assert positive(line) == (own is Own.TLS_READY)
    assert len(lines) == 0
