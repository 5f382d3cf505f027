"""The door: one address for page, API and /metrics, inside the supervisor's event loop.

Decides: what listens there, how many may come at once, what every answer carries for a browser's safety.
Refuses to know: operations (declared in `reading`, `operating`, `configuring`), and who may (`gate`).

The supervisor forks, so nothing here may start a thread: no names are looked up, no file is sent by aiohttp, bodies are
neither inflated nor compressed, and the page is in memory before the first request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from mailbalancer.admin import metrics
from mailbalancer.admin.alarm_bell import AlarmBell
from mailbalancer.admin.api import MAX_BODY_BYTES, Runner, answer, asked, body, failure
from mailbalancer.admin.archive import Archive
from mailbalancer.admin.audit import Audit
from mailbalancer.admin.certifying import Certifying
from mailbalancer.admin.configuration import Configuration
from mailbalancer.admin.configuring import Configuring
from mailbalancer.admin.desk import Desk, Event
from mailbalancer.admin.gate import Gate, Refused, check_change, cookie, set_cookie
from mailbalancer.admin.history import RESOLUTION_S, History
from mailbalancer.admin.live_feed import LiveFeed
from mailbalancer.admin.openapi import describe
from mailbalancer.admin.operating import Operating
from mailbalancer.admin.operation import Operation, Reply
from mailbalancer.admin.reading import Reading
from mailbalancer.admin.tokens import Role, TokensFile
from mailbalancer.admin.views import line
from mailbalancer.errors import ListenError, MailbalancerError
from mailbalancer.log import Log
from mailbalancer.model import Config, Endpoint
from mailbalancer.tls import profile
from mailbalancer.tls.certificate import today
from mailbalancer.tls.material import read_authorities, read_material

MOST_CONNECTIONS = 256
#: A connection that has not sent a whole request head by then is closed.
FIRST_HEAD_S = 15.0
KEEPALIVE_S = 30.0
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "api", "dom", "views", "actions", "certificates", "maintenance")
    },
    "/app.css": ("app.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: Read with the program itself: once privileges are dropped, its files may be out of reach.
_FILES = {
    path: (resources.files("mailbalancer.admin") / "page" / name).read_bytes() for path, (name, _) in _PAGE.items()
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFETY = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "mailbalancer",
}
#: What the door is opened with: a change of it is a move.
_Place = tuple[Endpoint | None, str, str]
_NOWHERE: _Place = (None, "", "")
#: Certificate with key, and the authorities of visitors' certificates; PEM, empty without TLS.
_Shown = tuple[bytes, str]
_NOTHING: _Shown = (b"", "")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """The door of one balancer; `start` it with a desk, then `follow` every configuration that is applied."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._opened: _Place = _NOWHERE
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None  # stays while what serves it changes
        self._shown = _NOTHING
        self._desk: Desk | None = None
        self._sampling: asyncio.TimerHandle | None = None
        self._commands: dict[str, Operation] = {}

    async def start(self, desk: Desk) -> None:
        """Open the door, if the configuration has one.

        Raises:
            MailbalancerError: the address cannot be listened on, or its certificate cannot be used.
        """
        config = desk.config
        self._desk = desk
        self._assemble(desk)
        await self._runner.setup()
        if config.admin.listen is not None:
            await self._open(config)
        self._sample()

    async def follow(self, config: Config) -> None:
        """This configuration runs now. What cannot be had of it for the door is said, and the door stays as it was."""
        self._gate.follow(TokensFile(config.admin.tokens_file), config.admin.hosts)
        self._configuration.applied()
        self._bell.follow(config.alarms)
        try:
            if _place(config) != self._opened:
                await self._move(config)
            elif self._opened != _NOWHERE and _shown(config) != self._shown:
                await self._serve(config)
        except MailbalancerError as error:
            self._log.error(f"admin: {error}; the door stays as it was")

    @property
    def commands(self) -> Collection[str]:
        """What the control socket can ask for here."""
        return self._commands

    async def obey(self, command: str, arguments: dict[str, Any]) -> Any:
        """One of `commands`.

        Raises:
            MailbalancerError: it is refused.
        """
        return await self._runner_of_operations.obey(self._commands[command], arguments)

    async def stop(self) -> None:
        """Close the door; nobody's request is waited for longer than a second."""
        if self._sampling is not None:
            self._sampling.cancel()
        if self._desk is None:
            return
        self._leave()
        await self._feed.stop()
        await self._bell.stop()
        await self._runner.cleanup()

    # ------------------------------------------------------------ listening

    async def _open(self, config: Config) -> None:
        listen = config.admin.listen
        assert listen is not None
        _context(_shown(config))  # what is wrong with it is found before anything is opened
        self._socket = _listener(listen)
        await self._serve(config)
        self._opened = _place(config)
        self._log.info(f"page, API and metrics on {'https' if _is_encrypted(config) else 'http'}://{listen}/")

    async def _serve(self, config: Config) -> None:
        """Accept with the certificate and the authorities as they are now; the socket stays, so nobody is refused.

        The context is a new one: in one that is in use, authorities are only ever added, a key of another type stands
        beside the old one, and sessions are resumed that authorities of before have let in.
        """
        assert self._socket is not None
        shown = _shown(config)
        loop = asyncio.get_running_loop()
        old = self._server
        self._server = await loop.create_server(self._connected, sock=self._socket.dup(), ssl=_context(shown))
        self._shown = shown
        if old is not None:
            old.close()

    def _leave(self) -> None:
        """Accept nobody any more."""
        if self._server is not None:
            self._server.close()
        if self._socket is not None:
            self._socket.close()
        self._server, self._socket, self._opened, self._shown = None, None, _NOWHERE, _NOTHING

    async def _move(self, config: Config) -> None:
        """To another address, or to TLS; the same address has to be left first."""
        if config.admin.listen is None:
            return self._leave()
        if self._opened[0] == config.admin.listen:
            _context(_shown(config))  # what is wrong with it is found while the old door is still open
            self._leave()
            return await self._open(config)
        old, self._server, was, self._socket = self._server, None, self._socket, None
        try:
            await self._open(config)
        except MailbalancerError:
            self._server, self._socket = old, was
            raise
        for left in (old, was):
            if left is not None:
                left.close()
        return None

    def _connected(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= MOST_CONNECTIONS:
            return _Closed()
        protocol = server()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(FIRST_HEAD_S, self._close_silent, protocol)
        return protocol

    def _close_silent(self, protocol: Any) -> None:
        if protocol in self._silent:
            protocol.force_close()
            self._silent.discard(protocol)

    # ------------------------------------------------------------ what is served

    def _assemble(self, desk: Desk) -> None:
        _quiet_aiohttp(self._log)
        config = desk.config
        self._silent: set[Any] = set()  # connections that have not sent a request yet
        self._gate = Gate(TokensFile(config.admin.tokens_file), config.admin.hosts)
        self._audit = Audit(self._log)
        self._history = History()
        folder = Path(config.state_file).parent / "configurations" if config.state_file else None
        self._configuration = Configuration(desk, Archive(folder))
        reading = Reading(desk, self._history, self._audit)
        self._told = 0
        desk.watch(self._count)
        self._bell = AlarmBell(self._log)
        desk.watch(self._bell.take)
        self._bell.follow(config.alarms)
        self._events = reading.events
        self._feed = LiveFeed(desk, lambda: (self._told, list(self._events)[-30:]))
        runner = Runner(self._gate, self._audit, self._log)
        self._runner_of_operations = runner
        operations = [
            *reading.operations(),
            *Operating(desk).operations(),
            *Configuring(self._configuration).operations(),
        ]
        certifying = Certifying(desk, self._configuration).operations()
        self._commands = {operation.name: operation for operation in certifying}
        operations += certifying
        operations.append(self._openapi(operations))
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guard])
        app.router.add_routes([runner.route(operation) for operation in operations])
        app.router.add_routes(self._own_routes())
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=KEEPALIVE_S, shutdown_timeout=1.0,
            auto_decompress=False,
        )  # fmt: skip

    def _openapi(self, operations: list[Operation]) -> Operation:
        described = describe(operations)

        async def handler(call: Any) -> dict[str, Any]:
            return described

        path = "/api/v1/openapi.json"
        return Operation("GET", path, "openapi", "This description", Role.READ, handler, ("openapi", "paths"))

    def _own_routes(self) -> list[web.RouteDef]:
        routes = [web.get(path, _static(_FILES[path], kind), allow_head=False) for path, (_, kind) in _PAGE.items()]
        return [
            *routes,
            web.get("/metrics", self._metrics, allow_head=False),
            web.get("/api/v1/live", self._live, allow_head=False),
            web.get("/api/v1/visit", self._who, allow_head=False),
            web.post("/api/v1/visit", self._log_in),
            web.delete("/api/v1/visit", self._log_out),
        ]

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        try:
            self._gate.check_host(asked(request))
            response = await handler(request)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            response = failure(error, self._log)
        if not response.prepared:
            for name, value in SAFETY.items():
                response.headers.setdefault(name, value)
        return response

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        self._runner_of_operations.visitor(request, Role.METRICS)
        assert self._desk is not None
        report = self._desk.report()
        text = metrics.exposition(report, report["certificates"], self._desk.timings(""))
        return answer(Reply(text.encode(), kind=metrics.CONTENT_TYPE))

    async def _live(self, request: web.Request) -> web.StreamResponse:
        visitor = self._runner_of_operations.visitor(request, Role.READ)
        service = request.query.get("service", "")[:100]
        facts = asked(request)

        def may_stay() -> bool:
            try:
                return self._gate.visitor(facts, asyncio.get_running_loop().time()).name == visitor.name
            except Refused:
                return False

        return await self._feed.show(request, service, may_stay, SAFETY)

    # ------------------------------------------------------------ visits of the page

    async def _who(self, request: web.Request) -> web.StreamResponse:
        visitor = self._runner_of_operations.visitor(request, Role.METRICS)
        facts = {"name": visitor.name, "role": str(visitor.role), "csrf": visitor.visit.csrf if visitor.visit else ""}
        return answer(Reply(facts))

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        facts = asked(request)
        check_change(facts, None)
        given = _token_in(await body(request))
        secret, visit = self._gate.log_in(given, facts, asyncio.get_running_loop().time())
        cookie_line = set_cookie(secret, facts.encrypted)
        told = {"name": visit.token.name, "role": str(visit.token.role), "csrf": visit.csrf}
        return answer(Reply(told, headers={"Set-Cookie": cookie_line}))

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        facts = asked(request)
        self._runner_of_operations.visitor(request, Role.METRICS)
        self._gate.visits.end(cookie(facts))
        return answer(Reply({"left": True}, headers={"Set-Cookie": set_cookie("", facts.encrypted)}))

    # ------------------------------------------------------------ while it runs

    def _count(self, event: Event) -> None:
        self._told += 1

    def _sample(self) -> None:
        self._sampling = asyncio.get_running_loop().call_later(RESOLUTION_S, self._sample)
        assert self._desk is not None
        try:
            report = self._desk.report()
        except MailbalancerError:
            return  # still starting
        self._history.take({one["name"]: line(one) for one in report["services"]}, time.time())


