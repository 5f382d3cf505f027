"""When checks run: one task per member, each on its own grid of instants.

Decides: the first check of a new member at once, the following at a random phase of its interval (so that a thousand
members do not ask in one instant), at most so many at a time, and that a check which overruns its interval skips
instants instead of piling up.
Refuses to know: what a result means. There is no thread and no executor here, because the supervisor forks.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

from mailbalancer.balance.health import Result
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, Endpoint, MemberKey

#: Conversations at one time; each holds a descriptor of the supervisor.
CONCURRENT = 256

Wanted = Mapping[MemberKey, tuple[Check, Endpoint]]


class Scheduler:
    """Keeps every wanted check running and hands each result to `on_result`, in the loop that called `apply`."""

    def __init__(
        self,
        on_result: Callable[[MemberKey, Result], None],
        *,
        run: Callable[[Check, Endpoint], Awaitable[Result]] = run_check,
        concurrent: int = CONCURRENT,
    ) -> None:
        self._on_result = on_result
        self._run = run
        self._places = asyncio.Semaphore(concurrent)
        self._running: dict[MemberKey, tuple[tuple[Check, Endpoint], asyncio.Task[None]]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def apply(self, wanted: Wanted) -> None:
        """Check these members and no others. A member whose check and endpoint are as before keeps its rhythm.

        Members with a check of type `none` are left alone. No result of a removed member is reported after this.
        """
        active = {key: what for key, what in wanted.items() if what[0].type != "none"}
        for key in [key for key, (what, _) in self._running.items() if active.get(key) != what]:
            self._end(key)
        for key, what in active.items():
            if key not in self._running:
                task = asyncio.get_running_loop().create_task(self._keep_checking(key, *what), name=f"check {key}")
                self._running[key] = (what, task)

    async def stop(self) -> None:
        """End every check and wait until each has closed its connection."""
        for key in list(self._running):
            self._end(key)
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, key: MemberKey) -> None:
        _, task = self._running.pop(key)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _keep_checking(self, key: MemberKey, check: Check, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        await self._once(key, check, endpoint)
        due_at = loop.time() + check.interval_s * random.random()
        while True:
            await asyncio.sleep(due_at - loop.time())
            await self._once(key, check, endpoint)
            due_at = next_instant(due_at, check.interval_s, loop.time())

    async def _once(self, key: MemberKey, check: Check, endpoint: Endpoint) -> None:
        async with self._places:
            result = await self._run(check, endpoint)
        try:
            self._on_result(key, result)
        except Exception as error:  # the next check must still come
            told = {"message": f"the result of the check of {key} could not be used", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)


def next_instant(due_at: float, interval_s: float, now: float) -> float:
    """The first instant after `now` on the grid that `due_at` and `interval_s` make; never `due_at` itself."""
    missed = max(0.0, (now - due_at) // interval_s)
    return due_at + (missed + 1) * interval_s
