"""The part of the API that operates: drain, disable, enable, forget clients, reload.

Decides: that an action names what exists, and what is written down about it.
Refuses to know: how an action is done (the commands of the control socket do it).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mailbalancer.admin import views
from mailbalancer.admin.desk import Desk
from mailbalancer.admin.gate import Refused
from mailbalancer.admin.operation import Call, Given, Name, Operation
from mailbalancer.admin.tokens import Role


class Where(Given):
    """Which service; empty for all that have the real server."""

    service: Name | Literal[""] = ""


class Out(Given):
    """How long a real server is taken out, and where; empty: until it is brought back, everywhere."""

    until: str = Field(default="", max_length=40, description="02:00, or 2026-11-28 02:00, in the balancer's time")
    services: list[Name] = Field(default_factory=list, max_length=1000)
    force: bool = Field(default=False, description="Also when a service keeps fewer than its minimum_ready")


class Whom(Given):
    """Which clients are forgotten; empty for all."""

    group: str = Field(default="", max_length=256)
    key: str = Field(default="", max_length=256)


class Operating:
    """Commands, with the state before and after."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> list[Operation]:
        def post(path: str, name: str, summary: str, handler: Any, *keys: str, body: Any = None) -> Operation:
            return Operation(
                "POST", f"/api/v1{path}", name, summary, Role.OPERATE, handler, keys, body=body, audited=True
            )

        here = "/real-servers/{real_server}"
        return [
            post(f"{here}/drain", "drain", "No new clients; sessions and returning clients stay until the drain time "
                 "ends", self.drain, "state", "members", body=Where),
            post(f"{here}/disable", "disable", "No new sessions at all; open ones stay", self.disable, "state",
                 "members", body=Where),
            post(f"{here}/enable", "enable", "Take part again, with a ramp", self.enable, "state", "members",
                 body=Where),
            post(f"{here}/maintenance", "maintenance_start", "Drain it, close it once it is empty, bring it back at a "
                 "time", self.take_out, "stage", body=Out),
            post(f"{here}/maintenance/stop", "maintenance_stop", "Bring it back from maintenance", self.bring_back,
                 "stage"),
            post("/persistence/clear", "persistence_clear", "Forget clients: their next session is balanced anew",
                 self.clear, "cleared", body=Whom),
            post("/reload", "reload", "Apply the configuration file", self.reload, "changes", "warnings"),
        ]  # fmt: skip

    async def drain(self, call: Call) -> Any:
        return await self._want("drain", call)

    async def disable(self, call: Call) -> Any:
        return await self._want("disable", call)

    async def enable(self, call: Call) -> Any:
        return await self._want("enable", call)

    async def take_out(self, call: Call) -> Any:
        real_server, wanted = call.path["real_server"], call.body
        self._must_exist(real_server)
        before = self._states(real_server, "")
        result = await self._desk.obey(
            "maintenance_start",
            {
                "real_server": real_server,
                "services": wanted.services,
                "until": wanted.until,
                "force": wanted.force,
                "by": call.visitor.name,
            },
        )
        return {**result, "before": before}

    async def bring_back(self, call: Call) -> Any:
        self._must_exist(call.path["real_server"])
        return await self._desk.obey("maintenance_stop", {"real_server": call.path["real_server"]})

    def _must_exist(self, real_server: str) -> None:
        if not self._states(real_server, ""):
            raise Refused(404, f"there is no real server {real_server} in any service")

    async def clear(self, call: Call) -> Any:
        return await self._desk.obey("persistence_clear", {"group": call.body.group, "key": call.body.key})

    async def reload(self, call: Call) -> Any:
        return await self._desk.obey("reload", {})

    async def _want(self, action: str, call: Call) -> Any:
        real_server, service = call.path["real_server"], call.body.service
        before = self._states(real_server, service)
        if not before:
            where = f"service {service}" if service else "any service"
            raise Refused(404, f"there is no real server {real_server} in {where}")
        result = await self._desk.obey(action, {"real_server": real_server, "service": service})
        return {**result, "before": before}

    def _states(self, real_server: str, service: str) -> dict[str, str]:
        return {
            f"{one['name']}/{pool['route']}".rstrip("/"): server["admin"]
            for one in self._desk.report()["services"]
            if service in ("", one["name"])
            for pool, server in views.members(one)
            if server["name"] == real_server
        }
