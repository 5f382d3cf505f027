"""Work in a child: its answer, its refusals, its end when it takes too long; and nothing of it stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from mailbalancer.admin import aside as room
from mailbalancer.admin.aside import Facts, aside
from mailbalancer.errors import MailbalancerError


def answer() -> Facts:
    return {"pid": str(os.getpid()), "much": "x" * 1_000_000}


def refuse() -> Facts:
    raise MailbalancerError("the password is wrong", "try again")


def fail() -> Facts:
    raise ValueError("-----BEGIN PRIVATE KEY-----")


def for_ever() -> Facts:
    while True:
        pass


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_child_answers_and_is_gone() -> None:
    before, open_before = children(), descriptors()
    told = asyncio.run(aside(answer))
    assert told["pid"] != str(os.getpid())
    assert len(told["much"]) == 1_000_000
    assert (children(), descriptors()) == (before, open_before)


def test_a_refusal_keeps_its_words() -> None:
    with pytest.raises(MailbalancerError) as refused:
        asyncio.run(aside(refuse))
    assert (refused.value.message, refused.value.remedy) == ("the password is wrong", "try again")


def test_a_fault_is_told_without_what_it_quotes() -> None:
    with pytest.raises(MailbalancerError, match="fault of mailbalancer") as failed:
        asyncio.run(aside(fail))
    assert "PRIVATE" not in str(failed.value)


def test_work_without_end_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SECONDS", 1)
    before = children()
    with pytest.raises(MailbalancerError, match="more than 1 s of work"):
        asyncio.run(aside(for_ever))
    assert children() == before


def test_others_go_on_meanwhile() -> None:
    async def both() -> int:
        turns = 0
        work = asyncio.ensure_future(aside(answer))
        while not work.done():
            turns += 1
            await asyncio.sleep(0)
        await work
        return turns

    assert asyncio.run(both()) > 1
