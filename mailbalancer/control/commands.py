"""The commands of the control socket: arguments checked, work done, facts returned.

Decides: the vocabulary, and what a refused command says.
Refuses to know: sockets, and how answers are shown.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from mailbalancer.control.events import Events, iso_utc
from mailbalancer.control.kernel_clients import KernelClients
from mailbalancer.control.maintenance import Maintenance, until
from mailbalancer.control.members import Members
from mailbalancer.control.persistence import Bindings
from mailbalancer.control.workers import Worker, Workers
from mailbalancer.errors import ControlError
from mailbalancer.ipc.messages import ListSessions, SessionList, Unbind
from mailbalancer.model import AdminState, MemberKey

#: A worker that does not list its sessions within this time is left out of the answer.
GATHER_S = 2.0
MOST_SESSIONS = 10_000
MOST_BINDINGS = 10_000

_PAST = {AdminState.DRAINING: "draining", AdminState.DISABLED: "disabled", AdminState.ENABLED: "enabled"}


class Commands:
    """What an operator can ask for. `status` and `reload` are the supervisor's own and come from outside."""

    def __init__(
        self,
        members: Members,
        workers: Workers,
        bindings: Bindings,
        events: Events,
        status: Callable[[], dict[str, Any]],
        reload: Callable[[], Awaitable[dict[str, Any]]],
        save: Callable[[], None],
        maintenance: Maintenance,
        kernel: Callable[[], KernelClients],
    ) -> None:
        self._members = members
        self._workers = workers
        self._bindings = bindings
        self._events = events
        self._save = save
        self._maintenance = maintenance
        self._kernel = kernel
        self._asked: dict[int, _Gathering] = {}
        self._asks = 0
        self._status = status
        self._reload = reload

    async def run(self, command: str, arguments: dict[str, Any]) -> Any:
        """Do it.

        Raises:
            ControlError: there is no such command, or its arguments name nothing that exists.
        """
        given = Arguments(command, arguments)
        match command:
            case "status":
                given.only()
                return self._status()
            case "events":
                given.only()
                return {"events": self._events.listed()}
            case "save":
                given.only()
                self._save()
                return {"saved": True}
            case "reload":
                given.only()
                return await self._reload()
            case "drain":
                return self._want(AdminState.DRAINING, given)
            case "disable":
                return self._want(AdminState.DISABLED, given)
            case "enable":
                return self._want(AdminState.ENABLED, given)
            case "maintenance_start":
                return self._maintain(given)
            case "maintenance_stop":
                given.only("real_server", "by")
                now, wall = time.monotonic(), time.time()
                return {"stage": str(self._maintenance.stop(given.text("real_server"), now, wall).stage)}
            case "sessions":
                return await self._sessions(given)
            case "persistence":
                return self._persistence(given)
            case "persistence_clear":
                return self._persistence_clear(given)
        known = (
            "status, events, reload, drain, disable, enable, maintenance_start, maintenance_stop, sessions, "
            "persistence, persistence_clear, save"
        )
        raise ControlError(f"there is no command {command!r}", f"known are {known}")

    def _want(self, wanted: AdminState, given: Arguments) -> dict[str, Any]:
        given.only("real_server", "service")
        keys = self._keys(given.text("real_server"), given.text("service"))
        self._members.command(keys, wanted, time.monotonic())
        self._save()
        places = ", ".join(str(key) for key in keys)
        self._events.info(f"the operator wants {keys[0].real_server} {_PAST[wanted]} ({places})")
        return {"state": str(wanted), "members": [str(key) for key in keys], "warnings": self._without_server(keys)}

    def _maintain(self, given: Arguments) -> dict[str, Any]:
        given.only("real_server", "services", "until", "force", "by")
        now, wall = time.monotonic(), time.time()
        order = self._maintenance.start(
            given.text("real_server"),
            given.texts("services"),
            until(given.text("until"), wall),
            given.flag("force"),
            given.text("by") or "operator",
            now,
            wall,
        )
        return {"stage": str(order.stage), "until": None if order.until is None else iso_utc(order.until)}

    def _keys(self, real_server: str, service: str) -> list[MemberKey]:
        records = list(self._members)
        services = sorted({record.key.service for record in records})
        if service and service not in services:
            raise _unknown("service", service, services)
        there = [record.key for record in records if service in ("", record.key.service)]
        keys = [key for key in there if key.real_server == real_server]
        if not keys:
            raise _unknown("real server", real_server, sorted({key.real_server for key in there}), service)
        return keys

    def _without_server(self, keys: list[MemberKey]) -> list[str]:
        """Say it when nobody is left for new sessions: the operator may have meant another machine."""
        pools = {(key.service, key.route): self._members[key].pool for key in keys}
        return [
            f"{'/'.join(filter(None, place))}: no real server is ready, new sessions are refused"
            for place, pool in pools.items()
            if self._members.ready_of(pool)[0] == 0
        ]

    async def _sessions(self, given: Arguments) -> dict[str, Any]:
        given.only("service", "limit")
        service, limit = given.text("service"), given.number("limit", 100, MOST_SESSIONS)
        services = sorted({record.key.service for record in self._members})
        if service and service not in services:
            raise _unknown("service", service, services)
        self._asks += 1
        ask = self._asks  # somebody else may ask while we wait
        gathering = self._asked[ask] = _Gathering([w for w in self._workers if w.life is not None])
        try:
            self._workers.broadcast(ListSessions(ask, service, limit))
            return await gathering.result(limit)
        finally:
            del self._asked[ask]

    def listed(self, worker: Worker, answer: SessionList) -> None:
        """A worker's answer to `ListSessions`; one that nobody waits for any more is nothing."""
        gathering = self._asked.get(answer.ask)
        if gathering is not None:
            gathering.take(worker, answer)

    def _persistence(self, given: Arguments) -> dict[str, Any]:
        given.only("group", "limit")
        group, limit = given.text("group"), given.number("limit", 1000, MOST_BINDINGS)
        groups = self._bindings.listed(group, limit, time.monotonic())
        if group and not groups:
            raise _unknown("persistence group", group, self._bindings.groups())
        kernel = self._kernel()
        for one in groups:
            if one["group"] in kernel.groups():
                one["entries"], one["more"] = kernel.listed(one["group"], limit)
        return {"groups": groups}

    def _persistence_clear(self, given: Arguments) -> dict[str, Any]:
        given.only("group", "key")
        group, key = given.text("group"), given.text("key")
        if group and group not in self._bindings.groups():
            raise _unknown("persistence group", group, self._bindings.groups())
        cleared = self._bindings.forget(group, key) + self._kernel().forget(group, key)
        self._workers.broadcast(Unbind(group, key))
        self._save()
        what = f"of {key} " if key else ""
        where = f"in group {group}" if group else "in all groups"
        self._events.info(f"the operator cleared persistence {what}{where}: {cleared} entries")
        return {"cleared": cleared}


