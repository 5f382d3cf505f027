"""How much one client address may have at once, and ask for in a second.

Decides: whether one more connection, or one more request, of this address is too many.
Refuses to know: what is refused with which words. Memory is bounded: addresses that ask for nothing are forgotten.

Requests are a bucket of two seconds' worth that fills at the rate allowed: a page with twenty pictures is no attack.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

BURST_S: Final = 2.0
#: Addresses whose rate is remembered; the one that asked longest ago goes first, and starts with a full bucket again.
REMEMBERED: Final = 65536


class SourceLimits:
    """The limits of one service in one worker; 0: no limit."""

    def __init__(self, connections: int, requests_per_s: int) -> None:
        self.configure(connections, requests_per_s)
        self._open: dict[str, int] = {}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, and when that was

    def configure(self, connections: int, requests_per_s: int) -> None:
        """A reload: holds for those who come."""
        self.connections = connections
        self.requests_per_s = requests_per_s

    def opened(self, address: str) -> bool:
        """Count a connection. False: one too many, and not counted."""
        held = self._open.get(address, 0)
        if self.connections and held >= self.connections:
            return False
        self._open[address] = held + 1
        return True

    def closed(self, address: str) -> None:
        """A connection that was counted has ended."""
        held = self._open.get(address, 0)
        if held > 1:
            self._open[address] = held - 1
        else:
            self._open.pop(address, None)

    def asked(self, address: str, now: float) -> bool:
        """Count a request. False: one too many."""
        rate = self.requests_per_s
        if not rate:
            return True
        full = rate * BURST_S
        left, at = self._buckets.get(address, (full, now))
        left = min(full, left + (now - at) * rate)
        allowed = left >= 1.0
        self._buckets[address] = (left - 1.0 if allowed else left, now)
        self._buckets.move_to_end(address)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed
