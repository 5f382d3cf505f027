"""What a reload changes, in words.

Decides: which differences between two configurations are worth a sentence, and which settings wait for a restart.
Refuses to know: how a change is applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from mailbalancer.model import Config, Pool, Service

_AT_START = {
    "workers": "the number of workers",
    "control_socket": "the control socket",
    "state_file": "the state file",
    "user": "the user it runs as",
    "board_slots": "the size of the board",
}
_OF_THE_MACHINE_ROOM = {"line", "pool", "routes", "name"}


def needs_restart(before: Config, after: Config) -> list[str]:
    """Settings of the new file that do not hold before the next start."""
    return [
        f"`{name}` is {getattr(after, name)} in the file; {what} changes only with a restart "
        f"(now: {getattr(before, name)})"
        for name, what in _AT_START.items()
        if getattr(before, name) != getattr(after, name)
    ]


def changes(before: Config, after: Config) -> list[str]:
    """One sentence for each thing added, removed or changed."""
    old = {service.name: service for service in before.services}
    new = {service.name: service for service in after.services}
    sentences = [f"service {name} added" for name in new if name not in old]
    sentences += [f"service {name} removed" for name in old if name not in new]
    for name in new:
        if name in old:
            sentences += [f"{name}: {what}" for what in _of_service(old[name], new[name])]
    if before.log != after.log:
        sentences.append("log settings changed")
    return sentences


def _of_service(before: Service, after: Service) -> Iterator[str]:
    yield from _differences(before, after)
    old = {pool.route: pool for pool in before.pools()}
    new = {pool.route: pool for pool in after.pools()}
    for route in [*new, *(route for route in old if route not in new)]:
        where = f"route {route} " if route else ""
        if route in new and route in old:
            yield from (where + what for what in _of_pool(old[route], new[route]))
        else:
            yield f"{where or 'its own pool '}{'added' if route in new else 'removed'}"


def _of_pool(before: Pool, after: Pool) -> Iterator[str]:
    yield from _differences(before, after)
    old = {member.real_server: member for member in before.members}
    new = {member.real_server: member for member in after.members}
    yield from (f"real server {name} added" for name in new if name not in old)
    yield from (f"real server {name} removed" for name in old if name not in new)
    for name in new:
        if name in old:
            yield from (f"{name} {what}" for what in _differences(old[name], new[name]))


def _differences(before: object, after: object) -> Iterator[str]:
    """Settings that differ. Short values are shown; of long ones only that they changed."""
    for setting in fields(after):  # type: ignore[arg-type]
        name = setting.name
        if name in _OF_THE_MACHINE_ROOM | {"members", "service", "route"}:
            continue
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            plain = isinstance(old, (str, int, float)) and isinstance(new, (str, int, float))
            yield f"{name} {old or 'none'} → {new or 'none'}" if plain else f"{name} changed"
