"""Certificates of servers: how they are verified, and why one was refused, in words.

Decides: the TLS context that belongs to each kind of verification (`full`, `ca`, `pin`, `none`), the name that is sent
and expected, and the sentence that explains a refusal. Checks and the data plane verify with the same contexts.
Refuses to know: protocols, and how a handshake is driven. Chains and names are verified by OpenSSL, never by code of
ours; what is read here only explains. The one exception is a pin, which OpenSSL does not know: after the handshake, and
before a byte is sent, `after_handshake` must be asked.
"""

from __future__ import annotations

import hashlib
import ssl
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from mailbalancer.log import one_line
from mailbalancer.model import Endpoint, Verify
from mailbalancer.tls.certificate import Certificate
from mailbalancer.tls.profile import VERSIONS

# X509_V_ERR_… of OpenSSL, x509_vfy.h
_UNTRUSTED_ISSUER = frozenset({2, 19, 20, 21, 27})
_NOT_YET_VALID = 9
_EXPIRED = 10
_SELF_SIGNED = 18
_WRONG_NAME = frozenset({62, 64})


def expected_name(verify: Verify, endpoint: Endpoint) -> str:
    """What to give OpenSSL as the server's name: it is expected in the certificate, and sent as SNI unless it is an
    address (RFC 6066 section 3 allows no addresses there)."""
    return verify.name or endpoint.host


def pins(verify: Verify) -> tuple[str, ...]:
    """The accepted SHA-256 fingerprints, lower-case hexadecimal without colons."""
    written = (pin.replace(":", "").strip(" ").lower() for pin in verify.pin_sha256.split(","))
    return tuple(pin for pin in written if pin)


def pin_mismatch(der: bytes, verify: Verify) -> str:
    """Why `der` is none of the pinned certificates; empty when it is one. No certificate and no pin match nothing."""
    pinned = pins(verify)
    if not der:
        return "the server showed no certificate, one is pinned"
    seen = hashlib.sha256(der).hexdigest()
    if seen in pinned:
        return ""
    return f"certificate is not the pinned one: its sha256 is {seen}, pinned is {' or '.join(pinned) or 'none'}"


def after_handshake(tls: ssl.SSLSocket | ssl.SSLObject, verify: Verify, endpoint: Endpoint) -> str:
    """Why the server at the other end of a finished handshake must not be talked to; empty when it may.

    Also after a resumed session: it remembers the certificate of the handshake that began it.
    """
    if verify.kind != "pin":
        return ""  # OpenSSL has verified it, or nothing is to be
    mismatch = pin_mismatch(tls.getpeercert(binary_form=True) or b"", verify)
    return f"{endpoint}: {mismatch}" if mismatch else ""


def handshake_refusal(error: OSError, verify: Verify, endpoint: Endpoint) -> str:
    """Why the handshake with a server failed, for the log: names the server and the reason.

    OpenSSL keeps a refused certificate to itself; the active check looks at it and tells its names and dates.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"{endpoint}: {_refused(error.verify_code, error.verify_message, verify, endpoint)}"
    if isinstance(error, (ssl.SSLEOFError, ConnectionError)):
        return f"{endpoint}: connection closed by the server during the TLS handshake"
    if isinstance(error, ssl.SSLError):
        return f"{endpoint}: TLS handshake failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    return f"{endpoint}: {error.strerror or error} during the TLS handshake"


def _refused(code: int, words: str, verify: Verify, endpoint: Endpoint) -> str:
    if code == _EXPIRED:
        return "certificate refused: it, or one in its chain, has expired"
    if code in _WRONG_NAME:
        return f"certificate refused: it is not for {expected_name(verify, endpoint)}"
    if code == _SELF_SIGNED:
        return "certificate refused: it is self-signed; pin it to trust it"
    if code in _UNTRUSTED_ISSUER:
        return f"certificate refused: issued by an authority that {_trusted(verify)} does not trust"
    return f"certificate refused: {one_line(words)}"


def context(verify: Verify, min_version: str = "1.2") -> ssl.SSLContext:
    """A context for connections to servers that are verified in this way.

    Contexts are kept, because reading the system's authorities takes 15 ms of the event loop; a changed file of
    authorities makes a new one. So the data plane asks at each configuration, not at each connection.

    Raises:
        OSError: the file of authorities cannot be read (ssl.SSLError: it holds no certificate).
    """
    if verify.kind in ("pin", "none"):
        return _unverified_context(min_version)
    # typeshed forgets that cafile is None on a system with a directory of authorities only
    system: str | None = ssl.get_default_verify_paths().cafile
    authorities = verify.ca_file if verify.kind == "ca" else system
    if not authorities:
        return _verified_context(verify.kind, "", 0, min_version)
    return _verified_context(verify.kind, authorities, Path(authorities).stat().st_mtime_ns, min_version)


@lru_cache(maxsize=64)
def _verified_context(kind: str, ca_file: str, _changed_ns: int, min_version: str) -> ssl.SSLContext:
    made = _client_context(min_version)
    if kind == "ca":
        made.load_verify_locations(cafile=ca_file)
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may name an intermediate, or the server itself
    else:
        made.load_default_certs()
    return made


@lru_cache(maxsize=len(VERSIONS))
def _unverified_context(min_version: str) -> ssl.SSLContext:
    made = _client_context(min_version)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def _client_context(min_version: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = VERSIONS[min_version]
    return made


def why_refused(code: int, seen: Certificate, verify: Verify, endpoint: Endpoint, now: datetime) -> str:
    """The sentence for OpenSSL's refusal `code` of the certificate `seen`; empty when OpenSSL's own words must do."""
    if code in (_EXPIRED, _NOT_YET_VALID):
        authority = f"a certificate in the chain of {seen} (issuer {seen.issuer}) is outside its validity dates"
        return authority if seen.valid_at(now) else seen.expiry(now, 0)
    if code in _WRONG_NAME:
        return f"certificate is for {seen}, expected {expected_name(verify, endpoint)}"
    if code == _SELF_SIGNED:
        return f"certificate of {seen} is self-signed; pin it (sha256 {seen.sha256}) to trust it"
    if code in _UNTRUSTED_ISSUER:
        return f"certificate of {seen} is issued by {seen.issuer}, an authority that {_trusted(verify)} does not trust"
    return ""


def _trusted(verify: Verify) -> str:
    return verify.ca_file if verify.kind == "ca" else "the system"
