"""How often one client address may do something in a minute.

Decides: whether once more is too often. A bucket holds one minute's worth and fills evenly, so a mail server that sends
its queue after an hour's silence is no attack, and nobody gains by waiting for the full minute.
Refuses to know: what is counted, and what is refused with which words. Memory is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MINUTE_S: Final = 60.0
#: Addresses that are remembered; the one that was quiet longest goes first, and starts with a full bucket again.
REMEMBERED: Final = 65536


class SourceRate:
    """One limit of one service in one worker; 0: none."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was

    def take(self, address: str, now: float) -> bool:
        """Count once. False: too often, and not counted."""
        full = float(self.per_minute)
        if not full:
            return True
        left, at = self._buckets.get(address, (full, now))
        left = min(full, left + (now - at) * full / MINUTE_S)
        allowed = left >= 1.0
        self._buckets[address] = (left - 1.0 if allowed else left, now)
        self._buckets.move_to_end(address)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed

    def __len__(self) -> int:
        return len(self._buckets)
