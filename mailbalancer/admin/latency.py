"""How long requests and sessions took in the last minute, out of histograms that only ever grow.

Decides: which span counts as now, and that a bucket's upper bound is the answer: what is said is never too good.
Refuses to know: the clock, and where the histograms come from. PURE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from mailbalancer.admin.words import Facts

WINDOW_S = 60.0
_NOBODY: Sequence[int] = ()
Counts = Mapping[str, Sequence[int]]


class Latency:
    """The newest histograms of one service, phase by phase."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, Counts]] = deque()

    def take(self, timings: Facts, now: float) -> list[dict[str, Any]]:
        """Remember these (`Desk.timings` of one service) and say what happened since a minute ago.

        Returns:
            For each phase that something went through: how many, and within how many seconds half and 95 % of them did.
            None: longer than the largest bound.
        """
        counts = _together(timings["places"])
        self._taken.append((now, counts))
        while len(self._taken) > 2 and self._taken[1][0] <= now - WINDOW_S:
            self._taken.popleft()
        earlier = self._taken[0][1]
        found = []
        for phase, upto_now in counts.items():
            before = earlier.get(phase, _NOBODY) or [0] * len(upto_now)
            # a place that went away takes its counts along
            lately = [max(0, new - old) for new, old in zip(upto_now, before, strict=True)]
            if sum(lately):
                found.append({"phase": phase, **_spread(lately, timings["bounds_s"])})
        return found


def _together(places: Sequence[Facts]) -> dict[str, list[int]]:
    """Every phase over all places of a service."""
    sums: dict[str, list[int]] = {}
    for place in places:
        for phase, (counts, _) in place["phases"].items():
            before = sums.get(phase)
            sums[phase] = [a + b for a, b in zip(before, counts, strict=True)] if before else list(counts)
    return sums


def _spread(counts: Sequence[int], bounds_s: Sequence[float]) -> dict[str, Any]:
    upto = list(accumulate(counts))
    return {"count": upto[-1], "half_s": _within(upto, bounds_s, 0.5), "most_s": _within(upto, bounds_s, 0.95)}


def _within(upto: Sequence[int], bounds_s: Sequence[float], share: float) -> float | None:
    """The bound below which so many lie."""
    needed = upto[-1] * share
    return next((bound for bound, count in zip(bounds_s, upto, strict=False) if count >= needed), None)
