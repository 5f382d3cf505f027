"""What is told about a certificate is true, and safe to print."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.tls.certificate import Certificate, read, today
from tests.support.certs import Authority, Issued

NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)


def der(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(serialization.Encoding.DER)


def test_facts(authority: Authority) -> None:
    issued = authority.issue("mail.example.com", "192.0.2.1", "2001:db8::1", days=10)
    seen = read(der(issued))
    assert seen is not None
    assert seen.names == ("mail.example.com", "192.0.2.1", "2001:db8::1")
    assert seen.issuer == "mailbalancer test authority"
    assert seen.sha256 == issued.certificate.fingerprint(hashes.SHA256()).hex()
    assert seen.days_left(today()) == 9
    assert seen.valid_at(today())


def test_many_names_are_cut(authority: Authority) -> None:
    seen = read(der(authority.issue(*(f"n{i}.example.com" for i in range(7)))))
    assert str(seen) == "n0.example.com, n1.example.com, n2.example.com, n3.example.com and 3 more"


def test_a_name_cannot_make_a_line_or_move_a_cursor(authority: Authority) -> None:
    seen = read(der(authority.issue("a\r\nb\x1b[2Jc.example.com")))
    assert seen is not None
    assert seen.names == ("a\\r\\nb\\x1b[2Jc.example.com",)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    assert read(data) is None


def test_a_certificate_that_is_cut_or_goes_on(authority: Authority) -> None:
    whole = der(authority.issue("mail.example.com"))
    assert all(read(whole[:cut]) is None for cut in range(0, len(whole), 7))
    assert read(whole + b"\0") is None


@pytest.mark.parametrize(
    ("since", "until", "words"),
    [
        (-5, 40, ""),
        (-5, 14, ""),
        (-5, 13.5, "certificate expires in 13 days"),
        (-5, 1.5, "certificate expires in 1 day"),
        (-5, 0.5, "certificate expires in less than a day"),
        (-5, 0, "certificate expired less than a day ago"),
        (-5, -1.5, "certificate expired 1 day ago"),
        (1, 40, "certificate is not valid before 2027-03-02 12:00 UTC"),
    ],
)
def test_dates(since: float, until: float, words: str) -> None:
    seen = Certificate(("a",), "b", NOON + timedelta(days=since), NOON + timedelta(days=until), "00")
    assert seen.expiry(NOON, 14) == words
    assert seen.valid_at(NOON) == (since <= 0 < until)


def test_a_version_that_does_not_exist_is_no_certificate(authority: Authority) -> None:
    """The parser has an exception of its own for it, which is no ValueError."""
    der = authority.issue("mail.example.com").certificate.public_bytes(serialization.Encoding.DER)
    version = bytes.fromhex("a003020102")
    assert der.count(version) == 1
    assert read(der.replace(version, bytes.fromhex("a003020107"))) is None
