"""How often one source may be wrong about a token.

Decides: that a few failures are forgiven, that more of them cost waiting, and that remembering them has a bound.
Refuses to know: tokens, HTTP and the clock. PURE.
"""

from __future__ import annotations

import ipaddress

#: Failures that cost nothing when they come at once; one more is forgiven every REFILL_S.
BURST = 5
REFILL_S = 12.0
MOST_SOURCES = 10_000


class Throttle:
    """Per source, the instant at which all its failures are forgiven; that instant moves on with each failure."""

    def __init__(self, burst: int = BURST, refill_s: float = REFILL_S, most: int = MOST_SOURCES) -> None:
        self._burst_s = burst * refill_s
        self._refill_s = refill_s
        self._most = most
        self._forgiven_at: dict[str, float] = {}

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until this source may try again; 0.0: now."""
        forgiven_at = self._forgiven_at.get(source(address), now)
        return max(0.0, forgiven_at - now - self._burst_s + self._refill_s)

    def failed(self, address: str, now: float) -> None:
        """A token of this source was wrong."""
        name = source(address)
        self._forgiven_at[name] = max(self._forgiven_at.pop(name, now), now) + self._refill_s
        if len(self._forgiven_at) > self._most:
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Those that are forgiven, or else the one that has not failed for the longest time."""
        kept = {name: at for name, at in self._forgiven_at.items() if at > now}
        if len(kept) > self._most:
            del kept[next(iter(kept))]
        self._forgiven_at = kept


def source(address: str) -> str:
    """Who is counted as one: an IPv4 address, or the /64 of an IPv6 address, which is one customer's."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((parsed, 64), strict=False))
    return str(parsed)
