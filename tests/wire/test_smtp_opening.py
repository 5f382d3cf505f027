"""The first words with a server, as dialogues."""

from __future__ import annotations

import pytest

from mailbalancer.wire.smtp_command import parse
from mailbalancer.wire.smtp_opening import Failed, Opening, Plan, Ready, Secure, Send, Step
from mailbalancer.wire.smtp_reply import Replies, Reply
from mailbalancer.wire.smtp_xclient import Client

CLIENT = Client("192.0.2.7", 5000)
HELO = parse(b"EHLO client.example")


def reply(data: bytes) -> Reply:
    replies = Replies()
    replies.feed(data)
    (found,) = list(replies)
    return found


def converse(plan: Plan, *server: bytes) -> list[Step]:
    """What is done after each thing the server says; a handshake succeeds."""
    opening, steps = Opening(plan), []
    for line in server:
        steps.append(opening.reply(reply(line)))
        if isinstance(steps[-1], Secure):
            steps.append(opening.secured())
    return steps


GREETING = b"220 mx ESMTP\r\n"
EHLO = Send(b"EHLO lb.example\r\n")
STARTTLS = Send(b"STARTTLS\r\n")


def test_nothing_to_say() -> None:
    (ready,) = converse(Plan("lb.example"), GREETING)
    assert isinstance(ready, Ready)
    assert ready.greeting.raw == GREETING
    assert ready.capabilities is None


@pytest.mark.parametrize(
    "line", [b"421 4.3.2 inactive\r\n", b"554 5.7.1 no\r\n", b"250 odd\r\n", b"452 4.3.1 full\r\n"]
)
def test_greeted_badly(line: bytes) -> None:
    (failed,) = converse(Plan("lb.example", "require", CLIENT), line)
    assert isinstance(failed, Failed)
    assert failed.reply is not None
    assert failed.reply.raw == line


@pytest.mark.parametrize("starttls", ["require", "opportunistic"])
def test_starttls(starttls: str) -> None:
    steps = converse(Plan("lb.example", starttls), GREETING, b"250-mx\r\n250 STARTTLS\r\n", b"220 go\r\n")
    assert steps[:3] == [EHLO, STARTTLS, Secure()]
    assert isinstance(steps[3], Ready)
    assert steps[3].capabilities is None, "what was said before TLS is forgotten"


@pytest.mark.parametrize("answer", [(b"250 mx\r\n",), (b"250-mx\r\n250 STARTTLS\r\n", b"454 4.7.0 no\r\n")])
def test_no_tls_to_be_had(answer: tuple[bytes, ...]) -> None:
    assert isinstance(converse(Plan("lb.example", "require"), GREETING, *answer)[-1], Failed)
    ready = converse(Plan("lb.example", "opportunistic"), GREETING, *answer)[-1]
    assert isinstance(ready, Ready)
    assert ready.capabilities is not None


def test_421_to_starttls_is_the_end_also_for_opportunists() -> None:
    steps = converse(Plan("x", "opportunistic"), GREETING, b"250-mx\r\n250 STARTTLS\r\n", b"421 bye\r\n")
    assert isinstance(steps[-1], Failed)


def test_everything_in_order() -> None:
    steps = converse(
        Plan("lb.example", "require", CLIENT, HELO),
        GREETING,
        b"250-mx\r\n250-XCLIENT ADDR\r\n250 STARTTLS\r\n",
        b"220 go\r\n",
        b"250-mx\r\n250 XCLIENT ADDR PORT\r\n",
        b"220 again\r\n",
        b"250 hello\r\n",
    )
    assert steps[:-1] == [
        *(EHLO, STARTTLS, Secure(), EHLO),
        Send(b"XCLIENT PORT=5000 ADDR=192.0.2.7\r\n"),
        Send(HELO.raw),
    ]
    assert isinstance(steps[-1], Ready)


def test_a_server_that_would_not_learn_the_client_gets_no_session() -> None:
    steps = converse(Plan("x", client=CLIENT), GREETING, b"250 mx\r\n")
    assert isinstance(steps[-1], Failed)
    assert "XCLIENT" in steps[-1].reason
    steps = converse(Plan("x", client=CLIENT), GREETING, b"250-mx\r\n250 XCLIENT ADDR\r\n", b"550 5.7.0 no\r\n")
    assert isinstance(steps[-1], Failed)


def test_hello_is_repeated_and_may_fail() -> None:
    assert converse(Plan("x", helo=HELO), GREETING)[-1] == Send(HELO.raw)
    assert isinstance(converse(Plan("x", helo=HELO), GREETING, b"250 ok\r\n")[-1], Ready)
    assert isinstance(converse(Plan("x", helo=HELO), GREETING, b"421 4.3.2 no\r\n")[-1], Failed)


def test_ehlo_refused() -> None:
    assert isinstance(converse(Plan("x", "require"), GREETING, b"502 no\r\n")[-1], Failed)
    assert isinstance(converse(Plan("x", "opportunistic"), GREETING, b"502 no\r\n")[-1], Ready)
    assert isinstance(converse(Plan("x", "opportunistic"), GREETING, b"421 no\r\n")[-1], Failed)
