"""What only an `http` service has: from what the operator wrote to the model.

Decides: which headers may be touched, what persistence needs to be told, which combinations cannot work, and why.
Refuses to know: pools and listeners (`build_service`).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path as FilePath

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.problems import Path, quoted
from mailbalancer.config.report import Report

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_COOKIE_NAME = re.compile(r"[0-9A-Za-z_.-]+")
_PLACEHOLDER = re.compile(r"\{([^}]*)\}")
#: What frames a message or belongs to one hop is ours to say; changed by hand it would let two parsers disagree.
_OURS = frozenset(
    (
        *("connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade"),
    )
)
#: What clients are known by that have no such key, unless the operator says otherwise.
_IMPLIED = {"exchange": ("cookie", "source"), "super_http": ("source",)}
_PHONES = "/microsoft-server-activesync"
#: MS-ASCMD 2.2.3.88: HeartbeatInterval is at most 3540 s.
LONGEST_HEARTBEAT_S = 3540
PAGE_BYTES = 256 * 1024
_CONTENT_TYPES = {".html": "text/html", ".htm": "text/html", ".txt": "text/plain", ".json": "application/json"}
#: Profiles of servers whose setup switches Extended Protection on, so that TLS may not end before them.
_PROTECTED_PROFILES = ("exchange-2019", "exchange-se")


def build_http(report: Report, path: Path, written: schema.HttpService, profile: str) -> model.Http:
    """Everything of the service that is not a route, a pool or TLS."""
    _refuse_combinations(report, path, written, profile)
    limits = written.limits
    return model.Http(
        forwarded=written.forwarded.style,
        trust=tuple(values.network(text) for text in written.forwarded.trust),
        limits=model.HttpLimits(
            limits.head_bytes,
            limits.target_bytes,
            limits.head_timeout_s,
            limits.body_bytes_per_s,
            limits.connections_per_source,
            limits.requests_per_source_s,
        ),
        shared=written.server_connections == "shared",
        hsts_s=written.hsts_s,
        request_headers=_edits(report, (*path, "request_headers"), written.request_headers),
        response_headers=_edits(report, (*path, "response_headers"), written.response_headers),
        sorry=_answer(report, (*path, "sorry"), written.sorry) if written.sorry else None,
        access_log=written.access_log,
        extended_protection=written.extended_protection or "",
    )


def build_http_route(report: Report, path: Path, route: schema.HttpRoute) -> model.HttpRoute:
    """What the route does besides balancing; `path` is the route's."""
    if not route.host and not route.path:
        report.problem(path, "a route needs a host or a path; what no route is for is the service's own")
    if route.redirect and route.respond:
        report.problem(path, "redirect and respond exclude each other; remove one of them")
    if (route.redirect or route.respond) and route.real_servers is not None:
        report.problem(
            (*path, "real_servers"), "a route that answers by itself has no real servers; remove one of both"
        )
    for at, text in enumerate(route.path):
        if re.search(r"[?#%\\;]|//|/\.", text):
            reason = "a path of a route is compared as it stands; write it without ? # % ; \\ // and /."
            report.problem((*path, "path", at), reason)
    return model.HttpRoute(
        idle_timeout_s=route.idle_timeout_s or 0.0,
        allow=tuple(values.network(text) for text in route.allow),
        deny=tuple(values.network(text) for text in route.deny),
        redirect=_redirect(report, (*path, "redirect"), route.redirect) if route.redirect else None,
        respond=_answer(report, (*path, "respond"), route.respond) if route.respond else None,
        request_headers=_edits(report, (*path, "request_headers"), route.request_headers),
        response_headers=_edits(report, (*path, "response_headers"), route.response_headers),
    )


