"""Who can be chosen, and what the schedules compare.

Decides: nothing. A pool surveys the world once per new session and writes what it saw into candidates; the schedules
and the ramp read those and never ask the world again.
Refuses to know: where the numbers come from (the board) and which candidate is refused (the pool).
"""

from __future__ import annotations

from dataclasses import dataclass

#: What a member may be given. The same numbers stand on the board; a test holds the two together.
CLOSED = 0
RETURNING = 1
READY = 2


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A real server as a pool sees it.

    Attributes:
        name: the real server's name; persistence binds clients to it and the hash is taken over it.
        slot: where its numbers lie.
        priority: for the schedule `priority`, the lowest number that is ready takes all; others ignore it.
        max_sessions: most sessions this pool may have on it, over all workers; 0: no limit.
    """

    name: str
    slot: int
    priority: int = 0
    max_sessions: int = 0


@dataclass(slots=True, eq=False)
class Candidate:
    """A ready member at the moment of one pick. A pool has one for each member and writes it anew for every pick.

    Attributes:
        weight: effective weight, above zero.
        sessions: live sessions over all workers.
        ramped: how far its ramp has come, 0.0 to 1.0; 1.0: not ramping.
    """

    member: PoolMember
    weight: float
    sessions: int
    ramped: float
