"""What every probe of real servers has in common: when it is sent, what is remembered of it, and who hears of a change.

Decides: that a real server is probed while it is up, as often as it is checked, and that a verdict which has changed is
said and told.
Refuses to know: what is sent, and what follows from what was met (each probe's own).
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mailbalancer.control.events import Events
from mailbalancer.control.members import Record
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import MemberKey
from mailbalancer.network import Network

#: Probes of one server follow each other no faster than this.
LEAST_PAUSE_S = 2.0


@dataclass(slots=True)
class Standing:
    """What is known of one member."""

    way: WayBack
    at: float


class Prober(ABC):
    """Probes the members that need it, all the time.

    Args:
        wanted: members to probe.
        network: the machine's network as it is now.
        told: called when the verdict on a member has changed, or is not known any more.
    """

    what: ClassVar[str]

    def __init__(
        self,
        events: Events,
        wanted: Callable[[], Iterable[Record]],
        network: Callable[[], Network],
        told: Callable[[MemberKey], None],
    ) -> None:
        self._events = events
        self._wanted = wanted
        self.network = network
        self._told = told
        self.standings: dict[MemberKey, Standing] = {}
        self._running: dict[MemberKey, asyncio.Task[None]] = {}
        self._due: dict[MemberKey, float] = {}

    @abstractmethod
    async def judge(self, record: Record) -> WayBack:
        """Probe once."""

    def tick(self, now: float) -> None:
        """Begin the probes that are due."""
        wanted = {record.key: record for record in self._wanted()}
        for key in [key for key in self.standings if key not in wanted]:
            del self.standings[key]
            self._told(key)
        for key, record in wanted.items():
            if record.state.health.up and now >= self._due.get(key, 0.0) and key not in self._running:
                self._due[key] = now + max(record.pool.check.interval_s, LEAST_PAUSE_S)
                task = self._running[key] = asyncio.get_running_loop().create_task(self._probe(record))
                task.add_done_callback(lambda _, key=key: self._running.pop(key, None))  # type: ignore[misc]

    async def stop(self) -> None:
        """No probe is under way any more."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def bad(self, key: MemberKey) -> str:
        """Why this member's clients are known to get no answer; empty: that is not known."""
        standing = self.standings.get(key)
        return standing.way.reason if standing is not None and standing.way.verdict is Verdict.BAD else ""

    def facts(self, key: MemberKey) -> Mapping[str, Any] | None:
        """For `status`; None: it is not probed, or not yet."""
        standing = self.standings.get(key)
        if standing is None:
            return None
        ago_s = round(time.monotonic() - standing.at, 1)
        way = standing.way
        return {"verdict": str(way.verdict), "reason": way.reason, "far_only": way.far_only, "ago_s": ago_s}

    async def _probe(self, record: Record) -> None:
        self._stands(record, await self.judge(record))

    def _stands(self, record: Record, way: WayBack) -> None:
        before = self.standings.get(record.key)
        self.standings[record.key] = Standing(way, time.monotonic())
        if before is not None and before.way.verdict is way.verdict:
            return
        text = f"{record.place}: {self.what} from {record.key.real_server}: {way.verdict}: {way.reason}"
        (self._events.info if way.verdict is Verdict.GOOD else self._events.error)(text)
        self._told(record.key)
