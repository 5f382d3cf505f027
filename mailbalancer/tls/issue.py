"""Keys that are made here, and what is made with them: requests for an authority, and certificates for tests.

Decides: which kinds of keys there are, and what stands in a request: the names as subject alternative names, the first
one also as common name where it fits (RFC 5280 allows 64 characters), and nothing that an authority would ignore.
Refuses to know: files, and who asks.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailbalancer.tls.certificate import UNREADABLE

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_COMMON_NAME_CHARACTERS = 64
#: Clocks of clients differ; a certificate that begins this minute is refused by those that are slow.
_BEGINS_BEFORE = timedelta(hours=1)


class KeyKind(StrEnum):
    """What `new_key` can make."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    ECDSA_P256 = "ecdsa-p256"


def new_key(kind: KeyKind) -> bytes:
    """A private key, PEM. Takes up to a second for RSA."""
    key: Key
    if kind is KeyKind.ECDSA_P256:
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        key = rsa.generate_private_key(65537, 2048 if kind is KeyKind.RSA_2048 else 3072)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def request(key_pem: bytes, names: list[str]) -> bytes:
    """A certificate signing request (RFC 2986), PEM.

    Args:
        key_pem: what `new_key` made.
        names: DNS names and IP addresses, at least one; the first is what people call it.
    """
    made = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(names[0]))
        .add_extension(_alternatives(names), critical=False)
        .add_extension(_usage(), critical=True)
        .sign(_load(key_pem), hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def self_signed(key_pem: bytes, names: list[str], days: int, now: datetime) -> bytes:
    """A certificate that nobody vouches for, PEM; good for `days` days from `now`."""
    key = _load(key_pem)
    name = _subject(names[0]) if len(names[0]) <= _COMMON_NAME_CHARACTERS else _subject("mailbalancer")
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEGINS_BEFORE)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(_alternatives(names), critical=False)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def requested_names(request_pem: bytes) -> list[str]:
    """The names in a request that `request` made; none where it is damaged."""
    try:
        parsed = x509.load_pem_x509_csr(request_pem)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return []
    return [str(name.value) for name in names]


def _subject(name: str) -> x509.Name:
    if len(name) > _COMMON_NAME_CHARACTERS:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternatives(names: list[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_alternative(name) for name in names])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage() -> x509.KeyUsage:
    """Signatures for every handshake of these days, and key transport for the oldest clients of TLS 1.2."""
    return x509.KeyUsage(
        digital_signature=True,
        key_encipherment=True,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load(key_pem: bytes) -> Key:
    key = serialization.load_pem_private_key(key_pem, None)
    assert isinstance(key, Key)
    return key
