"""What is told about a certificate: for whom it is, who issued it, until when, and its fingerprint.

Decides: what is read from a certificate, so that it is safe to print (its words may come from a stranger), and the
sentences about its dates.
Refuses to know: whether it is trusted (`verify`) and where it came from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from mailbalancer.log import one_line

#: What the parser raises for bytes that are no certificate, or a damaged one; often only where a part is looked at.
UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_NAMES_SHOWN = 4
_NAME_CHARACTERS = 100
#: As people call them (FIPS 186-5).
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is told about a certificate, safe to print.

    `names`: the DNS names and addresses it is for; the common name if it has none. `key`: its kind, as `RSA 2048`.
    """

    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    sha256: str
    key: str = ""

    def __str__(self) -> str:
        more = len(self.names) - _NAMES_SHOWN
        return ", ".join(self.names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")

    def days_left(self, now: datetime) -> int:
        """Whole days until it expires, rounded down: 0 on the last day, negative after it."""
        return (self.not_after - now).days

    def expiry(self, now: datetime, warn_days: int) -> str:
        """What must be said about its dates: empty when it is valid for `warn_days` days or more."""
        days = self.days_left(now)
        if now >= self.not_after:
            return f"certificate expired {_days((now - self.not_after).days)} ago"
        if now < self.not_before:
            return f"certificate is not valid before {self.not_before:%Y-%m-%d %H:%M} UTC"
        return f"certificate expires in {_days(days)}" if days < warn_days else ""

    def valid_at(self, now: datetime) -> bool:
        return self.not_before <= now < self.not_after


def read(der: bytes) -> Certificate | None:
    """What a certificate says; None when it cannot be parsed (OpenSSL is more lenient than the parser used here)."""
    try:
        parsed = x509.load_der_x509_certificate(der)
        return Certificate(
            names=_names(parsed),
            issuer=_common_name(parsed.issuer),
            not_before=parsed.not_valid_before_utc,
            not_after=parsed.not_valid_after_utc,
            sha256=hashlib.sha256(der).hexdigest(),
            key=_kind(parsed.public_key()),
        )
    except UNREADABLE:
        return None


def _names(parsed: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (_common_name(parsed.subject),)
    addresses = (str(address) for address in alternative.get_values_for_type(x509.IPAddress))
    names = (_printable(name) for name in alternative.get_values_for_type(x509.DNSName))
    return (*names, *addresses) or (_common_name(parsed.subject),)


def _kind(key: object) -> str:
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {_CURVES.get(key.curve.name, key.curve.name)}"
    return type(key).__name__.removesuffix("PublicKey")


def _common_name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return _printable(str(common[0].value) if common else name.rfc4514_string())


def _printable(name: str) -> str:
    return one_line(name[:_NAME_CHARACTERS])


def _days(days: int) -> str:
    if days == 0:
        return "less than a day"
    return "1 day" if days == 1 else f"{days} days"


def today() -> datetime:
    """The instant against which dates of certificates are held: wall clock, UTC."""
    return datetime.now(UTC)
