"""What is told about requests and connections: the access log, and the list of sessions.

Decides: which facts of a request are told, also of those that no server has seen. Not the query: it carries users,
devices and sometimes secrets.
Refuses to know: how a line is written (`log`), which makes whatever a client sent safe to show.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

from mailbalancer.model import Endpoint
from mailbalancer.tls.offer import ClientSocket
from mailbalancer.worker.placement import left_from

if TYPE_CHECKING:
    from mailbalancer.worker.http_lifetime import Lifetime

_LONGEST: Final = 200
_LONGEST_AGENT: Final = 120

Value = str | int | float | bool | None


def request_facts(connection: Lifetime, now: float, failure: str) -> dict[str, Value]:
    """One finished request.

    Fields: `queue_s` until a server was chosen, `connect_s` until it was connected (0: it was already),
    `first_byte_s` from the request to the head of the answer, `total_s` from the first byte of the request.
    """
    head, link = connection.head, connection.link
    if link is not None and link.served and not connection.sent_at:
        link = None  # it is there from another request; this one was answered by us
    target = link.target if link is not None else None
    facts: dict[str, Value] = {
        "service": connection.service.name,
        "route": connection.route_name or None,
        "client": str(Endpoint(connection.source, connection.port)),
        "method": _text(head.method) if head else None,
        "host": head.host if head else None,
        "path": _text(head.path.partition(b"?")[0])[:_LONGEST] if head else None,
        "status": connection.status or None,
        "server": target.name if target else None,
        "why": (link.why or None) if link is not None else None,
        "in": connection.bytes_in,
        "out": connection.bytes_out,
        **_timings(connection, now),
    }
    if connection.source != connection.peer:
        facts["peer"] = connection.peer
    facts.update(_tls_facts(connection))
    if head is not None:
        for name, field, longest in _SHOWN:
            values = head.values.get(field)
            if values:
                facts[name] = _text(values[0])[:longest]
    if link is not None and link.tried:
        facts["tried"] = ",".join(link.tried)
    if failure:
        facts["failure"] = failure
    return facts


_SHOWN: Final = (("request_id", b"client-request-id", _LONGEST), ("agent", b"user-agent", _LONGEST_AGENT))


def session_facts(connection: Lifetime, now: float, worker: int) -> dict[str, str | int | float]:
    """A connection as `mailbalancer sessions` shows it."""
    link, poll = connection.link, connection.poll
    target = link.target if link is not None else None
    return {
        "service": connection.service.name,
        "client": str(Endpoint(connection.source, connection.port)),
        "listen": str(connection.endpoint),
        "server": target.name if target else "",
        "server_address": str(target.endpoint) if target else "",
        "left_from": left_from(link.stream.sock if link.stream is not None else link.server)
        if link is not None
        else "",
        "why": link.why if link is not None else "",
        "age_s": round(now - connection.started_at, 3),
        "idle_s": round(now - connection.active_at, 3),
        "bytes_in": connection.bytes_in,
        "bytes_out": connection.bytes_out,
        "state": "tunnel" if connection.in_tunnel else connection.stage.name.lower(),
        "route": connection.route_name,
        "requests": connection.requests,
        "long_poll": poll.wait.value if poll.counted else "",
        "pinned": int(connection.tied),
        "worker": worker,
    }


def tls_words(error: OSError) -> str:
    """What OpenSSL says about a client's handshake, as words."""
    if isinstance(error, ssl.SSLEOFError):
        return "the client went away"
    reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return (reason or str(error)).replace("_", " ").lower()


def broken_words(error: OSError) -> str:
    """What the kernel says about a connection that failed, as words."""
    return os.strerror(error.errno).lower() if error.errno else str(error).lower()


def _timings(connection: Lifetime, now: float) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    link, sent_at = connection.link, connection.sent_at
    if sent_at:
        fresh = link is not None and link.connect_at >= connection.asked_at
        chosen_at = link.connect_at if link is not None and fresh else sent_at
        facts["queue_s"] = chosen_at - connection.asked_at
        facts["connect_s"] = sent_at - chosen_at
    if connection.first_at:
        facts["first_byte_s"] = connection.first_at - sent_at
    facts["total_s"] = now - connection.head_at
    return facts


def _tls_facts(connection: Lifetime) -> dict[str, Value]:
    """Version and SNI of the client's TLS."""
    tls = connection.tls
    if tls is None:
        return {}
    facts: dict[str, Value] = {"tls": tls.version()}
    if isinstance(tls, ClientSocket) and tls.asked_name:
        facts["sni"] = tls.asked_name[:_LONGEST]
    return facts


def _text(value: bytes) -> str:
    return value.decode("latin-1")
