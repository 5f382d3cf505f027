"""A connection from a proxy that must tell us who the client is, until it has.

Decides: when the PROXY header is complete, and that exactly its bytes are taken: what follows may be a TLS handshake,
which belongs to OpenSSL from its first byte on.
Refuses to know: what mode the service is in. The mode's own class is called with the addresses that were found: whose
connection it is, and which address that client had connected to.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from mailbalancer.model import Endpoint
from mailbalancer.wire import proxy_header
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.reactor import BROKEN, HANGUP, reset_on_close
from mailbalancer.worker.service import Service

#: What a mode does with a connection: engine, service, listening endpoint, socket, client address and port.
Handler = Callable[[Engine, Service, Endpoint, socket.socket, str, int], object]

_PEEK_BYTES = 4096


class Arrival:
    """Counted as a session of its service while it waits for the header."""

    __slots__ = (
        "_client",
        "_engine",
        "_handler",
        "_wheel_key",
        "address",
        "endpoint",
        "over",
        "port",
        "service",
        "slot",
    )

    def __init__(
        self,
        engine: Engine,
        service: Service,
        endpoint: Endpoint,
        client: socket.socket,
        address: str,
        port: int,
        handler: Handler,
    ) -> None:
        self._engine = engine
        self._client = client
        self._handler = handler
        self.service = service
        self.endpoint = endpoint
        self.address = address
        self.port = port
        self.slot = -1
        self.over = False
        engine.sessions.add(self)
        service.arrived()
        self._wheel_key = engine.wheel.add(self, engine.reactor.now + service.config.proxy_protocol.header_timeout_s)
        engine.reactor.watch(client, self._on_event)

    def _on_event(self, events: int) -> None:
        try:
            seen = self._client.recv(_PEEK_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            self.end("client_reset")
            return
        if not seen:
            self.end("client_closed")
            return
        try:
            header = proxy_header.parse(seen)
        except proxy_header.BadProxyHeader as error:
            self.end("bad_proxy_header", failure=str(error))
            return
        if header is not None:
            self._hand_over(header)
        elif events & HANGUP:
            self.end("client_reset" if events & BROKEN else "client_closed")

    def _hand_over(self, header: proxy_header.ProxyHeader) -> None:
        client = self._client
        taken = client.recv(header.length)
        assert len(taken) == header.length  # the kernel has shown these bytes already
        source = header.source or Endpoint(self.address, self.port)
        self._leave()
        self._engine.reactor.unwatch(client)
        reached = header.destination or self.endpoint  # the client knows nothing of the address that its proxy uses
        self._handler(self._engine, self.service, reached, client, source.host, source.port)

    def due(self, _now: float) -> None:
        """No header in time."""
        self.end("no_proxy_header")

    def end(self, reason: str, *, reset: bool = True, failure: str = "") -> None:
        """Close, and say in the log who it was."""
        if self.over:
            return
        self._leave()
        if reset:
            with contextlib.suppress(OSError):
                reset_on_close(self._client)
        self._engine.reactor.close(self._client)
        if self._engine.log.sessions:
            proxy = str(Endpoint(self.address, self.port))
            self._engine.log.session(service=self.service.name, proxy=proxy, end=reason, failure=failure or None)

    def _leave(self) -> None:
        self.over = True
        self._engine.wheel.remove(self, self._wheel_key)
        self._engine.sessions.discard(self)
        self.service.left()

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is its socket."""
        return fd >= 0 and fd == self._client.fileno()

    def facts(self) -> dict[str, str | int | float]:
        """For `mailbalancer sessions`."""
        return {
            "service": self.service.name,
            "client": str(Endpoint(self.address, self.port)),
            "listen": str(self.endpoint),
            "state": "proxy_header",
            "worker": self._engine.index,
        }
