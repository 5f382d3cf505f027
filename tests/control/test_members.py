"""Members: what results, traffic, commands and reloads write on the board and in the log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.events import Events
from mailbalancer.control.members import Members
from mailbalancer.control.slots import Slots
from mailbalancer.ipc.board import Availability, Board, Count, Slot
from mailbalancer.log import Log
from mailbalancer.model import AdminState, Check, Config, Endpoint, MemberKey
from tests.control.configurations import SOMEWHERE, config, pool, service

EX1, EX2, EX3 = (MemberKey("smtp", "", name) for name in ("ex1", "ex2", "ex3"))
UP = Result(Verdict.UP, "220 ready")
DOWN = Result(Verdict.DOWN, "connection refused")
NOW = 1000.0


@dataclass
class House:
    """Members with their board, as the roll-out drives them."""

    log: Log
    saved: dict[MemberKey, AdminState] = field(default_factory=dict)
    not_ready: set[MemberKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.board = Board(2, 32)
        self.slots = Slots(self.board)
        self.events = Events(self.log)
        self.dropped: list[tuple[int, str]] = []
        drop = lambda slot, reason: self.dropped.append((slot, reason))  # noqa: E731
        self.members = Members(self.board, self.events, drop, self.saved, self.not_ready)

    def run(self, config: Config, now: float = NOW) -> None:
        plan = self.slots.plan(config)
        self.members.prepare(config, plan, now)
        self.slots.commit(plan)
        self.members.commit(config, plan, now)

    def cell(self, key: MemberKey, cell: Slot) -> float:
        at = self.board.slot(self.members[key].slot, cell)
        return self.board.ints[at] if cell is Slot.AVAILABILITY else self.board.floats[at]

    def availability(self, key: MemberKey) -> Availability:
        return Availability(int(self.cell(key, Slot.AVAILABILITY)))

    def observe(self, key: MemberKey, *results: Result) -> None:
        for result in results:
            self.members.observe(key, result)

    def last(self) -> str:
        return str(self.events.listed()[-1]["text"])

    def connects(self, key: MemberKey, ok: int, failed: int) -> None:
        slot = self.members[key].slot
        self.board.ints[self.board.count(1, slot, Count.CONNECT_OK)] += ok
        self.board.ints[self.board.count(0, slot, Count.CONNECT_FAILED)] += failed


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log._close()


@pytest.fixture
def house(log: Log) -> House:
    house = House(log)
    house.run(config(service()))
    return house


def test_at_a_clean_start_everybody_is_ready_and_nobody_ramps(house: House) -> None:
    assert [house.availability(key) for key in (EX1, EX2)] == [Availability.READY] * 2
    assert house.cell(EX1, Slot.RAMP_AT) == 0.0
    assert house.cell(EX1, Slot.RAMP_S) == 300.0
    assert house.cell(EX1, Slot.WEIGHT) == 1.0
    assert house.events.listed() == []


def test_a_flip_is_said_once_with_what_is_left(house: House) -> None:
    house.observe(EX2, UP, DOWN, DOWN)
    assert house.events.listed() == []
    house.observe(EX2, DOWN, DOWN, DOWN)
    assert [event["text"] for event in house.events.listed()] == [
        "smtp: ex2 is down: connection refused (3 of 3 checks failed); 1 of 2 real servers is ready"
    ]
    assert house.availability(EX2) is Availability.CLOSED
    assert house.members[EX2].flip is not None


def test_the_last_one_down_is_an_error(house: House) -> None:
    house.observe(EX1, DOWN)
    house.observe(EX2, DOWN)
    assert house.events.listed()[-1]["level"] == "error"
    assert house.last().endswith("0 of 2 real servers are ready: new sessions are refused")


def test_a_recovered_server_ramps(house: House) -> None:
    house.observe(EX2, DOWN, UP, UP)
    assert house.availability(EX2) is Availability.READY
    assert house.cell(EX2, Slot.RAMP_AT) == house.members[EX2].state.ramp_at > 0.0
    assert house.last().startswith("smtp: ex2 is up: 220 ready (2 of 2 checks passed)")


def test_without_ramp_s_nobody_ramps(log: Log) -> None:
    house = House(log)
    house.run(config(service(ramp_s=0.0)))
    house.observe(EX2, DOWN, UP, UP)
    assert house.cell(EX2, Slot.RAMP_AT) == 0.0


def test_back_pressure_lowers_the_weight_and_maintenance_closes_to_new_clients(house: House) -> None:
    house.observe(EX1, Result(Verdict.BACK_PRESSURE, "452 4.3.1 Insufficient system resources"))
    assert house.cell(EX1, Slot.WEIGHT) == 0.25
    assert "ex1 has 0.25 of its weight: 452 4.3.1" in house.last()
    house.observe(EX1, Result(Verdict.MAINTENANCE, "421 4.3.2 Service not active"))
    assert house.cell(EX1, Slot.WEIGHT) == 1.0
    assert house.availability(EX1) is Availability.RETURNING
    house.observe(EX1, UP)
    assert house.availability(EX1) is Availability.READY


def test_connects_that_fail_take_a_server_down(house: House) -> None:
    house.observe(EX1, UP)
    house.connects(EX1, ok=0, failed=2)
    house.members.poll_traffic(NOW)
    house.members.poll_traffic(NOW + 0.2)
    assert house.availability(EX1) is Availability.READY, "the same failures count once"
    house.connects(EX1, ok=1, failed=1)
    house.members.poll_traffic(NOW + 0.4)
    assert house.availability(EX1) is Availability.READY, "a success between them clears them"
    house.connects(EX1, ok=0, failed=3)
    house.members.poll_traffic(NOW + 0.6)
    assert house.availability(EX1) is Availability.CLOSED
    assert "3 sessions in a row could not connect" in house.last()


def test_without_a_check_a_server_is_always_up(log: Log) -> None:
    house = House(log)
    house.run(config(service(check=Check(type="none"))))
    house.connects(EX1, ok=0, failed=100)
    house.members.poll_traffic(NOW)
    assert house.availability(EX1) is Availability.READY
    assert house.members.checks() == {}


def test_switching_the_check_off_brings_a_server_back(house: House) -> None:
    house.observe(EX1, DOWN)
    house.run(config(service(check=Check(type="none"))))
    assert house.availability(EX1) is Availability.READY


def test_drain_then_closed_then_dropped(log: Log) -> None:
    house = House(log)
    house.run(config(service(drain_s=60.0, drop_after_drain=True)))
    house.members.command([EX1], AdminState.DRAINING, NOW)
    assert house.availability(EX1) is Availability.RETURNING
    house.members.tick(NOW + 59)
    assert house.availability(EX1) is Availability.RETURNING
    assert house.dropped == []
    house.members.tick(NOW + 60)
    house.members.tick(NOW + 61)
    assert house.availability(EX1) is Availability.CLOSED
    assert house.dropped == [(house.members[EX1].slot, "drained")]
    house.members.command([EX1], AdminState.ENABLED, NOW + 100)
    assert house.availability(EX1) is Availability.READY
    assert house.cell(EX1, Slot.RAMP_AT) == NOW + 100


def test_without_drop_after_drain_open_sessions_stay(log: Log) -> None:
    house = House(log)
    house.run(config(service(drain_s=1.0)))
    house.members.command([EX1], AdminState.DRAINING, NOW)
    house.members.tick(NOW + 2)
    assert house.dropped == []
    assert "open sessions stay" in "".join(str(event["text"]) for event in house.events.listed())


def test_the_operators_command_wins_over_the_configuration_and_is_saved(house: House) -> None:
    house.members.command([EX1], AdminState.DISABLED, NOW)
    house.run(config(service()))
    assert house.availability(EX1) is Availability.CLOSED
    assert house.members.wanted() == {EX1: AdminState.DISABLED}
    house.members.command([EX1], AdminState.ENABLED, NOW)
    assert house.members.wanted() == {}


def configured(state: AdminState) -> Config:
    own = pool()
    first, second = own.members
    return config(service(members=(replace(first, state=state), second)))


def test_the_configured_state_follows_a_reload(house: House) -> None:
    house.run(configured(AdminState.DISABLED))
    assert house.availability(EX1) is Availability.CLOSED
    house.run(configured(AdminState.ENABLED), NOW + 50)
    assert house.cell(EX1, Slot.RAMP_AT) == NOW + 50


def test_saved_states_hold_after_a_restart_and_who_was_not_ready_ramps(log: Log) -> None:
    house = House(log, {EX1: AdminState.DISABLED, EX3: AdminState.DISABLED}, {EX2})
    house.run(config(service()))
    assert house.availability(EX1) is Availability.CLOSED
    assert house.cell(EX2, Slot.RAMP_AT) == NOW
    assert house.members.wanted() == {EX1: AdminState.DISABLED}


def test_who_is_to_ramp_after_a_restart(house: House) -> None:
    house.observe(EX1, DOWN)
    assert house.members.not_ready(NOW) == [EX1]
    house.observe(EX1, UP, UP)
    began = house.members[EX1].state.ramp_at
    assert house.members.not_ready(began + 299) == [EX1]
    assert house.members.not_ready(began + 301) == []


def test_a_server_added_beside_ready_ones_ramps_and_a_new_service_does_not(house: House) -> None:
    house.run(config(service(names=["ex1", "ex3"]), service("imap", names=["ex1"])), NOW + 7)
    assert house.cell(EX3, Slot.RAMP_AT) == NOW + 7
    assert house.cell(EX1, Slot.RAMP_AT) == 0.0
    assert house.cell(MemberKey("imap", "", "ex1"), Slot.RAMP_AT) == 0.0


def test_a_reload_changes_weights_and_thresholds_and_keeps_health(house: House) -> None:
    house.observe(EX1, DOWN)
    first, second = pool().members
    heavier = config(service(members=(first, replace(second, weight=3.0)), check=Check(rise=1, fall=1)))
    house.run(heavier)
    assert house.availability(EX1) is Availability.CLOSED
    assert house.cell(EX2, Slot.WEIGHT) == 3.0
    house.observe(EX1, UP)
    assert house.availability(EX1) is Availability.READY


def test_another_endpoint_is_another_server(house: House) -> None:
    house.observe(EX1, DOWN)
    first, second = pool().members
    house.run(config(service(members=(replace(first, endpoint=Endpoint("127.0.0.1", 10)), second))), NOW + 3)
    assert house.members[EX1].state.health.up is None
    assert house.cell(EX1, Slot.RAMP_AT) == NOW + 3


def test_what_was_only_prepared_is_gone_when_discarded(house: House) -> None:
    tried = config(service(names=["ex1", "ex2", "ex3"]))
    house.members.prepare(tried, house.slots.plan(tried), NOW)
    house.members.discard_prepared()
    assert [record.key for record in house.members] == [EX1, EX2]
    house.observe(EX3, DOWN)  # a check that ended late
    assert house.events.listed() == []


def test_checks_go_to_the_checks_own_port(log: Log) -> None:
    house = House(log)
    house.run(config(service(check=Check(port=8080))))
    assert house.members.checks()[EX1] == (Check(port=8080), Endpoint(SOMEWHERE.host, 8080))
    house.run(config(service(check=Check())))
    assert house.members.checks()[EX1] == (Check(), SOMEWHERE)


# remarks of servers to sessions


def test_maintenance_and_back_pressure_last_until_the_check_says_otherwise(house: House) -> None:
    house.observe(EX1, UP)
    house.members.remarked(EX1, "maintenance", "421 4.3.2 Service not active", NOW)
    assert house.availability(EX1) is Availability.RETURNING
    assert "in maintenance: 421 4.3.2 Service not active" in house.last()
    house.members.remarked(EX2, "back_pressure", "452 4.3.1 Insufficient system resources", NOW)
    assert house.cell(EX2, Slot.WEIGHT) == 0.25
    assert "452 4.3.1" in house.last()
    said = len(house.events.listed())
    house.members.remarked(EX1, "maintenance", "421 4.3.2 Service not active", NOW)
    assert len(house.events.listed()) == said
    house.observe(EX1, UP)
    house.observe(EX2, UP)
    assert house.availability(EX1) is house.availability(EX2) is Availability.READY
    assert house.cell(EX2, Slot.WEIGHT) == 1.0


def test_a_failure_is_the_words_for_connects_that_are_counted(house: House) -> None:
    house.members.remarked(EX1, "failure", "greeted with 421 4.7.0 Busy", NOW)
    house.connects(EX1, ok=0, failed=3)
    house.members.poll_traffic(NOW)
    assert house.availability(EX1) is Availability.CLOSED
    assert "greeted with 421 4.7.0 Busy (3 sessions" in house.last()


def test_the_words_last_until_a_connect_is_good(house: House) -> None:
    house.observe(EX1, UP)
    house.members.remarked(EX1, "failure", "connection refused", NOW)
    for poll in range(3):  # they are said once, and the connects they belong to are counted in more than one poll
        house.connects(EX1, ok=0, failed=1)
        house.members.poll_traffic(NOW + poll)
    assert "connection refused (3 sessions" in house.last()
    house.observe(EX2, UP)
    house.members.remarked(EX2, "failure", "connection refused", NOW)
    house.connects(EX2, ok=1, failed=0)
    house.members.poll_traffic(NOW)
    house.connects(EX2, ok=0, failed=3)
    house.members.poll_traffic(NOW)
    assert "connects fail (3 sessions" in house.last()


def test_without_a_check_a_remark_changes_nothing(house: House) -> None:
    house.run(config(service(check=Check("none"))))
    house.members.remarked(EX1, "maintenance", "421 4.3.2 No", NOW)
    assert house.availability(EX1) is Availability.READY
    house.members.remarked(MemberKey("gone", "", "ex1"), "maintenance", "421 4.3.2 No", NOW)


def test_a_remark_of_no_known_kind_is_refused(house: House) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        house.members.remarked(EX2, "nonsense", "", NOW)
