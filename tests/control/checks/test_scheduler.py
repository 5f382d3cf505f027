from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.checks.scheduler import Scheduler, next_instant
from mailbalancer.model import Check, Endpoint, MemberKey, SmtpCheck

EX1, EX2 = (MemberKey("smtp", "", name) for name in ("ex1", "ex2"))
HERE = Endpoint("127.0.0.1", 25)
SELDOM = Check(interval_s=3600.0)
OFTEN = Check(interval_s=0.01)
UP = Result(Verdict.UP, "connected")


class Bench:
    """A scheduler whose checks are counted and held at a gate until it opens."""

    def __init__(self, concurrent: int = 256, on_result=None) -> None:
        self.results: list[MemberKey] = []
        self.runs: list[Endpoint] = []
        self.active = self.most = 0
        self.gate = asyncio.Event()
        self.changed = asyncio.Condition()
        self.scheduler = Scheduler(on_result or self._note, run=self._run, concurrent=concurrent)

    def _note(self, key: MemberKey, result: Result) -> None:
        self.results.append(key)

    async def _run(self, check: Check, endpoint: Endpoint) -> Result:
        self.runs.append(endpoint)
        self.active += 1
        self.most = max(self.most, self.active)
        await self._tell()
        try:
            await self.gate.wait()
            return UP
        finally:
            self.active -= 1

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def ran(self, times: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.runs) >= times)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_first_check_at_once_and_the_next_not():
    async def main():
        bench = Bench()
        bench.gate.set()
        bench.scheduler.apply({EX1: (SELDOM, HERE), EX2: (SELDOM, HERE)})
        await settle()
        assert sorted(bench.results, key=str) == [EX1, EX2]
        await bench.scheduler.stop()

    asyncio.run(main())


def test_checks_go_on():
    async def main():
        bench = Bench()
        bench.gate.set()
        bench.scheduler.apply({EX1: (OFTEN, HERE)})
        await bench.ran(5)
        await bench.scheduler.stop()

    asyncio.run(main())


def test_an_overrun_does_not_pile_up():
    async def main():
        bench = Bench()
        bench.scheduler.apply({EX1: (OFTEN, HERE)})
        await bench.ran(1)
        await asyncio.sleep(OFTEN.interval_s * 10)  # ten intervals pass while the first check still runs
        assert len(bench.runs) == 1
        bench.gate.set()
        await bench.ran(3)
        assert bench.most == 1
        await bench.scheduler.stop()

    asyncio.run(main())


def test_unchanged_members_keep_running_and_changed_ones_start_again():
    async def main():
        bench = Bench()
        bench.scheduler.apply({EX1: (SELDOM, HERE), EX2: (SELDOM, HERE)})
        await settle()
        elsewhere = Endpoint("127.0.0.1", 26)
        bench.scheduler.apply({EX1: (SELDOM, HERE), EX2: (SELDOM, elsewhere)})
        await settle()
        assert bench.runs == [HERE, HERE, elsewhere]
        assert bench.active == 2
        await bench.scheduler.stop()

    asyncio.run(main())


def test_nothing_is_reported_of_a_removed_member():
    async def main():
        bench = Bench()
        bench.scheduler.apply({EX1: (SELDOM, HERE), EX2: (SELDOM, HERE)})
        await settle()
        bench.scheduler.apply({EX2: (SELDOM, HERE)})
        bench.gate.set()
        await settle()
        assert bench.results == [EX2]
        await bench.scheduler.stop()

    asyncio.run(main())


def test_a_member_without_a_check_is_left_alone():
    async def main():
        bench = Bench()
        bench.scheduler.apply({EX1: (Check(type="none"), HERE)})
        await settle()
        assert bench.runs == []
        await bench.scheduler.stop()

    asyncio.run(main())


def test_only_so_many_at_a_time():
    async def main():
        bench = Bench(concurrent=3)
        keys = [MemberKey("smtp", "", str(number)) for number in range(10)]
        bench.scheduler.apply(dict.fromkeys(keys, (SELDOM, HERE)))
        await settle()
        assert bench.active == 3
        bench.gate.set()
        await bench.ran(10)
        await settle()
        assert bench.most == 3
        assert len(bench.results) == 10
        await bench.scheduler.stop()

    asyncio.run(main())


def test_a_failing_receiver_is_told_to_the_loop_and_checks_go_on():
    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

        def refuse(key: MemberKey, result: Result) -> None:
            raise RuntimeError("no")

        bench = Bench(on_result=refuse)
        bench.gate.set()
        bench.scheduler.apply({EX1: (OFTEN, HERE)})
        await bench.ran(3)
        await bench.scheduler.stop()
        assert told[:2] == ["no", "no"]

    asyncio.run(main())


def test_stop_leaves_no_task_no_connection_and_no_thread(peers):
    async def main():
        gone = asyncio.Semaphore(0)
        connected = asyncio.Semaphore(0)

        async def silent(reader, writer):
            connected.release()
            await reader.read()
            gone.release()

        async with peers.serve(silent) as endpoint:
            before, threads = asyncio.all_tasks(), threading.active_count()
            scheduler = Scheduler(lambda key, result: None)
            check = Check(options=SmtpCheck(), timeout_s=60)
            scheduler.apply({EX1: (check, endpoint), EX2: (check, endpoint)})
            for _ in range(2):
                await connected.acquire()
            ours = asyncio.all_tasks() - before
            assert len([task for task in ours if task.get_name().startswith("check ")]) == 2
            assert threading.active_count() == threads
            await scheduler.stop()
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("check ")]
            for _ in range(2):
                await gone.acquire()

    asyncio.run(main())


@given(st.floats(0, 1e6), st.floats(0.1, 3600), st.floats(0, 1e5))
def test_the_next_instant_is_on_the_grid_and_in_the_future(due_at, interval_s, late_s):
    now = due_at + late_s
    following = next_instant(due_at, interval_s, now)
    steps = (following - due_at) / interval_s
    assert round(steps) >= 1
    assert steps == pytest.approx(round(steps), abs=1e-3)
    assert now - 1e-3 <= following <= now + interval_s + 1e-3
