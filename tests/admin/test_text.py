"""The tables an operator reads: every state in words, hostile texts made harmless, narrow and wide terminals."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from mailbalancer.admin import text
from mailbalancer.config.profiles import ChecklistItem
from mailbalancer.model import Config, Endpoint, Member, Mode, Persist, Pool, RealServer, Route, Service

ANSI_RED = "\x1b[1;31m"
ANSI_YELLOW = "\x1b[33m"


def server(name: str = "ex1", **changes: Any) -> dict[str, Any]:
    facts = {
        "name": name,
        "endpoint": "10.0.2.11:25",
        "up": True,
        "admin": "enabled",
        "availability": "ready",
        "ramp_percent": 100,
        "weight": 1.0,
        "configured_weight": 1.0,
        "max_sessions": 0,
        "sessions": 7,
        "total": 1234,
        "connect_ok": 1234,
        "connect_failed": 0,
        "bytes_in": 2048,
        "bytes_out": 5 * 1024 * 1024,
        "moved": 0,
        "retried": 0,
        "maintenance": False,
        "back_pressure": False,
        "drain_ends_in_s": None,
        "check": {"type": "smtp", "verdict": "up", "reason": "", "ago_s": 2.5, "took_s": 0.0031, "detail": {}},
        "last_flip": None,
    }
    return facts | changes


def service(name: str = "smtp", *servers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    pool = {"route": "", "hosts": [], "schedule": "least_connections", "persist": None}
    facts = {
        "name": name,
        "mode": "tcp",
        "listen": ["10.0.1.100:25"],
        "profile": "",
        "sessions": 7,
        "total": 1234,
        "refused": 0,
        "queued": 0,
        "bytes_in": 2048,
        "bytes_out": 4096,
        "imbalance": None,
        "pools": [pool | {"real_servers": list(servers) or [server()]}],
    }
    return facts | changes


def worker(index: int = 0, **changes: Any) -> dict[str, Any]:
    facts = {
        "index": index,
        "pid": 100 + index,
        "alive": True,
        "beat_age_s": 0.05,
        "sessions": 3,
        "open_files": 40,
        "paused": False,
        "config_version": 1,
        "restarts": 0,
    }
    return facts | changes


def report(*services: dict[str, Any], **changes: Any) -> dict[str, Any]:
    facts = {
        "version": "0.1.0",
        "pid": 4242,
        "config": "/etc/mailbalancer/mailbalancer.yaml",
        "config_version": 3,
        "started_at": "2026-01-01T00:00:00Z",
        "uptime_s": 90061.0,
        "warnings": [],
        "workers": [worker(0), worker(1)],
        "services": list(services) or [service()],
        "events": [],
    }
    return facts | changes


def shown(part: RenderableType, width: int = 160, *, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(part)
    return out.getvalue()


def status_of(facts: dict[str, Any], width: int = 160, *, colour: bool = False) -> str:
    return shown(text.status(report(service("smtp", facts)), wide=width >= text.WIDE_COLUMNS), width, colour=colour)


def test_status_shows_service_real_server_and_workers() -> None:
    lines = shown(text.status(report(), wide=True)).splitlines()
    assert (
        lines[0] == "mailbalancer 0.1.0 · pid 4242 · /etc/mailbalancer/mailbalancer.yaml (version 3) · up 1 d 01:01:01"
    )
    assert "smtp  tcp  10.0.1.100:25" in lines
    assert "  7 sessions, 1234 in all, 0 refused, 2.0 KiB in, 4.0 KiB out" in [line.rstrip() for line in lines]
    assert "  least_connections, no persistence" in [line.rstrip() for line in lines]
    row = " ".join(next(line for line in lines if "10.0.2.11:25" in line).split())
    assert row == "ex1 10.0.2.11:25 up 7 1234 0 2.0 KiB 5.0 MiB smtp ok 0:02 ago, 3 ms"
    assert "workers: 2 of 2 running, sessions 3, 3" in lines


@pytest.mark.parametrize(
    ("changes", "words", "colour"),
    [
        ({"up": False, "last_flip": {"up": False, "reason": "refused", "at": ""}}, "down: refused", ANSI_RED),
        ({"admin": "draining", "sessions": 412}, "draining, 412 sessions", ANSI_YELLOW),
        ({"ramp_percent": 37}, "ramping 37 %", ANSI_YELLOW),
        ({"connect_failed": 123456}, "123456", ANSI_YELLOW),
    ],
)
def test_what_deserves_attention_is_coloured(changes: dict[str, Any], words: str, colour: str) -> None:
    assert colour + words in status_of(server(**changes), colour=True)


def test_pool_with_route_and_persistence() -> None:
    facts = service("imaps")
    facts["pools"][0] |= {
        "route": "owa",
        "hosts": ["mail.example.com", "*.example.org"],
        "persist": {"by": "source", "group": "cas", "timeout_s": 3600.0},
    }
    assert (
        "route owa (mail.example.com *.example.org): least_connections, persistence by source for 1:00:00 in group cas"
        in shown(text.status(report(facts), wide=True))
    )


def test_a_long_reason_stands_below_the_table() -> None:
    reason = "certificate is not the pinned one: its sha256 is 1234"
    page = status_of(server(up=False, last_flip={"up": False, "reason": reason, "at": ""}), 80).splitlines()
    assert [line.split()[2:4] for line in page if "10.0.2.11:25" in line] == [["down", "7"]]
    assert f"    ex1: down: {reason}" in [line.rstrip() for line in page]


def test_a_narrow_terminal_has_a_headline_of_two_lines() -> None:
    lines = shown(text.status(report(), wide=False), 80).splitlines()
    assert lines[:2] == [
        "mailbalancer 0.1.0 · pid 4242 · up 1 d 01:01:01",
        "/etc/mailbalancer/mailbalancer.yaml (version 3)",
    ]


def test_http_counts_routes_and_certificates() -> None:
    counts = {"requests": 9, "long_polls": 38, "pinned": 4, "reused": 2, "pinned_reused": 0}
    answers = [{"route": "start", "hosts": [], "paths": ["/"], "does": "redirects to /owa/"}]
    facts = service("owa", **counts, answers=answers, client_tls={"certificates": ["mail"]})
    facts["pools"][0] |= {"route": "ews", "hosts": ["mail.example.com"], "paths": ["/ews"]}
    persist = {"by": "exchange", "fallback": ["cookie", "source"], "group": "owa", "timeout_s": 60.0}
    facts["pools"][0]["persist"] = persist
    one = {"name": "mail", "names": ["mail.example.com"], "days_left": 12, "services": ["owa"], "warnings": ["weak"]}
    page = [line.strip() for line in shown(text.status(report(facts, certificates=[one]), wide=True)).splitlines()]
    assert "9 requests, 38 long polls, 4 connections pinned to one client, 2 reused across clients" in page
    assert "route start (/): redirects to /owa/" in page
    assert (
        "route ews (mail.example.com /ews): least_connections, persistence by exchange, then cookie, then source"
        " for 1:00 in group owa"
    ) in page
    assert ["mail", "mail.example.com", "12", "owa"] in [line.split() for line in page]
    assert "warning: weak" in page


def test_what_must_never_happen_is_red() -> None:
    counts = {"requests": 9, "long_polls": 0, "pinned": 4, "reused": 2, "pinned_reused": 1}
    protection = {"binding": "MISMATCH", "text": "ex1 shows another certificate"}
    facts = service("owa", server(extended_protection=protection), **counts, server_tls={"verify": "none"})
    page = shown(text.status(report(facts), wide=True), colour=True)
    for words in ("1 PINNED ONES REUSED", "TLS with servers: NOT VERIFIED", "Extended Protection: ex1 MISMATCH"):
        assert any(words in line and ANSI_RED in line for line in page.splitlines()), words


def test_sessions_of_a_source_address_stand_beside_the_limit() -> None:
    source = {"class": "relay", "address": "10.0.2.6", "real_server": "ex1", "sessions": 17, "limit": 20}
    assert "relay from 10.0.2.6 to ex1: 17/20" in shown(text.status(report(service(sources=[source])), wide=True))


def test_weight_stands_in_a_column_only_when_it_says_something() -> None:
    assert "weight" not in status_of(server())
    assert "weight" in status_of(server(weight=2.0, configured_weight=2.0))


def test_warnings_imbalance_and_worker_troubles_are_said() -> None:
    unbalanced = service(imbalance={"source": "192.0.2.1", "sessions": 78, "total": 100, "share": 0.78}, queued=4)
    facts = report(unbalanced, warnings=["rpc is open to everybody"], workers=[worker(0, alive=False)])
    page = shown(text.status(facts, wide=True))
    assert "192.0.2.1 carries 78 % of the sessions of smtp: probably a NAT device; see docs/balancing.md" in page
    assert "  ! rpc is open to everybody" in page
    assert "  ! worker 0 (pid 100) is not running; it is being replaced" in page
    assert ", 4 waiting" in page


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(width: int) -> None:
    long_address = "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"
    facts = server(
        "exchange-frontend-in-the-second-building", endpoint=long_address, up=False, last_flip=None, check=None
    )
    lines = status_of(facts, width).splitlines()
    assert max(len(line) for line in lines) <= width
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    "hostile",
    ["\x1b[2J\x1b]0;owned\x07", "[bold red]ex1[/]", "a\nb\rc", "\u202etxt.exe", "\x9b31m", ":smile:", "\ud800", "[/]"],
)
def test_foreign_text_is_shown_but_never_obeyed(hostile: str) -> None:
    facts = service(
        hostile,
        server(hostile, up=False, last_flip={"up": False, "reason": hostile, "at": hostile}, endpoint=hostile),
        listen=[hostile],
        profile=hostile,
        imbalance={"source": hostile, "sessions": 1, "total": 1, "share": 1.0},
    )
    whole = report(facts, warnings=[hostile], events=[{"at": hostile, "level": hostile, "text": hostile}])
    for part in (text.status(whole, wide=True), text.top(whole, whole, 1.0, wide=True), text.events(whole["events"])):
        page = shown(part, 300)
        assert all(c.isprintable() or c == "\n" for c in page)
    if hostile.isprintable():
        assert hostile in shown(text.status(whole, wide=True), 300)


@given(st.text(max_size=30))
def test_any_name_can_be_shown(name: str) -> None:
    page = shown(text.status(report(service(name, server(name))), wide=True), 200)
    assert all(c.isprintable() or c == "\n" for c in page)


def test_top_counts_what_happened_between_two_reports() -> None:
    before = report(service("smtp", server("ex1", total=100), server("ex2", total=100), total=200, refused=0))
    after = report(
        service("smtp", server("ex1", total=130), server("ex2", total=110, connect_failed=4), total=240, refused=2)
    )
    lines = shown(text.top(before, after, 2.0, wide=False), 100).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert rows["smtp"][-3:] == ["7", "20.0", "1.0"]
    assert rows["ex1"] == ["ex1", "up", "7", "15.0", "75", "%", "0.0"]
    assert rows["ex2"] == ["ex2", "up", "7", "5.0", "25", "%", "2.0"]


def test_top_shows_bytes_on_a_wide_terminal() -> None:
    before = report(service("smtp", server(bytes_in=0, bytes_out=0)))
    after = report(service("smtp", server(bytes_in=20480, bytes_out=4096)))
    row = next(line for line in shown(text.top(before, after, 2.0, wide=True)).splitlines() if " ex1 " in line)
    assert row.split()[-4:] == ["10", "KiB", "2.0", "KiB"]


@pytest.mark.parametrize(
    "before",
    [
        report(service("smtp", server("ex1", total=1))) | {"started_at": "another start"},
        report(service("smtp", server("other", total=1))),
    ],
)
def test_top_shows_no_rate_for_what_was_not_there_before(before: dict[str, Any]) -> None:
    after = report(service("smtp", server("ex1", total=9999)))
    row = next(line for line in shown(text.top(before, after, 1.0, wide=False)).splitlines() if " ex1 " in line)
    assert row.split()[-3:] == ["0.0", "-", "0.0"]


def test_a_counter_that_went_back_counts_from_zero() -> None:
    before, after = (report(service("smtp", server("ex1", total=total))) for total in (500, 20))
    row = next(line for line in shown(text.top(before, after, 2.0, wide=False)).splitlines() if " ex1 " in line)
    assert "10.0" in row.split()


def session(**changes: Any) -> dict[str, Any]:
    facts = {
        "service": "smtp",
        "client": "192.0.2.7:40000",
        "listen": "10.0.1.100:25",
        "server": "ex2",
        "server_address": "10.0.2.12:25",
        "why": "least_connections",
        "age_s": 65.0,
        "idle_s": 2.0,
        "bytes_in": 10,
        "bytes_out": 2048,
        "state": "open",
        "worker": 1,
    }
    return facts | changes


def test_sessions() -> None:
    wide = shown(text.sessions({"sessions": [session()], "more": 12}, wide=True))
    row = "smtp 192.0.2.7:40000 ex2 (10.0.2.12:25) least_connections 1:05 0:02 10 B 2.0 KiB open 1"
    assert wide.splitlines()[1].split() == row.split()
    assert "and 12 more; --limit N shows more" in wide
    narrow = shown(text.sessions({"sessions": [session()], "more": 0}, wide=False), 80)
    assert " ".join(narrow.splitlines()[1].split()) == "smtp 192.0.2.7:40000 ex2 least_connections 1:05 0:02"
    assert shown(text.sessions({"sessions": [], "more": 0}, wide=True)) == "no sessions\n"


def test_persistence() -> None:
    entry = {"key": "192.0.2.1", "real_server": "ex1", "expires_in_s": 59.0}
    groups = [
        {"group": "cas", "timeout_s": 3600.0, "entries": [entry], "more": 3},
        {"group": "imap", "timeout_s": 60.0, "entries": [], "more": 0},
    ]
    page = [line.strip() for line in shown(text.persistence({"groups": groups})).splitlines()]
    assert page[0] == "cas  timeout 1:00:00"
    assert page[2].split() == ["192.0.2.1", "ex1", "0:59"]
    assert page[3:] == ["and 3 more; --limit N shows more", "imap  timeout 1:00", "no clients remembered"]
    assert shown(text.persistence({"groups": []})) == "no service persists\n"


def test_events_are_coloured_by_level() -> None:
    rows = [
        {"at": "2026-01-01T00:00:00Z", "level": "warning", "text": "smtp/ex2 is down: refused"},
        {"at": "2026-01-01T00:00:09Z", "level": "info", "text": "smtp/ex2 is up"},
    ]
    assert shown(text.events(rows)).splitlines() == [
        "2026-01-01T00:00:00Z  smtp/ex2 is down: refused",
        "2026-01-01T00:00:09Z  smtp/ex2 is up",
    ]
    assert "33m" in shown(text.events(rows[:1]), colour=True)
    assert "33m" not in shown(text.events(rows[1:]), colour=True)
    assert shown(text.events([])) == "no events since the start\n"


def test_configuration_has_one_line_per_pool() -> None:
    member = Member("ex1", Endpoint("10.0.2.11", 443))
    own = Pool("owa", "", (member,))
    routed = Pool("owa", "auto", (member,), persist=Persist(group="cas"))
    owa = Service("owa", Mode.TLS, (Endpoint("10.0.1.100", 443),), own, routes=(Route("auto", ("a.example",), routed),))
    config = Config("f.yaml", (owa,), (RealServer("ex1", "10.0.2.11"),), 1, "/run/c.sock", "", "")
    lines = shown(text.configuration(config), 200).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["owa", "tls", "10.0.1.100:443"], ["owa", "/", "auto"]]
    assert "source, group cas" in lines[2]
    redirect = Route("start", (), Pool("owa", "start", ()), ("/",))
    lines = shown(text.configuration(replace(config, services=(replace(owa, routes=(redirect,)),))), 200).splitlines()
    assert lines[2].split() == ["owa", "/", "start", "tls", "10.0.1.100:443", "answered", "here"]
    lines = shown(text.configuration(config), 200).splitlines()
    assert "ex1 10.0.2.11:443" in lines[1]


def test_profiles_mark_what_this_version_cannot_run() -> None:
    row = {"profile": "p", "title": "a title", "services": ["smtp", "web"], "not_available": []}
    assert shown(text.profiles([row])).split() == ["profile", "services", "title", "p", "smtp,", "web", "a", "title"]
    marked = shown(text.profiles([row, row | {"profile": "q", "not_available": ["web"]}]))
    assert "q        smtp, (web)" in marked
    assert marked.endswith("(…): its mode is not available in this version\n")


def test_a_checklist_is_grouped_by_platform_and_says_what_is_missing() -> None:
    items = [
        ChecklistItem("First", "because", "postfix", (), ("one", "two\n  three\n")),
        ChecklistItem("Record", "so that\n they find it", "dns", (), (), missing=("domain", "vip")),
        ChecklistItem("Last\x1b", "why", "postfix", (), ("four",)),
    ]
    assert text.checklist(items) == (
        "# ===== Postfix: as root, on every real server =====\n\n"
        "# 1. First\n#    because\none\ntwo\n  three\n\n"
        "# 2. Last?\n#    why\nfour\n\n"
        "; ===== DNS: records to make =====\n\n"
        "; 3. Record\n;    so that they find it\n;    more commands with: --set domain=… --vip ADDRESS\n"
    )
    assert text.checklist([]) == "nothing is to be done\n"
