"""One request and its answer, between a client and the server that it belongs to.

Decides: what each side is passed of the other and when its reading stops, whether the connections go on afterwards, and
when HTTP is over on them (a tunnel).
Refuses to know: how requests come to be (`http_connection`), framing (`wire`), how a server is reached (`http_server`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mailbalancer.wire.hop_by_hop import cuts
from mailbalancer.wire.http_body import Framing, Kind, Piece, open_body
from mailbalancer.wire.http_head import BadMessage, RequestHead
from mailbalancer.wire.http_long_poll import Wait
from mailbalancer.worker.http_deadlines import AFTER_CLIENT_CLOSED_S, UNFINISHED_S, Deadlines
from mailbalancer.worker.http_judged import JudgedAnswer, JudgedRequest
from mailbalancer.worker.http_lifetime import Stage
from mailbalancer.worker.http_rewrite import Manner, answer_head, as_http_1_1, host_field
from mailbalancer.worker.http_route import Route
from mailbalancer.worker.http_server import ServerLink
from mailbalancer.worker.stream import Stream

_IDLE: Final = Stage.IDLE
_HEAD: Final = Stage.HEAD
_SEEKING: Final = Stage.SEEKING
_EXCHANGE: Final = Stage.EXCHANGE
_CLOSING: Final = Stage.CLOSING
_CHUNKED: Final = Kind.CHUNKED
_TUNNEL: Final = Kind.TUNNEL
_UNTIL_CLOSE: Final = Kind.UNTIL_CLOSE
_NO_WAIT: Final = Wait.NOT


class Exchange(Deadlines):
    """The client's side of its `link`."""

    __slots__ = ()

    def _read_requests(self) -> None:
        """Those that can be answered without a server, and the first that cannot."""
        raise NotImplementedError

    # ------------------------------------------------------------ asking a server

    def _ask(self, asked: JudgedRequest) -> None:
        """Find the server, and send what is there of the request."""
        route, returning = asked.route, asked.returning
        if returning is None:
            head = asked.head
            returning = route.recognise(self.source, head.host, head.path, head.values)
        self._returning = returning
        self._body = None
        if asked.plain:
            self._out = b"".join((asked.before, self._identity, asked.after))
        elif not self._prepare(asked, asked.head):
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
        new = self.link = ServerLink(self._engine, self.service, self, route, returning)
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
        if head is None or not (answer.plain and asked.common) or self._closes or self._body is not None:
            return False
        if link.tied or self._leaves(link, answer.status):
            return False
        self.first_at = self._engine.reactor.now
        self.has_answer = True
        self.status = answer.status
        self._write(b"".join((head, self._new_cookie(route, link), b"\r\n", body)))
        self.expects_answer = False
        if self.stage is _EXCHANGE:  # the client is still there
            self._exchange_done()
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

    # ------------------------------------------------------------ the end of an exchange

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

    # ------------------------------------------------------------ another protocol

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
