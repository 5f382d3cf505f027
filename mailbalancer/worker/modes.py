"""Which classes serve which mode.

Decides: that alone, and that a proxy's PROXY header is read before the mode's own class sees the connection (but for
`tcp` and `tls`, whose sessions read it themselves with the first bytes they look at anyway).
Refuses to know: what the classes do.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mailbalancer.model import Endpoint, Mode
from mailbalancer.worker.arrival import Arrival, Handler
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.http_connection import HttpConnection
from mailbalancer.worker.http_service import HttpService
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.mailbox_session import ImapSession, Pop3Session
from mailbalancer.worker.service import Service
from mailbalancer.worker.session import Session
from mailbalancer.worker.smtp_session import SmtpSession

S = TypeVar("S", bound=Service)


class _Serving(Generic[S]):
    """A mode's runtime, and what serves one connection of it."""

    def __init__(
        self, runtime: type[S], connection: Callable[[Engine, S, Endpoint, socket.socket, str, int], object]
    ) -> None:
        self.runtime = runtime
        self._connection = connection

    def begin(
        self, engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        """Serve a connection whose client is known."""
        assert isinstance(service, self.runtime)
        self._connection(engine, service, endpoint, client, address, port)

    def receive(
        self, engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        """Serve a connection that was just accepted: a proxy must say first who its client is."""
        if service.trusts_header_from(address):
            Arrival(engine, service, endpoint, client, address, port, self.begin)
        else:
            self.begin(engine, service, endpoint, client, address, port)


_LAYER_7: dict[Mode, _Serving[Any]] = {
    Mode.HTTP: _Serving(HttpService, HttpConnection),
    Mode.SMTP: _Serving(MailService, SmtpSession),
    Mode.IMAP: _Serving(MailService, ImapSession),
    Mode.POP3: _Serving(MailService, Pop3Session),
}


def runtime_of(mode: Mode) -> type[Service]:
    """The class of a service of this mode."""
    return _LAYER_7[mode].runtime if mode in _LAYER_7 else Service


def handler_of(mode: Mode) -> Handler:
    """What is called with each connection accepted by a service of this mode. Whatever serves the connection registers
    itself with those who keep it alive."""
    return _LAYER_7[mode].receive if mode in _LAYER_7 else Session
