"""Shares of new flows: from weights, counts and ramps to whole numbers that a rule can hold.

Decides: what least connections means when the choice is made by a rule that is renewed twice a second and not per flow:
the next flows are poured onto the servers with the fewest sessions per weight until all stand level. And that a ramping
server never gets more than its line, whatever the schedule says.
Refuses to know: nftables, clocks, and where the counts come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2s
from math import exp, log

from mailbalancer.l4.ruleset import BUCKETS, HIGHEST_SHARE

#: Share of its fair share that a ramp begins with, as in layer 7.
RAMP_FLOOR = 0.02
#: Ramps move the shares in steps of this, so that rules are not renewed for nothing.
RAMP_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Runner:
    """A real server that may get new flows.

    Attributes:
        weight: above zero.
        sessions: flows it has now.
        ramped: how far its ramp has come, 0.0 to 1.0; 1.0: not ramping.
        full: it has as many sessions as it may have.
    """

    weight: float
    sessions: int = 0
    ramped: float = 1.0
    full: bool = False


def by_weight(runners: Sequence[Runner]) -> list[int]:
    """Shares in the proportion of the weights; whole weights are shares as they are."""
    steady = all(runner.ramped >= 1.0 or runner.full for runner in runners)
    if steady and all(runner.weight == int(runner.weight) <= HIGHEST_SHARE for runner in runners):
        return [0 if runner.full else int(runner.weight) for runner in runners]
    return _whole(_ramped(runners, _fair))


def by_sessions(runners: Sequence[Runner], expected: int) -> list[int]:
    """Shares that level sessions per weight with the next `expected` flows."""

    def levelled(among: Sequence[Runner]) -> list[float]:
        weights = [0.0 if runner.full else runner.weight for runner in among]
        level = _level(among, weights, max(expected, 1))
        return _normal([max(0.0, weight * level - r.sessions) for weight, r in zip(weights, among, strict=True)])

    return _whole(_ramped(runners, levelled))


def staying(sessions: int, rate: float, interval_s: float) -> int:
    """How many of the flows that begin in an interval are still there at its end.

    By Little's law flows live `sessions / rate` seconds on the average; those that are over at the end of the interval
    have levelled nothing.
    """
    if rate <= 0.0 or sessions <= 0:
        return 0
    lifetime_s = sessions / rate
    return round(sessions * (1.0 - exp(-interval_s / lifetime_s)))


def turns(shares: Sequence[int]) -> list[int]:
    """Whose turn it is, in a round of at most HIGHEST_SHARE: each as often as its share says, evenly spread."""
    divisor = _common_divisor(shares)
    steps = [share // divisor for share in shares] if divisor else []
    total = sum(steps)
    credit = [0] * len(steps)
    order: list[int] = []
    for _ in range(total):
        credit = [have + step for have, step in zip(credit, steps, strict=True)]
        chosen = max(range(len(credit)), key=credit.__getitem__)
        credit[chosen] -= total
        order.append(chosen)
    return order


def hashed(machines: Sequence[int], shares: Sequence[int]) -> list[int]:
    """For each bucket of source addresses the index of its server: rendezvous hashing, so that who leaves moves only
    its own clients. Empty when nobody has a share."""
    running = [
        (index, machine, share) for index, (machine, share) in enumerate(zip(machines, shares, strict=True)) if share
    ]
    if not running:
        return []
    return [max(running, key=lambda entry: _draw(bucket, entry[1], entry[2]))[0] for bucket in range(BUCKETS)]


def _draw(bucket: int, machine: int, share: int) -> float:
    """A weighted lot: the highest of all is drawn with the probability of its share."""
    digest = blake2s(bucket.to_bytes(4, "big") + machine.to_bytes(4, "big")).digest()
    lot = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 2)
    return -share / log(lot)


def _fair(runners: Sequence[Runner]) -> list[float]:
    return _normal([0.0 if runner.full else runner.weight for runner in runners])


def _normal(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total for value in values] if total else [0.0] * len(values)


def _level(runners: Sequence[Runner], weights: Sequence[float], expected: int) -> float:
    """Sessions per weight at which all stand that get any of the `expected` flows."""
    filled = sorted((r.sessions / weight, weight) for r, weight in zip(runners, weights, strict=True) if weight)
    level, poured = 0.0, 0.0
    for at, (height, _) in enumerate(filled):
        below = sum(weight for _, weight in filled[:at])
        if at and poured + (height - level) * below >= expected:
            break
        poured += (height - level) * below
        level = height
    else:
        at = len(filled)
    below = sum(weight for _, weight in filled[:at])
    return level + (expected - poured) / below if below else 0.0


def _ramped(runners: Sequence[Runner], shared: Callable[[Sequence[Runner]], list[float]]) -> list[float]:
    """Nobody above the line of its ramp; what a ramping server may not have goes to those that do not ramp.

    When all that are left ramp, they share as if none did.
    """
    wanted = shared(runners)
    ramping = [runner.ramped < 1.0 and not runner.full for runner in runners]
    steady = [replace(runner, full=runner.full or ramps) for runner, ramps in zip(runners, ramping, strict=True)]
    if not any(ramping) or all(runner.full for runner in steady):
        return wanted
    lines = [fair * max(RAMP_FLOOR, _step(r.ramped)) for fair, r in zip(_fair(runners), runners, strict=True)]
    held = [min(share, line) if ramps else 0.0 for share, line, ramps in zip(wanted, lines, ramping, strict=True)]
    rest = 1.0 - sum(held)
    return [rest * share if not ramps else own for share, own, ramps in zip(shared(steady), held, ramping, strict=True)]


def _step(ramped: float) -> float:
    return int(ramped / RAMP_STEP) * RAMP_STEP


def _whole(shares: Sequence[float]) -> list[int]:
    """Whole numbers in the same proportion; a share that is not nothing stays at least one."""
    total = sum(shares)
    if not total:
        return [0] * len(shares)
    return [max(1, round(HIGHEST_SHARE * share / total)) if share > 1e-9 else 0 for share in shares]


def _common_divisor(values: Sequence[int]) -> int:
    divisor = 0
    for value in values:
        while value:
            divisor, value = value, divisor % value
    return divisor
