"""Requests that wait for news, and the channels of RPC over HTTP, which come in pairs.

Decides: when a request counts as waiting, and that a channel whose other half breaks is broken too: half a session is a
mail program that hangs until its own timeout.
Refuses to know: how long a wait lasts.

A pair is known within one worker. Where persistence by source address brings a client's connections together, that is
all of them; elsewhere it is left to the server, which ends the other half as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mailbalancer.balance.http_keys import activesync_query
from mailbalancer.wire.http_head import RequestHead
from mailbalancer.wire.http_long_poll import Wait, classify
from mailbalancer.wire.rpc_channel import session

if TYPE_CHECKING:
    from mailbalancer.worker.http_connection import HttpConnection

_ACTIVESYNC: Final = b"/microsoft-server-activesync"


def wait_of(head: RequestHead) -> Wait:
    """What a request waits for, by its head."""
    path = head.path
    coded = path[: len(_ACTIVESYNC)].lower() == _ACTIVESYNC and b"=" not in path.rstrip(b"=")
    return classify(head.method, path, head.values, activesync_query(path) if coded else b"")


class Channels:
    """The RPC channels of one service in this worker, by session."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, list[HttpConnection]] = {}

    def __len__(self) -> int:
        """Sessions with a channel here."""
        return len(self._sessions)

    def opened(self, connection: HttpConnection, beginning: bytes | memoryview) -> bytes:
        """A channel's body begins so. Returns its session, for `closed`; empty when it names none."""
        cookie = session(beginning)
        if cookie:
            self._sessions.setdefault(cookie, []).append(connection)
        return cookie

    def closed(self, connection: HttpConnection, cookie: bytes, *, broken: bool) -> None:
        """A channel has ended. `broken`: not as it should; then what belongs to it ends as well."""
        others = self._sessions.get(cookie, [])
        if connection in others:
            others.remove(connection)
        if not others:
            self._sessions.pop(cookie, None)
        elif broken:
            del self._sessions[cookie]
            for other in others:
                other.end("rpc_peer_closed", reset=True)
