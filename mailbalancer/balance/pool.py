"""One pool: which real server gets this session.

Decides: who is refused (closed, tried already, full, ramping without credit) and so who is chosen. The order of
preference is `schedule`'s; the line a returning server must stay below is `ramp`'s.
Refuses to know: sockets, workers, health and the operator. It sees availability and numbers through a `View`.

Picking, in words: survey the ready members; let the ramping among them earn their share; put those that may take a
session in order; take the first that is not refused. A ramping member without credit takes a session only when nobody
else can. A pool whose ready members are all ramping balances as if none were.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from mailbalancer.balance import ramp
from mailbalancer.balance.candidate import READY, RETURNING, Candidate, PoolMember
from mailbalancer.balance.schedule import Order, SourceHash, make_order
from mailbalancer.model import Schedule

__all__ = ["Choice", "Pool", "PoolMember", "Refusal", "View"]

_WHY_BY_KEY = Schedule.SOURCE_HASH.value


class View(Protocol):
    """What a pool asks about the world; every number is over all workers.

    Attributes:
        limited: slots for which `room` has to be asked; all others have it.
    """

    @property
    def limited(self) -> Container[int]: ...

    def look(self, slot: int) -> tuple[int, float, int, float]:
        """What every pick asks of every member: availability, weight, sessions, and the instant at which its ramp
        began (0.0: not ramping)."""

    def availability(self, slot: int) -> int:
        """0 closed, 1 returning clients only, 2 ready. With weight 0 it gets no new sessions either."""

    def sessions(self, slot: int) -> int:
        """Live sessions, counted from the moment of selection."""

    def room(self, slot: int) -> bool:
        """False when the real server's own limit, over all services, is reached."""

    def ramp(self, slot: int) -> tuple[float, float]:
        """(instant at which the ramp began, its length in seconds); an instant of 0.0: not ramping."""

    def ramp_credit(self, slot: int) -> float:
        """Credit ever granted, in sessions."""

    def ramp_taken(self, slot: int) -> int:
        """Sessions ever taken against that credit."""

    def grant(self, slot: int, share: float) -> None:
        """Add credit in this worker's column; negative to take savings back."""

    def take(self, slot: int) -> None:
        """Count one session taken against credit in this worker's column."""


class Choice(NamedTuple):
    """Who gets the session, and why, in a word for the session's log line: a schedule, `ramp` or `persistence`."""

    member: PoolMember
    why: str


class Refusal(Enum):
    """Why nobody gets it. The value is for the log."""

    NONE_READY = "no real server is ready"
    ALL_FULL = "every ready real server is full"


