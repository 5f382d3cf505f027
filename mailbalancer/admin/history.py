"""What the services did in the last 24 hours, at one fixed resolution, in memory of a fixed size.

Decides: how counters become rates, what a gap looks like, and what is forgotten.
Refuses to know: the clock and where the numbers come from. PURE.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from math import isnan, nan

RESOLUTION_S = 30.0
POINTS = 2880  # 24 hours
#: Names beyond these are not recorded: memory stays below 40 MB, whatever the configuration.
MOST_NAMES = 500
#: As they are, and as what they grow by in a second.
GAUGES = ("sessions", "ready")
COUNTERS = ("total", "refused", "failed", "bytes_in", "bytes_out")
SERIES = (*GAUGES, *COUNTERS)

Numbers = Mapping[str, float]


class _Recorded:
    """One name: a ring for each series, and the counters as they were last."""

    def __init__(self) -> None:
        self.rings = {series: array("f", [nan]) * POINTS for series in SERIES}
        self.before: Numbers | None = None
        self.seen_at = 0.0


class History:
    """Rings that all turn together; one step is RESOLUTION_S."""

    def __init__(self) -> None:
        self._recorded: dict[str, _Recorded] = {}
        self._step = -1  # number of the newest point since the beginning of time
        self._taken_at = 0.0

    def take(self, numbers: Mapping[str, Numbers], now: float) -> None:
        """The numbers of every name at `now` (wall clock, seconds)."""
        step = int(now // RESOLUTION_S)
        if step <= self._step:  # asked too early, or the clock was set back
            return
        elapsed_s = now - self._taken_at if self._taken_at else 0.0
        self._clear_between(step)
        self._step, self._taken_at = step, now
        for name, values in numbers.items():
            if name in self._recorded or len(self._recorded) < MOST_NAMES:
                self._record(self._recorded.setdefault(name, _Recorded()), values, elapsed_s, now)
        day = POINTS * RESOLUTION_S
        for name in [name for name, one in self._recorded.items() if now - one.seen_at > day]:
            del self._recorded[name]

    def last(self, name: str, points: int) -> dict[str, list[float | None]]:
        """The newest points of every series, oldest first; None where nothing is known."""
        one = self._recorded.get(name)
        points = min(points, POINTS)
        if one is None or self._step < 0:
            return {series: [None] * points for series in SERIES}
        places = [(self._step - back) % POINTS for back in range(points - 1, -1, -1)]
        return {series: [_known(ring[place]) for place in places] for series, ring in one.rings.items()}

    def names(self) -> list[str]:
        return sorted(self._recorded)

    @property
    def ends_at(self) -> float:
        """The instant of the newest point."""
        return self._step * RESOLUTION_S if self._step >= 0 else 0.0

    def _clear_between(self, step: int) -> None:
        """Points that nobody took, and the one about to be taken, hold what was a day ago."""
        for number in range(max(self._step, step - POINTS) + 1, step + 1):
            for one in self._recorded.values():
                for ring in one.rings.values():
                    ring[number % POINTS] = nan

    def _record(self, one: _Recorded, values: Numbers, elapsed_s: float, now: float) -> None:
        place = self._step % POINTS
        for series in GAUGES:
            one.rings[series][place] = values[series]
        before = one.before
        if before is not None and 0 < elapsed_s < 10 * RESOLUTION_S:
            for series in COUNTERS:
                # a counter that fell began anew: the service was removed and added
                one.rings[series][place] = max(0.0, values[series] - before[series]) / elapsed_s
        one.before, one.seen_at = dict(values), now


def _known(value: float) -> float | None:
    return None if isnan(value) else round(value, 3)
