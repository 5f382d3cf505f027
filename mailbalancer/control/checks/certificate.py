"""Certificates of servers: how they are verified, and why one was refused, in words.

Decides: the TLS context that belongs to each kind of verification (`full`, `ca`, `pin`, `none`), what is read from a
certificate, and the sentence that explains a refusal.
Refuses to know: sockets and protocols. Chains and names are verified by OpenSSL, never by code of ours; what is read
here only explains.
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from mailbalancer.log import one_line
from mailbalancer.model import Endpoint, Verify

# X509_V_ERR_… of OpenSSL, x509_vfy.h
_UNTRUSTED_ISSUER = frozenset({2, 19, 20, 21, 27})
_NOT_YET_VALID = 9
_EXPIRED = 10
_SELF_SIGNED = 18
_WRONG_NAME = frozenset({62, 64})
_NAMES_SHOWN = 4
_NAME_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is told about a certificate, safe to print.

    `names`: the DNS names and addresses it is for; the common name if it has none.
    """

    names: tuple[str, ...]
    issuer: str
    not_before: datetime
    not_after: datetime
    sha256: str

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
            return f"certificate expired {_days(-days - 1)} ago"
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
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None


def pin_mismatch(der: bytes, pin_sha256: str) -> str:
    """Why `der` is not the certificate with this SHA-256 (hexadecimal, colons allowed); empty when it is."""
    seen = hashlib.sha256(der).hexdigest()
    pinned = pin_sha256.replace(":", "").lower()
    return "" if seen == pinned else f"certificate is not the pinned one: its sha256 is {seen}, pinned is {pinned}"


def context(verify: Verify) -> ssl.SSLContext:
    """A client context for this kind of verification, TLS 1.2 and newer.

    Contexts are kept, because reading the system's authorities takes 15 ms of the event loop; a changed file of
    authorities makes a new one.

    Raises:
        OSError: the file of authorities cannot be read (ssl.SSLError: it holds no certificate).
    """
    if verify.kind in ("pin", "none"):
        return _unverified_context()
    # typeshed forgets that cafile is None on a system with a directory of authorities only
    system: str | None = ssl.get_default_verify_paths().cafile
    authorities = verify.ca_file if verify.kind == "ca" else system
    if not authorities:
        return _verified_context(verify.kind, "", 0)
    return _verified_context(verify.kind, authorities, Path(authorities).stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _verified_context(kind: str, ca_file: str, _changed_ns: int) -> ssl.SSLContext:
    made = _client_context()
    if kind == "ca":
        made.load_verify_locations(cafile=ca_file)
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may name an intermediate, or the server itself
    else:
        made.load_default_certs()
    return made


@lru_cache(maxsize=1)
def _unverified_context() -> ssl.SSLContext:
    made = _client_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def _client_context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def why_refused(code: int, seen: Certificate, verify: Verify, endpoint: Endpoint, now: datetime) -> str:
    """The sentence for OpenSSL's refusal `code` of the certificate `seen`; empty when OpenSSL's own words must do."""
    if code in (_EXPIRED, _NOT_YET_VALID):
        authority = f"a certificate in the chain of {seen} (issuer {seen.issuer}) is outside its validity dates"
        return authority if seen.valid_at(now) else seen.expiry(now, 0)
    if code in _WRONG_NAME:
        return f"certificate is for {seen}, expected {verify.name or endpoint.host}"
    if code == _SELF_SIGNED:
        return f"certificate of {seen} is self-signed; pin it (sha256 {seen.sha256}) to trust it"
    if code in _UNTRUSTED_ISSUER:
        trusted = verify.ca_file if verify.kind == "ca" else "the system"
        return f"certificate of {seen} is issued by {seen.issuer}, an authority that {trusted} does not trust"
    return ""


def _names(parsed: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (_common_name(parsed.subject),)
    addresses = (str(address) for address in alternative.get_values_for_type(x509.IPAddress))
    names = (_printable(name) for name in alternative.get_values_for_type(x509.DNSName))
    return (*names, *addresses) or (_common_name(parsed.subject),)


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
