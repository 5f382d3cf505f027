"""One service: from what the operator wrote to `model.Service`.

Decides: every default of a service, which names its pools and groups get, and what of its mode is not built yet.
Refuses to know: other services.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mailbalancer import model
from mailbalancer.config import defaults, schema, values
from mailbalancer.config.build_check import build_check
from mailbalancer.config.build_http import (
    build_http,
    build_http_persist,
    build_http_route,
    route_name,
    warn_of_cut_heartbeats,
)
from mailbalancer.config.build_l4 import build_l4, refuse_unreachable
from mailbalancer.config.build_mail import build_mail, client_starttls, default_check, server_starttls
from mailbalancer.config.build_source import build_source
from mailbalancer.config.build_tls import build_client_tls, build_server_tls
from mailbalancer.config.problems import Path, hint, quoted
from mailbalancer.config.report import Report
from mailbalancer.model import Mode

Mail = schema.SmtpService | schema.ImapService | schema.Pop3Service
Available = schema.TcpService | schema.TlsService | schema.HttpService | Mail
Pooled = Available | schema.L4Service


@dataclass(frozen=True, slots=True)
class Known:
    """What services may refer to, and what was left out of the file because it is wrong and told."""

    real_servers: dict[str, model.RealServer]
    dropped: frozenset[Path]
    certificates: frozenset[str] = frozenset()

    def is_told(self, path: Path) -> bool:
        """Whether this setting, or what it lies in, was left out."""
        return any(path[:length] in self.dropped for length in range(1, len(path) + 1))


def unavailable(mode: str) -> str:
    """The sentence for a mode that is in the schema and not in this version; empty when it is there."""
    if Mode(mode) in model.AVAILABLE_MODES:
        return ""
    there = ", ".join(sorted(model.AVAILABLE_MODES))
    return f"'{mode}' is not available in this version (available: {there})"


def build_service(report: Report, name: str, written: Available, profile: str, known: Known) -> model.Service:
    """The service with every default filled in; what is wrong with it is in the report."""
    path: Path = ("services", name)
    listen = _listen(report, path, written.listen)
    send = "" if written.proxy_protocol.send == "none" else written.proxy_protocol.send
    pools = _Pools(report, name, written, listen[0].port, send, known)
    pool = pools.own()
    routes = pools.routes(pool) if isinstance(written, schema.TlsService | schema.HttpService) else ()
    everybody = [*pool.members, *(member for route in routes for member in route.pool.members)]
    unknown_sni = written.unknown_sni if isinstance(written, schema.TlsService) else "default"
    told = known.is_told((*path, "real_servers")) or known.is_told((*path, "routes"))
    optional = unknown_sni == "refuse" or isinstance(written, schema.HttpService)
    if not written.real_servers and not told and not (routes and optional):
        remedy = ", or write unknown_sni: refuse" if routes else ""
        report.problem(path, f"'real_servers' is missing; name at least one real server{remedy}")
    service = model.Service(
        name=name,
        mode=Mode(written.mode),
        listen=listen,
        pool=pool,
        routes=routes,
        unknown_sni=unknown_sni,
        connect_timeout_s=written.connect_timeout_s,
        idle_timeout_s=written.idle_timeout_s or defaults.idle_timeout_s(listen[0].port),
        max_sessions=written.max_sessions,
        queue=model.Queue(written.queue.size, written.queue.timeout_s),
        minimum_ready=written.minimum_ready,
        allow=_networks(written.allow),
        deny=_networks(written.deny),
        proxy_protocol=model.ProxyProtocol(
            _networks(written.proxy_protocol.accept_from), send, written.proxy_protocol.header_timeout_s
        ),
        buffer_bytes=written.buffer_bytes,
        client_tls=_client_tls(report, path, written, listen[0].port, known),
        server_tls=_server_tls(report, path, written, pools.port),
        http=build_http(report, path, written, profile) if isinstance(written, schema.HttpService) else None,
        mail=build_mail(report, path, written, profile) if isinstance(written, schema.MailService) else None,
        source=build_source(report, path, written, everybody),
        profile=profile,
        line=report.line(path),
    )
    warn_of_cut_heartbeats(report, path, service)
    return service


def build_l4_service(report: Report, name: str, written: schema.L4Service, profile: str, known: Known) -> model.Service:
    """A service that the kernel forwards; it has no listener of ours."""
    path: Path = ("services", name)
    l4 = build_l4(report, path, written)
    pool = _Pools(report, name, written, l4.listen[0].first, "", known).own()
    if not written.real_servers and not known.is_told((*path, "real_servers")):
        report.problem(path, "'real_servers' is missing; name at least one real server")
    refuse_unreachable(report, path, l4, pool)
    return model.Service(
        name=name,
        mode=Mode.L4,
        listen=(),
        pool=pool,
        minimum_ready=written.minimum_ready,
        allow=_networks(written.allow),
        deny=_networks(written.deny),
        source=build_source(report, path, written, pool.members),
        l4=l4,
        profile=profile,
        line=report.line(path),
    )


def _client_tls(report: Report, path: Path, written: Available, port: int, known: Known) -> model.ClientTls | None:
    path = (*path, "client_tls")
    if isinstance(written, schema.MailService) and written.client_tls is not None:
        starttls = client_starttls(written, port)
        built = build_client_tls(report, path, written.client_tls, known.certificates, starttls)
        return built if starttls != "none" else None
    if not isinstance(written, schema.HttpService) or written.client_tls is None:
        return None
    return build_client_tls(report, path, written.client_tls, known.certificates)


def _server_tls(report: Report, path: Path, written: Available, port: int) -> model.ServerTls | None:
    path = (*path, "server_tls")
    if isinstance(written, schema.MailService) and written.server_tls is not None:
        starttls = server_starttls(written, port)
        return build_server_tls(report, path, written.server_tls, starttls) if starttls != "none" else None
    if not isinstance(written, schema.HttpService) or written.server_tls is None:
        return None
    return build_server_tls(report, path, written.server_tls)


def _listen(report: Report, path: Path, texts: Sequence[str]) -> tuple[model.Endpoint, ...]:
    """Every address; one that is written twice is a problem."""
    endpoints: list[model.Endpoint] = []
    for at, text in enumerate(texts):
        for endpoint in values.listen(text):
            if endpoint in endpoints:
                report.problem((*path, "listen", at), f"{endpoint} is listed twice")
            else:
                endpoints.append(endpoint)
    return tuple(endpoints)


def _networks(texts: Sequence[str]) -> tuple[model.IPNetwork, ...]:
    return tuple(values.network(text) for text in texts)


class _Pools:
    """Builds the service's own pool and those of its routes.

    Attributes:
        port: of the real servers, of the first one where they differ.
    """

    def __init__(self, report: Report, name: str, written: Pooled, listen_port: int, send: str, known: Known) -> None:
        self._report = report
        self._name = name
        self._path: Path = ("services", name)
        self._written = written
        self._port = self.port = written.real_server_port or listen_port
        self._send = send
        self._known = known

    def own(self) -> model.Pool:
        written = self._written
        members = self._members((*self._path, "real_servers"), written.real_servers or {}, self._port)
        persist = self._persist((*self._path, "persist"), written.persist, self._name) if written.persist else None
        if members:
            self.port = members[0].endpoint.port
        wanted = written.check
        if isinstance(written, Mail) and "check" not in written.model_fields_set:
            wanted = default_check(written, self.port)
        check = self._check((*self._path, "check"), wanted, members)
        return self._pool("", members, written.schedule, persist, check)

    def routes(self, own: model.Pool) -> tuple[model.Route, ...]:
        assert isinstance(self._written, schema.TlsService | schema.HttpService)
        routes: Sequence[schema.TlsRoute | schema.HttpRoute] = self._written.routes
        built = [self._route(at, route, own) for at, route in enumerate(routes)]
        self._refuse_twice(built)
        return tuple(built)

    def _route(self, at: int, route: schema.TlsRoute | schema.HttpRoute, own: model.Pool) -> model.Route:
        """A route has what the service has, except what it says itself."""
        path: Path = (*self._path, "routes", at)
        hosts = tuple(dict.fromkeys(values.host_pattern(text) for text in route.host))
        if isinstance(route, schema.TlsRoute):
            name = route.name or hosts[0].replace("*", "wildcard")[:64]
            return model.Route(name, hosts, self._route_pool(path, name, route, own))
        name = route.name or route_name(route)
        http = build_http_route(self._report, path, route)
        paths = tuple(dict.fromkeys(text.lower() for text in route.path))
        answers = http.redirect is not None or http.respond is not None
        pool = model.Pool(self._name, name, ()) if answers else self._route_pool(path, name, route, own)
        return model.Route(name, hosts, pool, paths, http)

    def _route_pool(
        self, path: Path, name: str, route: schema.TlsRoute | schema.HttpRoute, own: model.Pool
    ) -> model.Pool:
        members = own.members
        if route.real_servers is not None or route.real_server_port:
            port = route.real_server_port or self._port
            wanted = route.real_servers if route.real_servers is not None else (self._written.real_servers or {})
            members = self._members((*path, "real_servers"), wanted, port)
        if not route.real_servers and not self._written.real_servers:
            self._report.problem(path, "'real_servers' is missing, and the service has none either")
        return self._pool(
            name,
            members,
            route.schedule or self._written.schedule,
            self._route_persist(path, route, name, own),
            self._check((*path, "check"), route.check or self._written.check, members),
        )

    def _route_persist(
        self, path: Path, route: schema.TlsRoute | schema.HttpRoute, name: str, own: model.Pool
    ) -> model.Persist | None:
        """Own real servers need a table of their own, unless the operator named a group."""
        group = f"{self._name}/{name}"
        if "persist" in route.model_fields_set:
            return self._persist((*path, "persist"), route.persist, group) if route.persist else None
        if route.real_servers is None or self._written.persist is None:
            return own.persist
        return self._persist((*self._path, "persist"), self._written.persist, group)

    def _pool(
        self,
        route: str,
        members: tuple[model.Member, ...],
        schedule: str,
        persist: model.Persist | None,
        check: model.Check,
    ) -> model.Pool:
        written = self._written
        return model.Pool(
            self._name,
            route,
            members,
            model.Schedule(schedule),
            persist,
            check,
            written.ramp_s,
            written.drain_s,
            written.drop_after_drain,
        )

    def _persist(self, path: Path, persist: schema.Persist, group: str) -> model.Persist:
        if isinstance(persist, schema.HttpPersist):
            assert isinstance(self._written, schema.HttpService)
            return build_http_persist(self._report, path, persist, group, self._written.client_tls is not None)
        return model.Persist(
            persist.by, persist.group or group, persist.timeout_s, persist.max_entries, persist.warn_share
        )

    def _check(self, path: Path, check: schema.AnyCheck, members: Sequence[model.Member]) -> model.Check:
        port = members[0].endpoint.port if members else self._port
        return build_check(self._report, path, check, port, self._send)

    def _members(self, path: Path, wanted: dict[str, schema.Member], port: int) -> tuple[model.Member, ...]:
        built = [self._member((*path, name), name, settings, port) for name, settings in wanted.items()]
        return tuple(member for member in built if member is not None)

    def _member(self, path: Path, name: str, settings: schema.Member, port: int) -> model.Member | None:
        machine = self._known.real_servers.get(name)
        if machine is None:
            if not self._known.is_told(("real_servers", name)):
                guess = hint(name, self._known.real_servers)
                self._report.problem(path, f"{quoted(name)} is not in real_servers{guess}")
            return None
        return model.Member(
            real_server=name,
            endpoint=model.Endpoint(machine.address, settings.port or port),
            weight=settings.weight if settings.weight is not None else machine.weight,
            priority=settings.priority,
            max_sessions=settings.max_sessions,
            state=model.AdminState(settings.state),
        )

    def _refuse_twice(self, routes: Sequence[model.Route]) -> None:
        names: dict[str, int] = {}
        places: dict[str, str] = {}
        for at, route in enumerate(routes):
            path: Path = (*self._path, "routes", at)
            if names.setdefault(route.name, at) != at:
                self._report.problem(path, f"two routes are called {quoted(route.name)}; give one of them a name")
            for place in (f"{host}{beginning}" for host in route.hosts or ("",) for beginning in route.paths or ("",)):
                first = places.setdefault(place, route.name)
                if first != route.name:
                    key = "host" if route.hosts else "path"
                    self._report.problem((*path, key), f"{quoted(place)} already goes to route {quoted(first)}")
