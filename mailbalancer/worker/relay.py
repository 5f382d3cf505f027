"""A client and a server joined: the two flows of a session and the order in which they end.

Decides: which flow an event moves, and how a session is said to have ended.
Refuses to know: why these two sockets belong together, and what is done at the end.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final, Protocol

from mailbalancer.ipc.board import Count
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.flow import Flow
from mailbalancer.worker.reactor import BROKEN, HANGUP, READ, WRITE

# Looking a member of an enum up costs more than what is done with it here.
_BYTES_IN: Final = int(Count.BYTES_IN)
_BYTES_OUT: Final = int(Count.BYTES_OUT)


class Owner(Protocol):
    """The session."""

    def half_closed(self, by: str) -> None:
        """The first side has closed (`client_closed` or `server_closed`); the other may still speak."""

    def end(self, reason: str, *, reset: bool = False) -> None:
        """The session is over."""

    def note(self, failure: str) -> None:
        """Words for the log line."""


class Relay:
    """Both flows. `on_client` and `on_server` are the reactor's handlers while bytes flow."""

    __slots__ = ("_owner", "_reactor", "_relays", "active_at", "down", "first_end", "up")

    def __init__(
        self, engine: Engine, owner: Owner, client: socket.socket, server: socket.socket, buffer: memoryview, slot: int
    ) -> None:
        self._reactor = engine.reactor
        self._relays = engine.relays
        self._relays.add(self)
        self._owner = owner
        self.active_at = engine.reactor.now
        self.first_end = ""
        self.up = Flow(engine, self, client, server, buffer, engine.cell(slot, _BYTES_IN))
        self.down = Flow(engine, self, server, client, buffer, engine.cell(slot, _BYTES_OUT))

    def on_client(self, events: int) -> None:
        self.active_at = self._reactor.now
        up = self.up
        if events & HANGUP:
            self._hung_up("client", up, events)
        elif events & READ and not up.blocked:
            up.pump()
        if events & WRITE and self.down.blocked:
            self.down.pump()

    def on_server(self, events: int) -> None:
        self.active_at = self._reactor.now
        down = self.down
        if events & HANGUP:
            self._hung_up("server", down, events)
        elif events & READ and not down.blocked:
            down.pump()
        if events & WRITE and self.up.blocked:
            self.up.pump()

    def _hung_up(self, side: str, flow: Flow, events: int) -> None:
        """This side has closed or broken: read it to the end.

        A break is found by reading. Where nothing is read, because the end was read before or the other side takes no
        more, the event is all there will ever be: without it the other side would learn of the break at the idle
        timeout.
        """
        flow.hangup = True
        if not flow.blocked:
            flow.pump()
        if events & BROKEN and (flow.blocked or flow.over):
            self.failed(side, ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def rest(self) -> None:
        """Nothing has moved for a while."""
        self.up.rest()
        self.down.rest()

    def settle(self) -> None:
        """Bring the board's counters up to date."""
        self.up.settle()
        self.down.settle()

    def close(self) -> None:
        """The session is over."""
        self._relays.discard(self)
        self.up.close()
        self.down.close()

    def flow_ended(self, flow: Flow) -> None:
        """One direction is finished; the session is when both are, and closing says what a half-close would."""
        if self.first_end:
            self._owner.end(self.first_end)
            return
        self.first_end = "client_closed" if flow is self.up else "server_closed"
        if flow.pass_end_on():
            self._owner.half_closed(self.first_end)

    def flow_broke(self, flow: Flow, at_source: bool, error: OSError) -> None:
        """A socket failed: nothing that looks like an orderly end reaches the other side."""
        self.failed("client" if (flow is self.up) == at_source else "server", error)

    def failed(self, side: str, error: OSError) -> None:
        """`side` (client or server) broke."""
        if error.errno not in (errno.ECONNRESET, errno.EPIPE):
            self._owner.note(f"{side}: {(error.strerror or str(error)).lower()}")
        self._owner.end(f"{side}_reset", reset=True)