def warn_of_cut_heartbeats(report: Report, path: Path, service: model.Service) -> None:
    """Say where a phone's request for news would be ended before its time; `path` is the service's."""
    wanted = f"phones ask to wait up to {LONGEST_HEARTBEAT_S} s for mail (ActiveSync); shorter ones empty their battery"
    routed = False
    for at, route in enumerate(service.routes):
        if route.http is None or not any(_PHONES.startswith(one.rstrip("/")) for one in route.paths if one != "/"):
            continue
        routed = True
        idle_s = route.http.idle_timeout_s or service.idle_timeout_s
        if route.pool.members and idle_s <= LONGEST_HEARTBEAT_S:
            report.warning((*path, "routes", at), f"idle_timeout_s is {idle_s:g}: {wanted}")
    speaks_to_phones = service.profile.startswith("exchange-") and service.profile.partition("-http")[1]
    if speaks_to_phones and not routed and service.idle_timeout_s <= LONGEST_HEARTBEAT_S:
        report.warning((*path, "idle_timeout_s"), f"it is {service.idle_timeout_s:g}: {wanted}")


def route_name(route: schema.HttpRoute) -> str:
    """The name of a route that has none: its first path, or its first host."""
    words = route.path[0].strip("/").replace("/", "-") if route.path else ""
    if not words and route.host:
        words = values.host_pattern(route.host[0]).replace("*", "wildcard")
    return re.sub(r"[^0-9A-Za-z._-]", "-", words)[:64] or "root"


def build_http_persist(
    report: Report, path: Path, written: schema.HttpPersist, group: str, secure: bool
) -> model.Persist:
    """Persistence; `path` is that of `persist`, `secure` says whether clients speak TLS to us."""
    fallback = tuple(written.fallback) or _IMPLIED.get(written.by, ())
    kinds = (written.by, *fallback)
    _refuse_twice(report, path, kinds)
    _refuse_incomplete(report, path, written, kinds)
    ours = {"cookie", "cookie_prefix"} & set(kinds)
    if len(ours) > 1:
        report.problem(path, "cookie and cookie_prefix exclude each other: one server is remembered in one place")
    if ours and written.same_site == "none" and not secure:
        report.problem((*path, "same_site"), "browsers take no cookie with same_site none without TLS; add client_tls")
    if written.by in ours and written.key_file is None:
        report.warning(path, "without key_file the cookies are forgotten at the next start")
    named = written.group or group
    return model.Persist(
        by=written.by,
        group=named,
        timeout_s=written.timeout_s,
        max_entries=written.max_entries,
        warn_share=written.warn_share,
        fallback=fallback,
        cookie=_cookie(report, path, written, kinds, named),
        same_site=written.same_site if ours else "",
        key_file=report.file(written.key_file) if written.key_file and ours else "",
        field=written.header or "",
        parameter=written.parameter or "",
    )


def _refuse_combinations(report: Report, path: Path, written: schema.HttpService, profile: str) -> None:
    if written.server_connections == "shared" and written.proxy_protocol.send != "none":
        reason = "a PROXY header names one client for the whole connection, so it cannot be shared; remove one of both"
        report.problem((*path, "server_connections"), reason)
    ends_here = written.client_tls is not None and written.server_tls is None
    if ends_here and profile.startswith(_PROTECTED_PROFILES) and written.extended_protection != "off":
        reason = (
            "Exchange 2019 CU14 and newer switch Extended Protection on, with which TLS may not end before the server: "
            "logins would fail; add server_tls, or write extended_protection: off if it is off there"
        )
        report.problem((*path, "client_tls"), reason)
    if written.hsts_s and written.client_tls is None:
        report.warning((*path, "hsts_s"), "browsers heed it over TLS only, and this service has no client_tls")


def _refuse_twice(report: Report, path: Path, kinds: tuple[str, ...]) -> None:
    twice = next((kind for at, kind in enumerate(kinds) if kind in kinds[:at]), None)
    if twice is not None:
        report.problem((*path, "fallback"), f"'{twice}' is named twice")


