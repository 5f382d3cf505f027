"""What an http service is made of, and what of it is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.config.load import load_text
from mailbalancer.errors import ConfigError
from mailbalancer.model import Answer, Config, HeaderEdits, Redirect
from tests.support.certs import Authority

Load = Callable[..., Config]
Told = Callable[..., list[str]]

HEAD = "real_servers: {ex1: 10.0.2.11, ex2: 10.0.2.12}\nservices:\n"
WEB = HEAD + "  web:\n    mode: http\n    listen: 10.0.1.100:80\n    real_servers: [ex1, ex2]\n"


def only(config: Config) -> model.Service:
    (service,) = config.services
    return service


def test_the_smallest_one_has_safe_defaults(load: Load) -> None:
    service = only(load(WEB))
    assert service.http == model.Http()
    assert (service.client_tls, service.server_tls, service.routes) == (None, None, ())


def test_everything_is_carried_over(load: Load, tmp_path: Path) -> None:
    (tmp_path / "sorry.html").write_text("<p>sorry")
    text = WEB + (
        "    forwarded: {style: both, trust: 10.9.0.0/16}\n"
        "    limits: {head_bytes: 8192, target_bytes: 4096, head_timeout_s: 5, body_bytes_per_s: 7,"
        " connections_per_source: 8, requests_per_source_s: 9}\n"
        "    server_connections: shared\n    access_log: off\n    sorry: sorry.html\n"
        "    request_headers: {set: {X-A: b}, remove: X-C}\n    response_headers: {remove: [Server]}\n"
    )
    http = only(load(text, tmp_path)).http
    assert http is not None
    assert http.limits == model.HttpLimits(8192, 4096, 5, 7, 8, 9)
    assert (http.forwarded, http.shared, http.access_log) == ("both", True, False)
    assert [str(network) for network in http.trust] == ["10.9.0.0/16"]
    assert http.sorry == Answer(503, b"<p>sorry", "text/html; charset=utf-8")
    assert http.request_headers == HeaderEdits((("X-A", "b"),), ("X-C",))
    assert http.response_headers == HeaderEdits((), ("Server",))


def test_routes(load: Load) -> None:
    text = WEB + (
        "    persist: cookie\n"
        "    routes:\n"
        "      - {path: [/OWA, /ecp], idle_timeout_s: 60, deny: 10.1.0.0/16}\n"
        "      - {host: plain.example, redirect: 'https://{host}{path}'}\n"
        "      - {name: eas, path: /Microsoft-Server-ActiveSync, real_servers: [ex2], persist: {by: exchange}}\n"
        "      - {name: closed, path: /closed, respond: {status: 410, text: gone}}\n"
    )
    service = only(load(text))
    owa, plain, eas, closed = service.routes
    assert (owa.name, owa.paths, owa.hosts) == ("OWA", ("/owa", "/ecp"), ())
    assert owa.http is not None
    assert owa.http.idle_timeout_s == 60
    assert owa.pool.persist == service.pool.persist
    assert plain.http is not None
    assert plain.http.redirect == Redirect("https://{host}{path}")
    assert not plain.pool.members
    assert [member.real_server for member in eas.pool.members] == ["ex2"]
    assert eas.pool.persist is not None
    assert eas.pool.persist.kinds == ("exchange", "cookie", "source")
    assert eas.pool.persist.group == "web/eas"
    assert closed.http is not None
    assert closed.http.respond == Answer(410, b"gone")
    assert [pool.route for pool in service.pools()] == ["", "OWA", "eas"]


def test_each_group_has_a_cookie_of_its_own(load: Load) -> None:
    text = WEB + "    persist: {by: cookie, fallback: source}\n    routes: [{path: /x, real_servers: [ex1]}]\n"
    service = only(load(text))
    own, other = service.pool.persist, service.routes[0].pool.persist
    assert own is not None
    assert other is not None
    assert own.cookie.startswith("mbs-")
    assert own.cookie != other.cookie
    assert own.same_site == "lax"


def test_who_must_share_what_is_remembered(load: Load) -> None:
    def worker_keeps(persist: str, more: str = "") -> tuple[bool, bool]:
        service = only(load(WEB + f"    persist: {persist}\n{more}"))
        return service.pinned_to_worker, service.shares_bindings(service.pool)

    assert worker_keeps("source") == (True, False)
    assert worker_keeps("cookie") == (False, False)
    assert worker_keeps("{by: cookie, fallback: source}") == (True, False)
    assert worker_keeps("exchange") == (False, True)
    assert worker_keeps("source", "    forwarded: {trust: 10.0.0.0/8}\n") == (False, True)


def test_limits_per_source_hold_for_all_workers_together(load: Load) -> None:
    def pinned(more: str) -> bool:
        return only(load(WEB + more)).pinned_to_worker

    assert not pinned("    limits: {head_timeout_s: 5}\n")
    assert pinned("    limits: {connections_per_source: 50}\n")
    assert pinned("    limits: {requests_per_source_s: 50}\n")
    assert not pinned("    limits: {connections_per_source: 50}\n    forwarded: {trust: 10.0.0.0/8}\n")


def test_tls(load: Load, tmp_path: Path) -> None:
    pem = Authority(tmp_path).issue("mail.example.com").pem
    text = (
        f"certificates: {{mail: {pem}}}\n"
        + WEB
        + (
            "    client_tls: {certificate: mail, min_version: 1.3}\n    server_tls: {verify: {pin: '"
            + "ab" * 32
            + "'}}\n"
        )
    )
    service = only(load(text, tmp_path))
    assert service.client_tls == model.ClientTls(("mail",), "implicit", "1.3")
    assert service.server_tls == model.ServerTls(model.Verify("pin", pin_sha256="ab" * 32))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("routes: [{redirect: /x}]", "a route needs a host or a path; what no route is for is the service's own"),
        ("routes: [{path: /a, redirect: /x, respond: 404}]", "redirect and respond exclude each other"),
        ("routes: [{path: /a, redirect: /x, real_servers: [ex1]}]", "a route that answers by itself has no"),
        ("routes: [{path: /a/../b}]", "a path of a route is compared as it stands"),
        ("routes: [{path: /a}, {name: b, path: /A}]", "'/a' already goes to route 'a'"),
        ("routes: [{path: /a, redirect: 'http://{hots}/'}]", "'{hots}' stands for nothing; there are {host}"),
        ("routes: [{path: /a, redirect: 'a b'}]", "'a b' is no URL and no path"),
        ("persist: {by: header}", "persistence by header needs 'header', the name to look for"),
        ("persist: {by: query}", "persistence by query needs 'parameter', the name to look for"),
        ("persist: {by: server_cookie}", "persistence by server_cookie needs 'cookie', the name to look for"),
        ("persist: {by: source, cookie: a}", "only persistence by a cookie has use for it"),
        ("persist: {by: cookie, cookie: 'a=b'}", "'a=b' is not a cookie name"),
        ("persist: {by: header, header: 'a b'}", "'a b' is not a header name"),
        ("persist: {by: source, fallback: source}", "'source' is named twice"),
        ("persist: {by: cookie, same_site: none}", "browsers take no cookie with same_site none without TLS"),
        ("persist: {by: cookie, cookie: a, fallback: cookie_prefix}", "cookie and cookie_prefix exclude each other"),
        ("request_headers: {set: {'a b': c}}", "'a b' is not a header name"),
        ("request_headers: {remove: Content-Length}", "'Content-Length' frames the message and cannot be changed"),
        ('response_headers: {set: {X: "a\\nb"}}', "has characters that a header cannot have"),
        ("sorry: nowhere.html", "nowhere.html cannot be read: No such file or directory"),
        ("client_tls: {certificate: mial}", "'mial' is not in certificates"),
        ("client_tls: {}", "'certificate' is missing; name one of those under certificates:"),
        ("{server_connections: shared, proxy_protocol: {send: v2}}", "a PROXY header names one client for the whole"),
    ],
)  # fmt: skip
def test_what_is_refused(told: Told, written: str, said: str) -> None:
    lines = written[1:-1].replace(", proxy", "\n    proxy") if written.startswith("{") else written
    problems = told(WEB + f"    {lines}\n")
    assert any(said in problem for problem in problems), problems
    assert all(problem.startswith("x.yaml:") for problem in problems)


def test_offload_in_front_of_extended_protection(tmp_path: Path) -> None:
    pem = Authority(tmp_path).issue("mail.example.com").pem
    text = f"certificates: {{mail: {pem}}}\n{HEAD}" + (
        "  web: {profile: exchange-2019-https, vip: 10.0.1.100, host: m.example, certificate: mail, server_tls: null,"
        " real_servers: [ex1, ex2]}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_text(text, "x.yaml", folder=tmp_path)
    assert "Exchange 2019 CU14 and newer switch Extended Protection on" in caught.value.problems[0]
    assert load_text(text.replace("null,", "null, extended_protection: 'off',"), "x.yaml", folder=tmp_path)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("persist: cookie", "without key_file the cookies are forgotten at the next start"),
        ("server_tls: {verify: none}", "the servers' certificates are not verified"),
        ("hsts_s: 1", "browsers heed it over TLS only, and this service has no client_tls"),
    ],
)
def test_warnings(load: Load, written: str, said: str) -> None:
    assert any(said in warning for warning in load(WEB + f"    {written}\n").warnings)


PHONES = "routes: [{path: /Microsoft-Server-ActiveSync%s}]"


@pytest.mark.parametrize(
    ("written", "cut"),
    [
        ("idle_timeout_s: 1800\n    " + PHONES % "", "1800"),
        ("idle_timeout_s: 3700\n    " + PHONES % "", ""),
        ("idle_timeout_s: 3700\n    " + PHONES % ", idle_timeout_s: 900", "900"),
        ("idle_timeout_s: 60\n    " + PHONES % ", idle_timeout_s: 3541", ""),
        ("idle_timeout_s: 60\n    routes: [{path: /}]", ""),
    ],
)
def test_a_phone_that_would_be_cut_off_is_warned_of(load: Load, written: str, cut: str) -> None:
    said = [warning for warning in load(WEB + f"    {written}\n").warnings if "ActiveSync" in warning]
    assert len(said) == bool(cut)
    assert all(f"idle_timeout_s is {cut}: phones ask to wait up to 3540 s" in warning for warning in said)
