"""What a pool sees of the world: the board, through the eyes of one worker.

Decides: nothing. Reads the supervisor's cells and the sums over all workers; writes this worker's own ramp credit.
Refuses to know: schedules and persistence (`balance`).
"""

from __future__ import annotations

from typing import Final

from mailbalancer.ipc.board import COUNT, SLOT, Board, Count, Slot

_WEIGHT: Final = Slot.WEIGHT - Slot.AVAILABILITY
_RAMP_AT: Final = Slot.RAMP_AT - Slot.AVAILABILITY


class BoardView:
    """`balance.pool.View` over the board. Every method is on the path of a new connection.

    Attributes:
        limited: real servers with a limit of their own: slot → (limit, every slot of the same real server).
    """

    def __init__(self, board: Board, worker: int) -> None:
        self._ints = board.ints
        self._floats = board.floats
        self._availability = board.slot(0, Slot.AVAILABILITY)
        self._forwarded = board.slot(0, Slot.FORWARDED)
        self._ramp_at = board.slot(0, Slot.RAMP_AT)
        self._ramp_s = board.slot(0, Slot.RAMP_S)
        self._sessions = [board.count(w, 0, Count.SESSIONS) for w in range(board.workers)]
        self._credits = [board.count(w, 0, Count.RAMP_CREDIT) for w in range(board.workers)]
        self._takens = [board.count(w, 0, Count.RAMP_TAKEN) for w in range(board.workers)]
        self._own_credit = self._credits[worker]
        self._own_taken = self._takens[worker]
        self.limited: dict[int, tuple[int, tuple[int, ...]]] = {}

    def set_limits(self, limits: dict[int, tuple[int, tuple[int, ...]]]) -> None:
        """Real servers with a limit of their own: slot → (limit, every slot of the same real server)."""
        self.limited = limits

    def look(self, slot: int) -> tuple[int, float, int, float]:
        ints, floats, at = self._ints, self._floats, self._availability + slot * SLOT
        sessions, offset = 0, slot * COUNT
        for column in self._sessions:
            sessions += ints[column + offset]
        return ints[at], floats[at + _WEIGHT], sessions, floats[at + _RAMP_AT]

    def availability(self, slot: int) -> int:
        return self._ints[self._availability + slot * SLOT]

    def sessions(self, slot: int) -> int:
        ints, offset, total = self._ints, slot * COUNT, 0
        for column in self._sessions:
            total += ints[column + offset]
        return total

    def room(self, slot: int) -> bool:
        limit = self.limited.get(slot)
        return limit is None or self._together(limit[1]) < limit[0]

    def exceeded(self, slot: int, max_sessions: int) -> bool:
        """Whether there are more sessions than a limit allows: that of the pool, or that of the real server."""
        if max_sessions and self.sessions(slot) > max_sessions:
            return True
        limit = self.limited.get(slot)
        return limit is not None and self._together(limit[1]) > limit[0]

    def _together(self, slots: tuple[int, ...]) -> int:
        """Sessions of one real server over all services, those that the kernel forwards too."""
        return sum(self.sessions(slot) + self._ints[self._forwarded + slot * SLOT] for slot in slots)

    def ramp(self, slot: int) -> tuple[float, float]:
        floats, offset = self._floats, slot * SLOT
        return floats[self._ramp_at + offset], floats[self._ramp_s + offset]

    def ramp_credit(self, slot: int) -> float:
        floats, offset = self._floats, slot * COUNT
        return sum(floats[column + offset] for column in self._credits)

    def ramp_taken(self, slot: int) -> int:
        ints, offset = self._ints, slot * COUNT
        return sum(ints[column + offset] for column in self._takens)

    def grant(self, slot: int, share: float) -> None:
        self._floats[self._own_credit + slot * COUNT] += share

    def take(self, slot: int) -> None:
        self._ints[self._own_taken + slot * COUNT] += 1
