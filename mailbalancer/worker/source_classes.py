"""Which of our addresses sessions leave from, where the clients of a service are divided into classes.

Decides: a client's class, and the first address of it that has room at the server that was chosen.
Refuses to know: why a server was chosen, and what becomes of clients for whom no address has room (`service`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mailbalancer import model
from mailbalancer.balance.admit import AddressLists
from mailbalancer.ipc.board import Count
from mailbalancer.model import Endpoint, SourceKey
from mailbalancer.worker.engine import Engine


class Leave(NamedTuple):
    """An address of ours to connect from, and the slot on which the session is counted for it."""

    address: str
    slot: int


class SourceClasses:
    """Of one service in one worker.

    Args:
        slots: where sessions of one of our addresses at one real server are counted.

    Attributes:
        refuses: clients for whom no address has room do not wait in the queue.
    """

    def __init__(self, engine: Engine, source: model.Source, slots: Mapping[SourceKey, int]) -> None:
        self._engine = engine
        self._source = source
        self._slots = slots
        self._classes = [(one, AddressLists(one.clients, ())) for one in source.classes]
        self.refuses = source.when_full == "refuse"

    def of(self, client: str) -> model.SourceClass | None:
        """The class of this client."""
        return next((one for one, clients in self._classes if clients.admits(client)), None)

    def leave(self, client: str, slot: int, endpoint: Endpoint) -> Leave | None:
        """From which address a session for this client goes to the real server there, which is counted on `slot`.
        Counted before it is looked at, in every worker, so the limit is never exceeded. None: no address has room."""
        one, engine = self.of(client), self._engine
        limit = self._source.limit_at(engine.view.sessions(slot))
        for address in one.addresses if one is not None else ():
            if (":" in address) != endpoint.is_ipv6:
                continue
            counted_on = self._slots[SourceKey(address, endpoint)]
            cell = engine.cell(counted_on, Count.SESSIONS)
            engine.ints[cell] += 1
            if not limit or engine.view.sessions(counted_on) <= limit:
                return Leave(address, counted_on)
            engine.ints[cell] -= 1
        return None
