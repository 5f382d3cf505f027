"""What happened lately, for `status` and for the log: the same sentence goes to both.

Decides: how many events are remembered.
Refuses to know: who asks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mailbalancer.log import Log

REMEMBERED = 50


def iso_utc(at: float) -> str:
    """A wall-clock instant as people and programs read it: 2026-11-21T08:15:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


class Events:
    """Says things once: a line in the log, and an entry in the short memory that `status` shows."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._watchers: list[Callable[[dict[str, Any]], None]] = []

    def info(self, text: str) -> None:
        self._log.info(text)
        self._remember("info", text)

    def warning(self, text: str) -> None:
        self._log.warning(text)
        self._remember("warning", text)

    def error(self, text: str) -> None:
        self._log.error(text)
        self._remember("error", text)

    def listed(self) -> list[dict[str, Any]]:
        """Newest last."""
        return list(self._last)

    def watch(self, told: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
        """Call `told` with every event from now on; returns those before, newest last."""
        self._watchers.append(told)
        return self.listed()

    def _remember(self, level: str, text: str) -> None:
        event = {"at": iso_utc(time.time()), "level": level, "text": text}
        self._last.append(event)
        for told in self._watchers:
            told(event)