class Arguments:
    """Of one command, from a stranger: every one is checked where it is taken."""

    def __init__(self, command: str, given: dict[str, Any]) -> None:
        self._command = command
        self._given = given

    def only(self, *known: str) -> None:
        for word in self._given:
            if word not in known:
                raise ControlError(
                    f"{self._command} has no argument {word!r}", f"known are {', '.join(known) or 'none'}"
                )

    def text(self, name: str) -> str:
        value = self._given.get(name, "")
        if not isinstance(value, str):
            raise ControlError(f"{self._command}: {name} must be text, not {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        values = self._given.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ControlError(f"{self._command}: {name} must be a list of texts, not {values!r}")
        return values

    def flag(self, name: str) -> bool:
        value = self._given.get(name, False)
        if not isinstance(value, bool):
            raise ControlError(f"{self._command}: {name} must be true or false, not {value!r}")
        return value

    def number(self, name: str, default: int, most: int) -> int:
        value = self._given.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ControlError(f"{self._command}: {name} must be a whole number, not {value!r}")
        return min(value, most)


class _Gathering:
    """Waits for the session lists of these workers."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._missing = {worker.index for worker in workers}
        self._sessions: list[dict[str, Any]] = []
        self._more = 0
        self._complete = asyncio.Event()

    def take(self, worker: Worker, answer: SessionList) -> None:
        if worker.index not in self._missing:
            return
        self._missing.discard(worker.index)
        if isinstance(answer.sessions, list) and isinstance(answer.more, int):
            facts = [facts for facts in answer.sessions if isinstance(facts, dict)]
            self._sessions += [{**one, "worker": worker.index} for one in facts]
            self._more += max(0, answer.more)
        if not self._missing:
            self._complete.set()

    async def result(self, limit: int) -> dict[str, Any]:
        try:
            async with asyncio.timeout(GATHER_S):
                if self._missing:
                    await self._complete.wait()
        except TimeoutError:
            pass  # a worker that is just being replaced has no sessions anyway
        shown = self._sessions[:limit]
        return {"sessions": shown, "more": self._more + len(self._sessions) - len(shown)}


def _unknown(what: str, word: str, known: list[str], service: str = "") -> ControlError:
    close = difflib.get_close_matches(word, known, n=1)
    where = f" in service {service!r}" if service else ""
    remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(known[:20]) or 'none'}"
    return ControlError(f"there is no {what} {word!r}{where}", remedy)
