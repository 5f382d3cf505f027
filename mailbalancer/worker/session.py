"""One session: a client's connection from accept to the log line.

Decides: in which order things happen. First what must be known before choosing (a PROXY header, a ClientHello), then
the choice, the connect and, when that fails, the next server; then bytes flow until one side ends it.
Refuses to know: how a server is chosen (`service`, `balance`), how bytes flow (`relay`), what a header looks like.

A session is callbacks and slots, not a task: ten thousand idle ones cost memory and nothing else.
"""

from __future__ import annotations

import contextlib
import socket
from enum import IntEnum

from mailbalancer.ipc.board import Phase
from mailbalancer.model import Endpoint
from mailbalancer.wire import client_hello, proxy_header, server_hello
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.placement import Placement, left_from
from mailbalancer.worker.reactor import FAILED, HANGUP, INPUT, READ, WRITE, reset_on_close
from mailbalancer.worker.relay import Relay
from mailbalancer.worker.service import Service

#: A ClientHello must be complete within this time, or the connection is closed.
HELLO_TIMEOUT_S = 10.0
#: First bytes that begin like a PROXY header (an empty line does) are held for the rest of it, so long and no longer.
FIRST_BYTES_HOLD_S = 2.0
#: The server has closed its side: a client that stays silent this long has gone.
AFTER_SERVER_CLOSED_S = 60.0
_EARLY_BYTES = 65536
#: TLS alert: fatal, unrecognized_name (RFC 6066 section 3).
_UNRECOGNIZED_NAME = bytes.fromhex("15030300020270")


class Stage(IntEnum):
    """Where a session stands."""

    PROXY_HEADER = 0
    CLIENT_HELLO = 1
    SEEKING = 2  # a server: connecting, or waiting while all are full
    RELAYING = 3
    OVER = 4


# Looking a member of an enum up costs more than what is done with it here.
_PROXY_HEADER, _CLIENT_HELLO, _SEEKING, _RELAYING, _OVER = Stage
_FIRST_BYTE = int(Phase.FIRST_BYTE)


