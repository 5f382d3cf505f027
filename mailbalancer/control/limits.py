"""Limits that are reached: told once when that happens, and once when there is room again.

Decides: what counts as full, and how far below the limit there is room again, so that a service that sits at its limit
is not told of every second.
Refuses to know: what becomes of a session that finds no place (the workers decide).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mailbalancer.control.events import Events
from mailbalancer.control.slots import Allocation
from mailbalancer.ipc.board import Board, Count
from mailbalancer.model import Config, Service, SourceKey

#: How often it is looked.
LOOK_S = 1.0
#: There is room again below this share of the limit.
ROOM_SHARE = 0.9
_ELSEWHERE = "others take the new ones, or they wait"


class Subject(NamedTuple):
    """Something with a limit: where its sessions are counted, and what happens beyond."""

    name: str
    slots: tuple[int, ...]
    limit: int
    then: str


class LimitWatch:
    """Follows the running configuration."""

    def __init__(self, board: Board, events: Events) -> None:
        self._board = board
        self._events = events
        self._subjects: tuple[Subject, ...] = ()
        self._full: set[str] = set()
        self._looked_at = 0.0

    def follow(self, config: Config, allocation: Allocation) -> None:
        """This configuration runs now."""
        self._subjects = tuple(_subjects(config, allocation))
        self._full &= {subject.name for subject in self._subjects}

    def tick(self, now: float) -> None:
        """Look, if it is time."""
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        for subject in self._subjects:
            self._look(subject)

    def _look(self, subject: Subject) -> None:
        used = sum(self._board.total(slot, Count.SESSIONS) for slot in subject.slots)
        of = f"{used} of {subject.limit} sessions"
        if used >= subject.limit and subject.name not in self._full:
            self._full.add(subject.name)
            self._events.warning(f"{subject.name} is full: {of}; {subject.then}")
        elif used < ROOM_SHARE * subject.limit and subject.name in self._full:
            self._full.discard(subject.name)
            self._events.info(f"{subject.name} has room again: {of}")


def _subjects(config: Config, allocation: Allocation) -> Iterator[Subject]:
    for service in config.services:
        if service.max_sessions and service.l4 is None:
            then = "new ones are refused"
            yield Subject(service.name, (allocation.services[service.name],), service.max_sessions, then)
        yield from _members(service, allocation)
        yield from _sources(service, allocation)
    for machine in config.real_servers:
        if machine.max_sessions:
            slots = tuple(slot for key, slot in allocation.members.items() if key.real_server == machine.name)
            yield Subject(f"real server {machine.name}", slots, machine.max_sessions, _ELSEWHERE)


def _members(service: Service, allocation: Allocation) -> Iterator[Subject]:
    for pool in service.pools():
        for member in pool.members:
            if member.max_sessions:
                place = f"{service.name}/{pool.route}".rstrip("/")
                slots = (allocation.members[pool.key(member)],)
                yield Subject(f"{place}: {member.real_server}", slots, member.max_sessions, _ELSEWHERE)


def _sources(service: Service, allocation: Allocation) -> Iterator[Subject]:
    limit = service.source.per_source_limit
    if not limit:
        return
    for one in service.source.classes:
        for address in one.addresses:
            for member in service.pool.members:
                slot = allocation.sources[SourceKey(address, member.endpoint)]
                name = f"{service.name}: {address} of class {one.name} at {member.real_server}"
                then = "another address of the class is used, or the session waits"
                yield Subject(name, (slot,), limit, then)
