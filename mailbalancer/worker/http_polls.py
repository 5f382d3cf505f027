"""Requests that wait for news, and the channels of RPC over HTTP, which come in pairs.

Decides: when a request counts as waiting, and that a channel whose other half breaks is broken too: half a session is a
mail program that hangs until its own timeout.
Refuses to know: how long a wait lasts.

The halves of a session may be in different workers, which do not know each other's: where one breaks, the others are
told, through the supervisor, and end what they have of it. What brings both halves to one server is persistence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mailbalancer.balance.http_keys import activesync_query
from mailbalancer.ipc.board import Count
from mailbalancer.wire.http_head import RequestHead
from mailbalancer.wire.http_long_poll import Wait, classify, in_body
from mailbalancer.wire.rpc_channel import session
from mailbalancer.worker.engine import Engine

if TYPE_CHECKING:
    from mailbalancer.worker.http_lifetime import Lifetime
    from mailbalancer.worker.http_service import HttpService

_ACTIVESYNC: Final = b"/microsoft-server-activesync"


def wait_of(head: RequestHead) -> Wait:
    """What a request waits for, by its head."""
    path = head.path
    coded = path[: len(_ACTIVESYNC)].lower() == _ACTIVESYNC and b"=" not in path.rstrip(b"=")
    return classify(head.method, path, head.values, activesync_query(path) if coded else b"")


class Poll:
    """What the request at hand of one connection waits for, and where that is counted.

    Attributes:
        wait: PERHAPS_EWS until the body has told.
        counted: whether it counts as a long poll.
    """

    __slots__ = ("_cell", "_engine", "_rpc_session", "_service", "_slot", "_until", "counted", "wait")

    def __init__(self, engine: Engine, service: HttpService) -> None:
        self._engine = engine
        self._service = service
        self._slot = self._cell = -1
        self._until = 0.0
        self._rpc_session = b""
        self.counted = False
        self.wait = Wait.NOT

    def asked(self, connection: Lifetime, head: RequestHead, beginning: bytes) -> None:
        """A request; `beginning` is what is there of its body."""
        self._slot = -1
        self._waits(wait_of(head))
        if beginning:
            self.look_into(connection, beginning)

    def look_into(self, connection: Lifetime, beginning: bytes | memoryview) -> None:
        """The first piece of a body tells what the head did not."""
        if self.wait is Wait.PERHAPS_EWS:
            self._waits(in_body(beginning))
        elif self.wait is Wait.RPC and not self._rpc_session:
            self._rpc_session = self._service.channels.opened(connection, beginning)

    def sent(self, slot: int, until: float) -> None:
        """Its server is known: who takes that out wants to know what he waits for, and how long.

        Args:
            until: when the wait ends if nothing comes.
        """
        self._slot, self._until = slot, until
        if self.counted:
            self._count_at_server()

    def lasts(self, until: float) -> None:
        """Something came, so the wait may last longer; without such news the end that was told stands."""
        if self._cell >= 0:
            cell = self._engine.cell(self._slot, Count.POLLS_END_AT)
            floats = self._engine.board.floats
            floats[cell] = max(floats[cell], until)

    def over(self, connection: Lifetime, *, broken: bool) -> None:
        """The request is over; `broken`: not as it should."""
        self.wait = Wait.NOT
        if self.counted:
            self.counted = False
            self._engine.ints[self._service.long_polls_cell] -= 1
            if self._cell >= 0:
                self._engine.ints[self._cell] -= 1
                self._cell = -1
        if self._rpc_session:
            cookie, self._rpc_session = self._rpc_session, b""
            self._service.channels.closed(connection, cookie, broken=broken)

    def _waits(self, wait: Wait) -> None:
        self.wait = wait
        if wait not in (Wait.NOT, Wait.PERHAPS_EWS):
            self.counted = True
            self._engine.ints[self._service.long_polls_cell] += 1
            if self._slot >= 0:
                self._count_at_server()

    def _count_at_server(self) -> None:
        self._cell = self._engine.cell(self._slot, Count.LONG_POLLS)
        self._engine.ints[self._cell] += 1
        self.lasts(self._until)


class Channels:
    """The RPC channels of one service in this worker, by session.

    Args:
        tell: the other workers that this session is broken.
    """

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        self._tell = tell
        self._sessions: dict[bytes, list[Lifetime]] = {}

    def __len__(self) -> int:
        """Sessions with a channel here."""
        return len(self._sessions)

    def opened(self, connection: Lifetime, beginning: bytes | memoryview) -> bytes:
        """A channel's body begins so. Returns its session, for `closed`; empty when it names none."""
        cookie = session(beginning)
        if cookie:
            self._sessions.setdefault(cookie, []).append(connection)
        return cookie

    def closed(self, connection: Lifetime, cookie: bytes, *, broken: bool) -> None:
        """A channel has ended. `broken`: not as it should; then what belongs to it ends as well, wherever it is."""
        others = self._sessions.get(cookie, [])
        if connection not in others:
            return  # ended with its session
        others.remove(connection)
        if broken:
            self._tell(cookie)
            self.end(cookie)
        elif not others:
            del self._sessions[cookie]

    def end(self, cookie: bytes) -> None:
        """This session is broken: nothing of it is left here."""
        for channel in self._sessions.pop(cookie, []):
            channel.end("rpc_peer_closed", reset=True)