class Session(Placement):
    """Registers itself with reactor, wheel, engine and service, and takes itself out of all of them at the end."""

    __slots__ = (
        "_client",
        "_client_events",
        "_destination",
        "_early",
        "_relay",
        "_vouched_for",
        "endpoint",
        "sni",
        "stage",
        "started_at",
    )

    def __init__(
        self, engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        super().__init__(engine, service, address, port)
        self._client = client
        self._client_events = 0
        self._early: bytes = b""
        self._relay: Relay | None = None
        self._destination: Endpoint | None = None  # where a PROXY header says that the client had connected to
        self._vouched_for = service.trusts_header_from(address)  # the peer is a proxy that tells us who the client is
        self.stage = _SEEKING
        self.endpoint = endpoint
        self.sni = ""
        self.started_at = engine.reactor.now
        engine.reactor.watch(client, self._on_client_early)
        engine.sessions.add(self)
        service.opened()
        if self._vouched_for:
            self._expect(_PROXY_HEADER, service.config.proxy_protocol.header_timeout_s)
        elif service.is_tls:
            self._expect(_CLIENT_HELLO, HELLO_TIMEOUT_S)
        else:
            self._admit()

    def _expect(self, stage: Stage, timeout_s: float) -> None:
        """The client must have said something by then."""
        self.stage = stage
        self.wait_until(self._engine.reactor.now + timeout_s)

    # ------------------------------------------------------------ before the choice

    def _on_client_early(self, events: int) -> None:
        """The client before bytes flow: read what the choice needs, otherwise leave its bytes in the kernel."""
        if self.stage <= _CLIENT_HELLO:
            self._read_early()
        elif events & FAILED:
            self.end("client_reset")
        elif events & HANGUP and self.waiting and self._has_left():
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
        while self.stage <= _CLIENT_HELLO:
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
            if self.stage == _PROXY_HEADER:
                self._take_proxy_header()
            if self.stage == _CLIENT_HELLO and self._early:
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
        if self.service.is_tls:
            self._expect(_CLIENT_HELLO, HELLO_TIMEOUT_S)
        else:
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
        self._admit()

    def _admit(self) -> None:
        """The client's address is known: may it be served at all?"""
        self.stage = _SEEKING
        refusal = self.service.refusal(self.address)
        if refusal:
            self.end(refusal, reset=True)
        else:
            self.seek()

    def unplaced(self, reason: str) -> None:
        """No server: plain TCP has no words for it but RST."""
        self.end(reason, reset=True)

    def placed(self, events: int) -> None:
        """Connected: from here on bytes flow."""
        engine, server, target, service = self._engine, self.server, self.target, self.service
        assert server is not None
        assert target is not None
        self.stage = _RELAYING
        self.connected()
        if service.config.idle_timeout_s < service.config.connect_timeout_s:  # or it would be noticed too late
            self.wait_until(engine.reactor.now + service.config.idle_timeout_s)
        relay = self._relay = Relay(engine, self, self._client, server, service.buffer, target.slot)
        handlers, client_fd, server_fd = engine.reactor.handlers, self._client.fileno(), server.fileno()
        handlers[server_fd] = self._on_server_hello if service.learns_tls_session(self) else self._on_server_first
        looked_at = service.is_tls or self._vouched_for
        handlers[client_fd] = relay.on_client if looked_at else self._on_client_first
        header, early = service.header_for(self), self._early
        if header or early:
            self._early = b""
            relay.up.push(early, header)
        if self._client_events & READ and self.stage == _RELAYING:
            handlers[client_fd](self._client_events)
        if events & READ and self.stage == _RELAYING:
            handlers[server_fd](events)

    # ------------------------------------------------------------ the first bytes of either side

    def _on_client_first(self, events: int) -> None:
        """The first bytes of a client that nobody vouches for: a PROXY header here is a forgery."""
        relay = self._relay
        assert relay is not None
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
        if self.stage != _RELAYING:
            return
        if events & HANGUP or len(data) in (0, _EARLY_BYTES):
            relay.on_client(events | INPUT)
        elif events & WRITE and relay.down.blocked:  # the client has been read empty, so only this half is left to do
            relay.down.pump()

    def _on_server_first(self, events: int) -> None:
        """The server before its first word, which is timed."""
        engine, server, relay = self._engine, self.server, self._relay
        assert server is not None
        assert relay is not None
        if events & READ:
            engine.timings.took(self.slot, _FIRST_BYTE, engine.reactor.now - self.connected_at)
            engine.reactor.handlers[server.fileno()] = relay.on_server
        relay.on_server(events)

    def _let_first_bytes_pass(self, relay: Relay) -> None:
        """The beginning of a PROXY header, and then nothing for a while: somebody has pressed Enter in telnet."""
        early, self._early = self._early, b""
        self._engine.reactor.handlers[self._client.fileno()] = relay.on_client
        relay.up.push(early)

    def _on_server_hello(self, events: int) -> None:
        """The first flight of a TLS server: learn the session id while the bytes go on."""
        relay = self._relay
        assert relay is not None
        assert self.server is not None
        relay.active_at = self._engine.reactor.now
        learned: bytes | None = None
        while learned is None:
            try:
                data = self.server.recv(_EARLY_BYTES)
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
                if self.stage != _RELAYING:
                    return
        if learned:
            self.service.bind_tls_session(self, learned.hex())
        self._early = b""
        self._engine.reactor.handlers[self.server.fileno()] = relay.on_server
        relay.on_server(events | INPUT)

    # ------------------------------------------------------------ deadlines and the end

    def expired(self, now: float) -> None:
        """A deadline has come. Most are old: the session was active meanwhile."""
        if self.stage == _RELAYING:
            self._idle_due(now)
        elif self.stage == _PROXY_HEADER:
            self.end("no_proxy_header", reset=True)
        elif self.stage == _CLIENT_HELLO:
            self.end("no_client_hello", reset=True)
        else:
            self.seek_due(now)

    def _idle_due(self, now: float) -> None:
        relay = self._relay
        assert relay is not None
        if self._early and not self.service.is_tls:
            self._let_first_bytes_pass(relay)
            if self.stage == _OVER:
                return
        limit = self.service.config.idle_timeout_s
        if relay.first_end == "server_closed":
            limit = min(limit, AFTER_SERVER_CLOSED_S)
        deadline = relay.active_at + limit
        if deadline <= now:
            self.end(relay.first_end or "idle_timeout", reset=relay.up.blocked or relay.down.blocked)
            return
        relay.rest()
        self.wait_until(deadline)

    def half_closed(self, by: str) -> None:
        """A client whose server has closed does not keep its place for the whole idle time."""
        if by == "server_closed":
            self.wait_until(self._engine.reactor.now + min(AFTER_SERVER_CLOSED_S, self.service.config.idle_timeout_s))

    def note(self, failure: str) -> None:
        """Words for the log line."""
        self.last_failure = failure

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close both sides and write the log line. `reset`: with RST, so that nothing looks complete that is not."""
        if self.stage == _OVER:
            return
        self.stage = _OVER
        engine = self._engine
        if self._relay is not None:
            self._relay.close()
        if reset:
            for sock in (self._client, self.server):
                if sock is not None:
                    reset_on_close(sock)
        engine.reactor.close(self._client)
        self.lasted(self.started_at)
        self.give_up()
        self.no_deadline()
        engine.sessions.discard(self)
        if engine.log.sessions:
            self._log(reason)
        self._relay = None  # it has us too: a cycle that the garbage collector would have to find
        self.service.closed(self, waiting=self.waiting)

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
        if self.bind_address:
            fields["source"] = self.bind_address
        if self.sni:
            fields["sni"] = self.sni
        if self.tried:
            fields["tried"] = ",".join(self.tried)
        if self.last_failure:
            fields["failure"] = self.last_failure
        self._engine.log.session(**fields)

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of its two sockets."""
        return fd >= 0 and (fd == self._client.fileno() or (self.server is not None and fd == self.server.fileno()))

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
            "left_from": left_from(self.server),
            "why": self.why,
            "age_s": round(now - self.started_at, 3),
            "idle_s": round(now - (relay.active_at if relay else self.started_at), 3),
            "bytes_in": relay.up.bytes if relay else 0,
            "bytes_out": relay.down.bytes if relay else 0,
            "state": self._state(),
            "worker": self._engine.index,
        }

    def _state(self) -> str:
        """In a word; a session that seeks a server either connects or waits."""
        if self.stage != _SEEKING:
            return self.stage.name.lower()
        return "waiting" if self.waiting else "connecting"
