"""The page in a real browser: looked at, typed into and operated as a person does it."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbalancer.admin.tokens import Role
from tests.admin.door import Door, open_door
from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.live
PAGE = Path(__file__).resolve().parents[2] / "mailbalancer" / "admin" / "page"


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as door:
        door.make_tokens()
        yield door


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        browser.size(1280, 900)
        yield browser


def come_in(browser: Browser, door: Door, role: Role) -> None:
    browser.open(f"http://127.0.0.1:{door.port}/")
    browser.sees("Log in", "Token")
    browser.type("#token", door.secrets[role])
    browser.click("Log in")
    browser.sees("Overview", "smtp", f"a-{role}")


def test_a_server_is_drained_and_comes_back(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.OPERATE)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("ex1", "ex2", "not checked")
    browser.click("drain ex2")
    browser.sees("drain ex2 from smtp: 0 sessions, ends by")
    assert door.balancer.real_server("smtp", "ex2")["admin"] == "enabled", "only said so far"
    browser.click("drain", "dialog")
    browser.sees("draining, ends in ")
    assert door.balancer.real_server("smtp", "ex2")["admin"] == "draining"
    first = browser.text().split("ends in ")[1][:5]
    eventually(lambda: browser.text().split("ends in ")[1][:5] != first, what="the countdown counts")
    browser.click("enable ex2")
    browser.click("enable", "dialog")
    eventually(lambda: door.balancer.real_server("smtp", "ex2")["admin"] == "enabled")


def test_the_overview_follows_what_happens(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.READ)
    browser.sees("all 2 services are well")
    door.ask("POST", "/api/v1/real-servers/ex1/disable", {})
    door.ask("POST", "/api/v1/real-servers/ex2/disable", {})
    browser.sees("2 of 2 services refuse sessions", "0 of 2 ready: new sessions are refused")


def test_who_may_only_read_sees_no_buttons(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.READ)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("ex1", "not checked", "Which way does")
    buttons = browser.run('[...document.querySelectorAll("main button")].map((b) => b.textContent)')
    assert buttons == ["Show the way"]


def test_a_changed_configuration_is_looked_at_applied_and_rolled_back(browser: Browser, door: Door) -> None:
    original = door.file
    come_in(browser, door, Role.ADMIN)
    browser.run('location.hash = "#/configuration"')
    browser.sees("History", "runs now")
    browser.type("#text", original.replace("weight: 2", "weight: 0"))
    browser.click("Check")
    browser.sees("weight", "problem")
    browser.type("#text", original.replace("weight: 2", "weight: 5"))
    browser.click("Look at the change and apply")
    browser.sees("+  ex2: {address: 127.0.0.2, weight: 5}")
    assert door.file == original
    browser.click("Apply", "dialog")
    eventually(lambda: "weight: 5" in door.file)
    eventually(lambda: "2 ·" in browser.text() and "runs now" in browser.text(), what="the history has it")
    browser.run('[...document.querySelectorAll("details")].at(-1).open = true')
    browser.click("Go back to this configuration")
    browser.sees("-  ex2: {address: 127.0.0.2, weight: 5}")
    browser.click("Apply", "dialog")
    eventually(lambda: door.file == original)


def test_a_weight_is_changed_after_its_difference_was_seen(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.ADMIN)
    browser.run('location.hash = "#/service/smtp"')
    browser.click("weight of ex1")
    browser.type("#weight", "7")
    browser.click("Look at the change", "dialog")
    browser.sees("ex1: {port: 9, weight: 7}")
    browser.click("Apply", "dialog")
    eventually(lambda: door.balancer.real_server("smtp", "ex1")["weight"] == 7)


PROFILE = """\
profile: house
title: Talk of the house
description: A port of our own.
services:
  talk: {{port: {port}, mode: tcp, check: none}}
