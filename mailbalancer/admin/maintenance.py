"""Taking one real server out of every service for patching, and bringing it back.

Decides: when that is refused (a service would be left with too few), when the server is empty, and when it is back.
Refuses to know: how the balancer is asked and what the time is: `ask`, `say` and `wait` come from outside.

Draining lets returning clients come back, so a drained server that is empty for a moment is not done: it is disabled
first, and counted empty only if nobody came in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mailbalancer.admin.views import members
from mailbalancer.admin.words import Facts, count, plain, server_state
from mailbalancer.errors import MailbalancerError


class Ask(Protocol):
    """A command of the control socket and its arguments to its result; MailbalancerError when it is refused."""

    def __call__(self, command: str, **arguments: object) -> Any: ...


Say = Callable[[str], None]
#: Waits a moment; False when the time is up.
Wait = Callable[[], bool]


def places(report: Facts, real_server: str) -> Iterator[tuple[str, Facts, Facts]]:
    """Where it is: the name of the place, the pool, and its facts there."""
    for service in report["services"]:
        for pool, server in members(service):
            if server["name"] == real_server:
                yield f"{service['name']}/{pool['route']}".rstrip("/"), pool, server


def too_few(report: Facts, real_server: str, minimum: int) -> list[str]:
    """The places that would have fewer than `minimum` ready real servers without it."""
    left = [
        (place, sum(o["availability"] == "ready" for o in pool["real_servers"] if o["name"] != real_server))
        for place, pool, _ in places(report, real_server)
    ]
    return [f"{place} would have {count(ready, 'ready real server')}" for place, ready in left if ready < minimum]


def start(ask: Ask, say: Say, wait: Wait, real_server: str, minimum: int, force: bool) -> bool:
    """Drain it everywhere and wait until it is empty; returns whether it is.

    Raises:
        MailbalancerError: there is no such real server, or the others are too few.
    """
    report = ask("status")
    if not list(places(report, real_server)):
        known = sorted({s["name"] for service in report["services"] for _, s in members(service)})
        raise MailbalancerError(f"no service has a real server {real_server!r}", f"there are: {', '.join(known)}")
    lacking = too_few(report, real_server, minimum)
    if lacking and not force:
        raise MailbalancerError(
            f"{real_server} is needed: {'; '.join(lacking)}", "bring others back first, or insist with --force"
        )
    for line in lacking:
        say(f"warning: {line}")
    ask("drain", real_server=real_server, service="")
    return _empty(ask, say, wait, real_server)


def _empty(ask: Ask, say: Say, wait: Wait, real_server: str) -> bool:
    said, closed = "", False
    while True:
        left = {place: server["sessions"] for place, _, server in places(ask("status"), real_server)}
        sessions = sum(left.values())
        if not sessions and closed:
            say(f"{plain(real_server)} is empty: safe to reboot")
            return True
        if not sessions:
            ask("disable", real_server=real_server, service="")
            closed = True
            continue
        where = ", ".join(f"{plain(place)} {number}" for place, number in left.items() if number)
        words = f"{plain(real_server)}: {count(sessions, 'session')} left ({where})"
        if words != said:
            say(words)
            said = words
        if not wait():
            say(f"{plain(real_server)} is NOT empty yet; its sessions would be cut by a reboot now")
            return False


def stop(ask: Ask, say: Say, wait: Wait, real_server: str) -> bool:
    """Let it take part again and wait until it does, with its full share; returns whether it does.

    Raises:
        MailbalancerError: there is no such real server.
    """
    ask("enable", real_server=real_server, service="")
    said = ""
    while True:
        found = list(places(ask("status"), real_server))
        waiting = [f"{plain(place)} {server_state(server)[0]}" for place, _, server in found if not _is_back(server)]
        if not waiting:
            say(f"{plain(real_server)} is back in {count(len(found), 'place')}")
            return True
        words = "; ".join(waiting)
        if words != said:
            say(words)
            said = words
        if not wait():
            say(f"{plain(real_server)} is NOT back everywhere yet")
            return False


def _is_back(server: Facts) -> bool:
    return bool(server["availability"] == "ready" and server["ramp_percent"] >= 100)
