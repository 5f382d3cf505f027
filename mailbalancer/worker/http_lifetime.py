"""A client's connection in mode `http` from its first byte to its last, whatever is asked on it in between.

Decides: whether it is served at all, what is counted and told of it, and how it ends: politely, so that the client gets
our last word, or with a reset, so that nothing looks complete that is not.
Refuses to know: requests and answers. The classes on top of this one do, each a part: `http_own_answers`,
`http_deadlines`, `http_exchange`, `http_connection`.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from enum import IntEnum
from typing import Final

from mailbalancer.model import Endpoint
from mailbalancer.wire.forwarded import plain_address
from mailbalancer.wire.http_body import Body
from mailbalancer.wire.http_head import RequestHead
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.http_judged import JudgedRequest
from mailbalancer.worker.http_log import request_facts, session_facts, tls_words
from mailbalancer.worker.http_polls import Poll
from mailbalancer.worker.http_route import STRANGER, Route
from mailbalancer.worker.http_server import ServerLink
from mailbalancer.worker.http_service import HttpService
from mailbalancer.worker.stream import Stream

#: Our last word has been said: how long a client may go on sending before the connection is closed under it.
LINGER_S: Final = 2.0
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
_SHAKING: Final = Stage.SHAKING
_IDLE: Final = Stage.IDLE
_SEEKING: Final = Stage.SEEKING
_EXCHANGE: Final = Stage.EXCHANGE
_CLOSING: Final = Stage.CLOSING
_OVER: Final = Stage.OVER


class Lifetime:
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

    def secured(self, stream: Stream) -> None:
        self.service.shook_hands(stream.tls)
        self.stage = _IDLE

    # ------------------------------------------------------------ for the classes on top

    def readable(self, stream: Stream) -> None:
        """The client has sent something, or its end."""
        raise NotImplementedError

    def writable(self, stream: Stream) -> None:
        """The client has taken everything."""
        raise NotImplementedError

    def due(self, now: float) -> None:
        """The wheel says that a deadline may have come."""
        raise NotImplementedError

    # ------------------------------------------------------------ deadlines

    def _by(self, deadline_at: float) -> None:
        """Be asked at this time; never later than was agreed before, and no system call or wheel for most requests."""
        if deadline_at < self._wheel_at:
            wheel = self._engine.wheel
            wheel.remove(self, self._wheel_key)
            self._wheel_at = deadline_at
            self._wheel_key = wheel.add(self, deadline_at)

    def _begin_idle(self) -> None:
        self.stage = _IDLE
        self.head = None
        now = self.active_at = self._engine.reactor.now
        silent_at = now + self.service.config.idle_timeout_s
        if silent_at < self._wheel_at:
            self._by(silent_at)
        if self._client.averted and not self._finished:
            self._client.resume()

    # ------------------------------------------------------------ its server

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

    # ------------------------------------------------------------ the end

    def broken(self, stream: Stream, error: OSError) -> None:
        if stream.shaking:
            self.service.shook_hands(None)
            self._log(f"TLS handshake: {tls_words(error)}")
        self.end("client_reset", reset=not stream.shaking)

    def _close_politely(self) -> None:
        """Close so that the client gets our last word: what it still sends would make the kernel answer with a reset,
        which takes the answer away from it (RFC 9112 section 9.6)."""
        self._drop_link()
        client = self._client
        self.stage = _CLOSING
        self.active_at = self._engine.reactor.now
        self._by(self._lingers_until)
        if client.blocked:
            return
        asked_to = self.asked is not None and self.asked.closes
        if self._finished or (asked_to and not self._in and self._body is None):
            self.end("closed")
            return
        client.finish()
        client.resume()

    @property
    def _lingers_until(self) -> float:
        return self.active_at + LINGER_S

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

    # ------------------------------------------------------------ what is told of it

    def _log(self, failure: str = "") -> None:
        self._logged = True
        if self.head is not None:
            self._time()
        if self.service.logs:
            self._engine.log.request(**request_facts(self, self._engine.reactor.now, failure))

    def _time(self) -> None:
        """How long the request took, for its server; for the service where none was asked."""
        engine, link = self._engine, self.link
        slot = link.slot if link is not None and link.slot >= 0 and self.sent_at else self.service.slot
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