def _refuse_incomplete(report: Report, path: Path, written: schema.HttpPersist, kinds: tuple[str, ...]) -> None:
    """What a kind has to be told, and what is told to no kind."""
    needs = {
        "header": ("header", ("header",)),
        "query": ("parameter", ("query",)),
        "cookie_prefix": ("cookie", ("cookie_prefix",)),
        "server_cookie": ("cookie", ("server_cookie",)),
    }
    for kind, (setting, _) in needs.items():
        if kind in kinds and getattr(written, setting) is None:
            report.problem(path, f"persistence by {kind} needs '{setting}', the name to look for")
    if written.header is not None:
        if "header" not in kinds:
            report.problem((*path, "header"), "only persistence by header has use for it")
        elif not _TOKEN.fullmatch(written.header):
            report.problem((*path, "header"), f"{quoted(written.header)} is not a header name")
    if written.parameter is not None and "query" not in kinds:
        report.problem((*path, "parameter"), "only persistence by query has use for it")


def _cookie(report: Report, path: Path, written: schema.HttpPersist, kinds: tuple[str, ...], group: str) -> str:
    """The name of the cookie. One for each group, or two of them on one host would overwrite each other."""
    if not {"cookie", "cookie_prefix", "server_cookie"} & set(kinds):
        if written.cookie is not None:
            report.problem((*path, "cookie"), "only persistence by a cookie has use for it")
        return ""
    if written.cookie is None:
        return f"mbs-{blake2b(group.encode(), digest_size=4).hexdigest()}"
    if not _COOKIE_NAME.fullmatch(written.cookie):
        report.problem((*path, "cookie"), f"{quoted(written.cookie)} is not a cookie name (letters, digits, _ . -)")
    return written.cookie


def _edits(report: Report, path: Path, written: schema.Headers | None) -> model.HeaderEdits:
    if written is None:
        return model.HeaderEdits()
    for key, names in (("set", list(written.set)), ("remove", written.remove)):
        for name in names:
            if not _TOKEN.fullmatch(name):
                report.problem((*path, key), f"{quoted(name)} is not a header name")
            elif name.lower() in _OURS:
                report.problem((*path, key), f"{quoted(name)} frames the message and cannot be changed")
    for name, value in written.set.items():
        if not _VALUE.fullmatch(value):
            report.problem((*path, "set", name), f"{quoted(value)} has characters that a header cannot have")
    return model.HeaderEdits(tuple(written.set.items()), tuple(written.remove))


def _redirect(report: Report, path: Path, written: schema.Redirect) -> model.Redirect:
    if not re.fullmatch(r"[\x21-\x7e]+", written.to):
        report.problem((*path, "to"), f"{quoted(written.to)} is no URL and no path")
    for placeholder in _PLACEHOLDER.findall(written.to):
        if placeholder not in ("host", "path"):
            report.problem((*path, "to"), f"'{{{placeholder}}}' stands for nothing; there are {{host}} and {{path}}")
    return model.Redirect(written.to, written.status)


def _answer(report: Report, path: Path, written: schema.Respond) -> model.Answer:
    """The page is read now, so that it is there when everything else is gone."""
    if written.file is not None and written.text is not None:
        report.problem(path, "file and text exclude each other")
    if written.text is not None:
        return model.Answer(written.status, written.text.encode())
    if written.file is None:
        return model.Answer(written.status, b"")
    file = FilePath(report.file(written.file))
    body = b""
    try:
        if file.stat().st_size > PAGE_BYTES:
            report.problem((*path, "file"), f"{file} has more than {PAGE_BYTES // 1024} KiB, too much for every client")
        elif not file.is_file():
            report.problem((*path, "file"), f"{file} is not a file")
        else:
            body = file.read_bytes()
    except OSError as error:
        report.problem((*path, "file"), f"{file} cannot be read: {error.strerror}")
    kind = _CONTENT_TYPES.get(file.suffix.lower(), "text/plain")
    return model.Answer(written.status, body, f"{kind}; charset=utf-8")
