"""Real servers that are taken out of every service for patching, and come back by themselves.

Decides: when that is refused (a pool would keep fewer ready ones than its service wants), when a real server is empty,
when a planned window begins and ends, and when the real server is back.
Refuses to know: clocks (`tick` is told both), and who shows it.

    DRAINING → EMPTY → RETURNING → over

A drained real server that is empty for a moment is not done, because returning clients may come back: it is closed
first, and counted empty only if nobody came in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from mailbalancer.control.events import Events, iso_utc
from mailbalancer.control.members import Members, Record
from mailbalancer.errors import ControlError
from mailbalancer.ipc.board import Availability
from mailbalancer.model import AdminState, Config, MemberKey, Window

#: A real server that is not back everywhere after so long deserves a look.
SLOW_RETURN_S = 600.0
#: A window that was refused is tried again so often: others may have come back.
AGAIN_S = 60.0


class Stage(StrEnum):
    """How far it is."""

    DRAINING = "draining"  # sessions are left
    EMPTY = "empty"  # it may be switched off
    RETURNING = "returning"  # through its checks and the ramp


@dataclass(slots=True)
class Order:
    """One real server in maintenance.

    Attributes:
        services: where; empty: everywhere.
        by: who wanted it: `operator`, or the window.
        began_at, until: wall clock; None: until somebody says so.
        before: what the operator had wanted of it; it comes back to that.
        closed: nobody can come any more.
        returning_at: wall clock.
    """

    real_server: str
    services: tuple[str, ...]
    by: str
    began_at: float
    until: float | None
    stage: Stage = Stage.DRAINING
    before: dict[MemberKey, AdminState] = field(default_factory=dict)
    closed: bool = False
    returning_at: float = 0.0


class Maintenance:
    """All orders, and the windows of the running configuration.

    Args:
        sessions: open sessions at a member, whoever counts them.
        changed: to be called when something must be saved.
    """

    def __init__(
        self, members: Members, events: Events, sessions: Callable[[Record], int], changed: Callable[[], None]
    ) -> None:
        self._members = members
        self._events = events
        self._sessions = sessions
        self._changed = changed
        self._orders: dict[str, Order] = {}
        self._windows: tuple[Window, ...] = ()
        self._minimum: Mapping[str, int] = {}
        self._handled: set[tuple[str, float]] = set()  # occurrences of windows that have begun
        self._again_at: dict[str, float] = {}
        self._warned: set[str] = set()

    def follow(self, config: Config) -> None:
        """This configuration runs now."""
        self._windows = config.windows
        self._minimum = {service.name: service.minimum_ready for service in config.services}
        here = {record.key.real_server for record in self._members}
        for gone in [name for name in self._orders if name not in here]:
            del self._orders[gone]

    # ------------------------------------------------------------ what is wanted

    def start(
        self,
        real_server: str,
        services: Iterable[str],
        until: float | None,
        force: bool,
        by: str,
        now: float,
        wall: float,
    ) -> Order:
        """Drain it, and keep it out until `until` (wall clock) or `stop`. Again: a new end for what is under way.

        Raises:
            ControlError: there is no such real server, or the others are too few.
        """
        keys = self._keys(real_server, tuple(services))
        under_way = self._orders.get(real_server)
        if under_way is not None and under_way.stage is not Stage.RETURNING:
            under_way.until, under_way.by = until, by
            self._changed()
            return under_way
        lacking = self.too_few(keys)
        if lacking and not force:
            raise ControlError(
                f"{real_server} is needed: {'; '.join(lacking)}",
                "bring others back first, or insist with --force (`minimum_ready` says how many a service needs)",
            )
        order = self._orders[real_server] = Order(real_server, tuple(services), by, wall, until)
        order.before = {key: self._members[key].state.admin for key in keys}
        end = f" until {_local(until)}" if until is not None else ""
        self._events.info(f"maintenance of {real_server} begins ({by}){end}: it drains from {_places(keys)}")
        for line in lacking:
            self._events.warning(f"maintenance of {real_server}: {line}")
        self._want(order, AdminState.DRAINING, now)
        self._changed()
        return order

    def stop(self, real_server: str, now: float, wall: float) -> Order:
        """Let it come back.

        Raises:
            ControlError: it is not in maintenance.
        """
        order = self._orders.get(real_server)
        if order is None:
            there = ", ".join(self._orders) or "none"
            raise ControlError(f"{real_server} is not in maintenance", f"in maintenance: {there}")
        if order.stage is not Stage.RETURNING:
            self._bring_back(order, now, wall)
        return order

    def too_few(self, keys: Iterable[MemberKey]) -> list[str]:
        """The pools that would keep fewer ready real servers than their service wants, in words."""
        lacking = []
        for key in keys:
            record = self._members[key]
            if record.state.availability == Availability.CLOSED:
                continue  # it serves nobody there as it is
            left = self._members.ready_of(record.pool)[0] - (record.state.availability == Availability.READY)
            wanted = self._minimum.get(key.service, 1)
            if left < wanted:
                ready = f"{left} ready real server{'' if left == 1 else 's'}"
                lacking.append(f"{record.place} would have {ready}" + (f", and needs {wanted}" if wanted > 1 else ""))
        return lacking

    def _keys(self, real_server: str, services: tuple[str, ...]) -> list[MemberKey]:
        there = [record.key for record in self._members if record.key.real_server == real_server]
        keys = [key for key in there if not services or key.service in services]
        if not there:
            known = ", ".join(sorted({record.key.real_server for record in self._members}))
            raise ControlError(f"no service has a real server {real_server!r}", f"there are: {known or 'none'}")
        missing = sorted(set(services) - {key.service for key in keys})
        if missing:
            raise ControlError(
                f"{real_server} is not in {', '.join(missing)}",
                f"it is in: {', '.join(sorted({k.service for k in there}))}",
            )
        return keys

    # ------------------------------------------------------------ while time passes

    def tick(self, now: float, wall: float) -> None:
        """Look at everything once. `now` is monotonic, `wall` the clock on the wall."""
        self._begin_windows(now, wall)
        for order in list(self._orders.values()):
            self._look(order, now, wall)

    def _look(self, order: Order, now: float, wall: float) -> None:
        records = self._records(order)
        if order.stage is Stage.RETURNING:
            self._look_for_return(order, records, now, wall)
            return
        self._take_in(order, records, now)
        if any(record.state.admin is AdminState.ENABLED for record in records):
            self._events.info(f"maintenance of {order.real_server} ends: it was enabled")
            self._bring_back(order, now, wall)
        elif order.until is not None and wall >= order.until:
            if order.stage is Stage.DRAINING:
                self._events.warning(f"maintenance of {order.real_server} ends and it never was empty")
            self._bring_back(order, now, wall)
        elif order.stage is Stage.DRAINING and not sum(map(self._sessions, records)):
            self._is_empty(order, records, now)

    def _take_in(self, order: Order, records: list[Record], now: float) -> None:
        """Places that a reload has added are out too."""
        fresh = [record for record in records if record.key not in order.before]
        if fresh:
            order.before.update({record.key: record.state.admin for record in fresh})
            self._want(order, AdminState.DISABLED if order.closed else AdminState.DRAINING, now)

    def _is_empty(self, order: Order, records: list[Record], now: float) -> None:
        if not order.closed:
            order.closed = True
            self._want(order, AdminState.DISABLED, now)
            self._changed()
            return  # somebody may have come at the last moment: look once more
        order.stage = Stage.EMPTY
        where = f"in {', '.join(order.services)}" if order.services else "everywhere"
        words = "safe to reboot" if not order.services else "nobody is served there any more"
        self._events.info(f"{order.real_server} is empty {where} ({_places([r.key for r in records])}): {words}")
        self._changed()

    def _bring_back(self, order: Order, now: float, wall: float) -> None:
        order.stage, order.returning_at = Stage.RETURNING, wall
        self._events.info(f"{order.real_server} comes back from maintenance: through its checks and the ramp")
        for record in self._records(order):
            wanted = order.before.get(record.key, AdminState.ENABLED)
            self._members.command([record.key], _left_before(wanted), now)
        self._changed()

    def _look_for_return(self, order: Order, records: list[Record], now: float, wall: float) -> None:
        missing = [record for record in records if not _is_back(record, now)]
        if not missing:
            lasted = str(timedelta(seconds=int(wall - order.began_at)))
            self._events.info(f"{order.real_server} is back with its full share; maintenance took {lasted}")
            del self._orders[order.real_server]
            self._warned.discard(order.real_server)
            self._changed()
        elif wall - order.returning_at > SLOW_RETURN_S and order.real_server not in self._warned:
            down = [f"{record.place}: {record.state.why}" for record in missing if not _is_ready(record)]
            if down:
                self._warned.add(order.real_server)
                self._events.warning(f"{order.real_server} is not back from maintenance: {'; '.join(down)}")

    def _begin_windows(self, now: float, wall: float) -> None:
        local = datetime.fromtimestamp(wall)  # noqa: DTZ006 windows are written in local time
        for window in self._windows:
            began = window.current(local)
            if began is None:
                continue
            occurrence = (str(window), began.timestamp())
            if occurrence in self._handled or now < self._again_at.get(str(window), 0.0):
                continue
            self._begin(window, (began + window.length).timestamp(), occurrence, now, wall)

    def _begin(self, window: Window, until: float, occurrence: tuple[str, float], now: float, wall: float) -> None:
        if window.real_server not in self._orders:
            try:
                self.start(window.real_server, (), until, False, f"window {window}", now, wall)
            except ControlError as error:
                if str(window) not in self._again_at:
                    self._events.error(f"maintenance window {window} cannot begin: {error.message}")
                self._again_at[str(window)] = now + AGAIN_S
                return
        self._again_at.pop(str(window), None)
        last_week = wall - timedelta(weeks=1).total_seconds() - 1
        self._handled = {one for one in self._handled if one[1] > last_week} | {occurrence}
        self._changed()

    # ------------------------------------------------------------ pieces

    def _records(self, order: Order) -> list[Record]:
        return [
            record
            for record in self._members
            if record.key.real_server == order.real_server
            and (not order.services or record.key.service in order.services)
        ]

    def _want(self, order: Order, wanted: AdminState, now: float) -> None:
        """Of all its places; where it was disabled it stays so."""
        keys = [r.key for r in self._records(order) if r.state.admin not in (wanted, AdminState.DISABLED)]
        self._members.command(keys, wanted, now)

    # ------------------------------------------------------------ shown and saved

    def facts(self, wall: float) -> dict[str, Any]:
        """For `status`."""
        local = datetime.fromtimestamp(wall)  # noqa: DTZ006 windows are written in local time
        return {
            "active": [self._order_facts(order, wall) for order in self._orders.values()],
            "windows": [_window_facts(window, local) for window in self._windows],
        }

    @staticmethod
    def _order_facts(order: Order, wall: float) -> dict[str, Any]:
        return {
            "real_server": order.real_server,
            "services": list(order.services),
            "stage": str(order.stage),
            "by": order.by,
            "began_at": iso_utc(order.began_at),
            "until": None if order.until is None else iso_utc(order.until),
            "until_in_s": None if order.until is None else round(max(0.0, order.until - wall), 1),
        }

    def saved(self) -> dict[str, Any]:
        """What a restart must know."""
        return {
            "orders": [
                {
                    "real_server": order.real_server,
                    "services": list(order.services),
                    "by": order.by,
                    "began_at": order.began_at,
                    "until": order.until,
                    "stage": str(order.stage),
                    "closed": order.closed,
                    "returning_at": order.returning_at,
                    "before": [
                        [key.service, key.route, key.real_server, str(state)] for key, state in order.before.items()
                    ],
                }
                for order in self._orders.values()
            ],
            "handled": [list(one) for one in self._handled],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on where the last run stopped. What makes no sense is left out: a state file is written by us or by nobody
        who is to be trusted."""
        for facts in saved.get("orders", []):
            order = _restored(facts)
            if order is not None:
                self._orders[order.real_server] = order
        self._handled = {(str(words), float(at)) for words, at in saved.get("handled", [])}


