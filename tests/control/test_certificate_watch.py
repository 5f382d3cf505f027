"""Who is told what about certificates, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.certificate_watch import CertificateWatch
from mailbalancer.control.events import Events
from mailbalancer.log import Log
from mailbalancer.model import (
    Certificate,
    ClientTls,
    Config,
    Endpoint,
    Member,
    MemberKey,
    Mode,
    Pool,
    ServerTls,
    Service,
    Verify,
)
from mailbalancer.tls.certificate import today
from mailbalancer.tls.material import Material, read_material
from tests.support.certs import Authority

KEY = MemberKey("owa", "", "ex1")
OWA = Service(
    "owa",
    Mode.HTTP,
    (Endpoint("127.0.0.1", 443),),
    Pool("owa", "", (Member("ex1", Endpoint("127.0.0.1", 8443)),)),
    client_tls=ClientTls(("other", "mail")),
    server_tls=ServerTls(Verify(name="mail.example.com")),
    profile="exchange-2019-https",
)


@pytest.fixture
def events() -> Events:
    return Events(Log())


@pytest.fixture
def material(tmp_path: Path) -> Callable[..., Material]:
    authority = Authority(tmp_path)

    def make(name: str, host: str, days: float = 90) -> Material:
        return read_material(Certificate(name, str(authority.issue(host, days=days).pem)))

    return make


def _config(*services: Service) -> Config:
    return Config("x.yaml", services, (), 1, "", "", "")


def _texts(events: Events) -> list[str]:
    return [event["text"] for event in events.listed()]


def _seen(sha256: str) -> Result:
    return Result(Verdict.UP, "ok", 0.0, {"cert_sha256": sha256} if sha256 else {})


def test_a_mismatch_is_told_once_and_its_end_too(events: Events, material: Callable[..., Material]) -> None:
    mail, other = material("mail", "mail.example.com"), material("other", "other.example.com")
    watch = CertificateWatch(events)
    watch.follow(_config(OWA), {"mail": mail, "other": other})
    assert watch.finding(OWA, KEY) == {
        "binding": "unknown",
        "text": "ex1: its certificate has not been seen by a TLS check yet",
    }
    for _ in range(3):
        watch.observe(KEY, _seen(other.seen.sha256))
    finding = watch.finding(OWA, KEY)
    assert finding is not None
    assert finding["binding"] == "MISMATCH"
    assert [text for text in _texts(events) if "Extended Protection" in text] == [
        f"owa: Extended Protection: {finding['text']}"
    ]
    for _ in range(3):
        watch.observe(KEY, _seen(mail.seen.sha256))
    assert watch.finding(OWA, KEY) == {
        "binding": "match",
        "text": "ex1 shows the certificate that clients are served",
    }
    assert len(_texts(events)) == 2


@pytest.mark.parametrize(
    "service", [replace(OWA, profile=""), replace(OWA, client_tls=None), replace(OWA, server_tls=None)]
)
def test_only_exchange_behind_tls_that_begins_anew_is_compared(
    events: Events, material: Callable[..., Material], service: Service
) -> None:
    watch = CertificateWatch(events)
    watch.follow(_config(service), {"mail": material("mail", "mail.example.com")})
    watch.observe(KEY, _seen("00" * 32))
    assert watch.finding(service, KEY) is None
    assert _texts(events) == []


def test_a_check_without_tls_and_a_removed_member_say_nothing(
    events: Events, material: Callable[..., Material]
) -> None:
    watch = CertificateWatch(events)
    watch.follow(_config(OWA), {"mail": material("mail", "mail.example.com")})
    watch.observe(KEY, _seen(""))
    watch.observe(MemberKey("gone", "", "ex1"), _seen("00" * 32))
    assert _texts(events) == []


def test_expiry_is_told_once_for_each_threshold(events: Events, material: Callable[..., Material]) -> None:
    watch = CertificateWatch(events)
    watch.follow(_config(OWA), {"mail": material("mail", "mail.example.com", days=90)})
    assert _texts(events) == []
    for days in (61, 61, 76, 84, 90):
        watch.look(today() + timedelta(days=days))
    told = _texts(events)
    assert len(told) == 4
    assert all("certificate 'mail'" in text for text in told)
    assert "has expired" in told[-1]


def test_status_lists_what_is_in_use(events: Events, material: Callable[..., Material]) -> None:
    watch = CertificateWatch(events)
    mail = material("mail", "mail.example.com", days=12.5)
    watch.follow(_config(OWA), {"mail": mail})
    [listed] = watch.listed()
    assert (listed["name"], listed["names"], listed["days_left"]) == ("mail", ["mail.example.com"], 12)
    assert listed["services"] == ["owa"]
    assert "PRIVATE" not in str(listed)
