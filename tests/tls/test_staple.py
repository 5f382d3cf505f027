"""Only a good, fresh answer for this very certificate is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.x509 import ocsp

from mailbalancer.tls.certificate import today
from mailbalancer.tls.staple import StapleError, read_staple
from tests.support.certs import Authority, Issued


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("mail.example.com")


def test_a_good_answer(authority: Authority, issued: Issued) -> None:
    answer = authority.answer(issued, days=7)
    staple = read_staple("file", answer, [issued.certificate, authority.certificate], today())
    assert staple.answer == answer
    assert (staple.until - today()).days == 6
    assert read_staple("file", answer, [issued.certificate], today()) == staple


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda a, i: a.answer(i, revoked=True), "REVOKED"),
        (lambda a, i: a.answer(i, starts_in_days=-9, days=-1), "held until"),
        (lambda a, i: a.answer(i, starts_in_days=1, days=3), "check the clock"),
        (lambda a, i: a.answer(i, days=None), "until when"),
        (lambda a, i: a.answer(a.issue("other.example.com")), "another certificate"),
        (lambda a, i: b"", "no OCSP answer"),
        (lambda a, i: b"-----BEGIN", "no OCSP answer"),
        (lambda a, i: _refusal(), "refusal of an OCSP responder \\(try later\\)"),
    ],
)
def test_what_is_not_shown(
    authority: Authority, issued: Issued, answer: Callable[[Authority, Issued], bytes], words: str
) -> None:
    with pytest.raises(StapleError, match=words):
        read_staple("file", answer(authority, issued), [issued.certificate, authority.certificate], today())


def test_the_issuer_must_be_ours(authority: Authority, stranger: Authority, issued: Issued) -> None:
    with pytest.raises(StapleError, match="another certificate"):
        read_staple("file", stranger.answer(issued), [issued.certificate, authority.certificate], today())


def _refusal() -> bytes:
    from cryptography.hazmat.primitives import serialization

    response = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
    return response.public_bytes(serialization.Encoding.DER)
