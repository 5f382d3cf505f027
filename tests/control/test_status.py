"""The answer to `status`: every promised field, with numbers summed over the workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.certificate_watch import CertificateWatch
from mailbalancer.control.events import Events
from mailbalancer.control.imbalance import Imbalances
from mailbalancer.control.members import Members
from mailbalancer.control.rollout import Target
from mailbalancer.control.slots import Slots
from mailbalancer.control.status import Status
from mailbalancer.control.workers import Workers
from mailbalancer.ipc.board import Beat, Board, Count
from mailbalancer.ipc.messages import Imbalance
from mailbalancer.log import Log
from mailbalancer.model import (
    AdminState,
    Check,
    Config,
    Endpoint,
    Http,
    HttpRoute,
    MemberKey,
    Mode,
    Pool,
    Redirect,
    Route,
    Source,
    SourceClass,
    SourceKey,
)
from tests.control.configurations import config, persist, pool, route, service
from tests.control.crew import Stub

EX1, EX2 = MemberKey("smtp", "", "ex1"), MemberKey("smtp", "", "ex2")
CONFIG = config(
    service("smtp", [Endpoint("127.0.0.1", 2525), Endpoint("::1", 2525)], persist=persist(), ramp_s=100.0),
    service("https", routes=(route("https", "owa"),), pool=pool("https", check=Check(type="none"))),
)


class Office:
    def __init__(self, log: Log, config: Config) -> None:
        self.board, self.events = Board(2, 32), Events(log)
        slots = Slots(self.board)
        self.members = Members(self.board, self.events, lambda slot, reason: None)
        self.plan = slots.plan(config)
        self.members.prepare(config, self.plan, 0.0)
        self.members.commit(config, self.plan, 0.0)
        self.imbalances = Imbalances(self.events)
        workers = Workers(self.board, log, self.events, Stub.run)
        self.status = Status(
            self.board, workers, self.members, self.imbalances, self.events, CertificateWatch(self.events)
        )
        self.target = Target(4, config, self.plan, {})

    def report(self) -> dict[str, Any]:
        answer = self.status.report(self.target, ["a warning"])
        assert json.loads(json.dumps(answer)) == answer
        return answer

    def smtp(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report()["services"][0]
        return found

    def ex(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = self.smtp()["pools"][0]["real_servers"][number - 1]
        return found


@pytest.fixture
def office() -> Iterator[Office]:
    log = Log()
    yield Office(log, CONFIG)
    log._close()


def test_the_shape(office: Office) -> None:
    report = office.report()
    of_all = ["version", "pid", "config", "config_version", "started_at", "uptime_s"]
    assert list(report) == [
        *of_all,
        "warnings",
        "workers",
        "services",
        "certificates",
        "maintenance",
        "network",
        "events",
    ]
    assert report["config_version"] == 4
    assert report["warnings"] == ["a warning"]
    of_worker = ["index", "pid", "alive", "beat_age_s", "sessions", "open_files", "paused"]
    assert list(report["workers"][0]) == [*of_worker, "config_version", "restarts"]
    smtp, https = report["services"]
    assert smtp["listen"] == ["127.0.0.1:2525", "[::1]:2525"]
    assert smtp["pools"][0]["persist"] == {
        "by": "source",
        "fallback": [],
        "group": "cas",
        "timeout_s": 3600.0,
    }
    assert [(each["route"], each["hosts"]) for each in https["pools"]] == [("", []), ("owa", ["owa.example.com"])]


def test_a_real_server_before_its_first_check(office: Office) -> None:
    server = office.ex(1)
    assert (server["up"], server["availability"], server["ramp_percent"]) == (None, "ready", 100)
    assert server["check"] is server["last_flip"] is server["drain_ends_in_s"] is None


def test_numbers_are_sums(office: Office) -> None:
    slot, whole = office.plan.members[EX1], office.plan.services["smtp"]
    for worker in range(2):
        office.board.ints[office.board.count(worker, slot, Count.BYTES_IN)] = 100
        office.board.ints[office.board.count(worker, slot, Count.SESSIONS)] = 3
        office.board.ints[office.board.count(worker, whole, Count.SESSIONS)] = 4 + worker
        office.board.ints[office.board.count(worker, whole, Count.REFUSED)] = 1
    smtp = office.smtp()
    assert (smtp["sessions"], smtp["refused"], smtp["bytes_in"]) == (9, 2, 200)
    assert (office.ex(1)["sessions"], office.ex(2)["sessions"]) == (6, 0)
    assert [worker["sessions"] for worker in office.report()["workers"]] == [4, 5]


def test_a_flip_and_its_ramp(office: Office) -> None:
    office.members.observe(EX1, Result(Verdict.DOWN, "timeout", 5.0))
    down = office.ex(1)
    assert (down["up"], down["availability"]) == (False, "closed")
    assert down["last_flip"]["up"] is False
    assert down["last_flip"]["reason"] == "timeout (first check)"
    assert down["check"]["verdict"] == "down"
    for _ in range(2):
        office.members.observe(EX1, Result(Verdict.UP, "220", 0.01, {"banner": "220 mx"}))
    up = office.ex(1)
    assert (up["up"], up["availability"], up["check"]["detail"]) == (True, "ready", {"banner": "220 mx"})
    assert up["ramp_percent"] < 100
    office.members[EX1].state.ramp_at = time.monotonic() - 50.5
    assert office.ex(1)["ramp_percent"] == 50


def test_a_drain_says_when_it_ends(office: Office) -> None:
    office.members.command([EX2], AdminState.DRAINING, time.monotonic())
    server = office.ex(2)
    assert (server["admin"], server["availability"]) == ("draining", "returning")
    assert 0 < server["drain_ends_in_s"] <= 3600


def test_without_a_check_nobody_claims_to_know(office: Office) -> None:
    servers = office.report()["services"][1]["pools"][0]["real_servers"]
    assert [server["up"] for server in servers] == [None, None]


def test_weights_under_back_pressure_and_imbalance(office: Office) -> None:
    office.members.observe(EX1, Result(Verdict.BACK_PRESSURE, "452"))
    server = office.ex(1)
    assert (server["weight"], server["configured_weight"], server["back_pressure"]) == (0.25, 1.0, True)
    assert office.smtp()["imbalance"] is None
    office.imbalances.take(0, Imbalance("smtp", "10.0.0.1", 3, 4), CONFIG)
    assert office.smtp()["imbalance"] == {"source": "10.0.0.1", "sessions": 3, "total": 4, "share": 0.75}


def test_sessions_of_each_source_address() -> None:
    log = Log()
    source = Source(classes=(SourceClass("relay", (), ("10.0.2.6",)),), per_source_limit=20)
    office = Office(log, config(service("smtp", names=("ex1",), source=source)))
    slot = office.plan.sources[SourceKey("10.0.2.6", pool().members[0].endpoint)]
    for worker, sessions in ((0, 9), (1, 8)):
        office.board.ints[office.board.count(worker, slot, Count.SESSIONS)] = sessions
    found = [(s["class"], s["address"], s["real_server"], s["sessions"], s["limit"]) for s in office.smtp()["sources"]]
    assert found == [("relay", "10.0.2.6", "ex1", 17, 20)]
    log._close()


def test_a_percentage_is_of_what_the_server_has_left() -> None:
    log = Log()
    source = Source(classes=(SourceClass("relay", (), ("10.0.2.6",)),), per_source_limit=20, per_source_percent=2.0)
    office = Office(log, config(service("smtp", source=source)))
    slot = office.plan.members[EX1]
    for sessions, limit in ((0, 20), (3999, 20), (4000, 20), (4100, 18), (4990, 1), (6000, 1)):
        office.board.ints[office.board.count(0, slot, Count.SESSIONS)] = sessions
        assert office.smtp()["sources"][0]["limit"] == limit, sessions
    log._close()


def test_beats(office: Office) -> None:
    office.board.floats[office.board.beat(0, Beat.AT)] = time.monotonic() - 0.25
    office.board.ints[office.board.beat(0, Beat.PAUSED)] = 1
    first, second = office.report()["workers"]
    assert first["beat_age_s"] >= 0.25
    assert first["paused"] is True
    assert (second["beat_age_s"], second["alive"], second["pid"], second["restarts"]) == (None, False, 0, 0)


def test_the_configured_weight_is_shown(office: Office) -> None:
    first, second = pool().members
    heavier = config(service(members=(replace(first, weight=2.5), second)))
    log = Log()
    assert Office(log, heavier).ex(1)["configured_weight"] == 2.5
    log._close()


def test_what_http_services_count_and_answer_themselves() -> None:
    log = Log()
    answered = Route(
        "start", ("mail.example.com",), Pool("owa", "start", ()), ("/",), HttpRoute(redirect=Redirect("/owa/"))
    )
    served = replace(route("owa", "ews"), paths=("/ews",), http=HttpRoute())
    made = replace(service("owa", routes=(answered, served)), mode=Mode.HTTP, http=Http())
    office = Office(log, config(made, service("smtp")))
    slot = office.plan.services["owa"]
    for worker, cell, number in ((0, Count.REQUESTS, 7), (1, Count.REQUESTS, 5), (1, Count.LONG_POLLS, 3)):
        office.board.ints[office.board.count(worker, slot, cell)] = number
    waits = office.plan.members[MemberKey("owa", "ews", "ex1")]
    office.board.ints[office.board.count(0, waits, Count.LONG_POLLS)] = 3
    for worker, ends_in_s in ((0, 100.0), (1, 200.0)):
        cell = office.board.count(worker, waits, Count.POLLS_END_AT)
        office.board.floats[cell] = time.monotonic() + ends_in_s
    owa, smtp = office.report()["services"]
    (ex1,), ex2 = owa["pools"][1]["real_servers"], owa["pools"][0]["real_servers"][1]
    assert ex1["long_polls"] == 3
    assert 190.0 < ex1["long_polls_end_in_s"] <= 200.0
    assert (ex2["long_polls"], ex2["long_polls_end_in_s"]) == (0, None)
    assert (owa["requests"], owa["long_polls"], owa["pinned_reused"]) == (12, 3, 0)
    assert [one["paths"] for one in owa["pools"]] == [[], ["/ews"]]
    does = {"route": "start", "hosts": ["mail.example.com"], "paths": ["/"], "does": "redirects to /owa/"}
    assert owa["answers"] == [does]
    assert "requests" not in smtp
    log._close()
