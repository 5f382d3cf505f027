"""The slow return of a real server, as a share of the new sessions of its pool.

Decides: whether a ramping member may take this new session. Its line is `fair share × max(FLOOR, elapsed / ramp_s)`.
Every new session of the pool earns the member that part of a session as credit; it may take a session when a whole one
has come together. So in any stretch of time it takes at most `CAP` sessions more than the area under its line, however
few sessions it holds and whichever worker does the choosing: the ledger is shared between workers.
Refuses to know: the schedule, the reason for the return, and clients that persistence brings back (not new sessions).

Earning is spread over the pool's sessions and not over time, so the line bounds a share and needs no rate.
"""

from __future__ import annotations

from typing import Protocol

#: Share of its fair share a member starts with. Not zero: a warm cache and a first sign of trouble need some sessions.
FLOOR = 0.02
#: Credit a member can save, in sessions. A little above one, so that two members whose credit is complete at the same
#: session do not lose what they earn while one waits for the other; not more, because savings are spent above the line.
CAP = 1.2
#: What counts as a whole session. Sums of floats such as ten times 0.1 fall short of 1.0 by a hair.
WHOLE = 1.0 - 1e-6


class Ledger(Protocol):
    """Credit and sessions taken, summed over all workers; each worker adds to its own column."""

    def ramp_credit(self, slot: int) -> float: ...
    def ramp_taken(self, slot: int) -> int: ...
    def grant(self, slot: int, share: float) -> None: ...


def ramped(ramp_at: float, ramp_s: float, now: float) -> float:
    """How far a ramp that began at `ramp_at` has come, 0.0 to 1.0. `ramp_at` 0.0 means not ramping: 1.0."""
    if ramp_at == 0.0 or ramp_s <= 0.0:
        return 1.0
    return min(1.0, max(0.0, (now - ramp_at) / ramp_s))


def line(fair_share: float, ramped: float) -> float:
    """The share of new sessions a member may take when its ramp has come this far."""
    return fair_share * max(FLOOR, ramped)


def earn(ledger: Ledger, slot: int, share: float) -> None:
    """A new session of the pool arrives: the member earns its share of it, unless its savings are full."""
    if saved(ledger, slot) < CAP:
        ledger.grant(slot, share)


def may_take(ledger: Ledger, slot: int) -> bool:
    """Whether a whole session has come together."""
    return saved(ledger, slot) >= WHOLE


def trim(ledger: Ledger, slot: int) -> None:
    """The session went to another member: what the savings cannot hold is lost."""
    excess = saved(ledger, slot) - CAP
    if excess > 0.0:
        ledger.grant(slot, -excess)


def saved(ledger: Ledger, slot: int) -> float:
    """Credit not yet used, in sessions."""
    return ledger.ramp_credit(slot) - ledger.ramp_taken(slot)
