"""What is said about TLS, and how loudly."""

from __future__ import annotations

from typing import Any

import pytest

from mailbalancer.admin import encryption
from mailbalancer.admin.words import Tone


def service(*bindings: tuple[str, str], **changes: Any) -> dict[str, Any]:
    servers = [
        {"name": name, "extended_protection": {"binding": binding, "text": f"{name}: a sentence"} if binding else None}
        for name, binding in bindings
    ]
    return {"client_tls": None, "server_tls": None, "pools": [{"real_servers": servers}]} | changes


def test_nothing_is_said_of_a_service_without_tls() -> None:
    assert list(encryption.service_words(service(("ex1", "")))) == []


def test_certificates_and_verification_are_named() -> None:
    facts = service(client_tls={"certificates": ["mail", "old"]}, server_tls={"verify": "full"})
    assert list(encryption.service_words(facts)) == [
        ("TLS with clients: certificate mail, old", None),
        ("TLS with servers: verified (chain and name)", None),
    ]


def test_handshakes_are_told_by_version() -> None:
    counts = {"1.3": 300, "1.2": 20, "older": 0, "resumed": 100, "failed": 2}
    facts = service(client_tls={"certificates": ["mail"]}, handshakes=counts)
    words = "TLS with clients: certificate mail; 320 handshakes (1.3: 300, 1.2: 20), 100 resumed, 2 failed"
    assert list(encryption.service_words(facts)) == [(words, None)]
    quiet = service(client_tls={"certificates": ["mail"]}, handshakes=dict.fromkeys(counts, 0))
    assert list(encryption.service_words(quiet)) == [("TLS with clients: certificate mail", None)]


def test_servers_that_are_not_verified_are_red() -> None:
    ((sentence, tone),) = encryption.service_words(service(server_tls={"verify": "none"}))
    assert "NOT VERIFIED" in sentence
    assert tone is Tone.BAD


def test_the_worst_route_of_a_server_counts() -> None:
    facts = service(("ex1", "match"), ("ex2", "MISMATCH"), ("ex1", "match"), ("ex2", "match"))
    assert list(encryption.service_words(facts)) == [("Extended Protection: ex1 match, ex2 MISMATCH", Tone.BAD)]
    assert list(encryption.service_words(service(("ex1", "unknown")))) == [("Extended Protection: ex1 unknown", None)]


def test_only_a_mismatch_is_explained() -> None:
    found = [
        encryption.mismatch(one)
        for one in service(("ex1", "match"), ("ex2", "MISMATCH"), ("ex3", ""))["pools"][0]["real_servers"]
    ]
    assert found == ["", "ex2: a sentence", ""]


@pytest.mark.parametrize(
    ("days", "tone"), [(-1, Tone.BAD), (6, Tone.BAD), (7, Tone.WARNING), (29, Tone.WARNING), (30, Tone.GOOD)]
)
def test_days_left(days: int, tone: Tone) -> None:
    assert encryption.days_tone(days) is tone


@pytest.mark.parametrize(
    ("days", "words", "tone"),
    [
        (-4, "has expired", Tone.BAD),
        (0, "expires within a day", Tone.BAD),
        (1, "expires in 1 day", Tone.BAD),
        (13, "expires in 13 days", Tone.WARNING),
    ],
)
def test_a_server_s_certificate_at_its_end(days: int, words: str, tone: Tone) -> None:
    told = encryption.expiry({"name": "ex1", "check": {"verdict": "up", "detail": {"cert_days": days}}})
    assert told == (f"ex1: its certificate {words}; renew it there", tone)


@pytest.mark.parametrize(
    "check",
    [
        None,
        *({"verdict": v, "detail": d} for v, d in [("up", {"cert_days": 14}), ("up", {}), ("down", {"cert_days": -1})]),
    ],
)
def test_nothing_is_said_of_other_certificates(check: dict[str, Any] | None) -> None:
    """Of a server that is down the reason says it already."""
    assert encryption.expiry({"name": "ex1", "check": check}) is None
