"""What a reload changes: two configurations in, a list of changes out, as data and in words.

Decides: what counts as one thing (a service, a route, a real server in it) so that a change of its weight is not told
as one removed and another added; and which settings wait for a restart.
Refuses to know: how a change is applied.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mailbalancer import model

#: Fixed when the program starts: worker processes, the board, the control socket, who we are.
NEEDS_RESTART = frozenset({"workers", "board_slots", "control_socket", "state_file", "user"})
_NOT_SETTINGS = frozenset({"line", "path", "warnings", "name", "service", "route", "real_server"})

Key = tuple[str, ...]


class Kind(StrEnum):
    """What happened to a thing."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Change:
    """One change. `path` names the thing, `setting` what of it; `old` and `new` are texts."""

    kind: Kind
    path: Key
    setting: str = ""
    old: str = ""
    new: str = ""

    @property
    def needs_restart(self) -> bool:
        return not self.path and self.setting.partition(".")[0] in NEEDS_RESTART

    def __str__(self) -> str:
        thing = ", ".join(self.path)
        if self.kind is not Kind.CHANGED:
            return f"{thing} {self.kind}"
        setting = f"{self.setting} {self.old or 'none'} -> {self.new or 'none'}"
        restart = " (needs a restart)" if self.needs_restart else ""
        return f"{thing}: {setting}" if thing else f"{setting}{restart}"


def diff(old: model.Config, new: model.Config) -> list[Change]:
    """The changes from one configuration to another, in the order of the new one, removals last."""
    before, after = _Facts(old), _Facts(new)
    changes: list[Change] = []
    for thing, settings in after.things.items():
        if thing in before.things:
            changes.extend(_changed(thing, before.things[thing], settings))
        elif thing[:-1] in before.things:
            changes.append(Change(Kind.ADDED, thing))
    gone = [thing for thing in before.things if thing not in after.things and thing[:-1] in after.things]
    return changes + [Change(Kind.REMOVED, thing) for thing in gone]


def _changed(thing: Key, before: dict[str, str], after: dict[str, str]) -> list[Change]:
    keys = dict.fromkeys([*after, *before])
    return [
        Change(Kind.CHANGED, thing, key, before.get(key, ""), after.get(key, ""))
        for key in keys
        if before.get(key, "") != after.get(key, "")
    ]


class _Facts:
    """A configuration as things with settings; a thing's path begins with the thing it belongs to."""

    def __init__(self, config: model.Config) -> None:
        self.things: dict[Key, dict[str, str]] = {}
        self._take((), "", config, self.things.setdefault((), {}))

    def _take(self, thing: Key, setting: str, value: Any, settings: dict[str, str]) -> None:
        if isinstance(value, tuple) and value and (names := _names(value)):
            for name, entry in zip(names, value, strict=True):
                own = (*thing, name)
                self._fields(own, "", entry, self.things.setdefault(own, {}))
        elif dataclasses.is_dataclass(value) and not isinstance(value, model.Endpoint | model.Window):
            self._fields(thing, setting, value, settings)
        elif value is not None:
            settings[setting] = _text(value)

    def _fields(self, thing: Key, setting: str, value: Any, settings: dict[str, str]) -> None:
        for field in dataclasses.fields(value):
            if field.name in _NOT_SETTINGS:
                continue
            # a service's own pool is the service, as the operator wrote it
            below = setting if field.name == "pool" else f"{setting}.{field.name}".removeprefix(".")
            self._take(thing, below, getattr(value, field.name), settings)


def _names(entries: tuple[Any, ...]) -> list[str]:
    """What the entries of a tuple are called; empty when they have no names of their own."""
    first = entries[0]
    if isinstance(first, model.Member):
        return [f"real server {member.real_server}" for member in entries]
    words = {
        model.Service: "service",
        model.RealServer: "real server",
        model.Route: "route",
        model.Certificate: "certificate",
    }
    word = words.get(type(first))
    return [f"{word} {entry.name}" for entry in entries] if word else []


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_text(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bytes):
        return repr(value)[1:]
    return str(value)
