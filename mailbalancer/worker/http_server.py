"""A connection to a real server, for one request or for all of one client's: found, connected, secured, and read.

Decides: when a connection to a server may be used, that one which has spoken unasked is not, and what in the bytes from
a server is the answer to the request at hand.
Refuses to know: what the client is told (`http_exchange`), and which server is asked (`http_service`).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from mailbalancer.ipc.board import Availability, Count, Slot
from mailbalancer.model import Endpoint
from mailbalancer.tls import verify
from mailbalancer.wire.http_body import Body, Kind, open_body
from mailbalancer.wire.http_head import BadMessage
from mailbalancer.wire.recurring import LONGEST
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.http_judged import JudgedAnswer, JudgedRequest
from mailbalancer.worker.http_log import broken_words
from mailbalancer.worker.http_route import Returning, Route
from mailbalancer.worker.http_service import IDLE_S, HttpService
from mailbalancer.worker.placement import Placement
from mailbalancer.worker.service import Target
from mailbalancer.worker.stream import NOTHING, RECORD_BYTES, Stream

if TYPE_CHECKING:
    from mailbalancer.worker.http_exchange import Exchange

#: A connection that was idle for longer is looked at before a request is sent on it: servers close idle ones.
TRUSTED_IDLE_S: Final = 0.5
BURST: Final = 4  # reads of one answer in one turn before others get theirs
_READY: Final = int(Availability.READY)
_EMPTY_LINE: Final = b"\r\n\r\n"


class ServerLink(Placement):
    """Belongs to one client's connection while it has a request under way, and in `per_client` services always.

    Attributes:
        client: whose it is now; None: idle, for whoever comes.
        owner: identity of the client whose request it carried last.
        way: the route that chose it.
        returning: what the request says about its client.
        preferred: the real server that this client is connected to for other routes.
        tied: it has carried NTLM or the like, in either direction: it belongs to its client for good.
        pinned: it is counted as such.
        deaf: the server does not take what we send any more; what it has said may still be read.
        served: requests sent on it.
        body: of the answer that is being read; None: its head is not there yet, or no answer is expected.
    """

    __slots__ = (
        "_came",
        "_cell_in",
        "_cell_out",
        "_fast",
        "_ready_cell",
        "_seen",
        "_waiting",
        "_went",
        "body",
        "client",
        "deaf",
        "idle_at",
        "owner",
        "persistent",
        "pinned",
        "preferred",
        "returning",
        "served",
        "stream",
        "tied",
        "way",
    )
    service: HttpService

    def __init__(
        self, engine: Engine, service: HttpService, client: Exchange, way: Route, returning: Returning
    ) -> None:
        super().__init__(engine, service, client.source, client.port)
        self.client: Exchange | None = client
        self.owner = client.number
        self.way = way
        self.route = way.name
        self.returning = returning
        self.preferred = ""
        self.stream: Stream | None = None
        self.tied = self.pinned = self.deaf = False
        self.served, self.idle_at = 0, 0.0
        self.body: Body | None = None
        self.persistent = True
        self._waiting, self._seen = b"", 0
        self._fast = False  # the answer fills whatever it is read into
        self._came = self._went = 0  # bytes that the board does not know of yet
        self._cell_in = self._cell_out = self._ready_cell = 0

    # ------------------------------------------------------------ to a server

    def _connect(self, target: Target) -> None:
        """An idle connection will do, unless this client's is to be its own."""
        client, service = self.client, self.service
        assert client is not None
        self._count_on(target)
        while service.shared and not client.tied:
            idle = service.take_idle(target, client.number)
            if idle is None:
                break
            if idle.is_quiet(trusted=idle.owner == client.number):
                self._adopt(idle)
                return
            idle.close()
        super()._connect(target)

    def _adopt(self, idle: ServerLink) -> None:
        """Go on where another link has been put aside."""
        self.stream, idle.stream = idle.stream, None
        assert self.stream is not None
        self.stream.owner = self
        self.served = idle.served
        idle.close()
        assert self.client is not None
        self.client.linked(self)

    def _count_on(self, target: Target) -> None:
        engine = self._engine
        self.settle()
        self._cell_in = engine.cell(target.slot, Count.BYTES_IN)
        self._cell_out = engine.cell(target.slot, Count.BYTES_OUT)
        self._ready_cell = engine.board.slot(target.slot, Slot.AVAILABILITY)
        engine.relays.add(self)

    def settle(self) -> None:
        """Bring the board's counters up to what has been moved: now and then, because each event would cost more."""
        ints = self._engine.ints
        if self._went:
            ints[self._cell_in] += self._went
        if self._came:
            ints[self._cell_out] += self._came
        self._went = self._came = 0

    def move_to(self, route: Route) -> None:
        """The next request takes another route to the same server: it is counted there from now on."""
        assert self.target is not None
        target = route.pool.targets[self.target.name]
        self.way, self.route = route, route.name
        if target.slot != self.slot:
            ints, cell = self._engine.ints, self._engine.cell
            ints[cell(self.slot, Count.SESSIONS)] -= 1
            ints[cell(target.slot, Count.SESSIONS)] += 1
            ints[cell(target.slot, Count.TOTAL)] += 1
            self.slot = target.slot
            self._count_on(target)
        self.target = target

    def placed(self, events: int) -> None:
        """Connected: the PROXY header first, then TLS, then the request."""
        assert self.server is not None
        self.stream = Stream(self._engine, self.server, self, watched=True)
        self.server = None  # the stream's now
        try:
            header = self.service.header_for(self)
            if header:
                self.stream.write(header)
        except OSError as error:
            self.seek_next(broken_words(error), blame=True)
            return
        tls, target = self.service.config.server_tls, self.target
        if tls is None or self.service.server_context is None:
            self._ready()
            return
        assert target is not None
        name = verify.expected_name(tls.verify, target.endpoint)
        session = self._engine.tls_sessions.session(self.service.server_context, target.endpoint, name)
        self.stream.secure(self.service.server_context, server_side=False, name=name, session=session)

    def secured(self, stream: Stream) -> None:
        """The handshake is over: is the server who it should be?"""
        tls, target = self.service.config.server_tls, self.target
        assert stream.tls is not None
        assert target is not None
        refusal = verify.after_handshake(stream.tls, tls.verify, target.endpoint) if tls is not None else ""
        if refusal:
            self.seek_next(refusal, blame=True)
        else:
            self._ready()

    def _handshake_failed(self, error: OSError) -> None:
        """As with a server that cannot be connected to: the next one, if there is one."""
        tls, target = self.service.config.server_tls, self.target
        assert tls is not None
        assert target is not None
        self.seek_next(verify.handshake_refusal(error, tls.verify, target.endpoint), blame=True)

    def _remember_session(self) -> None:
        """The server has answered, and so sent what the next handshake with it can be shortened by."""
        tls, target, stream = self.service.config.server_tls, self.target, self.stream
        if tls is not None and stream is not None and stream.tls is not None and target is not None:
            name = verify.expected_name(tls.verify, target.endpoint)
            self._engine.tls_sessions.remember(stream.tls, target.endpoint, name)

    def _ready(self) -> None:
        self.no_deadline()
        self.connected()
        assert self.client is not None
        self.client.linked(self)

    def give_up(self) -> None:
        self.settle()
        self._engine.relays.discard(self)
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        super().give_up()

    def unplaced(self, reason: str) -> None:
        self.no_deadline()
        if self.client is not None:
            self.client.unlinked(reason)

    def reached(self) -> Endpoint:
        """For the PROXY header: the address that the client connected to."""
        assert self.client is not None
        return self.client.reached()

    # ------------------------------------------------------------ asking

    @property
    def is_ready(self) -> bool:
        """Whether its server is given new clients."""
        return self._engine.ints[self._ready_cell] == _READY

    def serves(self, route: Route, returning: Returning, source: str) -> bool:
        """Whether its client's next request may go here, too. The usual case first: the same route again, nothing that
        speaks for another server, and a server that was heard of a moment ago."""
        wanted, key, _ = returning
        engine, target = self._engine, self.target
        assert target is not None
        if (
            self.way is route
            and not key
            and (not wanted or wanted == target.name)
            and self.address == source
            and engine.ints[self._ready_cell] == _READY
            and engine.reactor.now - self.idle_at < TRUSTED_IDLE_S
            and not self.deaf
        ):
            return True
        return self.service.keeps(route, self, returning, source) and self.is_quiet()

    def is_quiet(self, trusted: bool = True) -> bool:
        """Whether the server still listens. A connection that it has closed, or spoken on unasked, is of no use: a
        request that may have reached a server is not sent again, so it is better not sent on that one.

        Args:
            trusted: it need not be looked at when it was used a moment ago; not for another client, who would be
                answered with what the server has said meanwhile.
        """
        stream = self.stream
        if stream is None or self.deaf:
            return False
        if trusted and self._engine.reactor.now - self.idle_at < TRUSTED_IDLE_S:
            return True
        return stream.is_quiet()

    def send(self, data: bytes | memoryview) -> None:
        """A part of the request. Where it does not go any more, the server's answer, if there is one, still counts."""
        self._went += len(data)
        if self.deaf:
            return
        assert self.stream is not None
        try:
            self.stream.write(data)
        except OSError:
            self._turn_deaf()

    def _turn_deaf(self) -> None:
        self.deaf = True
        self.persistent = False
        if self.stream is not None:
            self.stream.forget_unsent()

    @property
    def blocked(self) -> bool:
        return self.stream is not None and self.stream.blocked

    def listen(self) -> None:
        """Between requests the server is heard at once, if its last answer came faster than the client took it, too."""
        if self.stream is not None and self.stream.averted:
            self.stream.resume()

    def writable(self, stream: Stream) -> None:
        if self.client is not None:
            self.client.server_writable()

    # ------------------------------------------------------------ reading the answer

    def readable(self, stream: Stream) -> None:
        """Bytes of the answer. One that is here whole, and whose head came before, takes the shortest way there is."""
        client = self.client
        if client is None or not client.expects_answer:
            self._spoken_unasked()
            return
        buffer = self.service.buffer if not self._fast else self._buffer_for(client)
        n = self._receive(client, stream, buffer)
        if n <= 0:
            return
        if self.body is not None or self._waiting or self.served == 1:
            self._read_much(client, stream, buffer, n)
            return
        self._came += n
        begins = buffer[: n if n < LONGEST else LONGEST].tobytes()
        length = begins.find(_EMPTY_LINE) + 4
        known = self.service.answers.known
        answer = known(begins[:length])
        if answer is None or answer.length != n - length or not client.pass_whole(answer, buffer[length:n]):
            self._read_heads(client, buffer[:n])

    def _read_much(self, client: Exchange, stream: Stream, buffer: memoryview, n: int) -> None:
        """An answer, or the rest of it, and while it comes fast the next part at once, for it costs an event less. More
        than the service's buffer holds is read only where it will not have to wait here."""
        turns = BURST
        if n >= RECORD_BYTES:
            client.gather()
        while n > 0:
            n = stream.fill(buffer, n)
            self._came += n
            self._read_answer(client, buffer[:n])
            turns -= 1
            self._fast = n == len(buffer) and self.body is not None
            if not (turns and self._fast) or self.client is not client or stream.averted:
                break
            buffer = self._buffer_for(client)
            n = self._receive(client, stream, buffer)
        client.release()

    def _buffer_for(self, client: Exchange) -> memoryview:
        service = self.service
        return service.bulk if client.takes(len(service.bulk)) else service.buffer

    def _receive(self, client: Exchange, stream: Stream, buffer: memoryview) -> int:
        """How many bytes are in the buffer now; 0 and below: what there was to do about it is done."""
        read_into = stream.read_into
        try:
            n = read_into(buffer)
        except OSError as error:
            n = self._not_read(client, stream, error)
        if not n:
            self._ended(client, stream)
        return n

    def _not_read(self, client: Exchange, stream: Stream, error: OSError) -> int:
        try:
            return stream.not_read(error)
        except OSError as broke:
            client.server_broke(broken_words(broke))
            return NOTHING

    def _read_answer(self, client: Exchange, data: memoryview) -> None:
        body = self.body
        if body is None:
            if self._waiting:
                data = memoryview(self._waiting + data)
                self._waiting = b""
            self._read_heads(client, data)
            return
        try:
            pieces, taken = body.feed(data)
        except BadMessage as bad:
            client.server_broke(str(bad))
            return
        if pieces:
            client.pass_answer(pieces)
        if body.done:
            self._complete(client, taken == len(data))

    def _read_heads(self, client: Exchange, data: memoryview) -> None:
        """The final head, and those of 1xx before it. What is not read yet of `data` waits."""
        answers, asked = self.service.answers, client.asked
        assert asked is not None
        try:
            while data and self.client is client:
                answer = answers.read(data, self._seen, asked)
                if answer is None:
                    self._waiting = bytes(data)
                    self._seen = len(data)
                    return
                self._seen = 0
                data = data[answer.head.length :]
                self.tied = self.tied or answer.ties
                if not answer.interim:
                    self._begin_answer(client, asked, answer, data)
                    return
                client.pass_interim(answer)
        except BadMessage as bad:
            client.server_broke(str(bad))

    def _begin_answer(self, client: Exchange, asked: JudgedRequest, answer: JudgedAnswer, rest: memoryview) -> None:
        """Pass a head on, with what is there of its body."""
        size = len(rest)
        if not answer.persistent:
            self.persistent = False
        length = answer.length
        if 0 <= length <= size:  # all of it is here
            client.pass_head(answer, (rest,) if length == size else (rest[:length],))
            self._complete(client, length == size)
            return
        body = open_body(answer.framing, answer.kind is Kind.CHUNKED and not asked.head.minor, 502)
        pieces, taken = body.feed(rest)
        self.body = body
        client.pass_head(answer, pieces)
        if body.done:
            self._complete(client, taken == size)

    def _complete(self, client: Exchange, nothing_follows: bool) -> None:
        """The answer is whole. What a server says beyond it is an answer to nothing, and the next client's danger."""
        if self.client is not client:  # it broke while the last piece was written
            return
        self.body = None
        if self.served == 1:
            self._remember_session()
        if not nothing_follows:
            self.persistent = False
        client.answered()

    def _ended(self, client: Exchange, stream: Stream) -> None:
        body = self.body
        self.persistent = False
        if client.in_tunnel:
            client.server_finished()
        elif body is None:
            client.server_broke("closed the connection before it answered")
        elif body.ends_at_close and not stream.truncated:
            self._complete(client, nothing_follows=True)
        else:
            client.server_broke("closed the connection in the middle of its answer")

    def _spoken_unasked(self) -> None:
        """Between requests: the server has closed, which is its right, or said something, which is answered by that."""
        client = self.client
        if client is None:
            self.service.drop_idle(self)
            self.close()
        else:
            client.lost_link()

    def broken(self, stream: Stream, error: OSError) -> None:
        """Sending failed later than the call."""
        if stream.shaking:
            self._handshake_failed(error)
        elif self.client is None:
            self._spoken_unasked()
        else:
            self._turn_deaf()

    # ------------------------------------------------------------ between requests and the end

    def rest(self) -> None:
        """No request is under way: keep it for anybody."""
        client = self.client
        assert client is not None
        self._uncount()
        self.client = None
        self.idle_at = self._engine.reactor.now
        if self.service.put_idle(self):
            self.wait_until(self.idle_at + IDLE_S)
        else:
            self.close()

    def _uncount(self) -> None:
        if self.slot >= 0:
            self._engine.ints[self._engine.cell(self.slot, Count.SESSIONS)] -= 1
            self.slot = -1
            self.service.release(self, waiting=False)

    def expired(self, now: float) -> None:
        if self.seek_due(now):
            return
        if self.client is None:
            self.service.drop_idle(self)
            self.close()
        elif self.stream is not None and self.stream.shaking:
            self._handshake_failed(TimeoutError(errno.ETIMEDOUT, "no answer in time"))

    def close(self) -> None:
        """Give everything back. Never with a reset: what was sent may be on its way still."""
        self.client = None
        self.no_deadline()
        was_waiting, self.waiting = self.waiting, False
        held_place = self.slot >= 0
        self.give_up()
        if held_place or was_waiting:
            self.service.release(self, waiting=was_waiting)

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is its socket."""
        sock = self.stream.sock if self.stream is not None else self.server
        return sock is not None and sock.fileno() == fd