class _Closed(asyncio.Protocol):
    """For one connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _static(content: bytes, kind: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return answer(Reply(content, kind=kind))

    return handler


def _token_in(raw: bytes) -> str:
    try:
        token = json.loads(raw)["token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        token = None
    if not isinstance(token, str) or len(token) > 500:
        raise Refused(400, 'send {"token": "..."}')
    return token.strip()


def _listener(listen: Endpoint) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if listen.is_ipv6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listen.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind((listen.host, listen.port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"admin.listen {listen} cannot be opened: {error.strerror or error}",
            "name another address or port, or end what listens there (`ss -ltnp`)",
        ) from error
    return sock


def _place(config: Config) -> _Place:
    return config.admin.listen, config.admin.certificate, config.admin.client_ca_file


def _is_encrypted(config: Config) -> bool:
    return bool(config.admin.certificate)


def _shown(config: Config) -> _Shown:
    """What is in the files now.

    Raises:
        MailbalancerError: it cannot be used.
    """
    admin = config.admin
    if not admin.certificate:
        return _NOTHING
    listed = next((one for one in config.certificates if one.name == admin.certificate), None)
    if listed is None:
        raise MailbalancerError(f"admin.certificate: there is no certificate '{admin.certificate}'")
    authorities = read_authorities(admin.client_ca_file) if admin.client_ca_file else ""
    return read_material(listed, today()).pem, authorities


def _context(shown: _Shown) -> ssl.SSLContext | None:
    """For TLS; None without."""
    pem, authorities = shown
    if not pem:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    profile.configure(context)
    context.set_alpn_protocols(["http/1.1"])
    try:
        profile.load_pair(context, pem)
        if authorities:
            context.load_verify_locations(cadata=authorities)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise MailbalancerError(f"admin: OpenSSL refuses certificate or client_ca: {error.reason}") from error
    return context


class _ToLog(logging.Handler):
    """aiohttp's own messages, without a write that could block."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.debug(f"admin: {record.getMessage()}")


def _quiet_aiohttp(log: Log) -> None:
    logger = logging.getLogger("aiohttp")
    logger.handlers = [_ToLog(log)]
    logger.propagate = False
