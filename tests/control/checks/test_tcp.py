from __future__ import annotations

import asyncio

import pytest

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, TcpCheck


def ask(peers, handler, options):
    async def main():
        async with peers.serve(handler) as endpoint:
            return await run_check(Check(options=options, timeout_s=10), endpoint)

    return asyncio.run(main())


async def echo_upper(reader, writer):
    writer.write((await reader.readexactly(4)).upper())
    await reader.read()


def test_connecting_is_enough(peers, silent):
    result = ask(peers, silent, TcpCheck())
    assert (result.verdict, result.reason) == (Verdict.UP, "connected")


def test_send_and_expect(peers):
    result = ask(peers, echo_upper, TcpCheck(send=b"ping", expect=b"PING"))
    assert (result.verdict, result.reason) == (Verdict.UP, "connected, 'PING' found in the answer")


def test_expected_bytes_may_come_one_by_one(peers):
    async def one_by_one(reader, writer):
        for at in range(5):
            writer.write(b"hello"[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.001)
        await reader.read()

    assert ask(peers, one_by_one, TcpCheck(expect=b"hello")).verdict is Verdict.UP


@pytest.mark.parametrize("answer", [b"no", b"x" * 200_000])
def test_the_answer_does_not_hold_it(peers, answer):
    async def other(reader, writer):
        writer.write(answer)

    result = ask(peers, other, TcpCheck(expect=b"hello"))
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith(f"'hello' expected, the answer was '{answer[:2].decode()}")
    assert len(result.reason) < 250