def until(text: str, wall: float) -> float | None:
    """An instant from `02:00` (the next one), `2026-11-28 02:00` (local) or `2026-11-28T02:00Z`; empty: None.

    Raises:
        ControlError: it is none, or has passed.
    """
    if not text:
        return None
    local = datetime.fromtimestamp(wall)  # noqa: DTZ006 people mean their own time
    try:
        if len(text) == 5:
            clock = datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007
            at = datetime.combine(local.date(), clock)
            at += timedelta(days=at <= local)
        else:
            at = datetime.fromisoformat(text)
    except ValueError:
        raise ControlError(f"{text[:40]!r} is not a time", "write 02:00, or 2026-11-28 02:00") from None
    if at.timestamp() <= wall:
        raise ControlError(f"{text} has passed", "write 02:00 for the next one, or a later day")
    return at.timestamp()


def _restored(facts: Mapping[str, Any]) -> Order | None:
    try:
        return Order(
            str(facts["real_server"]),
            tuple(map(str, facts["services"])),
            str(facts["by"]),
            float(facts["began_at"]),
            None if facts["until"] is None else float(facts["until"]),
            Stage(facts["stage"]),
            {MemberKey(*map(str, key)): AdminState(state) for *key, state in facts["before"]},
            bool(facts["closed"]),
            float(facts["returning_at"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _left_before(wanted: AdminState) -> AdminState:
    """One that drained already would never come back."""
    return AdminState.DISABLED if wanted is AdminState.DISABLED else AdminState.ENABLED


def _is_ready(record: Record) -> bool:
    return record.state.availability == Availability.READY or record.state.admin is AdminState.DISABLED


def _is_back(record: Record, now: float) -> bool:
    return _is_ready(record) and (record.ramped(now) >= 1.0 or record.state.admin is AdminState.DISABLED)


def _places(keys: Iterable[MemberKey]) -> str:
    names: Iterator[str] = (f"{key.service}/{key.route}".rstrip("/") for key in keys)
    return ", ".join(names)


def _local(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M")  # noqa: DTZ006


def _window_facts(window: Window, local: datetime) -> dict[str, Any]:
    began = window.current(local)
    at = began or window.next(local)
    return {
        "real_server": window.real_server,
        "says": str(window),
        "weekly": window.weekly,
        "begins_at": None if at is None else iso_utc(at.timestamp()),
        "ends_at": None if at is None else iso_utc((at + window.length).timestamp()),
        "under_way": began is not None,
    }
