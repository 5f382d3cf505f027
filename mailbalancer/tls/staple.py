"""The OCSP answer that is shown with a certificate: whether it is the right one, good, and fresh.

Decides: which answers are stapled. A wrong one makes clients refuse a certificate that they would take without any, so
whatever is not certainly of use is left out, with the reason.
Refuses to know: how the file is kept fresh (a timer of the operator's asks the issuer), and how it is shown. The
signature is the client's to verify.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from mailbalancer.errors import MailbalancerError


class StapleError(MailbalancerError):
    """An OCSP answer that is not shown to clients; the certificate is served without it."""


@dataclass(frozen=True, slots=True)
class Staple:
    """An answer of the issuer, DER, and until when it may be shown."""

    answer: bytes
    until: datetime


def read_staple(file: str, answer: bytes, chain: list[x509.Certificate], now: datetime) -> Staple:
    """The answer in `file` for the first certificate of `chain`.

    Raises:
        StapleError: it is for another certificate, not good, not valid now, or no OCSP answer.
    """
    try:
        response = ocsp.load_der_ocsp_response(answer)
    except ValueError as error:
        raise StapleError(f"{file} holds no OCSP answer in DER form", "ask the issuer again") from error
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        words = response.response_status.name.lower().replace("_", " ")
        raise StapleError(f"{file} holds the refusal of an OCSP responder ({words})", "ask it again")
    if not _is_for(response, chain):
        raise StapleError(f"{file} answers for another certificate", "ask the issuer about the one in use")
    _refuse_bad(file, response)
    return Staple(answer, _until(file, response, now))


def _is_for(response: ocsp.OCSPResponse, chain: list[x509.Certificate]) -> bool:
    """By serial number and, where the chain holds the issuer, by its name and key."""
    if response.serial_number != chain[0].serial_number:
        return False
    if len(chain) < 2:
        return True
    algorithm = response.hash_algorithm if isinstance(response.hash_algorithm, hashes.SHA256) else hashes.SHA1()  # noqa: S303 the form of CertID in RFC 5019
    if not isinstance(response.hash_algorithm, type(algorithm)):
        return True  # hashed in a way that cannot be compared here; the serial number must do
    asked = ocsp.OCSPRequestBuilder().add_certificate(chain[0], chain[1], algorithm).build()
    return (response.issuer_name_hash, response.issuer_key_hash) == (asked.issuer_name_hash, asked.issuer_key_hash)


def _refuse_bad(file: str, response: ocsp.OCSPResponse) -> None:
    status = response.certificate_status
    if status is ocsp.OCSPCertStatus.REVOKED:
        raise StapleError(f"{file} says that the certificate is REVOKED", "get a new certificate")
    if status is not ocsp.OCSPCertStatus.GOOD:
        raise StapleError(f"{file} says that the issuer does not know the certificate", "ask the right responder")


def _until(file: str, response: ocsp.OCSPResponse, now: datetime) -> datetime:
    """RFC 6960 section 4.2.2.1; RFC 5019 section 2.2.4 makes nextUpdate a duty."""
    until = response.next_update_utc
    if until is None:
        raise StapleError(f"{file} does not say until when it holds", "ask a responder that follows RFC 5019")
    if now >= until:
        raise StapleError(f"{file} held until {until:%Y-%m-%d %H:%M} UTC", "renew it before that, for example daily")
    if now < response.this_update_utc:
        raise StapleError(f"{file} holds from {response.this_update_utc:%Y-%m-%d %H:%M} UTC only", "check the clock")
    return until
