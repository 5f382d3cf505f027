"""Which class serves the connections of which mode.

Decides: that alone, and that a proxy's PROXY header is read before the mode's own class sees the connection (but for
`tcp` and `tls`, whose sessions read it themselves with the first bytes they look at anyway).
Refuses to know: what the classes do.
"""

from __future__ import annotations

import socket

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


def runtime_of(mode: Mode) -> type[Service]:
    """The class of a service of this mode."""
    return _RUNTIMES.get(mode, Service)


def begin(engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int) -> None:
    """Serve a connection that was just accepted; it registers itself with whoever keeps it alive."""
    handler = _HANDLERS.get(service.config.mode)
    if handler is None:
        Session(engine, service, endpoint, client, address, port)
    elif service.trusts_header_from(address):
        Arrival(engine, service, endpoint, client, address, port, handler)
    else:
        handler(engine, service, endpoint, client, address, port)


def _http(
    engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
) -> HttpConnection:
    assert isinstance(service, HttpService)
    return HttpConnection(engine, service, endpoint, client, address, port)


def _smtp(
    engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
) -> SmtpSession:
    assert isinstance(service, MailService)
    return SmtpSession(engine, service, endpoint, client, address, port)


def _imap(
    engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
) -> ImapSession:
    assert isinstance(service, MailService)
    return ImapSession(engine, service, endpoint, client, address, port)


def _pop3(
    engine: Engine, service: Service, endpoint: Endpoint, client: socket.socket, address: str, port: int
) -> Pop3Session:
    assert isinstance(service, MailService)
    return Pop3Session(engine, service, endpoint, client, address, port)


_RUNTIMES: dict[Mode, type[Service]] = {
    Mode.HTTP: HttpService,
    Mode.SMTP: MailService,
    Mode.IMAP: MailService,
    Mode.POP3: MailService,
}
_HANDLERS: dict[Mode, Handler] = {Mode.HTTP: _http, Mode.SMTP: _smtp, Mode.IMAP: _imap, Mode.POP3: _pop3}