class Pool:
    """The members of a pool and their schedule, in one worker.

    Args:
        members: in configured order, names and slots unique.
        schedule: who gets a new session.
        random: floats in [0, 1), for ties and for the first turn.
    """

    def __init__(self, members: Sequence[PoolMember], schedule: Schedule, random: Callable[[], float]) -> None:
        self.members = tuple(members)
        self.schedule = schedule
        self._by_name = {member.name: member for member in self.members}
        self._tiers = schedule is Schedule.PRIORITY
        self._order = make_order(schedule, random)
        self._order_by_key = SourceHash(self._tiers)
        self._why = schedule.value  # looked up once: an enum's value costs a call
        self._candidates = tuple(Candidate(member, 0.0, 0, 1.0) for member in self.members)
        self._usual = {member.slot: Choice(member, self._why) for member in self.members}

    def member(self, name: str) -> PoolMember | None:
        """The member that is this real server, if it is in this pool."""
        return self._by_name.get(name)

    def pick(
        self, view: View, now: float, key: bytes, tried: Collection[str] = (), by_key: bool = False
    ) -> Choice | Refusal:
        """Choose for a new session. The caller counts the session on the chosen slot before anything else happens.

        Args:
            key: the client, for `source_hash` and `by_key`.
            tried: names that already failed for this session. Picking again is no new session: nothing is earned.
            by_key: order by hash of `key` whatever the schedule, so that workers agree without talking.
        """
        ready, ramping = self._survey(view, now)
        if not ready:
            return Refusal.NONE_READY
        order = self._order_by_key if by_key else self._order
        if 0 < ramping < len(ready):
            return self._pick_beside_ramping(order, view, ready, key, tried)
        candidates = [c for c in ready if c.member.name not in tried] if tried else ready
        chosen = self._first_with_room(order, view, candidates, key)
        if chosen is not None and not by_key:
            return self._usual[chosen.member.slot]
        return self._answer(chosen, candidates, _WHY_BY_KEY)

    def returning(self, view: View, name: str, tried: Collection[str] = ()) -> PoolMember | None:
        """The member `name` if a client that persistence brings back may go there now: open, with room, not tried."""
        member = self.takes_back(view, name, tried)
        if member is None or not _has_room(view, member, view.sessions(member.slot)):
            return None
        return member

    def takes_back(self, view: View, name: str, tried: Collection[str] = ()) -> PoolMember | None:
        """As `returning`, but whether or not there is room: the server still keeps its clients, now or in the queue."""
        member = self._by_name.get(name)
        if member is None or name in tried or view.availability(member.slot) < RETURNING:
            return None
        return member

    def _survey(self, view: View, now: float) -> tuple[list[Candidate], int]:
        """Ready members with their numbers, and how many of them are ramping."""
        ready = []
        ramping = 0
        for candidate in self._candidates:
            slot = candidate.member.slot
            availability, weight, candidate.sessions, ramp_at = view.look(slot)
            if availability < READY or weight <= 0.0:
                continue
            candidate.weight = weight
            candidate.ramped = 1.0
            if ramp_at:
                candidate.ramped = ramp.ramped(ramp_at, view.ramp(slot)[1], now)
                ramping += candidate.ramped < 1.0
            ready.append(candidate)
        return ready, ramping

    def _pick_beside_ramping(
        self, order: Order, view: View, ready: list[Candidate], key: bytes, tried: Collection[str]
    ) -> Choice | Refusal:
        if not tried:
            self._let_ramping_earn(view, ready)
        candidates = [c for c in ready if c.member.name not in tried]
        entitled = [c for c in candidates if c.ramped >= 1.0 or ramp.may_take(view, c.member.slot)]
        chosen = self._first_with_room(order, view, entitled, key)
        why = _WHY_BY_KEY if order is self._order_by_key else self._why
        if chosen is None:
            waiting = [c for c in candidates if c not in entitled]
            chosen = self._first_with_room(order, view, waiting, key)
        elif chosen.ramped < 1.0:
            view.take(chosen.member.slot)
            why = "ramp"
        for candidate in ready:
            if candidate.ramped < 1.0:
                ramp.trim(view, candidate.member.slot)
        return self._answer(chosen, candidates, why)

    def _let_ramping_earn(self, view: View, ready: list[Candidate]) -> None:
        for candidate in ready:
            if candidate.ramped < 1.0:
                share = ramp.line(self._fair_share(candidate, ready), candidate.ramped)
                ramp.earn(view, candidate.member.slot, share)

    def _fair_share(self, candidate: Candidate, ready: list[Candidate]) -> float:
        """What it would get of the new sessions if nobody ramped; by priority it shares with its equals only."""
        if self._tiers:
            ready = [c for c in ready if c.member.priority == candidate.member.priority]
        return candidate.weight / sum(c.weight for c in ready)

    @staticmethod
    def _first_with_room(order: Order, view: View, candidates: list[Candidate], key: bytes) -> Candidate | None:
        ordered = order.order(candidates, key)
        for index, candidate in enumerate(ordered):
            if _has_room(view, candidate.member, candidate.sessions):
                order.took(ordered, index)
                return candidate
        return None

    @staticmethod
    def _answer(chosen: Candidate | None, candidates: list[Candidate], why: str) -> Choice | Refusal:
        if chosen is not None:
            return Choice(chosen.member, why)
        return Refusal.ALL_FULL if candidates else Refusal.NONE_READY


def _has_room(view: View, member: PoolMember, sessions: int) -> bool:
    if member.max_sessions and sessions >= member.max_sessions:
        return False
    return member.slot not in view.limited or view.room(member.slot)
