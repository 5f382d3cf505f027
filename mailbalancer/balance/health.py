"""Is this real server up? Rise and fall, and the two ways a mail server asks for less without being down.

Decides: when results become a flip. `fall` failures in a row take a server down, `rise` successes in a row bring it
back; the very first result decides alone, and until it arrives the state is unknown and counts as up. Connect failures
seen by traffic count towards down, never towards up. Only a flip is an event; everything else is silence.
Refuses to know: how a check talks, what the operator wants (`member`), and the time.

Health belongs to (service, real server): the checks of two services of one machine never push each other over a
threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

#: A server under back pressure (Exchange: `452 4.3.1 Insufficient system resources`) gets a quarter of its weight. It
#: still takes mail, slowly; cutting it off would push the same load onto the next server and take that one down too.
BACK_PRESSURE_WEIGHT = 0.25


class Verdict(StrEnum):
    """What one check found. All but `DOWN` mean that the server answers."""

    UP = "up"
    DOWN = "down"
    MAINTENANCE = "maintenance"  # 421 4.3.2: its administrator has put it aside; its clients may finish, no new ones
    BACK_PRESSURE = "back_pressure"  # 452 4.3.1: short of resources; fewer new sessions


@dataclass(frozen=True, slots=True)
class Result:
    """One check's outcome.

    Attributes:
        reason: one phrase an administrator understands, such as `connect refused` or `220 mx1 ESMTP`.
        took_s: duration of the whole conversation.
        detail: facts for the status page, such as `banner` or `cert_days`.
    """

    verdict: Verdict
    reason: str
    took_s: float = 0.0
    detail: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flip:
    """The server went up or down, and why, in words."""

    up: bool
    reason: str


class Health:
    """The health of one real server in one service.

    Args:
        rise: successes in a row that bring it back, at least 1.
        fall: failures in a row that take it down, at least 1.

    Attributes:
        up: None until the first result.
        maintenance: the last answer was a maintenance answer. A failed check is no answer and leaves it as it was, or
            one timeout would send new sessions to a server that is being taken apart.
        back_pressure: likewise.
    """

    def __init__(self, rise: int, fall: int) -> None:
        self.rise = rise
        self.fall = fall
        self.up: bool | None = None
        self.maintenance = False
        self.back_pressure = False
        self._checks_against = 0  # results in a row that speak against `up`
        self._traffic_failures = 0

    @property
    def weight_factor(self) -> float:
        """What its weight is multiplied by."""
        return BACK_PRESSURE_WEIGHT if self.back_pressure else 1.0

    def observe(self, result: Result) -> Flip | None:
        """A check has ended."""
        answered = result.verdict is not Verdict.DOWN
        if answered:
            self.maintenance = result.verdict is Verdict.MAINTENANCE
            self.back_pressure = result.verdict is Verdict.BACK_PRESSURE
        if self.up is None:
            return self._first(answered, result.reason)
        if answered is self.up:
            self._checks_against = 0
            return None
        self._checks_against += 1
        needed = self.rise if answered else self.fall
        if self._checks_against < needed:
            return None
        outcome = "passed" if answered else "failed"
        return self._flip(answered, f"{result.reason} ({needed} of {needed} checks {outcome})")

    def observe_remark(self, verdict: Verdict) -> None:
        """A server said to a session that it is in maintenance or short of resources; the next check that it answers
        decides anew."""
        self.maintenance |= verdict is Verdict.MAINTENANCE
        self.back_pressure |= verdict is Verdict.BACK_PRESSURE

    def observe_traffic(self, ok: int, failed: int, reason: str) -> Flip | None:
        """Connects that sessions made since the last call. Their order is not known: one success among them clears all.

        Args:
            ok: connects that succeeded.
            failed: connects that failed.
            reason: why the last one failed.
        """
        if self.up is False:
            return None
        self._traffic_failures = 0 if ok else self._traffic_failures + failed
        failures = self._traffic_failures
        if failures < self.fall:
            return None
        return self._flip(False, f"{reason} ({failures} sessions in a row could not connect)")

    def _first(self, answered: bool, reason: str) -> Flip | None:
        """Unknown counted as up, so only a failure is a flip."""
        self.up = answered
        return None if answered else self._flip(False, f"{reason} (first check)")

    def _flip(self, up: bool, reason: str) -> Flip:
        self.up = up
        self._checks_against = 0
        self._traffic_failures = 0
        return Flip(up, reason)
