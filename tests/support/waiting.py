"""Waiting for what will become true: poll with a deadline, and say what was waited for when it did not come.

Decides: how often is looked, and what a test that waited in vain reports.
Refuses to know: what is waited for. A test never sleeps to make something happen; it waits for the thing itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def eventually(predicate: Callable[[], T | None], timeout_s: float = 10.0, what: str = "") -> T:
    """The first true value of `predicate`, which is asked until `timeout_s` are over.

    An `AssertionError` or `OSError` inside the predicate counts as "not yet": `lambda: connect(port)` is a condition.

    Raises:
        AssertionError: it never became true; names `what` and the last value or error seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value, seen = _ask(predicate)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_in_vain(predicate, timeout_s, what, seen))
        time.sleep(POLL_S)


async def eventually_async(predicate: Callable[[], T | None], timeout_s: float = 10.0, what: str = "") -> T:
    """`eventually` for a test that runs in an event loop: the loop turns between two questions."""
    deadline = time.monotonic() + timeout_s
    while True:
        value, seen = _ask(predicate)
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_in_vain(predicate, timeout_s, what, seen))
        await asyncio.sleep(POLL_S)


def _ask(predicate: Callable[[], T | None]) -> tuple[T | None, str]:
    try:
        value = predicate()
    except (AssertionError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"
    return value, repr(value)


def _in_vain(predicate: Callable[[], T | None], timeout_s: float, what: str, seen: str) -> str:
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    return f"waited {timeout_s:g} s in vain for: {name}; last seen: {seen[:2000]}"
