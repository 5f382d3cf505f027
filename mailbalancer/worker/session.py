"""One session: a client's connection from accept to the log line.

Decides: in which order things happen. First what must be known before choosing (a PROXY header, a ClientHello), then
the choice, the connect and, when that fails, the next server; then bytes flow until one side ends it.
Refuses to know: how a server is chosen (`service`, `balance`), how bytes flow (`relay`), what a header looks like.

A session is callbacks and slots, not a task: ten thousand idle ones cost memory and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from enum import IntEnum
from functools import partial

from mailbalancer.balance.persist import Table
from mailbalancer.balance.pool import Refusal
from mailbalancer.ipc.board import Count
from mailbalancer.model import Endpoint
from mailbalancer.wire import client_hello, proxy_header, server_hello
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.reactor import FAILED, HANGUP, INPUT, READ, WRITE
from mailbalancer.worker.relay import Relay
from mailbalancer.worker.service import Service, Target

#: A ClientHello must be complete within this time, or the connection is closed.
HELLO_TIMEOUT_S = 10.0
#: First bytes that begin like a PROXY header (an empty line does) are held for the rest of it, so long and no longer.
FIRST_BYTES_HOLD_S = 2.0
#: The server has closed its side: a client that stays silent this long has gone.
AFTER_SERVER_CLOSED_S = 60.0
_EARLY_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)
#: TLS alert: fatal, unrecognized_name (RFC 6066 section 3).
_UNRECOGNIZED_NAME = bytes.fromhex("15030300020270")
#: connect(2) failed for want of something on this machine: the server is not to blame.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM)


class Stage(IntEnum):
    """Where a session stands."""

    PROXY_HEADER = 0
    CLIENT_HELLO = 1
    WAITING = 2  # every ready server is full
    CONNECTING = 3
    RELAYING = 4
    OVER = 5


class Session:
    """Registers itself with reactor, wheel, engine and service, and takes itself out of all of them at the end."""

    __slots__ = (
        "_client",
        "_client_events",
        "_destination",
        "_early",
        "_engine",
        "_relay",
        "_server",
        "_vouched_for",
        "_wheel_key",
        "address",
        "endpoint",
        "held_key",
        "held_table",
        "last_failure",
        "port",
        "route",
        "service",
        "slot",
        "sni",
        "stage",
        "started_at",
        "target",
        "tls_session",
        "tried",
        "why",
    )

    def __init__(
        self, engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        self._engine = engine
        self._client = client
        self._server: socket.socket | None = None
        self._client_events = 0
        self._early: bytes = b""
        self._relay: Relay | None = None
        self._destination: Endpoint | None = None  # where a PROXY header says that the client had connected to
        self._vouched_for = service.trusts_header_from(address)  # the peer is a proxy that tells us who the client is
        self._wheel_key = 0
        self.stage = Stage.WAITING
        self.service = service
        self.endpoint = endpoint
        self.address = address
        self.port = port
        self.target: Target | None = None
        self.slot = -1
        self.tried: tuple[str, ...] = ()
        self.why = ""
        self.last_failure = ""
        self.sni = ""
        self.route = ""
        self.tls_session = ""  # the TLS session the client asks to resume, in hexadecimal
        self.held_table: Table | None = None  # with its key: the binding that does not expire while this session lives
        self.held_key = ""
        now = engine.reactor.now
        self.started_at = now
        engine.reactor.watch(client, self._on_client_early)
        engine.sessions.add(self)
        service.opened()
        config = service.config
        if self._vouched_for:
            self.stage = Stage.PROXY_HEADER
            self._wheel_key = engine.wheel.add(self, now + config.proxy_protocol.header_timeout_s)
        elif service.is_tls:
            self.stage = Stage.CLIENT_HELLO
            self._wheel_key = engine.wheel.add(self, now + HELLO_TIMEOUT_S)
        else:
            self._wheel_key = engine.wheel.add(self, now + config.connect_timeout_s)
            self._admit()

    # ------------------------------------------------------------ before the choice

    def _on_client_early(self, events: int) -> None:
        """The client before bytes flow: read what the choice needs, otherwise leave its bytes in the kernel."""
        if self.stage <= Stage.CLIENT_HELLO:
            self._read_early()
        elif events & FAILED:
            self.end("client_reset")
        elif events & HANGUP and self.stage == Stage.WAITING and self._has_left():
            self.end("client_closed")
        else:
            self._client_events |= events

    def _has_left(self) -> bool:
        """Whether a client in the queue has closed without a word. One that has said something may want the answer."""
        try:
            return not self._early and not self._client.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _read_early(self) -> None:
        while self.stage <= Stage.CLIENT_HELLO:
            try:
                data = self._client.recv(_EARLY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self.end("client_reset")
                return
            if not data:
                self.end("client_closed")
                return
            self._early += data
            if self.stage == Stage.PROXY_HEADER:
                self._take_proxy_header()
            if self.stage == Stage.CLIENT_HELLO and self._early:
                self._take_client_hello()
        self._client_events |= INPUT  # there may be more in the kernel, and no edge will come for it

    def _take_proxy_header(self) -> None:
        try:
            header = proxy_header.parse(self._early)
        except proxy_header.BadProxyHeader as error:
            self.last_failure = str(error)
            self.end("bad_proxy_header", reset=True)
            return
        if header is None:
            return
        self._early = self._early[header.length :]
        if header.source is not None:
            self.address, self.port = header.source.host, header.source.port
            self._destination = header.destination
        engine = self._engine
        engine.wheel.remove(self, self._wheel_key)
        if self.service.is_tls:
            self.stage = Stage.CLIENT_HELLO
            self._wheel_key = engine.wheel.add(self, engine.reactor.now + HELLO_TIMEOUT_S)
            return
        self._wheel_key = engine.wheel.add(self, engine.reactor.now + self.service.config.connect_timeout_s)
        self._admit()

    def _take_client_hello(self) -> None:
        try:
            hello = client_hello.parse(self._early)
        except client_hello.BadClientHello as error:
            self.last_failure = str(error)
            self.end("bad_client_hello", reset=True)
            return
        if hello is None:
            return
        self.sni = hello.sni
        route = self.service.route_for(hello.sni)
        if route is None:
            with contextlib.suppress(OSError):  # it may have gone by now
                self._client.send(_UNRECOGNIZED_NAME)  # seven bytes into an empty socket buffer
            self.end("unknown_sni")
            return
        self.route = route
        self.tls_session = hello.session_id.hex()
        engine = self._engine
        engine.wheel.remove(self, self._wheel_key)
        self._wheel_key = engine.wheel.add(self, engine.reactor.now + self.service.config.connect_timeout_s)
        self._admit()

    def _admit(self) -> None:
        """The client's address is known: may it be served at all?"""
        self.stage = Stage.WAITING
        refusal = self.service.refusal(self.address)
        if refusal:
            self.end(refusal, reset=True)
            return
        self.choose()

    # ------------------------------------------------------------ choice and connect

    def choose(self) -> None:
        """Take a server and begin to connect, or wait for one, or end."""
        choice = self.service.choose(self)
        if choice is Refusal.ALL_FULL:
            if not self.service.wait(self):
                self.end("servers_full", reset=True)
        else:
            self._take(choice)

    def leave_queue(self, choice: Target | Refusal) -> None:
        """The wait is over, with or without a server."""
        self.wait_until(self._engine.reactor.now + self.service.config.connect_timeout_s)
        self._take(choice)

    def _take(self, choice: Target | Refusal) -> None:
        if isinstance(choice, Refusal):
            self.end("no_server", reset=True)
            return
        self.target = choice
        self.slot = choice.slot
        self._connect(choice)

    def _connect(self, target: Target) -> None:
        self.stage = Stage.CONNECTING
        engine = self._engine
        try:
            server = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._connect_failed(error.errno or errno.ENOBUFS)
            return
        self._server = server
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.service.source.borrows:
            try:
                self.service.source.prepare(server, target.slot, self.address)
            except OSError as error:
                self._connect_failed(error.errno or errno.EPERM)
                return
        code = server.connect_ex(target.sockaddr)
        if code in (0, errno.EINPROGRESS):
            engine.reactor.watch(server, self._on_connect)
        else:
            self._connect_failed(code)

    def _on_connect(self, events: int) -> None:
        assert self._server is not None
        if events & FAILED:
            self._connect_failed(self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif events & WRITE:
            self._connected(events)

    def _connect_failed(self, code: int, why: str = "") -> None:
        """The next ready server, while the client waits."""
        engine, target = self._engine, self.target
        assert target is not None
        self._give_up_target()
        self.last_failure = f"{target.name}: {why or os.strerror(code).lower()}"
        if code in _OURS:
            engine.log.error(f"cannot connect to a server: {os.strerror(code).lower()}", service=self.service.name)
            self.end("local_failure", reset=True)
            return
        engine.ints[engine.cell(target.slot, Count.CONNECT_FAILED)] += 1
        self.tried += (target.name,)
        self.stage = Stage.WAITING
        self.wait_until(engine.reactor.now + self.service.config.connect_timeout_s)
        self.choose()
        if self.stage != Stage.OVER:  # another server has it now, or will: nobody was turned away for this failure
            engine.ints[engine.cell(target.slot, Count.RETRIED)] += 1

    def _give_up_target(self) -> None:
        """This session is not on its server any more (it was counted there from the moment of selection)."""
        if self._server is not None:
            self._engine.reactor.close(self._server)
            self._server = None
        if self.slot >= 0:
            self._engine.ints[self._engine.cell(self.slot, Count.SESSIONS)] -= 1
            self.slot = -1

    def _connected(self, events: int) -> None:
        engine, server, target, service = self._engine, self._server, self.target, self.service
        assert server is not None
        assert target is not None
        engine.ints[engine.cell(target.slot, Count.CONNECT_OK)] += 1
        self.stage = Stage.RELAYING
        if service.config.idle_timeout_s < service.config.connect_timeout_s:  # or it would be noticed too late
            self.wait_until(engine.reactor.now + service.config.idle_timeout_s)
        relay = self._relay = Relay(engine, self, self._client, server, service.buffer, target.slot)
        handlers, client_fd, server_fd = engine.reactor.handlers, self._client.fileno(), server.fileno()
        learns = service.learns_tls_session(self)
        handlers[server_fd] = partial(self._on_server_hello, relay) if learns else relay.on_server
        looked_at = service.is_tls or self._vouched_for
        handlers[client_fd] = relay.on_client if looked_at else partial(self._on_client_first, relay)
        header, early = service.header_for(self), self._early
        if header or early:
            self._early = b""
            relay.up.push(early, header)
        if self._client_events & READ and self.stage == Stage.RELAYING:
            handlers[client_fd](self._client_events)
        if events & READ and self.stage == Stage.RELAYING:
            handlers[server_fd](events)

    # ------------------------------------------------------------ the first bytes of either side

    def _on_client_first(self, relay: Relay, events: int) -> None:
        """The first bytes of a client that nobody vouches for: a PROXY header here is a forgery."""
        data = b"-"
        while data:
            try:
                data = self._client.recv(_EARLY_BYTES)
            except BlockingIOError:
                if self._early:
                    self.wait_until(self._engine.reactor.now + FIRST_BYTES_HOLD_S)
                if events & WRITE and relay.down.blocked:
                    relay.down.pump()
                return
            except OSError as error:
                relay.failed("client", error)
                return
            early = self._early + data
            verdict = proxy_header.looks_like(early)
            if verdict:
                self.note("the client is not in proxy_protocol.accept_from")
                self.end("spoofed_proxy_header", reset=True)
                return
            if verdict is not None:
                break
            self._early = early
        relay.active_at = self._engine.reactor.now
        self._early = b""
        self._engine.reactor.handlers[self._client.fileno()] = relay.on_client
        if early:
            relay.up.push(early)
        if self.stage != Stage.RELAYING:
            return
        if events & HANGUP or len(data) in (0, _EARLY_BYTES):
            relay.on_client(events | INPUT)
        elif events & WRITE and relay.down.blocked:  # the client has been read empty, so only this half is left to do
            relay.down.pump()

    def _let_first_bytes_pass(self, relay: Relay) -> None:
        """The beginning of a PROXY header, and then nothing for a while: somebody has pressed Enter in telnet."""
        early, self._early = self._early, b""
        self._engine.reactor.handlers[self._client.fileno()] = relay.on_client
        relay.up.push(early)

    def _on_server_hello(self, relay: Relay, events: int) -> None:
        """The first flight of a TLS server: learn the session id while the bytes go on."""
        assert self._server is not None
        relay.active_at = self._engine.reactor.now
        learned: bytes | None = None
        while learned is None:
            try:
                data = self._server.recv(_EARLY_BYTES)
            except BlockingIOError:
                if events & WRITE and relay.up.blocked:
                    relay.up.pump()
                return
            except OSError as error:
                relay.failed("server", error)
                return
            self._early += data
            learned = server_hello.session_id(self._early)
            if not data or len(self._early) >= _EARLY_BYTES:
                learned = learned or b""
            if data:
                relay.down.push(data)
                if self.stage != Stage.RELAYING:
                    return
        if learned:
            self.service.bind_tls_session(self, learned.hex())
        self._early = b""
        self._engine.reactor.handlers[self._server.fileno()] = relay.on_server
        relay.on_server(events | INPUT)

    # ------------------------------------------------------------ deadlines and the end

    def due(self, now: float) -> None:
        """The wheel says a deadline has come. Most are old: the session was active meanwhile."""
        stage = self.stage
        if stage == Stage.RELAYING:
            self._idle_due(now)
        elif stage == Stage.CONNECTING:
            self._connect_failed(errno.ETIMEDOUT, why=f"no answer in {self.service.config.connect_timeout_s:g} s")
        elif stage == Stage.PROXY_HEADER:
            self.end("no_proxy_header", reset=True)
        elif stage == Stage.CLIENT_HELLO:
            self.end("no_client_hello", reset=True)
        else:
            self.end("queue_timeout", reset=True)

    def _idle_due(self, now: float) -> None:
        relay = self._relay
        assert relay is not None
        if self._early and not self.service.is_tls:
            self._let_first_bytes_pass(relay)
            if self.stage == Stage.OVER:
                return
        limit = self.service.config.idle_timeout_s
        if relay.first_end == "server_closed":
            limit = min(limit, AFTER_SERVER_CLOSED_S)
        deadline = relay.active_at + limit
        if deadline <= now:
            self.end(relay.first_end or "idle_timeout", reset=relay.up.blocked or relay.down.blocked)
            return
        relay.rest()
        self._wheel_key = self._engine.wheel.add(self, deadline)

    def half_closed(self, by: str) -> None:
        """A client whose server has closed does not keep its place for the whole idle time."""
        if by == "server_closed":
            self.wait_until(self._engine.reactor.now + min(AFTER_SERVER_CLOSED_S, self.service.config.idle_timeout_s))

    def note(self, failure: str) -> None:
        """Words for the log line."""
        self.last_failure = failure

    def wait_until(self, deadline_at: float) -> None:
        """This deadline instead of the one that was set."""
        self._engine.wheel.remove(self, self._wheel_key)
        self._wheel_key = self._engine.wheel.add(self, deadline_at)

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close both sides and write the log line. `reset`: with RST, so that nothing looks complete that is not."""
        if self.stage == Stage.OVER:
            return
        was_waiting = self.stage == Stage.WAITING
        self.stage = Stage.OVER
        engine = self._engine
        if self._relay is not None:
            self._relay.close()
        for sock in (self._client, self._server):
            if sock is not None:
                if reset:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                engine.reactor.close(sock)
        if self.slot >= 0:
            engine.ints[engine.cell(self.slot, Count.SESSIONS)] -= 1
        engine.wheel.remove(self, self._wheel_key)
        engine.sessions.discard(self)
        if engine.log.sessions:
            self._log(reason)
        self.service.closed(self, waiting=was_waiting)

    def _log(self, reason: str) -> None:
        now = self._engine.reactor.now
        target, relay = self.target, self._relay
        fields: dict[str, str | int | float | bool | None] = {
            "service": self.service.name,
            "client": str(Endpoint(self.address, self.port)),
            "server": target.name if target else None,
            "address": str(target.endpoint) if target else None,
            "why": self.why or None,
            "in": relay.up.bytes if relay else 0,
            "out": relay.down.bytes if relay else 0,
            "duration_s": now - self.started_at,
            "end": reason,
        }
        if self.sni:
            fields["sni"] = self.sni
        if self.tried:
            fields["tried"] = ",".join(self.tried)
        if self.last_failure:
            fields["failure"] = self.last_failure
        self._engine.log.session(**fields)

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of its two sockets."""
        return fd >= 0 and (fd == self._client.fileno() or (self._server is not None and fd == self._server.fileno()))

    def reached(self) -> Endpoint:
        """The address that the client connected to: ours, or that of the proxy who told us."""
        if self._destination is not None:
            return self._destination
        if self.endpoint.host not in ("0.0.0.0", "::"):
            return self.endpoint
        return Endpoint(*self._client.getsockname()[:2])

    def facts(self) -> dict[str, str | int | float]:
        """This session for `mailbalancer sessions`."""
        now = self._engine.reactor.now
        target, relay = self.target, self._relay
        return {
            "service": self.service.name,
            "client": str(Endpoint(self.address, self.port)),
            "listen": str(self.endpoint),
            "server": target.name if target else "",
            "server_address": str(target.endpoint) if target else "",
            "why": self.why,
            "age_s": round(now - self.started_at, 3),
            "idle_s": round(now - (relay.active_at if relay else self.started_at), 3),
            "bytes_in": relay.up.bytes if relay else 0,
            "bytes_out": relay.down.bytes if relay else 0,
            "state": self.stage.name.lower(),
            "worker": self._engine.index,
        }
