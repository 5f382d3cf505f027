"""Which events are worth a message, and how many messages they become.

Decides: that what happens together is told together, with the gravest cause in the first line; that there are never
more messages than agreed; that a storm of events needs no more memory than a quiet day.
Refuses to know: how a message travels, and the clock. PURE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LEVELS = {"info": 0, "warning": 1, "error": 2}
#: Lines of one message; what is beyond is counted.
MOST_LINES = 100
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """One message. `cause` is its first line, `lines` are all events in their order."""

    cause: str
    level: str
    lines: tuple[str, ...]
    more: int = 0

    @property
    def text(self) -> str:
        """The whole message."""
        tail = [f"and {self.more} more; the log has them all"] if self.more else []
        return "\n".join([self.cause, "", *self.lines, *tail]) + "\n"


class Grouping:
    """Takes events, gives alarms.

    Args:
        level: the least grave that is told.
        group_s: how long after the first event of a group the others may come.
        most_per_hour: messages; the first of a quiet time are never held back.
    """

    def __init__(self, level: str, group_s: float, most_per_hour: int) -> None:
        self._least = LEVELS[level]
        self._group_s = group_s
        self._most = most_per_hour
        self._allowed = float(most_per_hour)
        self._refilled_at: float | None = None
        self._begun_at: float | None = None
        self._cause: tuple[str, str] = ("", "")
        self._lines: list[str] = []
        self._more = 0

    def take(self, event: Mapping[str, str], now: float) -> None:
        """Something happened."""
        level, text = event["level"], event["text"]
        if LEVELS.get(level, 0) < self._least:
            return
        if self._begun_at is None:
            self._begun_at = now
            self._cause = (level, text)
        elif LEVELS[level] > LEVELS[self._cause[0]]:
            self._cause = (level, text)
        if len(self._lines) < MOST_LINES:
            self._lines.append(f"{event['at']} {level}: {text}")
        else:
            self._more += 1

    def due(self, now: float) -> Alarm | None:
        """The message that must go now, if one must."""
        if self._begun_at is None or now - self._begun_at < self._group_s:
            return None
        before = now if self._refilled_at is None else self._refilled_at
        self._allowed = min(float(self._most), self._allowed + (now - before) * self._most / HOUR_S)
        self._refilled_at = now
        if self._allowed < 1:
            return None  # the group goes on growing until there may be a message again
        self._allowed -= 1
        level, cause = self._cause
        alarm = Alarm(cause, level, tuple(self._lines), self._more)
        self._begun_at, self._lines, self._more = None, [], 0
        return alarm
