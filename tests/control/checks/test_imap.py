from __future__ import annotations

import asyncio

import pytest

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, ImapCheck, Verify

PLAIN = ImapCheck()
GREETING = b"* OK [CAPABILITY IMAP4rev1] ready\r\n"
ANSWERS = {
    "a CAPABILITY": b"* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\na OK done\r\n",
    "a STARTTLS": b"a OK begin\r\n",
    "z LOGOUT": b"* BYE\r\nz OK\r\n",
}


def talk_to(peers, greeting=GREETING, answers=(), options=PLAIN, **more):
    async def main():
        async with peers.script(greeting, {**ANSWERS, **dict(answers)}, **more) as server:
            result = await run_check(Check(type="imap", options=options, timeout_s=10), server.endpoint)
            await server.ended.wait()
            return result, server.lines

    return asyncio.run(main())


def test_greeting_capability_logout(peers):
    result, lines = talk_to(peers)
    assert (result.verdict, result.reason) == (Verdict.UP, "greeting, CAPABILITY answered well")
    assert result.detail["banner"] == "* OK [CAPABILITY IMAP4rev1] ready"
    assert lines == ["a CAPABILITY", "z LOGOUT"]


def test_preauth_is_up_but_cannot_start_tls(peers):
    assert talk_to(peers, b"* PREAUTH hello\r\n")[0].verdict is Verdict.UP
    result, lines = talk_to(peers, b"* PREAUTH hello\r\n", options=ImapCheck(starttls=True))
    assert (result.verdict, result.reason) == (
        Verdict.DOWN,
        "the server greets with PREAUTH, so STARTTLS is impossible",
    )
    assert lines[-1] == "z LOGOUT"


@pytest.mark.parametrize("greeting", [b"* BYE full\r\n", b"220 mail ESMTP\r\n", b"+OK pop\r\n", b"*\r\n", b"\r\n"])
def test_other_greetings_are_down(peers, greeting):
    result, lines = talk_to(peers, greeting)
    assert (result.verdict, result.reason) == (Verdict.DOWN, f"greeting was '{greeting.decode().strip()}'")
    assert lines == []


@pytest.mark.parametrize(
    ("answer", "shown"),
    [(b"a NO later\r\n", "a NO later"), (b"a BAD what\r\n", "a BAD what"), (b"* X\r\n* BYE full\r\n", "* BYE full")],
)
def test_capability_refused(peers, answer, shown):
    result, lines = talk_to(peers, answers={"a CAPABILITY": answer})
    assert (result.verdict, result.reason) == (Verdict.DOWN, f"answer to CAPABILITY was '{shown}'")
    assert lines[-1] == "z LOGOUT"


def test_endless_untagged_answers(peers):
    result, _ = talk_to(peers, answers={"a CAPABILITY": b"* X\r\n" * 200})
    assert result.reason == "answer to CAPABILITY has more than 128 lines"


def test_starttls(peers, authority):
    options = ImapCheck(starttls=True, verify=Verify("ca", ca_file=str(authority.path), name="imap.example.com"))
    result, lines = talk_to(peers, options=options, upgrade=authority.issue("imap.example.com"))
    assert (result.verdict, result.reason) == (Verdict.UP, "greeting, STARTTLS and CAPABILITY answered well")
    assert lines == ["a CAPABILITY", "a STARTTLS", "(TLS)", "a CAPABILITY", "z LOGOUT"]


def test_starttls_injection_is_refused(peers, authority):
    result, _ = talk_to(
        peers,
        answers={"a STARTTLS": b"a OK begin\r\n* CAPABILITY AUTH=PLAIN\r\n"},
        options=ImapCheck(starttls=True, verify=Verify("none")),
        upgrade=authority.issue("x"),
    )
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("plain text followed the consent to TLS")


def test_starttls_not_offered(peers):
    answers = {"a CAPABILITY": b"* CAPABILITY IMAP4rev1\r\na OK done\r\n"}
    result, _ = talk_to(peers, answers=answers, options=ImapCheck(starttls=True))
    assert result.reason == "STARTTLS is not offered, only IMAP4rev1"


def test_implicit_tls(peers, authority):
    verify = Verify("ca", ca_file=str(authority.path))
    result, lines = talk_to(peers, options=ImapCheck(tls=True, verify=verify), tls=authority.issue("127.0.0.1"))
    assert result.verdict is Verdict.UP
    assert lines[-1] == "z LOGOUT"
