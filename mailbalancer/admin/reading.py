"""The part of the API that looks and changes nothing.

Decides: which facts are to be had where.
Refuses to know: HTTP, and who may (each operation says the role it needs).
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from mailbalancer.admin import maintenance, views
from mailbalancer.admin.audit import Audit
from mailbalancer.admin.desk import Desk, Event
from mailbalancer.admin.gate import Refused
from mailbalancer.admin.history import POINTS, RESOLUTION_S, History
from mailbalancer.admin.operation import Call, Given, Name, Number, Operation, Paged, Reply
from mailbalancer.admin.tokens import Role
from mailbalancer.config.profiles import Profile, checklist, list_profiles, load_profile
from mailbalancer.errors import ConfigError
from mailbalancer.l4 import path_picture, paths

READ = Role.READ
REMEMBERED_EVENTS = 5000
#: Points of all services together, so that an answer is never slow to make.
MOST_POINTS = 60_000


class OfService(Paged):
    service: Name | Literal[""] = ""


class OfGroup(Paged):
    group: str = Field(default="", max_length=256)


class Wanted(Given):
    action: Literal["drain", "disable", "enable", "maintenance"]
    service: Name | Literal[""] = ""


class Span(Given):
    service: Name | Literal[""] = ""
    points: Number = Field(default=120, ge=1, le=POINTS)


class Client(Given):
    client: str = Field(min_length=1, max_length=64, description="its address")
    service: Name
    real_server: Name | Literal[""] = ""


class OneClient(Client):
    real_server: Name


class Filled(Given):
    vip: str = Field(default="", max_length=64)


class Reading:
    """Answers from the desk, the history and the profiles."""

    def __init__(self, desk: Desk, history: History, audit: Audit) -> None:
        self._desk = desk
        self._history = history
        self._audit = audit
        self.events: deque[Event] = deque(maxlen=REMEMBERED_EVENTS)
        self.events.extend(desk.watch(self.events.append))

    def operations(self) -> list[Operation]:
        def get(path: str, name: str, summary: str, handler: Any, *keys: str, **more: Any) -> Operation:
            return Operation("GET", f"/api/v1{path}", name, summary, more.pop("role", READ), handler, keys, **more)

        return [
            get("/status", "status", "Everything, as `mailbalancer status --json`", self.status, "version", "services"),
            get("/services", "services", "Every service in one line", self.services, "services"),
            get("/services/{service}", "service", "One service with its real servers", self.service, "name", "pools"),
            get("/real-servers", "real_servers", "Every real server in all its services", self.real_servers,
                "real_servers"),
            get("/real-servers/{real_server}", "real_server", "One real server", self.real_server, "name", "services"),
            get("/real-servers/{real_server}/plan", "plan", "What an action would do, before it is done", self.plan,
                "says", "sessions", "warnings", query=Wanted),
            get("/maintenance", "maintenance", "What is in maintenance, what is planned, and components of Exchange "
                "servers", self.maintenance, "active", "windows", "components"),
            get("/sessions", "sessions", "Open sessions, and why each went where it went", self.sessions, "sessions",
                query=OfService),
            get("/persistence", "persistence", "Which client goes back to which real server", self.persistence,
                "groups", query=OfGroup),
            get("/profiles", "profiles", "Service templates with their parameters", self.profiles, "profiles"),
            get("/profiles/{profile}", "profile", "One service template as it is written", self.profile, "profile",
                "text", query=Filled),
            get("/events", "events", "What happened, newest last", self.listed_events, "events", query=Paged),
            get("/statistics", "statistics", "The last 24 hours at a fixed resolution", self.statistics, "services",
                "resolution_s", query=Span),
            get("/explain", "explain", "Which way a client's connection goes, hop by hop", self.explain, "ways",
                query=Client),
            get("/explain.svg", "explain_picture", "The same as a picture, for one real server", self.explain_picture,
                query=OneClient, kind="image/svg+xml"),
            get("/audit", "audit", "Who changed what", self.audit, "entries", query=Paged, role=Role.ADMIN),
        ]  # fmt: skip

    async def status(self, call: Call) -> dict[str, Any]:
        return self._desk.report()

    async def services(self, call: Call) -> dict[str, Any]:
        return {"services": [views.line(service) for service in self._desk.report()["services"]]}

    async def service(self, call: Call) -> dict[str, Any]:
        found = views.find(self._desk.report(), call.path["service"])
        if found is None:
            raise Refused(404, f"there is no service {call.path['service']}")
        return views.described(found)

    async def real_servers(self, call: Call) -> dict[str, Any]:
        return {"real_servers": views.real_servers(self._desk.report())}

    async def real_server(self, call: Call) -> dict[str, Any]:
        wanted = call.path["real_server"]
        found = next((one for one in views.real_servers(self._desk.report()) if one["name"] == wanted), None)
        if found is None:
            raise Refused(404, f"there is no real server {wanted} in any service")
        return found

    async def plan(self, call: Call) -> dict[str, Any]:
        drain_s = {service.name: max((pool.drain_s for pool in service.pools()), default=0.0)
                   for service in self._desk.config.services}  # fmt: skip
        wanted = call.query
        told = views.plan(
            self._desk.report(), wanted.action, call.path["real_server"], wanted.service, drain_s, datetime.now(UTC)
        )
        if not told["services"]:
            where = f"service {wanted.service}" if wanted.service else "any service"
            raise Refused(404, f"there is no real server {call.path['real_server']} in {where}")
        return told

    async def maintenance(self, call: Call) -> dict[str, Any]:
        return maintenance.overview(self._desk.report())

    async def sessions(self, call: Call) -> Any:
        self._must_exist(call.query.service)
        return await self._desk.obey("sessions", {"service": call.query.service, "limit": call.query.limit})

    async def persistence(self, call: Call) -> Any:
        return await self._desk.obey("persistence", {"group": call.query.group, "limit": call.query.limit})

    async def profiles(self, call: Call) -> dict[str, Any]:
        return {"profiles": [_profile(profile) for profile in list_profiles()]}

    async def profile(self, call: Call) -> dict[str, Any]:
        profile = found_profile(call.path["profile"])
        text = profile.file.read_text(encoding="utf-8", errors="replace")
        return {**_profile(profile), "text": text, "checklist": _checklist(profile, call.query.vip)}

    async def listed_events(self, call: Call) -> dict[str, Any]:
        return {"events": list(self.events)[-call.query.limit :]}

    async def statistics(self, call: Call) -> dict[str, Any]:
        self._must_exist(call.query.service)
        names = [call.query.service] if call.query.service else [s.name for s in self._desk.config.services]
        points = min(call.query.points, max(1, MOST_POINTS // max(1, len(names))))
        return {
            "resolution_s": RESOLUTION_S,
            "ends_at": self._history.ends_at,
            "services": {name: self._history.last(name, points) for name in names},
        }

    async def explain(self, call: Call) -> dict[str, Any]:
        return {"ways": [{**asdict(way), "text": paths.text(way)} for way in self._ways(call)]}

    async def explain_picture(self, call: Call) -> Reply:
        return Reply(path_picture.svg(self._ways(call)[0]).encode(), kind="image/svg+xml")

    def _ways(self, call: Call) -> list[paths.Path]:
        self._must_exist(call.query.service)
        return self._desk.explain(call.query.client, call.query.service, call.query.real_server)

    async def audit(self, call: Call) -> dict[str, Any]:
        return {"entries": self._audit.listed(call.query.limit)}

    def _must_exist(self, service: str) -> None:
        if service and self._desk.config.service(service) is None:
            raise Refused(400, f"there is no service {service}", "GET /api/v1/services lists them")


def found_profile(name: str) -> Profile:
    """A profile by its name.

    Raises:
        Refused: 404.
    """
    try:
        return load_profile(name)
    except ConfigError as error:
        raise Refused(404, f"there is no usable profile {name}", "; ".join(error.problems)) from error


def _profile(profile: Profile) -> dict[str, Any]:
    written = profile.written
    return {
        "profile": profile.name,
        "title": written.title,
        "description": written.description,
        "services": list(written.services),
        "not_available": profile.not_available(),
        "parameters": {
            name: {**parameter.model_dump(), "required": parameter.must_be_given}
            for name, parameter in written.parameters.items()
        },
    }


def _checklist(profile: Profile, vip: str) -> list[dict[str, Any]]:
    """With examples where a parameter must be given, so that it can be read before anything is filled in."""
    examples = {
        name: parameter.example
        for name, parameter in profile.written.parameters.items()
        if parameter.must_be_given and parameter.example is not None
    }
    try:
        items = checklist(profile, examples, vip=vip)
    except ConfigError:
        return []
    return [{"title": i.title, "why": i.why, "platform": i.platform, "commands": list(i.commands)} for i in items]
