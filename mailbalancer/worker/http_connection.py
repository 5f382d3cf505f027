"""One client's connection in mode `http`: request after request, each to the server it belongs to.

Decides: what a client's bytes are (a head, a body, the next request), what is answered without a server, how the heads
are rewritten on their way, and when the connection ends. What is in doubt ends it: no byte that could be read in two
ways reaches a server, and no answer that was cut looks complete.
Refuses to know: framing (`wire`), routes and persistence (`http_service`), how a server is reached (`http_server`).

The life of a request: HEAD (its head is being read) → SEEKING (a server is being sought) → EXCHANGE (request and answer
flow, at the same time where both sides like) → IDLE. Bytes are passed on in the turn in which they come; whichever side
does not take them stops the reading of the other.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

from mailbalancer.balance.http_routes import Ambiguous
from mailbalancer.model import Endpoint
from mailbalancer.wire.forwarded import (
    identify,
    plain_address,
    seen_here,
)
from mailbalancer.wire.hop_by_hop import cuts
from mailbalancer.wire.http_answer import answer, redirect
from mailbalancer.wire.http_body import Body, Framing, Kind, Piece, open_body
from mailbalancer.wire.http_head import BadMessage, RequestHead
from mailbalancer.wire.http_long_poll import Wait
from mailbalancer.wire.recurring import LONGEST
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.http_judged import JudgedAnswer, JudgedRequest
from mailbalancer.worker.http_log import request_facts, session_facts, tls_words
from mailbalancer.worker.http_polls import Poll
from mailbalancer.worker.http_rewrite import (
    Manner,
    answer_head,
    as_http_1_1,
    host_field,
    identity_fields,
    plain_host,
)
from mailbalancer.worker.http_route import STRANGER, Route
from mailbalancer.worker.http_server import ServerLink
from mailbalancer.worker.http_service import HttpService
from mailbalancer.worker.stream import NOTHING, Stream

#: Our last word has been said: how long a client may go on sending before the connection is closed under it.
LINGER_S: Final = 2.0
#: The answer is complete, the request is not: a client that does not go on with it holds the connection for nothing.
UNFINISHED_S: Final = 30.0
#: A client that has ended its half may wait for its answer this long; whether it is still there nobody knows.
AFTER_CLIENT_CLOSED_S: Final = 60.0
#: How often the rate of a body is looked at.
RATE_WINDOW_S: Final = 10.0
_numbers = itertools.count(1)


class Stage(IntEnum):
    """Where a connection stands."""

    SHAKING = 0
    IDLE = 1
    HEAD = 2
    SEEKING = 3
    EXCHANGE = 4
    CLOSING = 5  # our last word is said
    OVER = 6


# Under names of this module: to reach a member through its enumeration costs more than what is done with it.
_SHAKING, _IDLE, _HEAD, _SEEKING, _EXCHANGE, _CLOSING, _OVER = Stage
_CHUNKED: Final = Kind.CHUNKED
_TUNNEL: Final = Kind.TUNNEL
_UNTIL_CLOSE: Final = Kind.UNTIL_CLOSE
_NO_WAIT: Final = Wait.NOT


class HttpConnection:
    """Registers itself with engine, wheel and service, and takes itself out of all of them at the end.

    Attributes:
        number: tells this connection from every other one of this worker.
        source: the client's address as far as it can be believed; limits, lists, persistence and log go by it.
        tied: it authenticates as a connection (NTLM and the like): its server-side connection is its own.
        expects_answer: a request was sent, and its answer is not complete.
        has_answer: the head of the final answer was passed on.
        in_tunnel: HTTP is over; bytes flow both ways.
        head_at, asked_at, sent_at, first_at: when the head of the request at hand began, was complete and was sent to a
            server, and when its answer began; 0.0: not yet. active_at: when a byte moved last.
        asked: the request at hand, or the last one; None: there was none.
        head: of the request at hand; None: there is none, or it is not to be trusted.
    """

    __slots__ = (
        "_authority",
        "_body",
        "_body_bytes",
        "_client",
        "_closes",
        "_cookie",
        "_counted",
        "_engine",
        "_finished",
        "_identity",
        "_in",
        "_listening",
        "_logged",
        "_out",
        "_rate_at",
        "_rate_bytes",
        "_returning",
        "_seen",
        "_trusted",
        "_wheel_at",
        "_wheel_key",
        "active_at",
        "asked",
        "asked_at",
        "bytes_in",
        "bytes_out",
        "endpoint",
        "expects_answer",
        "first_at",
        "has_answer",
        "head",
        "head_at",
        "in_tunnel",
        "link",
        "number",
        "peer",
        "poll",
        "port",
        "requests",
        "sent_at",
        "service",
        "source",
        "stage",
        "started_at",
        "status",
        "tied",
    )

    def __init__(
        self, engine: Engine, service: HttpService, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        now = engine.reactor.now
        self._engine = engine
        self.service = service
        self.endpoint = endpoint
        self._listening = str(endpoint).encode()
        self.number = next(_numbers)
        self.peer = self.source = plain_address(address)
        self.port = port
        self._trusted = service.trusts and self.peer in service.trusted
        self._counted = self._logged = False
        self._cookie: tuple[Route | None, str, bytes] = (None, "", b"")  # route and server it stands for, and its line
        self._in: bytes | bytearray = b""
        self._seen = 0
        self.head: RequestHead | None = None
        self.asked: JudgedRequest | None = None
        self._returning = STRANGER
        self._body: Body | None = None
        self._out: bytes = b""  # the request's beginning, while a server is sought
        self._authority: bytes | None = None
        self._identity = b""
        self._closes = False
        self._finished = False
        self.poll = Poll(engine, service)
        self._body_bytes = self._rate_bytes = 0
        self._rate_at = 0.0
        self.head_at = self.active_at = self.started_at = now
        self.asked_at = self.sent_at = self.first_at = 0.0
        self.link: ServerLink | None = None
        self.tied = self.expects_answer = self.has_answer = self.in_tunnel = False
        self.status = self.requests = self.bytes_in = self.bytes_out = 0
        self.stage = _IDLE
        engine.sessions.add(self)
        service.opened()
        self._wheel_at = now + service.http.limits.head_timeout_s
        self._wheel_key = engine.wheel.add(self, self._wheel_at)
        self._client = Stream(engine, client, self)
        self._enter(address)

    def _enter(self, address: str) -> None:
        """May this client be served at all? One whom a trusted proxy will name is judged with each request."""
        service = self.service
        refusal = service.refusal(address) if not self._trusted else service.full()
        if not refusal and not self._trusted:
            self._counted = service.sources.opened(self.peer)
            if not self._counted:
                service.count_refused()
                refusal = "too_many_connections"
        if refusal:
            self.end(refusal, reset=True)
        elif service.offer is not None:
            self.stage = _SHAKING
            self._client.secure(service.offer.context, server_side=True)

    # ------------------------------------------------------------ bytes from the client

    def readable(self, stream: Stream) -> None:
        if self.stage > _HEAD:
            self._read_on(stream)
            return
        service = self.service
        buffer = service.buffer
        try:
            n = stream.read_into(buffer)
        except OSError as error:
            n = self._not_read(stream, error)
        if n <= 0:
            if not n:
                self._client_finished()
            return
        self.active_at = self._engine.reactor.now
        if self._in or n > LONGEST:
            self._keep(buffer[:n])
            self._read_requests()
            return
        data = buffer[:n].tobytes()
        asked = service.requests.known(data)
        if asked is not None:
            self._begin(asked)
        else:
            self._in = data
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

    def _keep(self, data: memoryview) -> None:
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

    # ------------------------------------------------------------ answers of our own

    def _answer_by_rule(self, route: Route, head: RequestHead, framing: Framing) -> bool:
        """What the configuration answers in a server's place. The connection goes on where no body is in the way."""
        closes = self._closes or framing != (Kind.NONE, 0)
        without_body = head.method == b"HEAD"
        if route.redirect is not None:
            to = route.redirect.to.encode("latin-1")
            to = to.replace(b"{host}", plain_host(head.authority)).replace(b"{path}", head.path)
            self.status = route.redirect.status
            data = redirect(self.status, to, fields=route.own_fields, close=closes)
        elif route.respond is not None:
            page = route.respond
            self.status = page.status
            data = answer(
                page.status,
                page.body,
                page.content_type,
                fields=route.own_fields,
                close=closes,
                without_body=without_body,
            )
        else:
            self.status = 404
            data = answer(404, close=closes, without_body=without_body)
        return self._say(data, closes)

    def _refuse(self, status: int, words: str) -> None:
        """Answer with an error and close: what follows on this connection may be anything."""
        self.status = status
        if self.head is None or (self.stage <= _HEAD and words):
            self.head = None  # nothing of it is trusted, also not for the log
        without_body = self.head is not None and self.head.method == b"HEAD"
        self._say(answer(status, without_body=without_body), closes=True, failure=words)

    def _say(self, data: bytes, closes: bool, failure: str = "") -> bool:
        """Our own answer, whole. False: the connection ends with it."""
        self.bytes_out += len(data)
        self._log(failure)
        try:
            self._client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return False
        if closes:
            self._close_politely()
            return False
        self._begin_idle()
        return True

    # ------------------------------------------------------------ asking a server

    def _ask(self, asked: JudgedRequest) -> None:
        """Find the server, and send what is there of the request."""
        service, route, head = self.service, asked.route, asked.head
        returning = asked.returning
        if returning is None:
            returning = route.recognise(self.source, head.host, head.path, head.values)
        self._returning = returning
        self._body = None
        if asked.plain:
            self._out = b"".join((asked.before, self._identity, asked.after))
        elif not self._prepare(asked, head):
            return
        self.has_answer = self._logged = False
        link = self.link
        if link is not None:
            if link.serves(route, returning, self.source):
                if link.way is not route:
                    link.move_to(route)
                self._send_request(link)
                return
            self._drop_link()
        self.stage = _SEEKING
        new = self.link = ServerLink(self._engine, service, self, route, returning)
        if link is not None and link.target is not None and not returning.key:
            new.preferred = link.target.name
        new.seek()

    def _prepare(self, asked: JudgedRequest, head: RequestHead) -> bool:
        """A head without a host, or with a body or a wait behind it. False: it is refused, nothing of it was sent."""
        named = b"" if head.authority else host_field(self._listening)
        self._out = b"".join((asked.before, self._identity, named, asked.after))
        if asked.has_body and not self._begin_body(asked.framing):
            return False
        if asked.may_wait:
            self.poll.asked(self, head, self._out[-self._body_bytes :] if self._body_bytes else b"")
        return True

    def _begin_body(self, framing: Framing) -> bool:
        """What is there of the body goes with the head. False: it is refused, and nothing of it was sent."""
        body = open_body(framing)
        try:
            pieces, taken = body.feed(self._in)
        except BadMessage as bad:
            self._refuse(bad.status, str(bad))
            return False
        if pieces:
            self._body_bytes = taken
            self._out = b"".join((self._out, *pieces))
            self._in = self._in[taken:]
        if not body.done:
            self._body = body
            self._watch_rate()
        self.bytes_in += taken
        return True

    def linked(self, link: ServerLink) -> None:
        """There is a connection to a server, new or its own."""
        self._send_request(link)
        if self.stage is _EXCHANGE and not link.blocked and not self._finished:
            self._client.resume()

    def unlinked(self, reason: str) -> None:
        """No server is left."""
        link = self.link
        assert link is not None
        failure = link.last_failure or reason
        timed_out = reason == "no_server" and "no answer in" in link.last_failure
        self._forget_link()
        if timed_out:
            self._refuse_exchange(504, failure)
        else:
            self._closes = True
            head = self.head
            page = self.service.sorry_page(close=True, without_body=head is not None and head.method == b"HEAD")
            self.status = self.service.sorry.status if self.service.sorry else 503
            self._say(page, closes=True, failure=failure)

    def _send_request(self, link: ServerLink) -> None:
        assert self.asked is not None
        out, self._out = self._out, b""
        link.served += 1
        if self.tied or link.tied:
            link.tied = True
            self._pin(link)
        self.stage = _EXCHANGE
        self.expects_answer = True
        now = self._engine.reactor.now
        silent_at = now + self.asked.route.idle_timeout_s
        if self.poll.wait is not _NO_WAIT:
            self.poll.sent(link.slot, silent_at)
        self.active_at = self.sent_at = now
        if silent_at < self._wheel_at:
            self._by(silent_at)
        link.send(out)
        if self._body is not None and self.stage is _EXCHANGE and link.blocked:
            self._client.pause()

    def _pass_body(self, data: memoryview) -> None:
        """Bytes of the request's body, and whatever follows it."""
        body, link = self._body, self.link
        assert body is not None
        try:
            pieces, taken = body.feed(data)
        except BadMessage as bad:
            self._refuse_exchange(bad.status, str(bad))
            return
        self.bytes_in += taken
        self._body_bytes += taken
        if pieces and self.poll.wait is not _NO_WAIT:
            self.poll.look_into(self, pieces[0])
        if taken < len(data):
            self._in = bytes(data[taken:])
        if body.done:
            self._body = None
        if link is not None and pieces:
            link.send(pieces[0] if len(pieces) == 1 else b"".join(pieces))
            if link.blocked and self.stage is _EXCHANGE:
                self._client.pause()
        if body.done and self.stage is _EXCHANGE and not self.expects_answer:
            self._exchange_done()

    def server_writable(self) -> None:
        """The server has taken everything: more of the request, please."""
        if not self._finished and self.stage is _EXCHANGE:
            self._client.resume()

    # ------------------------------------------------------------ the server's answer

    def pass_interim(self, interim: JudgedAnswer) -> None:
        """A 1xx: it tells something and answers nothing. Clients of HTTP/1.0 have never heard of it."""
        assert self.asked is not None
        if self.asked.head.minor:
            head = interim.head
            self._write(as_http_1_1(head, head.without(cuts(head, interim.connection))))

    def pass_whole(self, answer: JudgedAnswer, body: memoryview) -> bool:
        """An answer whose head came before and that is here to its end. False: it needs a closer look, see `pass_head`.

        What is left out here cannot be: a plain answer opens no tunnel and ties nothing.
        """
        link, asked = self.link, self.asked
        assert link is not None
        assert asked is not None
        route = asked.route
        head = answer.finished.get(route)
        if head is None or not (answer.plain and asked.common) or self._closes or link.tied or not link.is_ready:
            return False
        if self._engine.stopping or self.service.retired:
            return False
        self.first_at = self._engine.reactor.now
        self.has_answer = True
        self.status = answer.status
        self._write(b"".join((head, self._new_cookie(route, link), b"\r\n", body)))
        self.answered()
        return True

    def pass_head(self, answer: JudgedAnswer, pieces: Sequence[Piece]) -> None:
        """The final head, with the beginning of the body."""
        link, asked = self.link, self.asked
        assert link is not None
        assert link.target is not None
        assert asked is not None
        self.active_at = self.first_at = self._engine.reactor.now
        self.has_answer = True
        self.status = answer.head.status
        if link.tied and not self.tied:
            self.tied = True
            self._pin(link)
        kind = answer.kind
        if kind is _TUNNEL:
            self._open_tunnel()
        elif kind is _UNTIL_CLOSE or self._leaves(link, self.status):
            self._closes = True
        route, server = asked.route, link.target.name
        raw = answer.finished.get(route) if asked.common and not self._closes else None
        if raw is None:
            raw = self._finish_head(answer, asked, server)
        cookie = b"" if self.in_tunnel else self._new_cookie(route, link)
        self._write(b"".join((raw, cookie, b"\r\n", *pieces)))

    def _finish_head(self, answer: JudgedAnswer, asked: JudgedRequest, server: str) -> bytes:
        head, route = answer.head, asked.route
        old = not asked.head.minor
        manner = Manner(self._closes, self.in_tunnel, old and answer.kind is _CHUNKED, old)
        raw = answer_head(self.service, route, server, head, answer.connection, manner)
        if asked.common and not self._closes and (b"set-cookie" not in head.values or not route.reads_cookies):
            answer.finished[route] = raw
        return raw

    def _new_cookie(self, route: Route, link: ServerLink) -> bytes:
        """The line that brings this client back; empty when it needs none. Made once, for to seal costs more than all
        the rest."""
        wanted, _, sets_cookie = self._returning
        assert link.target is not None
        server = link.target.name
        if not sets_cookie or wanted == server or route.prefixes:
            return b""
        if self._cookie[1] != server or self._cookie[0] is not route:
            self._cookie = route, server, route.set_cookie(server)
        return self._cookie[2]

    def _leaves(self, link: ServerLink, status: int) -> bool:
        """Whether the connection should end after this answer: its server drains, or this worker stops. Not in the
        middle of a login that belongs to the connection."""
        if link.tied and status in (401, 407):
            return False
        engine = self._engine
        return engine.stopping or self.service.retired or not link.is_ready

    def pass_answer(self, pieces: list[Piece]) -> None:
        """A part of the body."""
        self.active_at = self._engine.reactor.now
        self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _write(self, data: Piece) -> None:
        client = self._client
        self.bytes_out += len(data)
        try:
            client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return
        if client.blocked and self.link is not None and self.link.stream is not None:
            self.link.stream.pause()

    def takes(self, size: int) -> bool:
        """Whether so much would go on to the client at once."""
        return self._client.room() >= size

    def gather(self) -> None:
        """More of the answer follows in this turn."""
        self._client.gather()

    def release(self) -> None:
        self._client.release()

    def writable(self, stream: Stream) -> None:
        """The client has taken everything."""
        self.active_at = self._engine.reactor.now
        if self.stage is _CLOSING:
            self._close_politely()
        elif self.stage <= _HEAD:
            self._read_requests()
        elif self.link is not None and self.link.stream is not None:
            self.link.stream.resume()

    def answered(self) -> None:
        """The answer is complete."""
        self.expects_answer = False
        if self.stage is not _EXCHANGE:
            return
        if self._body is None:
            self._exchange_done()
        elif self.link is not None and self.link.deaf:
            self._exchange_done(unfinished=True)
        else:
            if self.link is not None and (self.service.shared or self._trusted) and not self.tied:
                # it did not wait for the body, and may take it for a request whose answer somebody else would get
                self.link.persistent = False
            self.active_at = self._engine.reactor.now
            self._by(self.active_at + UNFINISHED_S)

    def _exchange_done(self, unfinished: bool = False) -> None:
        """Request and answer are over."""
        link = self.link
        assert link is not None
        self._log()
        if self.poll.wait is not _NO_WAIT:
            self.poll.over(self, broken=False)
        if not link.persistent:
            self._drop_link()
        elif self.service.shared and not self.tied:
            link.rest()
            self.link = None
        else:
            link.idle_at = self._engine.reactor.now
            link.listen()
        if self._closes or unfinished:
            self._close_politely()
            return
        self._begin_idle()
        if self._in:
            self._read_requests()
        if self._finished and self.stage <= _HEAD:  # nothing more can come
            self.end("client_closed")

    def _begin_idle(self) -> None:
        self.stage = _IDLE
        self.head = None
        now = self.active_at = self._engine.reactor.now
        silent_at = now + self.service.config.idle_timeout_s
        if silent_at < self._wheel_at:
            self._by(silent_at)
        if self._client.averted and not self._finished:
            self._client.resume()

    # ------------------------------------------------------------ the server fails or leaves

    def server_broke(self, failure: str) -> None:
        """The server is of no use for this request, which it may have seen: nobody else is asked."""
        link = self.link
        assert link is not None
        words = f"{link.target.name}: {failure}" if link.target else failure
        if self.has_answer:
            self._log(words)
            self.end("server_reset", reset=True)
        else:
            self._refuse_exchange(502, words)

    def _refuse_exchange(self, status: int, failure: str) -> None:
        """End the exchange with an error, or with a reset where an answer has begun."""
        self.poll.over(self, broken=True)
        if self.has_answer:
            self._log(failure)
            self.end("bad_message", reset=True)
            return
        self.expects_answer = False
        self.status = status
        self._body = None
        without_body = self.head is not None and self.head.method == b"HEAD"
        data = answer(status, without_body=without_body)
        link, self.link = self.link, None
        self._say_with(link, data, failure)

    def _say_with(self, link: ServerLink | None, data: bytes, failure: str) -> None:
        """Our own answer in the place of a server's, whose name still belongs into the log."""
        self.link = link
        self.bytes_out += len(data)
        self._log(failure)
        self._drop_link()
        try:
            self._client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return
        self._close_politely()

    def lost_link(self) -> None:
        """The connection to a server has ended between answers. A login that belonged to it is gone: the client must
        learn it. And where the answer came before the end of the request, the server wants no more of that."""
        if self.stage is _EXCHANGE:
            self._exchange_done(unfinished=True)
            return
        ends = self.tied
        self._drop_link()
        if ends and self.stage is _IDLE:
            self.end("server_closed")

    def server_finished(self) -> None:
        """In a tunnel: the server has ended its half."""
        link = self.link
        assert link is not None
        if self._finished or link.stream is None:
            self._log("")
            self.end("server_closed")
            return
        link.stream.pause()
        self.expects_answer = False
        self._client.finish()
        self._by(self._engine.reactor.now + AFTER_CLIENT_CLOSED_S)

    def _open_tunnel(self) -> None:
        """Both sides speak another protocol from here on."""
        self.in_tunnel = True
        self._body = open_body(Framing(Kind.TUNNEL))
        data, self._in = self._in, b""
        if data and self.link is not None:
            self.link.send(bytes(data))
        if not self._finished:
            self._client.resume()
        elif self.link is not None and self.link.stream is not None:
            self._body = None
            self.link.stream.finish()

    def _drop_link(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            self._unpin(link)
            link.close()

    def _forget_link(self) -> None:
        """The link has given everything back by itself."""
        link, self.link = self.link, None
        if link is not None:
            link.close()

    def _pin(self, link: ServerLink) -> None:
        if not link.pinned:
            link.pinned = True
            self._engine.ints[self.service.pinned_cell] += 1

    def _unpin(self, link: ServerLink) -> None:
        if link.pinned:
            link.pinned = False
            self._engine.ints[self.service.pinned_cell] -= 1

    # ------------------------------------------------------------ deadlines

    def _by(self, deadline_at: float) -> None:
        """Be asked at this time; never later than was agreed before, and no system call or wheel for most requests."""
        if deadline_at < self._wheel_at:
            wheel = self._engine.wheel
            wheel.remove(self, self._wheel_key)
            self._wheel_at = deadline_at
            self._wheel_key = wheel.add(self, deadline_at)

    def _idle_s(self) -> float:
        return self.asked.route.idle_timeout_s if self.asked is not None else self.service.config.idle_timeout_s

    def _watch_rate(self) -> None:
        """A body has a least rate; not that of an RPC channel, whose nature it is to say little for hours."""
        head = self.head
        if self.service.http.limits.body_bytes_per_s and head is not None and not head.method.startswith(b"RPC_"):
            self._rate_at = self._engine.reactor.now
            self._rate_bytes = self._body_bytes
            self._by(self._rate_at + RATE_WINDOW_S)
        else:
            self._rate_at = 0.0

    def due(self, now: float) -> None:
        """The wheel says that a deadline may have come; most are old."""
        deadline_at, act = self._deadline(now)
        if deadline_at <= now:
            act()
        if self.stage is not _OVER:
            deadline_at, _ = self._deadline(now)
            self.poll.lasts(deadline_at)
            self._wheel_at = max(deadline_at, now + 0.1)
            self._wheel_key = self._engine.wheel.add(self, self._wheel_at)

    def _deadline(self, now: float) -> tuple[float, Callable[[], None]]:
        limits = self.service.http.limits
        match self.stage:
            case Stage.SHAKING:
                return self.started_at + limits.head_timeout_s, self._give_up_waiting
            case Stage.IDLE if not self.requests:
                return self.started_at + limits.head_timeout_s, self._give_up_waiting
            case Stage.IDLE:
                return self.active_at + self.service.config.idle_timeout_s, self._give_up_waiting
            case Stage.HEAD:
                return self.head_at + limits.head_timeout_s, self._head_too_slow
            case Stage.SEEKING:  # the link has deadlines of its own
                return now + self._idle_s(), self._give_up_waiting
            case Stage.CLOSING:
                # what is still on its way to a slow client is not cut off
                patience_s = self._idle_s() if self._client.blocked else LINGER_S
                return self.active_at + patience_s, self._give_up_waiting
        return self._exchange_deadline()

    def _exchange_deadline(self) -> tuple[float, Callable[[], None]]:
        idle_s = self._idle_s()
        if self._finished or (self.in_tunnel and not self.expects_answer):
            idle_s = min(idle_s, AFTER_CLIENT_CLOSED_S)
        elif not self.expects_answer:
            idle_s = min(idle_s, UNFINISHED_S)
        silent = self.active_at + idle_s
        if self._body is not None and self._rate_at and not self.in_tunnel:
            checked = self._rate_at + RATE_WINDOW_S
            if checked < silent:
                return checked, self._check_rate
        return silent, self._exchange_silent

    def _give_up_waiting(self) -> None:
        self.end("idle_timeout")

    def _head_too_slow(self) -> None:
        self._refuse(408, f"the head was not complete in {self.service.http.limits.head_timeout_s:g} s")

    def _check_rate(self) -> None:
        """A body that trickles; while its server takes nothing the client is not to blame."""
        now = self._engine.reactor.now
        least = self.service.http.limits.body_bytes_per_s * (now - self._rate_at)
        if self._body_bytes - self._rate_bytes < least and not (self.link is not None and self.link.blocked):
            self._refuse_exchange(408, f"the body came slower than {self.service.http.limits.body_bytes_per_s} bytes/s")
        else:
            self._rate_at, self._rate_bytes = now, self._body_bytes

    def _exchange_silent(self) -> None:
        if self.in_tunnel or self._finished or not self.expects_answer:
            self._log("")
            self.end("idle_timeout")
        else:
            self._refuse_exchange(504, f"no byte in {self._idle_s():g} s")

    # ------------------------------------------------------------ the end

    def broken(self, stream: Stream, error: OSError) -> None:
        if stream.shaking:
            self.service.shook_hands(None)
            self._log(f"TLS handshake: {tls_words(error)}")
        self.end("client_reset", reset=not stream.shaking)

    def secured(self, stream: Stream) -> None:
        self.service.shook_hands(stream.tls)
        self.stage = _IDLE

    def _close_politely(self) -> None:
        """Close so that the client gets our last word: what it still sends would make the kernel answer with a reset,
        which takes the answer away from it (RFC 9112 section 9.6)."""
        self._drop_link()
        client = self._client
        self.stage = _CLOSING
        self.active_at = self._engine.reactor.now
        self._by(self.active_at + LINGER_S)
        if client.blocked:
            return
        asked_to = self.asked is not None and self.asked.closes
        if self._finished or (asked_to and not self._in and self._body is None):
            self.end("closed")
            return
        client.finish()
        client.resume()

    def leave_if_idle(self) -> None:
        """No more is served here: those that wait for nothing may go."""
        if self.stage is _IDLE:
            self.end("stopped")

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close both sides. `reset`: with RST, so that nothing looks complete that is not."""
        if self.stage is _OVER:
            return
        self.poll.over(self, broken=True)
        if self.stage in (_SEEKING, _EXCHANGE) and not self._logged:
            self._log(reason)
        self.stage = _OVER
        engine, service = self._engine, self.service
        engine.wheel.remove(self, self._wheel_key)
        engine.sessions.discard(self)
        self._drop_link()
        self._client.close(reset=reset)
        if self._counted:
            service.sources.closed(self.peer)
        service.left()

    def _log(self, failure: str = "") -> None:
        self._logged = True
        if self.head is not None:
            self._time()
        if self.service.http.access_log and self._engine.log.sessions:
            self._engine.log.request(**request_facts(self, self._engine.reactor.now, failure))

    def _time(self) -> None:
        """How long the request took, for its server; for the service where none was asked."""
        engine, link = self._engine, self.link
        slot = link.slot if link is not None and link.slot >= 0 else self.service.slot
        first_byte_s = self.first_at - self.sent_at if self.first_at else -1.0
        engine.timings.exchanged(slot, first_byte_s, engine.reactor.now - self.head_at)

    @property
    def route_name(self) -> str:
        """The route that the request at hand took; empty: the service's own."""
        return self.asked.route.name if self.asked is not None else ""

    @property
    def slot(self) -> int:
        """The real server that this connection counts for at present."""
        return self.link.slot if self.link is not None else -1

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of its sockets."""
        if fd < 0:
            return False
        return fd == self._client.sock.fileno() or (self.link is not None and self.link.owns(fd))

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """The client's TLS, if it speaks it."""
        return self._client.tls

    def facts(self) -> dict[str, str | int | float]:
        """This connection for `mailbalancer sessions`."""
        return session_facts(self, self._engine.reactor.now, self._engine.index)

    def reached(self) -> Endpoint:
        """The address of ours that the client connected to."""
        if self.endpoint.host not in ("0.0.0.0", "::"):
            return self.endpoint
        return Endpoint(*self._client.sock.getsockname()[:2])
