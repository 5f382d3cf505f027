"""Heads on their way through: what each side is told of the other.

Decides: the bytes of the head that a server gets and of the one that a client gets, from the head that came, the route
it takes and what is known of the client.
Refuses to know: sockets, and what happens next.

Fields that come again and again (`wire.http_head.Fields`) are rewritten once for each route and client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mailbalancer.wire.forwarded import Identity, forwarded_field, x_forwarded_fields
from mailbalancer.wire.hop_by_hop import Connection, cuts, upgrade_fields
from mailbalancer.wire.http_head import RequestHead, ResponseHead
from mailbalancer.worker.http_route import SEPARATOR, Route

if TYPE_CHECKING:
    from mailbalancer.worker.http_service import HttpService

_END_OF_LINE: Final = b"\r\n"


def request_parts(route: Route, head: RequestHead, connection: Connection) -> tuple[bytes, bytes]:
    """The head for the server, in two parts: hop-by-hop fields and claims about the client out, what the route adds in.

    What we know about the client goes between the parts. The second ends with the empty line.
    """
    fields = head.fields
    if fields is None:
        kept, added = _request_fields(route, head, connection)
        return b"%b %b HTTP/1.1%b" % (head.method, head.path or head.target, kept), added  # CONNECT has no path
    known: tuple[bytes, bytes] | None = fields.made(route)
    if known is None:
        known = _request_fields(route, head, connection)
        fields.keep(route, known)
    return b"%b %b HTTP/1.1%b" % (head.method, head.target, known[0]), known[1]


def _request_fields(route: Route, head: RequestHead, connection: Connection) -> tuple[bytes, bytes]:
    drop, added = route.request_drop, route.request_fields
    if route.prefixes and b"cookie" in head.values:
        cookies = route.unmarked(head.values[b"cookie"])
        if cookies is not None:
            drop = drop | {b"cookie"}
            added += cookies
    if connection.upgrade:
        added += upgrade_fields(connection)
    if head.authority and b"host" not in head.values:  # of a URL; only HTTP/1.0 may come without
        added += host_field(head.authority)
    raw = head.without(cuts(head, connection, drop))
    return raw[raw.index(_END_OF_LINE) : -2], added + _END_OF_LINE


def host_field(authority: bytes) -> bytes:
    """The line that names the host, for a request of HTTP/1.0 that has none."""
    return b"Host: %b\r\n" % authority


class Manner(NamedTuple):
    """How an answer is handed on.

    Attributes:
        closes: the client's connection ends after it.
        switches: it is the agreement to another protocol.
        unchunks: the client knows no chunks.
        keeps_alive: the client must be told that the connection goes on (HTTP/1.0).
    """

    closes: bool
    switches: bool
    unchunks: bool
    keeps_alive: bool


def answer_head(
    service: HttpService,
    route: Route,
    server: str,
    head: ResponseHead,
    connection: Connection,
    manner: Manner,
) -> bytes:
    """The head for the client, without the empty line: a cookie of ours may follow.

    Args:
        server: name of the real server that answers.
    """
    added, drop = route.response_fields, route.response_drop
    if b"set-cookie" in head.values and route.reads_cookies:
        drop, added = _server_cookies(service, route, server, head, drop, added)
    if manner.switches:
        added += upgrade_fields(connection)
    elif manner.closes:
        added += b"Connection: close\r\n"
    elif manner.keeps_alive:
        added += b"Connection: keep-alive\r\n"
    if manner.unchunks:
        drop = drop | {b"transfer-encoding"}
    fields = head.fields
    if fields is None:
        return as_http_1_1(head, head.without(cuts(head, connection, drop), added))[:-2]
    rest: bytes | None = fields.made((added, drop))
    if rest is None:
        raw = head.without(cuts(head, connection, drop), added)
        rest = raw[raw.index(_END_OF_LINE) : -2]
        fields.keep((added, drop), rest)
    return b"HTTP/1.1 %d %b%b" % (head.status, head.reason, rest)


def _server_cookies(
    service: HttpService, route: Route, server: str, head: ResponseHead, drop: frozenset[bytes], added: bytes
) -> tuple[frozenset[bytes], bytes]:
    """The server's own cookie: remembered, or marked with the server's sealed name."""
    name = (route.learns or route.cookie) + b"="
    lines = b""
    for value in head.values[b"set-cookie"]:
        if value.startswith(name):
            own = value[len(name) :].partition(b";")[0]
            if route.learns:
                service.learn_cookie(route, own, server)
            elif own:
                value = name + route.mark(server) + SEPARATOR + value[len(name) :]
        lines += b"Set-Cookie: %b\r\n" % value
    if not route.prefixes:
        return drop, added
    return drop | {b"set-cookie"}, added + lines


def identity_fields(identity: Identity, style: str) -> bytes:
    """The lines that tell a server who its client is."""
    match style:
        case "x_forwarded":
            return x_forwarded_fields(identity)
        case "forwarded":
            return forwarded_field(identity)
        case "both":
            return x_forwarded_fields(identity) + forwarded_field(identity)
    return b""


def as_http_1_1(head: ResponseHead, raw: bytes) -> bytes:
    """Our own version stands in every answer, whichever the server has (RFC 9110 section 2.5)."""
    return raw if head.minor else b"HTTP/1.1" + raw[len(b"HTTP/1.0") :]


def plain_host(authority: bytes) -> bytes:
    """The host of an authority, without port."""
    return authority.rpartition(b":")[0] if authority.rpartition(b"]")[2].count(b":") else authority
