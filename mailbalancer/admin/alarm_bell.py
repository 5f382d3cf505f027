"""Rings: takes every event, and sends what is due.

Decides: when is looked, how often a message that did not get through is tried again, and that a bell that cannot ring
is said in the log, where it cannot ring again.
Refuses to know: which events become a message (`alarms`) and how it travels (`alarm_ways`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

from mailbalancer.admin import alarm_ways
from mailbalancer.admin.alarms import Alarm, Grouping
from mailbalancer.log import Log
from mailbalancer.model import Alarms

LOOK_S = 1.0
TRIES = 5
AGAIN_S = 30.0
MOST_WAITING = 20


class AlarmBell:
    """One bell; it rings as the newest settings say, or not at all."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._settings = Alarms()
        self._grouping: Grouping | None = None
        self._waiting: deque[tuple[float, int, Alarm]] = deque(maxlen=MOST_WAITING)
        self._sending: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None

    def follow(self, settings: Alarms) -> None:
        """These are the settings from now on. What was about to be told still is."""
        if self._grouping is not None and settings == self._settings:
            return
        self._settings = settings
        self._grouping = Grouping(settings.level, settings.group_s, settings.most_per_hour) if settings.ways else None
        if self._grouping is not None and self._looking is None:
            self._look()

    def take(self, event: Mapping[str, str]) -> None:
        """Something happened."""
        if self._grouping is not None:
            self._grouping.take(event, asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """Ring no more."""
        if self._looking is not None:
            self._looking.cancel()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK_S, self._look)
        now = loop.time()
        alarm = self._grouping.due(now) if self._grouping is not None else None
        if alarm is not None:
            self._waiting.append((now, 0, alarm))
        busy = self._sending is not None and not self._sending.done()
        if not busy and self._waiting and self._waiting[0][0] <= now:
            _, tries, first = self._waiting.popleft()
            self._sending = loop.create_task(self._send(first, tries + 1))

    async def _send(self, alarm: Alarm, tries: int) -> None:
        failed = await alarm_ways.send(alarm, self._settings)
        for reason in failed:
            self._log.error(str(reason))
        # a way that worked would tell it twice, so it is tried again only when none did
        if len(failed) == self._settings.ways and tries < TRIES:
            self._waiting.append((asyncio.get_running_loop().time() + AGAIN_S, tries, alarm))
