"""The real servers as the supervisor knows them, and the only writer of their cells on the board.

Decides: what becomes of a check's result, of connects that sessions tried, of an operator's command and of time: the
member's state is asked again and written to the board, and a flip is said in words.
Refuses to know: how a state follows from all that (`balance.member`), how checks talk, and who chooses a server.

Without an active check (`type: none`) a real server counts as up always. Connects that fail are retried on the next
server; they do not take it down, because nothing would ever bring it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mailbalancer.balance.candidate import CLOSED, READY
from mailbalancer.balance.health import Result, Verdict
from mailbalancer.balance.member import (
    AvailabilityChanged,
    DrainEnded,
    Event,
    Flipped,
    MemberState,
    WeightFactorChanged,
)
from mailbalancer.balance.ramp import ramped
from mailbalancer.control.events import Events
from mailbalancer.control.slots import Allocation
from mailbalancer.ipc.board import Availability, Board, Count, Slot
from mailbalancer.model import AdminState, Check, Config, Endpoint, Member, MemberKey, Pool


@dataclass(slots=True)
class Record:
    """One member of the running configuration."""

    key: MemberKey
    slot: int
    member: Member
    pool: Pool
    state: MemberState
    commanded: AdminState | None = None  # what the operator wants, where it differs from the configuration
    result: Result | None = None
    result_at: float = 0.0  # monotonic
    flip: Flipped | None = None
    flip_at: float = 0.0  # wall clock: people read it
    connects: tuple[int, int] = (0, 0)  # succeeded and failed, as last seen on the board
    failure: str = ""  # why it would not serve, as sessions said since a connect was good
    barred: str = ""  # why nobody is sent there, however healthy it is; empty: it is not barred

    @property
    def place(self) -> str:
        return f"{self.pool.service}/{self.pool.route}" if self.pool.route else self.pool.service

    @property
    def is_checked(self) -> bool:
        return self.pool.check.type != "none"

    @property
    def availability(self) -> int:
        """What it may be given."""
        return CLOSED if self.barred else self.state.availability

    def ramped(self, now: float) -> float:
        """How far its ramp has come, 0.0 to 1.0."""
        return ramped(self.state.ramp_at, self.pool.ramp_s, now)


class Members:
    """All members of the running configuration.

    Args:
        drop: ends the sessions on a slot; the second argument says why, for their log lines.
        saved: what the operator wanted when the program ran last.
        not_ready: who was not ready, or ramping, then.
        drains: when the drains that were under way end (monotonic).
    """

    def __init__(
        self,
        board: Board,
        events: Events,
        drop: Callable[[int, str], None],
        saved: Mapping[MemberKey, AdminState] | None = None,
        not_ready: Iterable[MemberKey] = (),
        drains: Mapping[MemberKey, float] | None = None,
    ) -> None:
        self._board = board
        self._events = events
        self._drop = drop
        self._saved = dict(saved or {})
        self._was_not_ready = set(not_ready)
        self._drains = dict(drains or {})
        self._records: dict[MemberKey, Record] = {}
        self._prepared: dict[MemberKey, Record] = {}
        self._runs = False

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __contains__(self, key: MemberKey) -> bool:
        return key in self._records

    def __getitem__(self, key: MemberKey) -> Record:
        return self._records[key]

    # configurations

    def prepare(self, config: Config, allocation: Allocation, now: float) -> None:
        """Have the board ready for members that are new in this configuration; nothing that runs is touched."""
        for pool in config.pools():
            for member in pool.members:
                key = pool.key(member)
                if key not in self._records:
                    self._prepared[key] = self._new(key, allocation.members[key], member, pool, now)

    def discard_prepared(self) -> None:
        """The configuration is not going to run."""
        self._prepared.clear()

    def commit(self, config: Config, allocation: Allocation, now: float) -> None:
        """This configuration runs now: new members join, the others follow their new settings, the rest are gone."""
        records: dict[MemberKey, Record] = {}
        for pool in config.pools():
            for member in pool.members:
                key = pool.key(member)
                if key in self._prepared:
                    records[key] = self._prepared[key]
                elif key not in records:
                    records[key] = self._records[key]
                    self._follow(records[key], member, pool, now)
        self._records, self._prepared = records, {}
        self._saved.clear()
        self._drains.clear()
        self._runs = True

    def checks(self) -> dict[MemberKey, tuple[Check, Endpoint]]:
        """What is to be checked, where."""
        return {
            key: (record.pool.check, _checked_endpoint(record))
            for key, record in self._records.items()
            if record.is_checked
        }

    # what happens

    def observe(self, key: MemberKey, result: Result) -> None:
        """A check has ended."""
        record = self._records.get(key)
        if record is None:  # removed while the check ran
            return
        now = time.monotonic()
        record.result, record.result_at = result, now
        self._happened(record, record.state.observe(result, now))

    def poll_traffic(self, now: float) -> None:
        """See which connects sessions have made since the last call."""
        for record in self._records.values():
            before, record.connects = record.connects, self._connects(record.slot)
            if record.connects != before and record.is_checked:
                ok, failed = (new - old for new, old in zip(record.connects, before, strict=True))
                if ok + failed > 0:
                    record.failure = "" if ok > 0 else record.failure
                    reason = record.failure or "connects fail"
                    self._happened(record, record.state.observe_traffic(max(ok, 0), max(failed, 0), reason, now))

    def remarked(self, key: MemberKey, kind: str, reason: str, now: float) -> None:
        """A real server told a session about itself (`ipc.messages.Remark`).

        Without a check nothing would ever undo what it says, so then it is only heard.

        Raises:
            ValueError: there is no such kind of remark.
        """
        record = self._records.get(key)
        if record is None:  # removed meanwhile
            return
        if kind == "failure":
            record.failure = reason
        elif record.is_checked:
            self._happened(record, record.state.observe_remark(Verdict(kind), reason, now))

    def tick(self, now: float) -> None:
        """Drain deadlines pass."""
        for record in self._records.values():
            if record.state.drain_ends_at is not None:
                self._happened(record, record.state.tick(now))

    def command(self, keys: Iterable[MemberKey], wanted: AdminState, now: float) -> None:
        """The operator wants this of these members."""
        for key in keys:
            record = self._records[key]
            record.commanded = wanted if wanted is not record.member.state else None
            self._happened(record, record.state.set_admin(wanted, now, record.pool.drain_s))

    def bar(self, key: MemberKey, reason: str, now: float) -> None:
        """Nobody is sent there, for this reason, until it is empty: what it answers would not reach clients."""
        record = self._records[key]
        if bool(reason) == bool(record.barred):
            record.barred = reason
            return
        record.barred = reason
        if not reason and record.state.availability == READY:
            record.state.ramp_at = now  # it comes back to where others have sessions
        self._write(record)
        self._say(record, f"is out of service: {reason}" if reason else "is in service again", grave=bool(reason))

    def show_own_address(self, key: MemberKey, own: bool) -> None:
        """Whether sessions reach this member with our address, although the service would use the client's."""
        slot = self._records[key].slot
        self._board.ints[self._board.slot(slot, Slot.OWN_ADDRESS)] = own

    def forwards(self, key: MemberKey, flows: int) -> None:
        """The kernel forwards so many flows to this member now; they count for its real server's own limit."""
        self._board.ints[self._board.slot(self._records[key].slot, Slot.FORWARDED)] = flows

    def sessions_at(self, real_server: str) -> int:
        """Of this machine over all services: sessions that end here, and flows that the kernel forwards."""
        slots = [record.slot for record in self._records.values() if record.key.real_server == real_server]
        forwarded = (self._board.ints[self._board.slot(slot, Slot.FORWARDED)] for slot in slots)
        return sum(self._board.total(slot, Count.SESSIONS) for slot in slots) + sum(forwarded)

    # what is saved

    def wanted(self) -> dict[MemberKey, AdminState]:
        """Operator's commands that differ from the configuration."""
        return {key: record.commanded for key, record in self._records.items() if record.commanded is not None}

    def drains(self) -> dict[MemberKey, float]:
        """When each drain that is under way ends, or ended (monotonic)."""
        return {
            key: record.state.drain_ends_at
            for key, record in self._records.items()
            if record.state.drain_ends_at is not None
        }

    def not_ready(self, now: float) -> list[MemberKey]:
        """Members whose return is to be ramped after a restart."""
        return [
            key
            for key, record in self._records.items()
            if record.availability != Availability.READY or record.ramped(now) < 1.0
        ]

    def ready_of(self, pool: Pool) -> tuple[int, int]:
        """How many members of this pool are ready, and how many there are."""
        states = [self._records[pool.key(member)].availability for member in pool.members]
        return sum(1 for availability in states if availability == Availability.READY), len(states)

    # one member

    def _new(self, key: MemberKey, slot: int, member: Member, pool: Pool, now: float) -> Record:
        commanded = self._saved.get(key)
        returns = self._joins_a_working_service(pool) if self._runs else key in self._was_not_ready
        state = _state(pool, commanded or member.state, now, returns, self._drains.get(key))
        record = Record(key, slot, member, pool, state, commanded, connects=self._connects(slot))
        self._write(record)
        return record

    def _joins_a_working_service(self, pool: Pool) -> bool:
        """Beside servers that hold sessions already, least connections would give the newcomer every new one."""
        return any(
            record.availability == Availability.READY
            for record in self._records.values()
            if record.key.service == pool.service and record.key.route == pool.route
        )

    def _follow(self, record: Record, member: Member, pool: Pool, now: float) -> None:
        old, record.member, record.pool = record.member, member, pool
        wanted = record.commanded or member.state
        down_without_check = record.state.health.up is False and not record.is_checked
        if old.endpoint != member.endpoint or down_without_check:
            record.state = _state(pool, wanted, now, returns=True)  # what was known belongs to another address
            record.result = None
        record.state.health.rise, record.state.health.fall = pool.check.rise, pool.check.fall
        if record.commanded is member.state:
            record.commanded = None
        if wanted is not record.state.admin:
            self._happened(record, record.state.set_admin(wanted, now, pool.drain_s))
        self._write(record)

    def _happened(self, record: Record, events: list[Event]) -> None:
        if not events:
            return
        self._write(record)
        flipped = False
        for event in sorted(events, key=lambda event: not isinstance(event, Flipped)):
            match event:
                case Flipped():
                    flipped = True
                    record.flip, record.flip_at = event, time.time()
                    self._say(record, f"is {'up' if event.up else 'down'}: {event.reason}", grave=not event.up)
                case AvailabilityChanged() if not flipped:
                    self._say(record, f"is {_WORDS[event.new]}: {event.why}", grave=False)
                case WeightFactorChanged():
                    less = event.new < event.old
                    share = f"{event.new:g} of its weight" if less else "its full weight again"
                    self._say(record, f"has {share}: {event.why}", grave=less)
                case DrainEnded():
                    self._drained(record)

    def _drained(self, record: Record) -> None:
        if record.pool.drop_after_drain:
            self._drop(record.slot, "drained")
        then = "its sessions are dropped" if record.pool.drop_after_drain else "open sessions stay until they end"
        self._events.info(f"{record.place}: drain time of {record.key.real_server} is over; {then}")

    def _say(self, record: Record, what: str, *, grave: bool) -> None:
        ready, of = self.ready_of(record.pool)
        left = f"{ready} of {of} real servers {'is' if ready == 1 else 'are'} ready"
        text = f"{record.place}: {record.key.real_server} {what}; {left}"
        if ready == 0:
            self._events.error(f"{text}: new sessions are refused")
        elif grave:
            self._events.warning(text)
        else:
            self._events.info(text)

    def _write(self, record: Record) -> None:
        """Availability last: who reads READY finds the ramp already there."""
        board, slot, state = self._board, record.slot, record.state
        board.floats[board.slot(slot, Slot.WEIGHT)] = record.member.weight * state.weight_factor
        board.floats[board.slot(slot, Slot.RAMP_S)] = record.pool.ramp_s
        board.floats[board.slot(slot, Slot.RAMP_AT)] = state.ramp_at if record.pool.ramp_s > 0 else 0.0
        board.ints[board.slot(slot, Slot.AVAILABILITY)] = record.availability

    def _connects(self, slot: int) -> tuple[int, int]:
        return self._board.total(slot, Count.CONNECT_OK), self._board.total(slot, Count.CONNECT_FAILED)


_WORDS: dict[int, str] = {
    Availability.CLOSED: "closed",
    Availability.RETURNING: "open to returning clients only",
    Availability.READY: "ready",
}


def _state(pool: Pool, admin: AdminState, now: float, returns: bool, drain_ends_at: float | None = None) -> MemberState:
    if drain_ends_at is None and admin is AdminState.DRAINING:
        drain_ends_at = now + pool.drain_s
    return MemberState(pool.check.rise, pool.check.fall, admin, drain_ends_at, now if returns else 0.0)


def _checked_endpoint(record: Record) -> Endpoint:
    endpoint = record.member.endpoint
    return Endpoint(endpoint.host, record.pool.check.port or endpoint.port)
