"""Maintenance: refused, drained, empty, back; windows; and what a restart remembers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.events import Events
from mailbalancer.control.maintenance import SLOW_RETURN_S, Maintenance, Order, Stage, until
from mailbalancer.control.members import Members
from mailbalancer.control.slots import Slots
from mailbalancer.control.state import StateFile
from mailbalancer.errors import ControlError
from mailbalancer.ipc.board import Availability, Board
from mailbalancer.log import Log
from mailbalancer.model import AdminState, Config, MemberKey, Window
from tests.control.configurations import config, service

NOW, WALL = 1000.0, datetime(2026, 11, 21, 12, 0).timestamp()  # noqa: DTZ001 a Saturday
SMTP1, IMAP1 = MemberKey("smtp", "", "ex1"), MemberKey("imap", "", "ex1")
UP = Result(Verdict.UP, "220 ready")
CONFIG = config(service("smtp", ramp_s=100.0), service("imap", names=["ex1", "ex3"], ramp_s=0.0))


class House:
    """Real members on a real board, and sessions as the test says."""

    def __init__(self, log: Log, configured: Config = CONFIG, state: StateFile | None = None) -> None:
        board, self.events = Board(1, 32), Events(log)
        saved = (state or StateFile("", self.events)).read()
        self.members = Members(board, self.events, lambda slot, reason: None, saved.wanted, (), saved.drains)
        self.slots = Slots(board)
        plan = self.slots.plan(configured)
        self.slots.commit(plan)
        self.members.prepare(configured, plan, NOW)
        self.members.commit(configured, plan, NOW)
        self.sessions: dict[MemberKey, int] = {}
        self.saves = 0
        self.maintenance = Maintenance(self.members, self.events, lambda r: self.sessions.get(r.key, 0), self.save)
        self.maintenance.restore(saved.maintenance)
        self.maintenance.follow(configured)

    def save(self) -> None:
        self.saves += 1

    def start(self, name: str = "ex1", force: bool = False, end: float | None = None, *services: str) -> Order:
        return self.maintenance.start(name, services, end, force, "operator", NOW, WALL)

    def tick(self, after_s: float = 0.0) -> None:
        self.maintenance.tick(NOW + after_s, WALL + after_s)

    def admin(self, key: MemberKey) -> AdminState:
        return self.members[key].state.admin

    @property
    def active(self) -> list[dict[str, Any]]:
        return list(self.maintenance.facts(WALL)["active"])

    def told(self) -> list[str]:
        return [str(event["text"]) for event in self.events.listed()]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log._close()


@pytest.fixture
def house(log: Log) -> House:
    return House(log)


def test_it_is_empty_only_after_nobody_can_come_any_more(house: House) -> None:
    house.sessions = {SMTP1: 2, IMAP1: 1}
    house.start()
    assert house.admin(SMTP1) is house.admin(IMAP1) is AdminState.DRAINING
    house.tick()
    assert house.active[0]["stage"] == "draining"
    house.sessions = {}
    house.tick()
    assert house.admin(SMTP1) is AdminState.DISABLED
    assert house.active[0]["stage"] == "draining", "somebody may have come at the last moment"
    house.sessions = {SMTP1: 1}
    house.tick()
    assert house.active[0]["stage"] == "draining"
    house.sessions = {}
    house.tick()
    assert house.active[0]["stage"] == "empty"
    assert "ex1 is empty everywhere (smtp, imap): safe to reboot" in house.told()


def test_back_through_checks_and_ramp(house: House) -> None:
    house.start()
    house.tick()
    house.tick()
    house.members.observe(SMTP1, Result(Verdict.DOWN, "connection refused"))
    began = time.monotonic()
    house.maintenance.stop("ex1", began, WALL)
    house.maintenance.tick(began, WALL + 1)
    assert house.members[IMAP1].state.availability == Availability.READY
    assert house.active[0]["stage"] == "returning"
    house.maintenance.tick(began, WALL + SLOW_RETURN_S + 1)
    assert house.told()[-1] == "ex1 is not back from maintenance: smtp: down: connection refused (first check)"
    for _ in range(3):
        house.members.observe(SMTP1, UP)
    house.maintenance.tick(time.monotonic(), WALL + SLOW_RETURN_S + 2)
    assert house.active, "it ramps"
    house.maintenance.tick(time.monotonic() + 101.0, WALL + SLOW_RETURN_S + 103)
    assert house.active == []
    assert house.told()[-1] == "ex1 is back with its full share; maintenance took 0:11:43"


def test_a_server_that_is_needed_stays_unless_forced(house: House) -> None:
    house.members.command([MemberKey("imap", "", "ex3")], AdminState.DISABLED, NOW)
    with pytest.raises(ControlError, match="ex1 is needed: imap would have 0 ready real servers"):
        house.start()
    assert house.admin(SMTP1) is AdminState.ENABLED
    assert house.active == []
    house.start("ex1", False, None, "smtp")
    assert house.admin(IMAP1) is AdminState.ENABLED
    house.maintenance.stop("ex1", NOW, WALL)
    house.start(force=True)
    assert house.admin(IMAP1) is AdminState.DRAINING


def test_a_service_says_how_many_it_needs(log: Log) -> None:
    house = House(log, config(service("smtp", names=["ex1", "ex2", "ex3"], minimum_ready=3)))
    with pytest.raises(ControlError, match="smtp would have 2 ready real servers, and needs 3"):
        house.start()
    House(log, config(service("smtp", names=["ex1"], minimum_ready=0))).start()


def test_who_is_not_known_is_named(house: House) -> None:
    with pytest.raises(ControlError, match="no service has a real server 'exx'; there are: ex1, ex2, ex3"):
        house.start("exx")
    with pytest.raises(ControlError, match="ex3 is not in smtp; it is in: imap"):
        house.start("ex3", False, None, "smtp")
    with pytest.raises(ControlError, match="ex1 is not in maintenance; in maintenance: none"):
        house.maintenance.stop("ex1", NOW, WALL)


def test_it_comes_back_at_its_time_and_what_was_disabled_stays_so(house: House) -> None:
    house.members.command([IMAP1], AdminState.DISABLED, NOW)
    house.start(end=WALL + 60)
    assert house.active[0]["until_in_s"] == 60
    for after_s in (0, 1, 59):
        house.tick(after_s)
    assert house.active[0]["stage"] == "empty"
    house.tick(60)
    assert (house.admin(SMTP1), house.admin(IMAP1)) == (AdminState.ENABLED, AdminState.DISABLED)
    house.tick(300)
    assert house.active == []


def test_who_is_never_empty_is_said_so(house: House) -> None:
    house.sessions = {SMTP1: 1}
    house.start(end=WALL + 60)
    house.tick(61)
    assert "maintenance of ex1 ends and it never was empty" in house.told()
    assert house.admin(SMTP1) is AdminState.ENABLED


def test_enabling_it_ends_maintenance(house: House) -> None:
    house.start()
    house.members.command([SMTP1], AdminState.ENABLED, NOW)
    house.tick()
    assert house.active[0]["stage"] == "returning"
    assert house.admin(IMAP1) is AdminState.ENABLED


def test_a_service_that_a_reload_adds_is_out_too(log: Log) -> None:
    house = House(log, config(service("smtp")))
    house.start()
    for _ in range(2):
        house.tick()
    plan = house.slots.plan(CONFIG)
    house.members.prepare(CONFIG, plan, NOW)
    house.slots.commit(plan)
    house.members.commit(CONFIG, plan, NOW)
    house.maintenance.follow(CONFIG)
    house.tick()
    assert (house.admin(SMTP1), house.admin(IMAP1)) == (AdminState.DISABLED, AdminState.DISABLED)
    assert house.active[0]["stage"] == "empty"
    house.maintenance.stop("ex1", NOW, WALL)
    assert (house.admin(SMTP1), house.admin(IMAP1)) == (AdminState.ENABLED, AdminState.ENABLED)


def test_a_restart_goes_on_with_maintenance_and_with_what_is_left_of_the_drain(log: Log, tmp_path: Path) -> None:
    before = House(log)
    state = StateFile(str(tmp_path / "state"), before.events)
    real_now = time.monotonic()
    before.members.command([SMTP1], AdminState.DRAINING, real_now - 600)
    before.start(end=WALL + 60)
    members, saved = before.members, before.maintenance.saved()
    state.write(members.wanted(), (), (), members.drains(), json.loads(json.dumps(saved)))
    after = House(log, state=state)
    assert after.active == before.active
    drain_s = CONFIG.services[0].pool.drain_s
    ends_at = after.members[SMTP1].state.drain_ends_at
    assert ends_at is not None
    assert ends_at - real_now == pytest.approx(drain_s - 600, abs=2.0)
    after.tick()
    after.tick()
    after.tick(60)
    assert after.admin(SMTP1) is after.admin(IMAP1) is AdminState.ENABLED


def windowed(log: Log, *windows: Window, **options: Any) -> House:
    return House(log, config(service("smtp", ramp_s=0.0), windows=windows, **options))


def test_a_window_begins_once_and_ends(log: Log) -> None:
    begins = datetime.fromtimestamp(WALL) + timedelta(minutes=1)  # noqa: DTZ006
    house = windowed(log, Window("ex1", begins, timedelta(minutes=5), weekly=False))
    house.tick(59)
    assert house.active == []
    house.tick(60)
    house.tick(61)
    assert (house.active[0]["stage"], house.active[0]["by"].partition(" ")[0]) == ("empty", "window")
    house.maintenance.stop("ex1", NOW, WALL + 62)
    house.tick(63)
    house.tick(64)
    assert house.active == [], "the operator has had enough of this one"


def test_a_weekly_window_in_the_week_after(log: Log) -> None:
    begins = datetime(2001, 1, 7, 22, 0)  # noqa: DTZ001 a Sunday
    window = Window("ex1", begins, timedelta(hours=4), weekly=True)
    sunday = datetime(2026, 11, 22, 23, 0)  # noqa: DTZ001
    for week in range(3):
        at = sunday + timedelta(weeks=week)
        assert window.current(at) == at.replace(hour=22)
        assert window.current(at + timedelta(hours=2)) == at.replace(hour=22), "after midnight"
        assert window.current(at + timedelta(hours=3)) is None
        assert window.next(at) == at.replace(hour=22) + timedelta(weeks=1)
    assert str(window) == "ex1 every Sunday 22:00 to Monday 02:00"


def test_a_window_that_is_refused_waits_for_the_others(log: Log) -> None:
    begins = datetime.fromtimestamp(WALL)  # noqa: DTZ006
    window = Window("ex1", begins, timedelta(minutes=30), weekly=False)
    house = windowed(log, window)
    ex2 = MemberKey("smtp", "", "ex2")
    house.members.command([ex2], AdminState.DISABLED, NOW)
    for after_s in (0, 1, 100):
        house.tick(after_s)
    assert [text for text in house.told() if "cannot begin" in text] == [
        f"maintenance window {window} cannot begin: ex1 is needed: smtp would have 0 ready real servers"
    ]
    house.members.command([ex2], AdminState.ENABLED, NOW)
    house.tick(300)
    assert house.active[0]["until_in_s"] == pytest.approx(1800, abs=1)


def test_until_is_a_time_to_come() -> None:
    noon = datetime.fromtimestamp(WALL)  # noqa: DTZ006
    assert until("", WALL) is None
    assert until("13:30", WALL) == WALL + 5400
    assert until("12:00", WALL) == (noon + timedelta(days=1)).timestamp()
    assert until("2026-11-28 02:00", WALL) == datetime(2026, 11, 28, 2, 0).timestamp()  # noqa: DTZ001
    assert until("2026-11-28T02:00Z", WALL) == datetime.fromisoformat("2026-11-28T02:00+00:00").timestamp()
    for wrong in ("25:00", "soon", "2026-11-20 02:00", "2:00"):
        with pytest.raises(ControlError):
            until(wrong, WALL)


def test_what_makes_no_sense_is_not_restored(house: House) -> None:
    house.maintenance.restore({"orders": [{"real_server": "ex1"}, {}]})
    assert house.active == []
    assert Stage("draining") is Stage.DRAINING
