"""Blank TLS contexts made before the first fork, so that every worker resumes the sessions of every other.

OpenSSL makes the keys of session tickets in SSL_CTX_new, and Python shows them to nobody; but a fork copies them. So
the supervisor makes a number of contexts before it forks and leaves them blank; each worker, also one forked later,
finds the same contexts with the same keys, and configures its own copy. A context is known by its place in the pool,
which the supervisor gives to a service and tells the workers.

What was found (OpenSSL 3.0, CPython 3.11 to 3.13, real forks, openssl s_client as the client; tests/tls holds it):
- A ticket of one worker is resumed by the others, with TLS 1.2 and 1.3, also by a worker forked later and for a service
  that was added after the fork and took a place that was still blank.
- Tickets are made and read with the keys of the context that the connection began with (`session_ctx`), not of the one
  that the SNI callback switches to. So a service needs one context from here, and those with the certificates may be
  made afresh at each reload, in each worker: tickets from before a reload are resumed after it, with the old key, a new
  key, and a key of another type.
- Two contexts never share keys: a session of one service is not resumed by another.
- TLS 1.2 sessions without tickets (by session id) live in the memory of one worker only. Every client of these days
  knows tickets.

Decides: which place belongs to whom. The keys live as long as the supervisor, so a place is not given to another
service while there are fresh ones, and the longest unused one is taken then.
Refuses to know: certificates, and what a service is.
"""

from __future__ import annotations

import ssl

#: About 15 KiB each, shared by all workers until they are configured.
SIZE = 128
#: The place of a service when all are taken: its workers resume only what they began themselves.
NOWHERE = -1


class ContextPool:
    """Made by the supervisor before the first fork; `place` is for the supervisor, `take` for a worker."""

    def __init__(self, size: int = SIZE) -> None:
        self._contexts = tuple(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(size))
        self._places: dict[str, int] = {}  # oldest use first
        self._fresh = list(range(size - 1, -1, -1))

    def place(self, owners: list[str]) -> dict[str, int]:
        """The place of each owner, the same as before for those that had one.

        Args:
            owners: every owner that is in use from now on. Whoever must not resume the sessions of its predecessor
                (other client authorities) is another owner: `owner_name` makes the difference.
        """
        wanted = dict.fromkeys(owners)
        idle = [owner for owner in self._places if owner not in wanted]
        for owner in wanted:
            at = self._places.pop(owner, None)
            if at is None:
                at = self._vacant(idle)
            if at != NOWHERE:
                self._places[owner] = at  # last in order again: just used
        return {owner: self._places.get(owner, NOWHERE) for owner in wanted}

    def take(self, place: int) -> ssl.SSLContext:
        """The context at a place; at NOWHERE, and beyond the end, a new one."""
        if 0 <= place < len(self._contexts):
            return self._contexts[place]
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def _vacant(self, idle: list[str]) -> int:
        if self._fresh:
            return self._fresh.pop()
        return self._places.pop(idle.pop(0)) if idle else NOWHERE
