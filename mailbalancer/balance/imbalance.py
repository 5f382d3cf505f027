"""Does one source address carry too many sessions?

Decides: when to say so, and when to say that it is over. With persistence by source address everybody behind one NAT
device goes to one real server, and the pool is unbalanced however well the schedule works.
Refuses to know: how the warning is worded and where the total comes from (all workers; this counts one worker's
sources, and a source lives on one worker).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

#: With fewer sessions than this in the service, any share is chance.
MIN_SESSIONS = 20
#: It is over when the share has fallen to this part of the limit: one session more or less must not write log lines.
CLEAR_AT = 0.8


@dataclass(frozen=True, slots=True)
class Report:
    """`source` has `sessions` of `total` sessions of the service; 0 sessions: it is no longer worth a warning."""

    source: str
    sessions: int
    total: int

    @property
    def share(self) -> float:
        return self.sessions / self.total if self.total else 0.0


class SourceCounter:
    """Live sessions per source address of one service in one worker.

    Args:
        warn_share: a source with more than this share of the service's sessions is reported.
    """

    def __init__(self, warn_share: float, min_sessions: int = MIN_SESSIONS) -> None:
        self.warn_share = warn_share
        self.min_sessions = min_sessions
        self.reported = ""
        self._sessions: Counter[str] = Counter()

    def __len__(self) -> int:
        """Sources with sessions."""
        return len(self._sessions)

    def opened(self, source: str) -> None:
        """A session from this address begins."""
        self._sessions[source] += 1

    def closed(self, source: str) -> None:
        """A session from this address has ended."""
        self._sessions[source] -= 1
        if self._sessions[source] <= 0:
            del self._sessions[source]

    def observe(self, total: int) -> Report | None:
        """Compare with `total` sessions of the service over all workers; a report when something changed.

        One source is reported at a time; the next follows when that one is over. Call it every few seconds: it looks
        at every source.
        """
        if self.reported:
            return self._over(total)
        if total < self.min_sessions or not self._sessions:
            return None
        source, sessions = max(self._sessions.items(), key=lambda item: item[1])
        if sessions <= self.warn_share * total:
            return None
        self.reported = source
        return Report(source, sessions, total)

    def _over(self, total: int) -> Report | None:
        source = self.reported
        # Below half the least number of sessions nobody cares any more, whatever the share.
        if total >= self.min_sessions / 2 and self._sessions[source] > self.warn_share * total * CLEAR_AT:
            return None
        self.reported = ""
        return Report(source, 0, total)
