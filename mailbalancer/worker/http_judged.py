"""Heads as this worker acts on them: read, judged, and made ready for the other side.

Decides: everything about a head that follows from its bytes and the configuration alone: framing, route, whether it
ties its connection, the bytes that are passed on. What came twice is remembered whole, so that a head that comes again
costs one look-up.
Refuses to know: which client, which connection and which moment it is. Nothing that depends on those may be kept here.

Both readers belong to one configuration of one service: a new configuration brings new ones, which remember nothing.
"""

from __future__ import annotations

from typing import Final

from mailbalancer.balance.http_routes import Routes
from mailbalancer.wire.auth_taint import ties_request, ties_response
from mailbalancer.wire.hop_by_hop import Connection, read_connection
from mailbalancer.wire.http_body import Framing, Kind, request_framing, response_framing
from mailbalancer.wire.http_head import RequestHead, RequestReader, ResponseHead, ResponseReader
from mailbalancer.wire.recurring import LONGEST, Recurring
from mailbalancer.worker.http_rewrite import request_parts
from mailbalancer.worker.http_route import Returning, Route

_JUDGED: Final = "judged"
_NO_BODY: Final = Kind.NONE
#: Of an answer, this much is looked through for the end of its head before all of it is.
_USUAL_HEAD_BYTES: Final = LONGEST


class JudgedRequest:
    """A request as far as its head tells.

    Attributes:
        framing, connection, route: what follows from `head`.
        ties: it authenticates, or begins to, for its whole connection.
        before, after: the head for the server; the lines that tell who the client is go between.
        returning: what it says about its client; None: that depends on where it comes from.
        has_body: a body, if only of no bytes, is announced.
        may_wait: it may be one of those that wait for news.
        common: HTTP/1.1, and neither its method nor an upgrade changes what an answer means.
        by_rule: it is answered without a server.
        closes: its client ends the connection after it.
        plain: it says all there is to know: a host, no body, no login, nothing to wait for; and anybody may ask it.
        size: bytes of the head.
    """

    __slots__ = (
        "after",
        "before",
        "by_rule",
        "closes",
        "common",
        "connection",
        "framing",
        "has_body",
        "head",
        "may_wait",
        "plain",
        "returning",
        "route",
        "size",
        "ties",
    )

    def __init__(self, head: RequestHead, framing: Framing, connection: Connection, ties: bool, route: Route) -> None:
        self.head = head
        self.framing = framing
        self.connection = connection
        self.ties = ties
        self.route = route
        self.has_body = framing.kind is not _NO_BODY
        self.may_wait = head.method[0] in b"PR"
        self.common = head.minor == 1 and head.method not in (b"HEAD", b"CONNECT") and not connection.upgrade
        self.by_rule = route.answers
        self.before, self.after = (b"", b"") if self.by_rule else request_parts(route, head, connection)
        self.returning: Returning | None = None
        if not route.looks_at_source:
            self.returning = route.recognise("", head.host, head.path, head.values)
        self.closes = not connection.persistent
        special = self.has_body or self.may_wait or ties or self.by_rule or route.lists is not None
        self.plain = bool(head.authority) and not special
        self.size = len(head.raw)


