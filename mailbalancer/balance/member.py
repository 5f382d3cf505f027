"""One real server in one service: what it may be given now.

Decides: availability, from what the operator wants, what the checks say, and the drain deadline; when a ramp begins;
and what of all this is worth telling. Every method returns the events it caused, and an unchanged state returns none.
Refuses to know: the board, the log, how long a ramp lasts, and where operator states are saved.

    operator            health                  availability
    disabled            any                     CLOSED
    any                 down                    CLOSED
    draining            up, before deadline     RETURNING
    draining            up, from deadline on    CLOSED
    enabled             up, in maintenance      RETURNING
    enabled             up, or not yet known    READY

Every change to READY begins a ramp. At a clean start of the program a member is READY from its first moment, health
unknown, so nothing changes and nothing ramps; who starts it otherwise (added by a reload, saved as ramping) says so
with `ramp_at`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailbalancer.balance.candidate import CLOSED, READY, RETURNING
from mailbalancer.balance.health import Flip, Health, Result, Verdict
from mailbalancer.model import AdminState


@dataclass(frozen=True, slots=True)
class Flipped:
    """It went up or down."""

    up: bool
    reason: str


@dataclass(frozen=True, slots=True)
class AvailabilityChanged:
    """It may be given more or less than before (0 closed, 1 returning clients, 2 ready); `ramp`: a ramp begins now."""

    old: int
    new: int
    why: str
    ramp: bool


@dataclass(frozen=True, slots=True)
class WeightFactorChanged:
    """Its configured weight is to be multiplied by `new` from now on."""

    old: float
    new: float
    why: str


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """The drain deadline has passed: the sessions still open may be dropped, if that is configured."""


Event = Flipped | AvailabilityChanged | WeightFactorChanged | DrainEnded


class MemberState:
    """What one member may be given, and since when it ramps.

    Args:
        rise, fall: see `Health`.
        admin: what the operator wants at the start.
        drain_ends_at: deadline of a drain at the start (configured, or saved by an earlier run); None with DRAINING:
            it drains without an end until `set_admin` gives it one. Ignored when not draining.
        ramp_at: instant at which a ramp began that is already under way; 0.0: none.

    Attributes:
        availability: 0, 1 or 2.
        why: the words for it.
        pressure: with which words it has asked for less, while it does.
        ramp_at: instant at which the latest ramp began, also when it is over by now; 0.0 while not ready.
        drain_ends_at: None unless draining.
    """

    def __init__(
        self,
        rise: int,
        fall: int,
        admin: AdminState = AdminState.ENABLED,
        drain_ends_at: float | None = None,
        ramp_at: float = 0.0,
    ) -> None:
        self.health = Health(rise, fall)
        self.admin = admin
        self.drain_ends_at = drain_ends_at if admin is AdminState.DRAINING else None
        self._drain_ended = False
        self._down_reason = ""
        self._maintenance_reason = ""
        self.pressure = ""
        self.availability, self.why = self._judge()
        self.ramp_at = ramp_at if self.availability == READY else 0.0

    @property
    def weight_factor(self) -> float:
        """What the configured weight is multiplied by."""
        return self.health.weight_factor

    def set_admin(self, state: AdminState, now: float, drain_s: float) -> list[Event]:
        """The operator wants something. Draining again while draining does not prolong the drain."""
        if state is not AdminState.DRAINING:
            self.drain_ends_at = None
            self._drain_ended = False
        elif self.drain_ends_at is None:
            self.drain_ends_at = now + drain_s
        self.admin = state
        return self.tick(now)

    def observe(self, result: Result, now: float) -> list[Event]:
        """A check has ended."""
        factor_before = self.health.weight_factor
        if result.verdict is Verdict.MAINTENANCE:
            self._maintenance_reason = result.reason
        flip = self.health.observe(result)
        factor = self.health.weight_factor
        events = self._flipped(flip)
        if factor != factor_before:
            events.append(self._weighed(factor_before, factor, result.reason))
        return events + self.tick(now)

    def observe_remark(self, verdict: Verdict, reason: str, now: float) -> list[Event]:
        """A session was told about the server by the server itself, see `Health.observe_remark`."""
        before, was = self.health.weight_factor, self.health.maintenance
        self.health.observe_remark(verdict)
        if self.health.maintenance and not was:
            self._maintenance_reason = reason
        factor = self.health.weight_factor
        events: list[Event] = [self._weighed(before, factor, reason)] if factor != before else []
        return events + self.tick(now)

    def observe_traffic(self, ok: int, failed: int, reason: str, now: float) -> list[Event]:
        """Sessions connected or failed to, see `Health.observe_traffic`."""
        return self._flipped(self.health.observe_traffic(ok, failed, reason)) + self.tick(now)

    def tick(self, now: float) -> list[Event]:
        """Time has passed."""
        events: list[Event] = []
        if self.drain_ends_at is not None and now >= self.drain_ends_at and not self._drain_ended:
            self._drain_ended = True
            events.append(DrainEnded())
        old = self.availability
        self.availability, self.why = self._judge()
        if self.availability != old:
            begins = self.availability == READY
            self.ramp_at = now if begins else 0.0
            events.insert(0, AvailabilityChanged(old, self.availability, self.why, begins))
        return events

    def _judge(self) -> tuple[int, str]:
        """The table at the head of this module."""
        if self.admin is AdminState.DISABLED:
            return CLOSED, "disabled by the operator"
        if self.health.up is False:
            return CLOSED, f"down: {self._down_reason}"
        if self.admin is AdminState.DRAINING:
            if self._drain_ended:
                return CLOSED, "drained: its drain time is over"
            return RETURNING, "draining by the operator's command"
        if self.health.maintenance:
            # a check's reason has the words already, a session's remark has not
            return RETURNING, f"in maintenance: {self._maintenance_reason.removeprefix('in maintenance: ')}"
        return READY, "up and enabled" if self.health.up else "enabled, not checked yet"

    def _weighed(self, before: float, after: float, reason: str) -> WeightFactorChanged:
        self.pressure = reason.removeprefix("back pressure: ") if self.health.back_pressure else ""
        return WeightFactorChanged(before, after, reason)

    def _flipped(self, flip: Flip | None) -> list[Event]:
        if flip is None:
            return []
        if not flip.up:
            self._down_reason = flip.reason
        return [Flipped(flip.up, flip.reason)]
