"""Which slot of the board belongs to which member or service.

Decides: that a slot keeps its meaning through every reload, and is given to somebody else only when no session is
counted on it any more.
Refuses to know: what is counted there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from mailbalancer.errors import MailbalancerError
from mailbalancer.ipc.board import Board, Count
from mailbalancer.model import Config, MemberKey, SourceKey

#: A member, one of our addresses towards a member, or a service by its name.
Owner = MemberKey | SourceKey | str


@dataclass(frozen=True, slots=True)
class Allocation:
    """The slots of one configuration."""

    members: dict[MemberKey, int]
    services: dict[str, int]
    sources: dict[SourceKey, int] = field(default_factory=dict)


class Slots:
    """Gives slots. A plan changes nothing that is in use; `commit` makes it the one that is."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._owner: dict[Owner, int] = {}  # also owners of earlier configurations, until somebody needs the slot
        self._used: set[int] = set()

    def plan(self, config: Config) -> Allocation:
        """Slots for this configuration: the ones its members and services have, or had, and fresh ones for the rest.

        Raises:
            MailbalancerError: the board is full.
        """
        members = dict.fromkeys(pool.key(member) for pool in config.pools() for member in pool.members)
        services = [service.name for service in config.services]
        sources = dict.fromkeys(key for service in config.services for key in service.source_keys())
        wanted: list[Owner] = [*members, *services, *sources]
        held = {key: self._owner[key] for key in wanted if key in self._owner}
        missing = [key for key in wanted if key not in held]
        free = list(islice(self._free(set(held.values())), len(missing)))
        if len(free) < len(missing):
            raise MailbalancerError(
                f"this configuration needs {len(wanted)} places on the board, which has {self._board.slots}: "
                f"{len(missing) - len(free)} are missing, as sessions of removed real servers still hold theirs",
                "wait for those sessions to end, or restart mailbalancer",
            )
        for key, slot in zip(missing, free, strict=False):
            self._board.clear_slot(slot)
            held[key] = slot
        return Allocation(
            {key: held[key] for key in members},
            {name: held[name] for name in services},
            {key: held[key] for key in sources},
        )

    def commit(self, allocation: Allocation) -> None:
        """This allocation is in use now."""
        everybody: list[tuple[Owner, int]] = [
            *allocation.members.items(),
            *allocation.services.items(),
            *allocation.sources.items(),
        ]
        taken = dict(everybody)
        self._used = set(taken.values())
        earlier = {key: slot for key, slot in self._owner.items() if slot not in self._used}
        self._owner = earlier | taken

    def _free(self, held: set[int]) -> Iterator[int]:
        """Slots that may get a new owner; those that remember a removed one last, so that it finds its totals again."""
        busy = self._used | held
        remembered = set(self._owner.values()) - busy
        fresh = (slot for slot in range(self._board.slots) if slot not in busy and slot not in remembered)
        return filter(self._is_idle, chain(fresh, sorted(remembered)))

    def _is_idle(self, slot: int) -> bool:
        return self._board.total(slot, Count.SESSIONS) == 0 and self._board.total(slot, Count.QUEUED) == 0
