from __future__ import annotations

from pathlib import Path

import pytest
from multidict import CIMultiDict

from mailbalancer.admin import tokens
from mailbalancer.admin.gate import (
    COOKIE,
    CSRF_HEADER,
    Asked,
    Gate,
    Refused,
    Visitor,
    check_change,
    permit,
    set_cookie,
)
from mailbalancer.admin.tokens import Role, TokensFile


def asked(method: str = "GET", peer: str = "192.0.2.9", **headers: str) -> Asked:
    return Asked(method, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}), peer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


@pytest.fixture
def gate(path: Path) -> Gate:
    return Gate(TokensFile(str(path)), ["lb.example.com", "*.corp.example.com"])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8404",
        "[::1]:8404",
        "10.0.0.1",
        "localhost",
        "LOCALHOST:8404",
        "lb.example.com",
        "a.corp.example.com:1",
    ],
)
def test_our_names_and_every_address_are_ours(gate: Gate, host: str) -> None:
    gate.check_host(asked(Host=host))


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "evil.example",
            "evil.example:8404",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "corp.example.com",
        ),
        *(
            "a.b.corp.example.com",
            "lb.example.com@evil.example",
            "lb.example.com evil",
            "[::1",
            "[evil.example]:80",
            "::1",
        ),
    ],
)
def test_a_name_that_others_point_here_is_refused(gate: Gate, host: str) -> None:
    with pytest.raises(Refused) as refused:
        gate.check_host(asked(Host=host))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://10.0.0.1:81", "https://10.0.0.1.evil.example"]
)
def test_another_site_may_not_ask(gate: Gate, origin: str) -> None:
    with pytest.raises(Refused, match="another site"):
        gate.check_host(asked("POST", Host="10.0.0.1", Origin=origin))


def test_without_tokens_loopback_reads_and_nobody_else(gate: Gate) -> None:
    for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert gate.visitor(asked(peer=peer), 0.0).role is Role.READ
    for peer in ("192.0.2.1", "", "::ffff:192.0.2.1", "fe80::1%lo"):
        with pytest.raises(Refused) as refused:
            gate.visitor(asked(peer=peer), 0.0)
        assert refused.value.status == 401


def test_with_a_token_loopback_needs_one_too(gate: Gate, path: Path) -> None:
    secret = tokens.create(path, "jane", Role.OPERATE, "2026-01-01")
    with pytest.raises(Refused):
        gate.visitor(asked(peer="127.0.0.1"), 0.0)
    visitor = gate.visitor(asked(peer="127.0.0.1", Authorization=f"Bearer {secret}"), 0.0)
    assert (visitor.name, visitor.role, visitor.visit) == ("jane", Role.OPERATE, None)


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer wrong", "Basic {}", "{}", "Token {}", "Bearer {} x"])
def test_anything_but_the_token_is_refused(gate: Gate, path: Path, authorization: str) -> None:
    secret = tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    with pytest.raises(Refused) as refused:
        gate.visitor(asked(peer="127.0.0.1", Authorization=authorization.format(secret)), 0.0)
    assert refused.value.status == 401


def test_guessing_is_slowed_down_and_so_is_logging_in(gate: Gate, path: Path) -> None:
    secret = tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    statuses = []
    for number in range(30):
        with pytest.raises(Refused) as refused:
            gate.visitor(asked(Authorization=f"Bearer mb_{number}"), 0.0)
        statuses.append(refused.value.status)
    assert statuses == [401] * 5 + [429] * 25
    with pytest.raises(Refused) as refused:
        gate.log_in(secret, asked(), 0.0)
    assert int(refused.value.headers["Retry-After"]) > 0
    assert gate.visitor(asked(Authorization=f"Bearer {secret}"), 0.0).name == "jane", "others share the address"
    assert gate.log_in(secret, asked(peer="192.0.2.10"), 0.0)
    assert gate.log_in(secret, asked(), 1000.0)


def test_a_visit_lasts_until_it_is_idle_or_old_or_its_token_is_revoked(gate: Gate, path: Path) -> None:
    token = tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    tokens.create(path, "joe", Role.ADMIN, "2026-01-01")

    def comes(secret: str, now: float) -> bool:
        try:
            return gate.visitor(asked(Cookie=f"{COOKIE}={secret}"), now).visit is not None
        except Refused:
            return False

    idle, _ = gate.log_in(token, asked(), 0.0)
    assert comes(idle, 3000.0)
    assert comes(idle, 6000.0)
    assert not comes(idle, 10_000.0)
    old, _ = gate.log_in(token, asked(), 0.0)
    assert [comes(old, float(now)) for now in range(0, 44_000, 3000)] == [True] * 15
    assert not comes(old, 43_300.0)
    revoked, _ = gate.log_in(token, asked(), 0.0)
    tokens.revoke(path, "jane")
    assert not comes(revoked, 1.0)


def test_a_change_through_the_page_needs_the_token_that_only_its_script_has(gate: Gate, path: Path) -> None:
    token = tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    secret, visit = gate.log_in(token, asked(), 0.0)
    assert secret not in (visit.csrf, token)
    json = {"Content-Type": "application/json", "Content-Length": "2"}
    for wrong in ({}, {CSRF_HEADER: ""}, {CSRF_HEADER: visit.csrf[:-1]}, {CSRF_HEADER: secret}):
        with pytest.raises(Refused) as refused:
            check_change(Asked("POST", CIMultiDict({**json, **wrong}), ""), visit)
        assert refused.value.status == 403
    check_change(Asked("POST", CIMultiDict({**json, CSRF_HEADER: visit.csrf}), ""), visit)
    check_change(Asked("GET", CIMultiDict(), ""), visit)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"]
)
def test_what_a_form_can_send_is_refused(kind: str) -> None:
    headers = {"Content-Length": "2", **({"Content-Type": kind} if kind else {})}
    for method in ("POST", "PUT", "DELETE"):
        with pytest.raises(Refused) as refused:
            check_change(Asked(method, CIMultiDict(headers), ""), None)
        assert refused.value.status == 415
    check_change(Asked("POST", CIMultiDict({"Content-Type": "application/json; charset=utf-8"}), ""), None)


def test_the_cookie_is_for_this_site_and_no_script() -> None:
    assert set_cookie("s", encrypted=True) == f"{COOKIE}=s; Path=/; HttpOnly; SameSite=Strict; Secure"
    assert "Secure" not in set_cookie("s", encrypted=False)
    assert "Max-Age=0" in set_cookie("", encrypted=False)


def test_roles_are_asked() -> None:
    permit(Visitor("jane", Role.OPERATE, ""), Role.READ)
    with pytest.raises(Refused, match="needs admin"):
        permit(Visitor("jane", Role.OPERATE, ""), Role.ADMIN)
    with pytest.raises(Refused, match="token create"):
        permit(Visitor("loopback", Role.READ, ""), Role.OPERATE)
