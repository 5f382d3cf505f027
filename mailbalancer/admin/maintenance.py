"""A real server that is taken out for patching and comes back: how far it is, in words, and waiting for it.

Decides: what is said on the way and when waiting ends.
Refuses to know: how the balancer does it (the supervisor goes on whether anybody waits or not), how it is asked and
what the time is: `ask`, `say` and `wait` come from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mailbalancer.admin.components import components
from mailbalancer.admin.views import members, real_servers
from mailbalancer.admin.words import Facts, count, plain, server_state, span


class Ask(Protocol):
    """A command of the control socket and its arguments to its result; MailbalancerError when it is refused."""

    def __call__(self, command: str, **arguments: object) -> Any: ...


Say = Callable[[str], None]
#: Waits a moment; False when the time is up.
Wait = Callable[[], bool]


def places(report: Facts, real_server: str, services: tuple[str, ...] = ()) -> Iterator[tuple[str, Facts, Facts]]:
    """Where it is: the name of the place, the pool, and its facts there."""
    for service in report["services"]:
        for pool, server in members(service):
            if server["name"] == real_server and (not services or service["name"] in services):
                yield f"{service['name']}/{pool['route']}".rstrip("/"), pool, server


def order(report: Facts, real_server: str) -> Facts | None:
    """Its maintenance, while it is in any."""
    return next((one for one in report["maintenance"]["active"] if one["real_server"] == real_server), None)


def told(report: Facts, one: Facts) -> dict[str, Any]:
    """A maintenance with what its places carry, and a sentence about it."""
    found = list(places(report, one["real_server"], tuple(one["services"])))
    servers = [server for _, _, server in found]
    sessions = sum(server["sessions"] for server in servers)
    polls = sum(server.get("long_polls") or 0 for server in servers)
    ends = [server["drain_ends_in_s"] for server in servers if server["drain_ends_in_s"] is not None]
    polls_end = [s["long_polls_end_in_s"] for s in servers if s.get("long_polls_end_in_s") is not None]
    facts = {
        **one,
        "sessions": sessions,
        "long_polls": polls,
        "long_polls_end_in_s": max(polls_end, default=None),
        "drain_ends_in_s": max(ends, default=None),
        "places": [{"place": place, "sessions": server["sessions"]} for place, _, server in found],
    }
    return {**facts, "says": _progress(facts, found)}


def _progress(facts: Facts, found: list[tuple[str, Facts, Facts]]) -> str:
    """How far a maintenance is, in one sentence."""
    name = plain(facts["real_server"])
    until = f"; comes back in {span(facts['until_in_s'])}" if facts["until_in_s"] is not None else ""
    if facts["stage"] == "empty":
        if facts["services"]:
            return f"{name} is empty in {', '.join(map(plain, facts['services']))}{until}"
        return f"{name} is empty: safe to reboot{until}"
    if facts["stage"] == "returning":
        waiting = [f"{plain(place)} {server_state(server)[0]}" for place, _, server in found if not _is_back(server)]
        return f"{name} comes back: {'; '.join(waiting) or 'nearly there'}"
    where = ", ".join(f"{plain(place)} {server['sessions']}" for place, _, server in found if server["sessions"])
    words = f"{name}: {count(facts['sessions'], 'session')} left" + (f" ({where})" if where else "")
    if facts["long_polls"]:
        words += f", {count(facts['long_polls'], 'long poll')}"
        if facts["long_polls_end_in_s"] is not None:
            words += f", the last ends in {span(facts['long_polls_end_in_s'])} at the latest"
    if facts["drain_ends_in_s"] is not None:
        words += f"; drain ends in {span(facts['drain_ends_in_s'])}"
    return words + until


def _is_back(server: Facts) -> bool:
    ready = server["availability"] == "ready" and server["ramp_percent"] >= 100
    return bool(ready or server["admin"] == "disabled")


def overview(report: Facts) -> dict[str, Any]:
    """Every maintenance that is under way, what is planned, and the components of Exchange servers."""
    found = {one["name"]: components(one["services"]) for one in real_servers(report)}
    return {
        "active": [
            {**told(report, one), "components": found.get(one["real_server"], [])}
            for one in report["maintenance"]["active"]
        ],
        "windows": list(report["maintenance"]["windows"]),
        "components": {name: rows for name, rows in found.items() if rows},
    }


# ---------------------------------------------------------------- waiting


def until_empty(ask: Ask, say: Say, wait: Wait, real_server: str) -> bool:
    """Tell how it empties, until it is safe to reboot; returns whether it is."""
    said: tuple[object, ...] = ()
    while True:
        report = ask("status")
        one = order(report, real_server)
        if one is None or one["stage"] == "returning":
            say(f"maintenance of {plain(real_server)} has ended")
            return False
        facts = told(report, one)
        if facts["stage"] == "empty":
            say(facts["says"])
            return True
        if said != (said := (facts["sessions"], facts["long_polls"])):
            say(facts["says"])
        if not wait():
            say(f"{plain(real_server)} is NOT empty yet; its sessions would be cut by a reboot now")
            return False


def until_back(ask: Ask, say: Say, wait: Wait, real_server: str) -> bool:
    """Tell how it comes back, until it has its full share; returns whether it has."""
    said = ""
    while True:
        report = ask("status")
        one = order(report, real_server)
        if one is None:
            say(f"{plain(real_server)} is back in {count(len(list(places(report, real_server))), 'place')}")
            return True
        words = told(report, one)["says"]
        if words != said:
            say(words)
            said = words
        if not wait():
            say(f"{plain(real_server)} is NOT back everywhere yet")
            return False
