"""TLS sessions with real servers, so that the next connection to the same one needs half a handshake.

Decides: what a session is remembered for (the context it was verified by, the endpoint and the expected name: nothing
verified for one is ever taken for another), and how many are kept.
Refuses to know: sockets and time. OpenSSL knows when a session is too old, the server whether it still wants it.

A resumed session carries the verification of the handshake that began it, for as long as the server's ticket lives
(hours at most); active checks look at the certificate itself each time.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict

from mailbalancer.model import Endpoint

#: Few KiB each; one per real server, name and way to verify.
SIZE = 1024

_Key = tuple[ssl.SSLContext, Endpoint, str]


class Sessions:
    """One per worker."""

    def __init__(self, size: int = SIZE) -> None:
        self._size = size
        self._kept: OrderedDict[_Key, ssl.SSLSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def session(self, context: ssl.SSLContext, endpoint: Endpoint, name: str) -> ssl.SSLSession | None:
        """For `wrap_socket(…, session=…)` with the same context."""
        return self._kept.get((context, endpoint, name))

    def remember(self, connection: ssl.SSLSocket, endpoint: Endpoint, name: str) -> None:
        """Keep what a connection that is trusted has agreed on.

        To be called after the server has said something (with TLS 1.3 it sends its tickets after the handshake), and
        not before `verify.after_handshake` had nothing against it.
        """
        session = connection.session
        by_id = connection.version() != "TLSv1.3"  # there a session without a ticket cannot be resumed
        if session is None or not (session.has_ticket or (by_id and session.id)):
            return
        key = (connection.context, endpoint, name)
        self._kept[key] = session
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def forget(self, endpoint: Endpoint) -> None:
        """The server has changed: what was agreed with it counts no more."""
        for key in [key for key in self._kept if key[1] == endpoint]:
            del self._kept[key]
