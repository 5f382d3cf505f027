"""Accepting: one listening socket of one service in this worker.

Decides: how many connections are accepted in one turn, and that accepting pauses, without spinning, while no descriptor
is left. The backlog of the socket is then the queue, and no connection is lost.
Refuses to know: what is done with a connection: `modes` does.
"""

from __future__ import annotations

import errno
import socket

from mailbalancer.model import Endpoint
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.modes import handler_of
from mailbalancer.worker.reactor import PlainSocket
from mailbalancer.worker.service import Service

ACCEPTS_PER_TURN = 64
_STREAM = int(socket.SOCK_STREAM)
#: accept(2) failed for want of something on this machine, or because the socket does not listen any more.
_NOT_THE_CLIENTS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL, errno.EBADF)


class Listener:
    """Owns the socket. `service` may be replaced by a reload while connections wait."""

    def __init__(self, engine: Engine, sock: socket.socket, endpoint: Endpoint, service: Service) -> None:
        self.service = service
        self.endpoint = endpoint
        self._handler = handler_of(service.config.mode)
        self._handles = service.config  # the configuration for which that was looked up
        self.paused = False
        self._engine = engine
        self._sock = sock
        self._family = int(sock.family)
        sock.setblocking(False)
        engine.listeners_open += 1
        engine.reactor.watch_level(sock, self._accept)

    def _accept(self, _events: int) -> None:
        # what `socket.accept` is made of; it looks family and type up anew, and costs three times as much
        engine, service, endpoint, accept = self._engine, self.service, self.endpoint, self._sock._accept  # type: ignore[attr-defined]
        if service.config is not self._handles:
            self._handles = service.config
            self._handler = handler_of(service.config.mode)
        room = engine.room()
        if not room:
            self._pause()
        for _ in range(min(room, ACCEPTS_PER_TURN)):
            try:
                fd, peer = accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _NOT_THE_CLIENTS:
                    self._pause()
                    return
                continue  # the client went away between its handshake and this call (accept(2), ECONNABORTED)
            sock = PlainSocket(self._family, _STREAM, 0, fd)
            sock.setblocking(False)
            try:
                self._handler(engine, service, endpoint, sock, peer[0], peer[1])
            except Exception as error:
                engine.fault(sock.fileno(), error)

    def _pause(self) -> None:
        """Look away until `resume`: a level-triggered listener that is not emptied would spin."""
        self.paused = True
        self._engine.reactor.unwatch(self._sock)

    def resume(self) -> None:
        """Accept again when descriptors are free."""
        if self.paused and self._engine.room():
            self.paused = False
            self._engine.reactor.watch_level(self._sock, self._accept)

    def close(self) -> None:
        self._engine.listeners_open -= 1
        self._engine.reactor.unwatch(self._sock)
        self._engine.reactor.close(self._sock)
