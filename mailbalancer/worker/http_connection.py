"""One client's connection in mode `http`: request after request, each to the server it belongs to.

Decides: what a client's bytes are (a head, a body, the next request), and which requests no server gets to see. What is
in doubt ends the connection: no byte that could be read in two ways reaches a server, and no answer that was cut looks
complete.
Refuses to know: framing (`wire`), routes and persistence (`http_service`), what follows on a request (`http_exchange`).

The life of a request: HEAD (its head is being read) → SEEKING (a server is being sought) → EXCHANGE (request and answer
flow, at the same time where both sides like) → IDLE. Bytes are passed on in the turn in which they come; whichever side
does not take them stops the reading of the other.
"""

from __future__ import annotations

from typing import Final

from mailbalancer.balance.http_routes import Ambiguous
from mailbalancer.wire.forwarded import identify, seen_here
from mailbalancer.wire.http_head import BadMessage, RequestHead
from mailbalancer.wire.recurring import LONGEST
from mailbalancer.worker.http_deadlines import AFTER_CLIENT_CLOSED_S
from mailbalancer.worker.http_exchange import Exchange
from mailbalancer.worker.http_judged import JudgedRequest
from mailbalancer.worker.http_lifetime import Stage
from mailbalancer.worker.http_rewrite import identity_fields
from mailbalancer.worker.http_route import Route
from mailbalancer.worker.stream import NOTHING, RECORD_BYTES, Stream

_IDLE: Final = Stage.IDLE
_HEAD: Final = Stage.HEAD
_SEEKING: Final = Stage.SEEKING
_EXCHANGE: Final = Stage.EXCHANGE
_CLOSING: Final = Stage.CLOSING


class HttpConnection(Exchange):
    """Reads what a client asks."""

    __slots__ = ()

    # ------------------------------------------------------------ bytes

    def readable(self, stream: Stream) -> None:
        stage = self.stage
        if stage is not _IDLE and stage is not _HEAD:
            self._read_on(stream)
            return
        read = stream.read
        try:
            data = read(RECORD_BYTES)
        except OSError as error:
            if not self._not_read(stream, error):
                self._client_finished()
            return
        if not data:
            self._client_finished()
            return
        self.active_at = self._engine.reactor.now
        if not self._in and len(data) <= LONGEST:
            known = self.service.requests.known
            asked = known(data)
            if asked is not None:
                self._begin(asked)
                return
        self._keep(data)
        self._read_requests()

    def _read_on(self, stream: Stream) -> None:
        """While a request is under way, or after our last word."""
        stage, body = self.stage, self._body
        if stage is _SEEKING or (stage is _EXCHANGE and body is None and len(self._in) >= len(self.service.buffer)):
            stream.pause()
            return
        buffer = self.service.buffer
        try:
            n = stream.read_into(buffer)
        except OSError as error:
            n = self._not_read(stream, error)
        if n <= 0:
            if not n:
                self._client_finished()
            return
        self.active_at = self._engine.reactor.now
        if stage is _EXCHANGE and body is not None:
            self._pass_body(buffer[:n])
        elif stage is not _CLOSING:
            self._keep(buffer[:n])

    def _not_read(self, stream: Stream, error: OSError) -> int:
        try:
            return stream.not_read(error)
        except OSError:
            self.end("client_reset", reset=True)
            return NOTHING

    def _keep(self, data: bytes | memoryview) -> None:
        """A head, or the beginning of one, or what follows the request at hand."""
        if not self._in:
            self._in = bytes(data)
        elif isinstance(self._in, bytearray):
            self._in += data
        else:
            self._in = bytearray(self._in + data)

    def _client_finished(self) -> None:
        """The client has ended its half. One whose request is complete may be waiting for the answer."""
        self._finished = True
        if self.in_tunnel and not self.expects_answer:  # the server has ended its half before
            self._log("")
            self.end("client_closed")
        elif self.in_tunnel:
            self._client.pause()
            self._body = None
            if self.link is not None and self.link.stream is not None:
                self.link.stream.finish()
        elif self.stage is _EXCHANGE and self._body is None:
            self._client.pause()
            self._by(self._engine.reactor.now + AFTER_CLIENT_CLOSED_S)
        else:
            self.end("client_closed", reset=self.stage is _EXCHANGE)

    # ------------------------------------------------------------ requests

    def _read_requests(self) -> None:
        """Those that can be answered without a server, and the first that cannot."""
        while self._in and self.stage <= _HEAD and not self._client.blocked:
            if not self._read_request():
                return

    def _read_request(self) -> bool:
        """Begin the next request. False: there is none yet, or the connection ends."""
        service, data = self.service, self._in
        try:
            asked = service.requests.read(data, self._seen)
        except BadMessage as bad:
            self._refuse(bad.status, str(bad))
            return False
        except Ambiguous as bad:
            self._refuse(400, str(bad))
            return False
        if asked is None:
            self._await_head()
            return False
        self._seen = 0
        length = asked.head.length
        self._in = data[length:] if len(data) > length else b""
        return self._begin(asked)

    def _begin(self, asked: JudgedRequest) -> bool:
        """This is the request at hand. False: the connection ends with it."""
        service, now, head = self.service, self._engine.reactor.now, asked.head
        if self.stage is _IDLE:
            self.head_at = now
        self.asked, self.head, self.asked_at = asked, head, now
        self.sent_at = self.first_at = 0.0
        self.requests += 1
        self.status = self._body_bytes = self.bytes_out = 0
        self.bytes_in = asked.size
        self._closes = asked.closes
        service.asked += 1
        if asked.plain and service.unguarded and head.authority == self._authority and not self._trusted:
            self._ask(asked)  # there is nothing new about it
            return True
        if asked.ties:
            self.tied = True
        if self._trusted or head.authority != self._authority:
            self._identify(head)
        refusal = 0 if service.unguarded and asked.route.lists is None else self._refusal(asked.route, now)
        if refusal:
            self._refuse(refusal, "")
            return False
        if asked.by_rule:
            return self._answer_by_rule(asked.route, head, asked.framing)
        self._ask(asked)
        return True

    def _await_head(self) -> None:
        """The beginning of a head is there; the rest has its deadline."""
        self._seen = len(self._in)
        if self.stage is _IDLE and self._seen:
            self.stage = _HEAD
            self.head_at = self._engine.reactor.now
            self._by(self.head_at + self.service.http.limits.head_timeout_s)

    def _identify(self, head: RequestHead) -> None:
        """Who the client is, and the lines that tell the server."""
        tls = self._client.tls is not None
        identity = seen_here(self.peer, tls, head.authority, self.endpoint.port)
        if self._trusted:
            form = "forwarded" if self.service.http.forwarded == "forwarded" else "x_forwarded"
            identity = identify(head, self.service.trusted, identity, form)
            self.source = identity.client
        self._authority = head.authority
        self._identity = identity_fields(identity, self.service.http.forwarded)

    def _refusal(self, route: Route, now: float) -> int:
        """The status with which this client is turned away; 0: it is not."""
        service = self.service
        if service.retired:
            return 503
        if self._trusted and not service.admits(self.source):
            service.count_refused()
            return 403
        if service.sources.requests_per_s and not service.sources.asked(self.source, now):
            service.count_refused()
            return 429
        if route.lists is not None and not route.lists.admits(self.source):
            service.count_refused()
            return 403
        return 0