class Requests:
    """Reads the requests of one service.

    Attributes:
        known: the request that is all of these bytes (at most LONGEST), if it came before; None: `read` them.
    """

    def __init__(self, reader: RequestReader, routes: Routes[Route]) -> None:
        self._reader = reader
        self._routes = routes
        self._memory: Recurring[JudgedRequest] = Recurring()
        self.known = self._memory.get

    def read(self, data: bytes | bytearray, seen: int = 0) -> JudgedRequest | None:
        """The request whose head stands at the start of `data`; None when more bytes are needed.

        Args:
            seen: see `RequestReader.read`.

        Raises:
            BadMessage, Ambiguous: it is not passed on.
        """
        known = self._memory.get(data) if len(data) <= LONGEST and isinstance(data, bytes) else None
        if known is not None:
            return known
        head = self._reader.read(data, seen)
        if head is None:
            return None
        judged = self._judge(head)
        if head.fields is not None and len(head.raw) == len(data):
            self._memory.came(head.raw, judged)
        return judged

    def _judge(self, head: RequestHead) -> JudgedRequest:
        fields = head.fields
        found = fields.made(_JUDGED) if fields is not None else None
        if found is None:
            found = request_framing(head), read_connection(head), ties_request(head)
            if fields is not None:
                fields.keep(_JUDGED, found)
        framing, connection, ties = found
        return JudgedRequest(head, framing, connection, ties, self._routes.find(head.host, head.path))


class JudgedAnswer:
    """An answer as far as its head tells.

    Attributes:
        framing, kind, connection: what follows from `head` and the request it answers; `kind` is the framing's.
        length: of the body; -1: not known from the head.
        interim: it is a 1xx, and the answer proper is still to come.
        persistent: the server is willing to go on after it.
        ties: it offers, continues or confirms the authentication of its whole connection.
        plain: a final answer of known length that leaves its connection as it is.
        status: of the answer.
        finished: by route, the head for the client of a common request whose connection goes on, without a cookie of
            ours and the empty line; for heads that are remembered.
    """

    __slots__ = (
        "connection",
        "finished",
        "framing",
        "head",
        "interim",
        "kind",
        "length",
        "persistent",
        "plain",
        "status",
        "ties",
    )

    def __init__(self, head: ResponseHead, framing: Framing, connection: Connection, ties: bool) -> None:
        self.head = head
        self.framing = framing
        self.connection = connection
        self.ties = ties
        self.kind = kind = framing.kind
        self.length = framing.length if kind in (Kind.LENGTH, Kind.NONE) else -1
        self.interim = kind is Kind.NONE and head.status < 200
        self.persistent = connection.persistent and kind is not Kind.UNTIL_CLOSE
        self.plain = self.persistent and self.length >= 0 and not (ties or self.interim)
        self.status = head.status
        self.finished: dict[Route, bytes] = {}


class Answers:
    """Reads the answers of one service's servers.

    Attributes:
        known: the answer to a common request whose head is these bytes, if it came before; None: `read` them.
    """

    def __init__(self, reader: ResponseReader) -> None:
        self._reader = reader
        self._memory: Recurring[JudgedAnswer] = Recurring()
        self.known = self._memory.get

    def read(self, data: memoryview, seen: int, asked: JudgedRequest) -> JudgedAnswer | None:
        """The answer whose head stands at the start of `data`; None when more bytes are needed.

        Args:
            seen: see `RequestReader.read`.
            asked: the request that is answered.

        Raises:
            BadMessage: it is not passed on.
        """
        beginning = bytes(data[:_USUAL_HEAD_BYTES])
        end = beginning.find(b"\r\n\r\n")
        if end < 0 and len(data) > _USUAL_HEAD_BYTES:
            beginning = bytes(data)
        elif end >= 0:
            beginning = beginning[: end + 4]
            if asked.common:
                known = self._memory.get(beginning)
                if known is not None:
                    return known
        head = self._reader.read(beginning, seen)
        if head is None:
            return None
        answer = self._judge(head, asked)
        if asked.common and head.fields is not None:
            self._memory.came(head.raw, answer)
        return answer

    def _judge(self, head: ResponseHead, asked: JudgedRequest) -> JudgedAnswer:
        method, upgrading = asked.head.method, bool(asked.connection.upgrade)
        fields = head.fields
        key = (head.status, method, upgrading)
        found = fields.made(key) if fields is not None else None
        if found is None:
            found = response_framing(head, method, upgrading), read_connection(head, 502), ties_response(head)
            if fields is not None:
                fields.keep(key, found)
        return JudgedAnswer(head, *found)
