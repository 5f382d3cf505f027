"""A client and a server of a mail protocol, joined by somebody who understands what they say.

Decides: the order of things that `smtp`, `imap` and `pop3` have in common. The client is admitted (and, where TLS comes
first, shaken hands with); a server is sought, connected to, and must say that it is ready within `greeting_timeout_s`,
or the next one is asked; only then is the client greeted. At the end it is told why, as far as it listens.
Refuses to know: what is said. The modes' own classes do (`smtp_session`, `mailbox_session`), and the pure modules of
`wire` behind them.

    SHAKING → DELAYED → SEEKING → OPENING → TALKING → (RELAYING) → CLOSING → OVER

A session that moves to another server goes from TALKING back to SEEKING; the client does not notice.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from enum import Enum, IntEnum
from typing import Final

from mailbalancer.ipc.board import Count, Phase
from mailbalancer.log import Value
from mailbalancer.model import Endpoint
from mailbalancer.tls import verify
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.placement import Placement, left_from
from mailbalancer.worker.reactor import FAILED, WRITE
from mailbalancer.worker.stream import NOTHING, Stream

#: A client must have finished its TLS handshake within this time.
HANDSHAKE_S = 30.0
#: Our last word has been said: how long a client may go on sending before the connection is closed under it.
LINGER_S = 2.0


class Stage(IntEnum):
    """Where a session stands."""

    SHAKING = 0  # TLS with the client
    DELAYED = 1  # the greeting is held back on purpose
    SEEKING = 2  # for a server: in the queue, or connecting
    OPENING = 3  # the first words with a server
    TALKING = 4
    RELAYING = 5  # bytes that are not looked at any more
    CLOSING = 6  # our last word is said
    OVER = 7


class Say(Enum):
    """What every mail protocol has a sentence for."""

    NO_SERVER = "no_server"
    STOPPING = "stopping"
    DENIED = "denied"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    SERVER_LOST = "server_lost"
    IDLE = "idle_timeout"
    TLS_UNAVAILABLE = "tls_unavailable"


# Looking a member of an enum up costs more than what is done with it here.
_SHAKING, _DELAYED, _SEEKING, _OPENING, _TALKING, _RELAYING, _CLOSING, _OVER = Stage
_FIRST_BYTE: Final = int(Phase.FIRST_BYTE)
_CONNECT_OK: Final = int(Count.CONNECT_OK)
_BYTES_IN: Final = int(Count.BYTES_IN)
_BYTES_OUT: Final = int(Count.BYTES_OUT)


class MailSession(Placement):
    """Registers itself with engine, wheel and service, and takes itself out of all of them at the end.

    Attributes:
        client: the client's side, until the session is over.
        link: the server's side, from the connect on, while there is a server.
        greeted: the client has been told that it may speak.
        counted: it counts against the connections that its client's address may have.
        passed_over: servers that were tried before the last message.
        vouched: this server has done something useful for this session; it counts as a connect that succeeded.
    """

    __slots__ = (
        "_cell_in",
        "_cell_out",
        "_failed_for_tls",
        "_is_verified",
        "_reason",
        "_settled_in",
        "_settled_out",
        "active_at",
        "bytes_in",
        "bytes_out",
        "client",
        "counted",
        "endpoint",
        "greeted",
        "link",
        "passed_over",
        "stage",
        "started_at",
        "vouched",
    )
    service: MailService

    def __init__(
        self, engine: Engine, service: MailService, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        super().__init__(engine, service, address, port)
        self.endpoint = endpoint
        self.link: Stream | None = None
        self.greeted = False
        self.vouched = self.counted = False
        self.passed_over: tuple[str, ...] = ()
        self.stage = _SEEKING
        self.bytes_in = self.bytes_out = 0
        self.started_at = self.active_at = engine.reactor.now
        self._cell_in = self._cell_out = -1
        self._settled_in = self._settled_out = 0
        self._failed_for_tls = False
        self._is_verified = False  # the link's TLS, for what it says it is
        self._reason = ""
        engine.sessions.add(self)
        service.opened()
        self.client = Stream(engine, client, self)
        self._enter()

    # ------------------------------------------------------------ for the modes

    def sentence(self, say: Say) -> bytes:
        """How this protocol says it."""
        raise NotImplementedError

    def begin_opening(self) -> None:
        """The server is connected, and under TLS if that comes first: listen for its greeting."""
        raise NotImplementedError

    def client_secured(self) -> None:
        """TLS with the client has begun in the middle of the session."""
        raise NotImplementedError

    def server_secured(self) -> None:
        """TLS with the server has begun behind its STARTTLS."""
        raise NotImplementedError

    def from_client(self, data: bytes) -> None:
        """Bytes while OPENING, TALKING or RELAYING. Before the greeting they come too early."""
        raise NotImplementedError

    def from_server(self, data: bytes) -> None:
        """Bytes while OPENING, TALKING or RELAYING."""
        raise NotImplementedError

    def client_ended(self) -> None:
        """The client has ended its half."""
        self.end("client_closed", reset=False)

    def server_ended(self, why: str) -> None:
        """The server's connection is over while TALKING or RELAYING."""
        raise NotImplementedError

    def went_through(self) -> None:
        """Something that waited for a slow peer has been written: go on reading."""
        raise NotImplementedError

    def idle_limit_s(self) -> float:
        """How long nothing may happen while TALKING."""
        return self.service.config.idle_timeout_s

    @property
    def interrupts(self) -> bool:
        """Whether the server must not take what it has got so far for complete: its connection is reset."""
        return False

    # ------------------------------------------------------------ the beginning

    def _enter(self) -> None:
        """May this client be served at all?"""
        service = self.service
        refusal = service.refusal(self.address)
        say = Say.DENIED if refusal == "denied" else Say.NO_SERVER
        if not refusal and not service.takes(self):
            refusal, say = "too_many_connections", Say.TOO_MANY_CONNECTIONS
        if service.client_starttls == "implicit":
            if refusal:
                self.end(refusal, reset=True)
            else:
                self.shake_hands()
        elif refusal:
            self.dismiss(self.sentence(say), refusal)
        else:
            self._admitted()

    def _admitted(self) -> None:
        delay = self.service.mail.smtp.policy.greeting_delay_s
        if delay:
            self.stage = _DELAYED
            self.wait_until(self._engine.reactor.now + delay)
        else:
            self._seek_first()

    def _seek_first(self) -> None:
        self.stage = _SEEKING
        self.seek()

    def shake_hands(self) -> None:
        """TLS with the client, here and now. Nothing that it has said may be left anywhere."""
        offer = self.service.offer
        assert offer is not None
        self.stage = _SHAKING
        self.wait_until(self._engine.reactor.now + HANDSHAKE_S)
        if self.link is not None:
            self.link.pause()
        self.client.resume()
        self.client.secure(offer.context, server_side=True)

    # ------------------------------------------------------------ a server

    def _on_connect(self, events: int) -> None:
        """As for every placement, but a connect counts as good only when the server has been of use (`vouch`)."""
        assert self.server is not None
        if events & FAILED:
            self._connect_failed(self.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif events & WRITE:
            self.connecting = False
            self.placed(events)

    def placed(self, events: int) -> None:
        """Connected: the PROXY header goes first, then TLS where it is implicit."""
        engine, target, server = self._engine, self.target, self.server
        assert target is not None
        assert server is not None
        self.stage = _OPENING
        self.vouched = self._is_verified = False
        self._cell_in, self._cell_out = engine.cell(target.slot, _BYTES_IN), engine.cell(target.slot, _BYTES_OUT)
        self._settled_in, self._settled_out = self.bytes_in, self.bytes_out
        engine.relays.add(self)
        self.wait_until(engine.reactor.now + self.service.mail.greeting_timeout_s)
        self.link = Stream(engine, server, self, watched=True)
        self.server = None  # the stream's now
        header = self.service.header_for(self)
        try:
            if header:
                self.link.write(header)
        except OSError as error:
            self.pass_over(words(error))
            return
        if self.service.server_starttls == "implicit":
            self.secure_server()
        else:
            self.connected()
            self.begin_opening()

    def secure_server(self) -> None:
        """TLS with the server, here and now."""
        tls, target, context = self.service.config.server_tls, self.target, self.service.server_context
        assert tls is not None
        assert target is not None
        assert context is not None
        assert self.link is not None
        name = verify.expected_name(tls.verify, target.endpoint)
        session = self._engine.tls_sessions.session(context, target.endpoint, name)
        self.link.secure(context, server_side=False, name=name, session=session)

    def pass_over(self, failure: str, *, kind: str = "failure", tls: bool = False) -> None:
        """This server will not do: the next one, while the client waits.

        Args:
            failure: why, for the log and for the supervisor.
            kind: as in `Remark`; only a `failure` counts against the server's health.
            tls: it failed because TLS with it failed.
        """
        target = self.target
        assert target is not None
        self._failed_for_tls = tls
        self.service.remark(target, kind, failure)
        self.stage = _SEEKING
        self.seek_next(failure, blame=kind == "failure" and not self.vouched)

    def vouch(self) -> None:
        """The server has been of use."""
        if not self.vouched and self.target is not None:
            self.vouched = True
            self._engine.ints[self._engine.cell(self.target.slot, _CONNECT_OK)] += 1

    def opened(self) -> None:
        """The server is ready for the client's commands."""
        self.stage = _TALKING
        self._failed_for_tls = False
        self.active_at = self._engine.reactor.now
        self._engine.timings.took(self.slot, _FIRST_BYTE, self.active_at - self.connected_at)
        self.wait_until(self.active_at + self.idle_limit_s())

    def unplaced(self, reason: str) -> None:
        """No server is left."""
        say = Say.TLS_UNAVAILABLE if self._failed_for_tls and reason == "no_server" else Say.NO_SERVER
        self.dismiss(self.sentence(say), reason)

    def give_up(self) -> None:
        if self._cell_in >= 0:
            self.stop_counting()
        if self.link is not None:
            if self._is_verified and self.link.tls is not None:
                self._remember_tls(self.link.tls)
            self.link.close(reset=self.interrupts)
            self.link = None
        super().give_up()

    def _remember_tls(self, connection: ssl.SSLSocket) -> None:
        """So that the next handshake is half as long. At the end of a session, when the server has sent its tickets."""
        tls, target = self.service.config.server_tls, self.target
        if tls is not None and target is not None:
            name = verify.expected_name(tls.verify, target.endpoint)
            self._engine.tls_sessions.remember(connection, target.endpoint, name)

    def reached(self) -> Endpoint:
        if self.endpoint.host not in ("0.0.0.0", "::"):
            return self.endpoint
        return Endpoint(*self.client.sock.getsockname()[:2])

    # ------------------------------------------------------------ bytes

    def readable(self, stream: Stream) -> None:
        try:
            data = stream.read(self.service.read_bytes)
        except OSError as error:
            if not self._has_ended(stream, error):
                return
            data = b""
        self.active_at = self._engine.reactor.now
        if stream is not self.client:
            if data:
                self.bytes_out += len(data)
                self.from_server(data)
            else:
                self._server_ended("closed the connection")
        elif not data:
            self._client_ended()
        elif self.stage is not _CLOSING:
            self.bytes_in += len(data)
            self.from_client(data)

    def _has_ended(self, stream: Stream, error: OSError) -> bool:
        """Whether what was raised means the end. A break is dealt with."""
        try:
            return stream.not_read(error) != NOTHING
        except OSError as broken:
            self.broken(stream, broken)
            return False

    def stop_counting(self) -> None:
        """What comes from here on is no byte of this server, or is counted elsewhere."""
        self.settle()
        self._cell_in = self._cell_out = -1
        self._engine.relays.discard(self)

    def settle(self) -> None:
        """Bring the board's counters of bytes up to date: now and then, because each read would cost more."""
        if self._cell_in >= 0:
            ints = self._engine.ints
            ints[self._cell_in] += self.bytes_in - self._settled_in
            ints[self._cell_out] += self.bytes_out - self._settled_out
            self._settled_in, self._settled_out = self.bytes_in, self.bytes_out

    def _client_ended(self) -> None:
        if self.stage == _CLOSING:
            self.end(self._reason)
        elif self.stage == _TALKING or self.stage == _RELAYING:
            self.client_ended()
        else:
            self.end("client_closed")

    def _server_ended(self, why: str) -> None:
        if self.stage == _OPENING:
            self.pass_over(why)
        elif self.stage == _TALKING or self.stage == _RELAYING:
            self.server_ended(why)
        else:
            self._lose_link()

    def _lose_link(self) -> None:
        """The server is gone while TLS with the client begins: that is noticed when it is asked next."""
        if self.link is not None:
            self.link.pause()

    def writable(self, stream: Stream) -> None:
        if self.stage == _CLOSING:
            self._linger()
        elif self.stage != _OVER:
            self.went_through()

    def broken(self, stream: Stream, error: OSError) -> None:
        if stream is self.client:
            shaking = self.stage == _SHAKING
            if shaking:
                self.service.shook_hands(None)
            self.last_failure = self.last_failure or (f"client: {words(error)}" if shaking else "")
            self.end("client_tls_failed" if shaking else "client_reset", reset=True)
        elif self.stage == _OPENING and isinstance(error, ssl.SSLError):
            tls, target = self.service.config.server_tls, self.target
            assert tls is not None
            assert target is not None
            self.pass_over(verify.handshake_refusal(error, tls.verify, target.endpoint), tls=True)
        else:
            self._server_ended(words(error))

    def secured(self, stream: Stream) -> None:
        if stream is not self.client:
            self._server_is_secured(stream)
            return
        self.service.shook_hands(stream.tls)
        if self.greeted:
            self.stage = _TALKING
            self.wait_until(self._engine.reactor.now + self.idle_limit_s())
            if self.link is not None:
                self.link.resume()
            self.client_secured()
        else:
            self._admitted()

    def _server_is_secured(self, stream: Stream) -> None:
        tls, target = self.service.config.server_tls, self.target
        assert tls is not None
        assert target is not None
        assert stream.tls is not None
        refusal = verify.after_handshake(stream.tls, tls.verify, target.endpoint)
        if refusal:
            self.pass_over(refusal, tls=True)
            return
        self._is_verified = True
        if self.service.server_starttls == "implicit":
            self.connected()
            self.begin_opening()
        else:
            self.server_secured()

    def tell_server(self, data: bytes | bytearray | memoryview) -> bool:
        """Pass bytes on. False: the server's connection is over, and what follows from that has happened."""
        link = self.link
        assert link is not None
        try:
            link.write(data)
        except OSError as error:
            self._server_ended(words(error))
            return False
        return True

    def tell_client(self, data: bytes | bytearray | memoryview) -> bool:
        """Pass bytes on. False: the client is gone, and the session over."""
        try:
            self.client.write(data)
        except OSError:
            self.end("client_reset", reset=True)
            return False
        if self.client.blocked and self.link is not None:
            self.link.pause()
        return True

    # ------------------------------------------------------------ deadlines

    def expired(self, now: float) -> None:
        if self.seek_due(now):
            return
        if self.stage == _OPENING:
            self.pass_over(f"was not ready within {self.service.mail.greeting_timeout_s:g} s")
        elif self.stage == _DELAYED:
            self._seek_first()
        elif self.stage == _SHAKING:
            self.end("no_client_handshake", reset=True)
        elif self.stage == _TALKING or self.stage == _RELAYING:
            self.talking_due(now)
        else:
            self.end(self._reason or "idle_timeout", reset=self.client.blocked)

    def talking_due(self, now: float) -> None:
        """Most deadlines are old: something has happened meanwhile."""
        deadline_at = self.active_at + self.idle_limit_s()
        if deadline_at > now:
            self.wait_until(deadline_at)
        elif self.stage == _RELAYING:
            self.end("idle_timeout", reset=self.client.blocked)
        else:
            self.dismiss(self.sentence(Say.IDLE), "idle_timeout")

    # ------------------------------------------------------------ the end

    def dismiss(self, last: bytes, reason: str) -> None:
        """Leave the server, say a last thing to the client, and close when it has it.

        A client that is still sending when its connection is closed would be reset, and might never read the answer.
        """
        if self.stage >= _CLOSING:
            return
        self._leave_server()
        self.stage = _CLOSING
        self._reason = reason
        self.wait_until(self._engine.reactor.now + LINGER_S)
        try:
            if last:
                self.client.write(last)
        except OSError:
            self.end(reason, reset=True)
            return
        if not self.client.blocked:
            self._linger()

    def _leave_server(self) -> None:
        was_waiting, self.waiting = self.waiting, False
        self.lasted(self.started_at)
        self.give_up()
        self.service.release(self, waiting=was_waiting)

    def _linger(self) -> None:
        self.client.finish()
        self.client.resume()

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close both sides and write the log line. `reset`: with RST, so that nothing looks complete that is not."""
        if self.stage == _OVER:
            return
        if reason == "stopped" and self.stage == _TALKING and self.greeted:
            reset = not self._say_stopping()
        was_waiting, self.waiting = self.waiting, False
        self.about_to_end(reason)
        line = self._line(reason) if self._engine.log.sessions else {}
        if self.stage is not _CLOSING:
            self.lasted(self.started_at)
        self.stage = _OVER
        self.no_deadline()
        self.give_up()
        self.client.close(reset=reset)
        self._engine.sessions.discard(self)
        self.service.leaves(self)
        if line:
            self._engine.log.session(**line)
        self.service.closed(self, waiting=was_waiting)

    def about_to_end(self, reason: str) -> None:
        """A last chance to say what became of something unfinished."""

    def _say_stopping(self) -> bool:
        try:
            self.client.write(self.sentence(Say.STOPPING))
        except OSError:
            return False
        return not self.client.blocked

    def _line(self, reason: str) -> dict[str, Value]:
        target = self.target
        line: dict[str, Value] = {
            "service": self.service.name,
            "client": str(Endpoint(self.address, self.port)),
            "server": target.name if target else None,
            "address": str(target.endpoint) if target else None,
            "why": self.why or None,
            "in": self.bytes_in,
            "out": self.bytes_out,
            "duration_s": self._engine.reactor.now - self.started_at,
            "end": reason,
        }
        if self.bind_address:
            line["source"] = self.bind_address
        tried = self.passed_over + self.tried
        if tried:
            line["tried"] = ",".join(tried)
        if self.last_failure:
            line["failure"] = self.last_failure
        for side, stream in (("client_tls", self.client), ("server_tls", self.link)):
            facts = tls_facts(stream)
            if facts:
                line[side] = facts
        return line

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of its sockets."""
        socks = (self.client.sock, self.server, self.link.sock if self.link is not None else None)
        return fd >= 0 and any(sock is not None and sock.fileno() == fd for sock in socks)

    def facts(self) -> dict[str, str | int | float]:
        """For `mailbalancer sessions`."""
        now, target = self._engine.reactor.now, self.target
        return {
            "service": self.service.name,
            "client": str(Endpoint(self.address, self.port)),
            "listen": str(self.endpoint),
            "server": target.name if target else "",
            "server_address": str(target.endpoint) if target else "",
            "left_from": left_from(self.link.sock if self.link is not None else self.server),
            "why": self.why,
            "age_s": round(now - self.started_at, 3),
            "idle_s": round(now - self.active_at, 3),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "state": "waiting" if self.waiting else self.stage.name.lower(),
            "worker": self._engine.index,
        }


def words(error: OSError) -> str:
    """An error of a socket for an administrator."""
    number = error.errno or 0
    return os.strerror(number).lower() if number in errno.errorcode else str(error).lower()


def tls_facts(stream: Stream | None) -> str | None:
    """Version and cipher, such as `TLSv1.3:TLS_AES_128_GCM_SHA256`; None without TLS."""
    tls = stream.tls if stream is not None else None
    if tls is None:
        return None
    version, cipher = tls.version(), tls.cipher()
    return f"{version}:{cipher[0]}" if version and cipher else None
