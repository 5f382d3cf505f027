"""The part of the API that shows and changes the configuration.

Decides: which parts can be changed on their own, and which text that makes.
Refuses to know: how a change is checked and applied (`configuration`), and YAML (`edit`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, JsonValue

from mailbalancer.admin import edit
from mailbalancer.admin.configuration import Change, Configuration, etag
from mailbalancer.admin.gate import Refused
from mailbalancer.admin.operation import Call, DryRun, Given, Name, Operation, Reply
from mailbalancer.admin.reading import found_profile
from mailbalancer.admin.tokens import Role
from mailbalancer.config.load import json_schema

_WINDOWS: edit.Path = ("maintenance", "windows")
MAX_TEXT = 1024 * 1024


class Text(Given):
    """A whole configuration file."""

    text: str = Field(max_length=MAX_TEXT)


class Settings(Given):
    """What stands under the name in the configuration file, as JSON."""

    settings: dict[str, JsonValue]


class RealServerSettings(Given):
    """An address, or a mapping with `address`, `weight` and `max_sessions`."""

    settings: str | dict[str, JsonValue]


class MemberSettings(Given):
    """A port, a mapping with `port`, `weight`, `priority`, `max_sessions` and `state`, or nothing."""

    settings: int | dict[str, JsonValue] | None = None


class Weight(Given):
    weight: float = Field(gt=0, le=1000)


class PlannedWindow(Given):
    """A maintenance window as it stands in the file."""

    real_server: Name
    begins: str = Field(alias="from", max_length=40, description="2026-11-28 22:00, or sunday 01:00 for every week")
    until: str = Field(max_length=40)


class Applied(Given):
    """A profile on one address, as under `profiles:` in the file."""

    name: Name
    settings: dict[str, JsonValue]


class Configuring:
    """The file in whole and in parts."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._schema: dict[str, Any] | None = None

    def operations(self) -> list[Operation]:
        service, member = "/services/{service}", "/services/{service}/real-servers/{real_server}"
        server, number = "/real-servers/{real_server}", "/history/{number}"
        return [
            self._get("", "config", "The file as text; its ETag goes into If-Match", self.text, "text", "pending"),
            self._get("/schema", "config_schema", "The JSON Schema of the file", self.schema, "$defs"),
            self._get("/history", "config_history", "The last 50 configurations", self.history, "history"),
            self._get(number, "config_archived", "One of them, with what it changed", self.archived, "text", "diff"),
            self._get(service, "config_service", "A service as it is written", self.written_service, "settings"),
            self._get(server, "config_real_server", "A real server as it is written", self.written_server, "settings"),
            Operation("POST", "/api/v1/config/check", "config_check", "Every problem of a text; nothing is applied",
                      Role.ADMIN, self.check, ("problems", "warnings"), body=Text),
            self._put("", "config_replace", "Replace the whole file", self.replace, Text),
            self._put(service, "service_put", "Add or replace a service", self.put_service, Settings),
            self._delete(service, "service_remove", "Remove a service", self.remove_service),
            self._put(server, "real_server_put", "Add or replace a real server", self.put_server, RealServerSettings),
            self._delete(server, "real_server_remove", "Remove a real server", self.remove_server),
            self._put(member, "member_put", "Add a real server to a service, or change it there", self.put_member,
                      MemberSettings),
            self._delete(member, "member_remove", "Remove a real server from a service", self.remove_member),
            self._put(f"{member}/weight", "member_weight", "Change a real server's weight in a service",
                      self.weigh_member, Weight),
            self._put(f"{server}/weight", "real_server_weight", "Change a real server's weight", self.weigh_server,
                      Weight),
            Operation("POST", "/api/v1/config/maintenance/windows", "window_add", "Plan a maintenance window",
                      Role.ADMIN, self.add_window, ("diff", "applied"), DryRun, PlannedWindow, True, True),
            self._delete("/maintenance/windows/{number}", "window_remove", "Remove a planned window; the first is 1",
                         self.remove_window),
            Operation("POST", "/api/v1/profiles/{profile}/apply", "profile_apply", "Make a profile's services on one "
                      "address", Role.ADMIN, self.apply_profile, ("diff", "applied"), DryRun, Applied, True, True),
            Operation("POST", f"/api/v1/config{number}/rollback", "config_rollback", "Go back to this configuration",
                      Role.ADMIN, self.roll_back, ("diff", "applied"), DryRun, None, True, True),
        ]  # fmt: skip

    @staticmethod
    def _get(path: str, name: str, summary: str, handler: Any, *keys: str) -> Operation:
        return Operation("GET", f"/api/v1/config{path}", name, summary, Role.READ, handler, keys)

    @staticmethod
    def _put(path: str, name: str, summary: str, handler: Any, body: type[Given]) -> Operation:
        return Operation("PUT", f"/api/v1/config{path}", name, summary, Role.ADMIN, handler, ("diff", "applied"),
                         DryRun, body, guarded=True, audited=True)  # fmt: skip

    @staticmethod
    def _delete(path: str, name: str, summary: str, handler: Any) -> Operation:
        return Operation("DELETE", f"/api/v1/config{path}", name, summary, Role.ADMIN, handler, ("diff", "applied"),
                         DryRun, guarded=True, audited=True)  # fmt: skip

    # looking

    async def text(self, call: Call) -> Reply:
        text = self._configuration.text()
        body = {"path": str(self._configuration.path), "text": text, "pending": self._configuration.differs()}
        return Reply({**body, "etag": etag(text)}, headers={"ETag": etag(text)})

    async def schema(self, call: Call) -> dict[str, Any]:
        if self._schema is None:
            self._schema = json_schema()
        return self._schema

    async def history(self, call: Call) -> dict[str, Any]:
        archive = self._configuration.archive
        rows = [{"number": one.number, "at": one.at, "who": one.who, "what": one.what} for one in archive]
        return {"history": rows[::-1], "complaint": archive.complaint}

    async def archived(self, call: Call) -> dict[str, Any]:
        one = self._archived(call)
        before = self._configuration.archive.find(one.number - 1)
        changed = edit.difference(before.text, one.text) if before else ""
        to_now = edit.difference(self._configuration.text(), one.text, "now", f"number {one.number}")
        facts = {"number": one.number, "at": one.at, "who": one.who, "what": one.what}
        return {**facts, "text": one.text, "diff": changed, "diff_to_now": to_now}

    def _archived(self, call: Call) -> Any:
        number = int(call.path["number"])
        one = self._configuration.archive.find(number)
        if one is None:
            raise Refused(404, f"there is no configuration {number}", "GET /api/v1/config/history lists them")
        return one

    async def written_service(self, call: Call) -> Reply:
        return self._written(("services", call.path["service"]))

    async def written_server(self, call: Call) -> Reply:
        return self._written(("real_servers", call.path["real_server"]))

    def _written(self, path: edit.Path) -> Reply:
        text = self._configuration.text()
        return Reply({"settings": edit.value_at(text, path), "etag": etag(text)}, headers={"ETag": etag(text)})

    async def check(self, call: Call) -> dict[str, Any]:
        return {"problems": [], "warnings": self._configuration.check(call.body.text)}

    # changing

    async def replace(self, call: Call) -> Any:
        return await self._change(call, lambda _: str(call.body.text), "the whole file")

    async def put_service(self, call: Call) -> Any:
        path = ("services", call.path["service"])
        return await self._change(
            call, lambda text: edit.with_value(text, path, call.body.settings), f"service {path[1]}"
        )

    async def remove_service(self, call: Call) -> Any:
        path = ("services", call.path["service"])
        return await self._change(call, lambda text: edit.without(text, path), f"service {path[1]} removed")

    async def put_server(self, call: Call) -> Any:
        path = ("real_servers", call.path["real_server"])
        what = f"real server {path[1]}"
        return await self._change(call, lambda text: edit.with_value(text, path, call.body.settings), what)

    async def remove_server(self, call: Call) -> Any:
        path = ("real_servers", call.path["real_server"])
        return await self._change(call, lambda text: edit.without(text, path), f"real server {path[1]} removed")

    async def put_member(self, call: Call) -> Any:
        service, name = self._member(call)
        what = f"real server {name} in {service[1]}"
        return await self._change(call, lambda text: edit.with_member(text, service, name, call.body.settings), what)

    async def remove_member(self, call: Call) -> Any:
        service, name = self._member(call)
        what = f"real server {name} removed from {service[1]}"
        return await self._change(call, lambda text: edit.without_member(text, service, name), what)

    async def weigh_member(self, call: Call) -> Any:
        service, name = self._member(call)

        def weighed(text: str) -> str:
            written = edit.members(edit.value_at(text, (*service, "real_servers")))
            if name not in written:
                raise edit.MissingError(f"service {service[1]} has no real server {name} of its own in the file")
            settings = _with_weight(written[name], "port", call.body.weight)
            return edit.with_member(text, service, name, settings)

        return await self._change(call, weighed, f"weight {call.body.weight:g} for {name} in {service[1]}")

    async def weigh_server(self, call: Call) -> Any:
        path = ("real_servers", call.path["real_server"])

        def weighed(text: str) -> str:
            settings = _with_weight(edit.value_at(text, path), "address", call.body.weight)
            return edit.with_value(text, path, settings)

        return await self._change(call, weighed, f"weight {call.body.weight:g} for {path[1]}")

    async def add_window(self, call: Call) -> Any:
        window = call.body.model_dump(by_alias=True)
        words = f"maintenance window for {window['real_server']}"
        return await self._change(call, lambda text: edit.with_value(text, _WINDOWS, [*_windows(text), window]), words)

    async def remove_window(self, call: Call) -> Any:
        number = int(call.path["number"])

        def shortened(text: str) -> str:
            windows = _windows(text)
            if number > len(windows):
                raise edit.MissingError(f"there is no maintenance window {number}")
            return edit.with_value(text, _WINDOWS, windows[: number - 1] + windows[number:])

        return await self._change(call, shortened, f"maintenance window {number} removed")

    async def apply_profile(self, call: Call) -> Any:
        profile = found_profile(call.path["profile"])
        settings = {"profile": profile.name, **call.body.settings}
        if settings["profile"] != profile.name:
            raise Refused(400, f"the settings name profile {settings['profile']}, and the address {profile.name}")
        path = ("profiles", call.body.name)
        return await self._change(
            call, lambda text: edit.with_value(text, path, settings), f"profile {profile.name} as {path[1]}"
        )

    async def roll_back(self, call: Call) -> Any:
        one = self._archived(call)
        return await self._change(call, lambda _: str(one.text), f"back to configuration {one.number}")

    async def _change(self, call: Call, change: Change, what: str) -> Reply:
        told = await self._configuration.change(change, call.if_match, call.visitor.name, what, call.query.dry_run)
        return Reply(told, headers={"ETag": told["etag"]})

    @staticmethod
    def _member(call: Call) -> tuple[edit.Path, str]:
        return ("services", call.path["service"]), call.path["real_server"]


def _windows(text: str) -> list[Any]:
    """The windows as they are written."""
    found = edit.value_at(text, _WINDOWS) if edit.has(text, _WINDOWS) else []
    return found if isinstance(found, list) else []


def _with_weight(written: Any, short: str, weight: float) -> dict[str, Any]:
    """Settings with another weight; a word alone stands for a mapping with the word under `short`."""
    settings = written if isinstance(written, dict) else {} if written is None else {short: written}
    return {**settings, "weight": int(weight) if weight == int(weight) else weight}
