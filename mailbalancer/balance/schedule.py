"""Orders of preference: who should get a new session, best first.

Decides: the order only. Each schedule sorts the candidates it is given; the pool walks the order and refuses those that
are full or were tried, and tells the schedule whom it took.
Refuses to know: availability, limits, ramps, persistence.

Weights: a weight that an administrator wrote always counts. `round_robin` and `weighted_round_robin` are one rule, and
so are `least_connections` and `weighted_least_connections`; with every weight at its default of 1 they are the plain
schedules. Otherwise back pressure, which lowers the weight of a server that asks for less mail, would be ignored by
the plain names, and a `weight: 2` next to the default schedule would silently mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from math import log
from operator import itemgetter
from typing import Protocol

from mailbalancer.balance.candidate import Candidate
from mailbalancer.model import Schedule

_BY_SCORE = itemgetter(0, 1)


class Order(Protocol):
    """A schedule at work in one pool of one worker."""

    def order(self, candidates: list[Candidate], key: bytes) -> list[Candidate]:
        """The candidates, best first. `key` is the client, for schedules that look at it."""

    def took(self, order: list[Candidate], index: int) -> None:
        """`order[index]` got the session; those before it were refused."""


class RoundRobin:
    """Smooth weighted round robin: turns in proportion to weight, evenly mixed.

    Each session adds to every candidate's turn its weight; the highest turn wins and pays back the sum. Turns begin
    at a random point, or every worker would send its first session to the same server.
    A ramping candidate that has earned a session goes first and outside the turns of the others.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._turns: dict[int, float] = {}

    def order(self, candidates: list[Candidate], key: bytes) -> list[Candidate]:
        return sorted(candidates, key=self._rank)

    def _rank(self, candidate: Candidate) -> tuple[bool, float]:
        slot = candidate.member.slot
        turn = self._turns.get(slot)
        if turn is None:
            turn = self._turns[slot] = self._random() * candidate.weight
        return candidate.ramped >= 1.0, -(turn + candidate.weight)

    def took(self, order: list[Candidate], index: int) -> None:
        # Refused candidates, which stand before the winner, save no turns: a server that was full for an hour must
        # not get everything in the minute after.
        winner = order[index]
        steady = winner.ramped >= 1.0
        turns = self._turns
        paid = 0.0
        for candidate in order[index:]:
            if (candidate.ramped >= 1.0) is steady:
                turns[candidate.member.slot] += candidate.weight
                paid += candidate.weight
        turns[winner.member.slot] -= paid


class LeastConnections:
    """Lowest (sessions + 1) / weight, ties at random; with `tiers` the lowest priority number before that."""

    def __init__(self, random: Callable[[], float], tiers: bool = False) -> None:
        self._random = random
        self._tiers = tiers

    def order(self, candidates: list[Candidate], key: bytes) -> list[Candidate]:
        if len(candidates) < 2:
            return candidates
        random = self._random
        if self._tiers:
            # Stable sort: equals by load first, then the tiers.
            return sorted(self._by_load(candidates, random), key=_priority)
        return self._by_load(candidates, random)

    @staticmethod
    def _by_load(candidates: list[Candidate], random: Callable[[], float]) -> list[Candidate]:
        scored = [((c.sessions + 1) / c.weight, random(), c) for c in candidates]
        scored.sort(key=_BY_SCORE)
        return [c for _, _, c in scored]

    def took(self, order: list[Candidate], index: int) -> None:
        """Nothing to remember: the board counts the sessions."""


class SourceHash:
    """Weighted rendezvous hashing: every worker, and every run, gives a client the same order of servers.

    Each server draws a number from (its name, the client), and the best draw wins. A server that leaves takes away
    only its own clients; one that comes takes only those it now wins; nobody moves between two that stay. The draw
    -ln(u) / weight is an exponential variate, so the chance to draw lowest is in proportion to weight.
    """

    def __init__(self, tiers: bool = False) -> None:
        self._tiers = tiers

    def order(self, candidates: list[Candidate], key: bytes) -> list[Candidate]:
        drawn = [(c.member.priority if self._tiers else 0, draw(c.member.name, key) / c.weight, c) for c in candidates]
        drawn.sort(key=_BY_SCORE)
        return [c for _, _, c in drawn]

    def took(self, order: list[Candidate], index: int) -> None:
        """Nothing to remember: the client's key says it all."""


def draw(name: str, key: bytes) -> float:
    """An exponential variate of mean 1, fixed by the real server's name and the client's key."""
    digest = blake2b(name.encode() + b"\x00" + key, digest_size=8).digest()
    # Half a step up keeps the fraction off zero. 53 bits are what a float holds, so it never rounds up to one.
    return -log(((int.from_bytes(digest, "big") >> 11) + 0.5) * 2.0**-53)


def _priority(candidate: Candidate) -> int:
    return candidate.member.priority


def make_order(schedule: Schedule, random: Callable[[], float]) -> Order:
    """The order for a schedule. `random` gives floats in [0, 1)."""
    match schedule:
        case Schedule.ROUND_ROBIN | Schedule.WEIGHTED_ROUND_ROBIN:
            return RoundRobin(random)
        case Schedule.LEAST_CONNECTIONS | Schedule.WEIGHTED_LEAST_CONNECTIONS:
            return LeastConnections(random)
        case Schedule.SOURCE_HASH:
            return SourceHash()
        case Schedule.PRIORITY:
            return LeastConnections(random, tiers=True)