"""


def test_a_profile_is_filled_in_previewed_applied_and_rolled_back(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "house.yaml").write_text(PROFILE.format(port=free_port()))
    monkeypatch.setenv("MAILBALANCER_PROFILES", str(tmp_path / "profiles"))
    with open_door(tmp_path) as door:
        door.make_tokens()
        original = door.file
        come_in(browser, door, Role.ADMIN)
        browser.run('location.hash = "#/profile/house"')
        browser.sees("Talk of the house", "Fill in")
        for field, words in (("#name", "house"), ("#vip", "127.0.0.1"), ("#servers", "ex1, ex2, exx")):
            browser.type(field, words)
        browser.click("Look at the resulting YAML")
        browser.sees("This cannot be applied", "exx")
        browser.press("Escape")
        browser.type("#servers", "ex1, ex2")
        browser.run('document.getElementById("part-talk").click()')
        browser.click("Look at the resulting YAML")
        browser.sees("+  house:", "+    vip: 127.0.0.1", "talk")
        assert door.file == original, "only looked at so far"
        browser.click("Apply", "dialog")
        eventually(lambda: len(door.get("/services")["services"]) == 3, what="the service is there")
        browser.run('location.hash = "#/"')
        browser.sees("all 3 services are well", "talk")
        browser.run('location.hash = "#/configuration"')
        browser.sees("History", "runs now")
        browser.run('[...document.querySelectorAll("details")].at(-1).open = true')
        browser.click("Go back to this configuration")
        browser.sees("-  house:")
        browser.click("Apply", "dialog")
        eventually(lambda: door.file == original, what="everything is as it was")
        eventually(lambda: len(door.get("/services")["services"]) == 2)


def test_maintenance_from_the_first_look_to_the_return(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.OPERATE)
    browser.click("Maintenance", "nav")
    browser.sees("No real server is in maintenance", "nothing is planned", "Take a real server out")
    browser.type("#until", "23:59")
    browser.click("Look at what it means")
    browser.sees("drain ex1 from 2 services: 0 sessions, ends by ", "comes back at 23:59")
    assert door.balancer.real_server("smtp", "ex1")["admin"] == "enabled", "only said so far"
    browser.click("take out", "dialog")
    browser.sees("ex1 is empty: safe to reboot; comes back in ")
    assert browser.run('document.querySelector("main progress").value >= 0')
    countdown = "document.querySelector('main .plan').textContent.split('back in ')[1]"
    first = browser.run(countdown)
    eventually(lambda: browser.run(countdown) != first, what="the countdown counts")
    browser.run('location.hash = "#/"')
    browser.sees("Maintenance ex1 is empty: safe to reboot")
    browser.click("Maintenance", "nav")
    browser.click("bring ex1 back")
    browser.click("bring back", "dialog")
    eventually(lambda: door.balancer.real_server("smtp", "ex1")["admin"] == "enabled")
    browser.sees("comes back: ")


def test_who_is_needed_is_taken_out_only_when_one_insists(browser: Browser, door: Door) -> None:
    door.ask("POST", "/api/v1/real-servers/ex2/disable", {})
    come_in(browser, door, Role.OPERATE)
    browser.run('location.hash = "#/maintenance/ex1"')
    browser.click("Look at what it means")
    browser.sees("no other real server is ready", "do it all the same")
    browser.click("take out", "dialog")
    browser.sees("ex1 is needed: smtp would have 0 ready real servers")
    browser.run('document.getElementById("force").click()')
    browser.click("take out", "dialog")
    browser.sees("ex1 is empty: safe to reboot")


def test_a_window_is_planned_and_removed(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.ADMIN)
    browser.click("Maintenance", "nav")
    browser.type("#from", "sunday 01:00")
    browser.type("#to", "sunday 03:00")
    browser.click("Look at the change")
    browser.sees("+maintenance:", "until: sunday 03:00")
    browser.click("Apply", "dialog")
    browser.sees("every Sunday 01:00 to Sunday 03:00")
    browser.click("remove window 1")
    browser.click("Apply", "dialog")
    browser.sees("nothing is planned")


def test_the_overview_is_live_under_load(browser: Browser, door: Door) -> None:
    """Sessions come and go while somebody looks: the numbers and the curve follow without a click."""
    come_in(browser, door, Role.READ)
    port = int(door.get("/services/pop")["listen"][0].split(":")[1])
    total = "Number(document.querySelectorAll('.numbers .tile b')[2].textContent)"
    line = "document.querySelector('.services .spark polyline')"
    points = f"{line}?.getAttribute('points').split(' ').length || 0"

    def knock() -> bool:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 10):
                pass
        return bool(browser.run(total) > 0)

    eventually(knock, what="new sessions are seen")
    before = browser.run(points)
    eventually(lambda: browser.run(points) > before, what="the curve grows")
    assert browser.run('document.querySelectorAll(".services .chip").length') == 4


def test_a_day_can_be_looked_back_on(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.READ)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("the last 30 minutes", "30 minutes ago")
    browser.run(
        """(() => { const span = document.querySelector("main select"); span.value = "2880";
        span.dispatchEvent(new Event("change")); })()"""
    )
    browser.sees("24 hours ago")


def test_how_long_things_take_is_told_while_one_looks(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.READ)
    browser.run('location.hash = "#/service/pop"')
    browser.sees("How long things took", "nothing has ended")
    port = int(door.get("/services/pop")["listen"][0].split(":")[1])

    def knock() -> bool:
        with socket.create_connection(("127.0.0.1", port), 10):
            pass
        return "whole session or request" in browser.text()

    eventually(knock, what="the last minute has something")
    browser.sees("95 % within")


def test_a_ramp_has_a_bar_and_a_countdown(browser: Browser, door: Door) -> None:
    door.ask("POST", "/api/v1/real-servers/ex1/disable", {})
    door.ask("POST", "/api/v1/real-servers/ex1/enable", {})
    come_in(browser, door, Role.READ)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("ramping ", "of its share, all of it in 4:5")
    assert browser.run('document.querySelector(".bar.ramp progress").value <= 100')


def test_every_page_has_something_to_say(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.ADMIN)
    for name, words in {
        "real-servers": "drain everywhere",
        "maintenance": "Plan a window",
        "events": "ready with 2 workers",
        "profiles": "Exchange 2019",
        "certificates": "no certificate",
        "audit": "Who changed what",
    }.items():
        browser.run(f'location.hash = "#/{name}"')
        browser.sees(words)


def test_what_strangers_send_is_never_html(browser: Browser, door: Door) -> None:
    evil = "<img src=x onerror=document.title='hacked'>"
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=10)
    connection.request("GET", "/api/v1/services", headers={"User-Agent": evil, "Authorization": f"Bearer {evil}"})
    connection.getresponse().read()
    text = door.file + f"# {evil}\n"
    door.ask("PUT", "/api/v1/config", {"text": text}, If_Match="*")
    door.ask("POST", "/api/v1/persistence/clear", {"group": evil})
    come_in(browser, door, Role.ADMIN)
    for name in ("configuration", "audit", "events"):
        browser.run(f'location.hash = "#/{name}"')
        eventually(lambda: browser.run('document.querySelector("main h1") !== null'))
    assert browser.run("document.title") == "mailbalancer"
    assert browser.run('document.querySelectorAll("main img, main script").length') == 0


@pytest.mark.parametrize("name", [path.name for path in PAGE.glob("*.js")])
def test_no_script_parses_html(name: str) -> None:
    text = (PAGE / name).read_text()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
    ):
        assert word not in text
    assert "://" not in text.replace('"http://www.w3.org/2000/svg"', ""), "nothing comes from elsewhere"


def test_the_way_of_a_client_is_shown(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.READ)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("not checked")
    browser.click("Which way does a client's connection go?")
    browser.type("#client", "127.0.0.77")
    browser.click("Show the way")
    browser.sees("127.0.0.77 -> smtp -> ex1 ", "the real server sees")
    loaded = "[...document.querySelectorAll('.way')].every((i) => i.complete && i.naturalWidth > 0)"
    eventually(lambda: browser.run(loaded), what="the pictures")
    browser.type("#client", "<b>")
    browser.click("Show the way")
    browser.sees("is not an IP address")


def test_the_keyboard_is_enough(browser: Browser, door: Door) -> None:
    come_in(browser, door, Role.OPERATE)
    browser.run('location.hash = "#/service/smtp"')
    browser.sees("not checked", "Which way does")
    focused = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    for _ in range(40):
        browser.press("Tab")
        if browser.run(focused) == "drain ex1":
            break
    browser.press("Enter")
    browser.sees("drain ex1 from smtp")
    assert browser.run(focused) == "drain"
    browser.press("Escape")
    eventually(lambda: not browser.run('document.querySelector("dialog").open'))
    assert door.balancer.real_server("smtp", "ex1")["admin"] == "enabled"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, door: Door, width: int) -> None:
    browser.size(width, 800, phone=width < 500, dark=width < 500)
    come_in(browser, door, Role.ADMIN)
    keep = [socket.create_connection(("127.0.0.1", int(door.get("/services/smtp")["listen"][0].split(":")[1])))]
    for name in (
        "",
        "service/smtp",
        "configuration",
        "profile/exchange-2019",
        "events",
        "audit",
        "certificates",
        "maintenance",
        "real-servers",
    ):
        browser.run(f'location.hash = "#/{name}"')
        eventually(lambda: browser.run('document.querySelector("main h1") !== null'))
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), name
    for connection in keep:
        connection.close()
