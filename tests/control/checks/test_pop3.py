from __future__ import annotations

import asyncio

import pytest

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, Pop3Check, Verify

PLAIN = Pop3Check()
GREETING = b"+OK POP3 ready <1896.697170952@mail.example.com>\r\n"
ANSWERS = {"CAPA": b"+OK list follows\r\nUSER\r\nSTLS\r\n.\r\n", "STLS": b"+OK begin\r\n", "QUIT": b"+OK bye\r\n"}


def talk_to(peers, greeting=GREETING, answers=(), options=PLAIN, **more):
    async def main():
        async with peers.script(greeting, {**ANSWERS, **dict(answers)}, **more) as server:
            result = await run_check(Check(type="pop3", options=options, timeout_s=10), server.endpoint)
            await server.ended.wait()
            return result, server.lines

    return asyncio.run(main())


def test_greeting_capa_quit(peers):
    result, lines = talk_to(peers)
    assert (result.verdict, result.reason) == (Verdict.UP, "greeting answered well")
    assert result.detail["banner"] == GREETING.decode().strip()
    assert lines == ["CAPA", "QUIT"]


def test_a_server_without_capa_is_up(peers):
    result, lines = talk_to(peers, answers={"CAPA": b"-ERR unknown\r\n"})
    assert result.verdict is Verdict.UP
    assert lines[-1] == "QUIT"


@pytest.mark.parametrize("greeting", [b"-ERR locked\r\n", b"* OK imap\r\n", b"+OKAY\r\n"])
def test_other_greetings_are_down(peers, greeting):
    result, _ = talk_to(peers, greeting)
    assert (result.verdict, result.reason) == (Verdict.DOWN, f"greeting was '{greeting.decode().strip()}'")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"250 ok\r\n", "answer to CAPA is not POP3: '250 ok'"),
        (b"+OK\r\n" + b"X\r\n" * 200, "answer to CAPA has more than 128 lines"),
    ],
)
def test_capa_that_is_none(peers, answer, reason):
    result, lines = talk_to(peers, answers={"CAPA": answer})
    assert (result.verdict, result.reason) == (Verdict.DOWN, reason)
    assert lines[-1] == "QUIT"


def test_stls(peers, authority):
    options = Pop3Check(starttls=True, verify=Verify("ca", ca_file=str(authority.path), name="pop.example.com"))
    result, lines = talk_to(peers, options=options, upgrade=authority.issue("pop.example.com"))
    assert (result.verdict, result.reason) == (Verdict.UP, "greeting and STLS answered well")
    assert lines == ["CAPA", "STLS", "(TLS)", "CAPA", "QUIT"]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"CAPA": b"+OK\r\nUSER\r\n.\r\n"}, "STLS is not offered, only USER"),
        ({"CAPA": b"-ERR\r\n", "STLS": b"-ERR no\r\n"}, "answer to STLS was '-ERR no'"),
        ({"STLS": b"+OK\r\n+OK injected\r\n"}, "plain text followed the consent to TLS, before the handshake: "),
    ],
)
def test_stls_refused(peers, authority, answers, reason):
    options = Pop3Check(starttls=True, verify=Verify("none"))
    upgrade = authority.issue("x") if "injected" in str(answers) else None
    result, _ = talk_to(peers, answers=answers, options=options, upgrade=upgrade)
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith(reason)
