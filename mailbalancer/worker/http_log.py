"""The access log: one line for every request, also for those that no server has seen.

Decides: which facts of a request are told. Not the query: it carries users, devices and sometimes secrets.
Refuses to know: how a line is written (`log`), which makes whatever a client sent safe to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mailbalancer.model import Endpoint

if TYPE_CHECKING:
    from mailbalancer.worker.http_connection import HttpConnection

_LONGEST: Final = 200
_LONGEST_AGENT: Final = 120

Value = str | int | float | bool | None


def request_facts(connection: HttpConnection, now: float, failure: str) -> dict[str, Value]:
    """One finished request.

    Fields: `queue_s` until a server was chosen, `connect_s` until it was connected (0: it was already),
    `first_byte_s` from the request to the head of the answer, `total_s` from the first byte of the request.
    """
    head, link = connection.head, connection.link
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
        **connection.timings(now),
    }
    if connection.source != connection.peer:
        facts["peer"] = connection.peer
    facts.update(connection.tls_facts())
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


def _text(value: bytes) -> str:
    return value.decode("latin-1")
