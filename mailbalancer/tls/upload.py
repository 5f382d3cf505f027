"""What people have in their hands when they renew a certificate: PEM in any order, or .pfx, .cer, .p7b of Windows.

Decides: which of several certificates is the one that is meant and which are its issuers, put into the order that
clients need; what is left out and said; and that a key leaves here without its password, because nobody is there to
type one when the balancer starts.
Refuses to know: whether it may be used (`material`), files, and where a key comes from that was not brought along.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12

from mailbalancer.errors import MailbalancerError
from mailbalancer.tls.certificate import UNREADABLE

#: More certificates than this are a bundle of all authorities, and not a chain.
MOST_CERTIFICATES = 20
_KEY = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----\r?\n.*?-----END \1-----", re.DOTALL)
_CHAIN_REMEDY = "send the certificate, then its issuers, as PEM (-----BEGIN CERTIFICATE-----), or a PFX file"


class UploadError(MailbalancerError):
    """What was sent cannot be read."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A certificate with its issuers, and its key if it came along.

    Attributes:
        chain: PEM; the certificate first, each issuer right after what it issued.
        key: PEM without password; empty: none came along.
        remarks: sentences about what was left out.
    """

    chain: bytes
    key: bytes = field(default=b"", repr=False)
    remarks: tuple[str, ...] = ()


def from_pem(text: bytes, key_text: bytes = b"", password: bytes = b"") -> Upload:
    """Certificates, and the key, from PEM. The key may stand with the certificates or by itself, and have a password.

    Raises:
        UploadError: it cannot be read.
    """
    try:
        if b"-----BEGIN PKCS7-----" in text:
            certificates = pkcs7.load_pem_pkcs7_certificates(text)
        else:
            certificates = x509.load_pem_x509_certificates(text)
    except UNREADABLE as error:
        raise UploadError("there is no readable certificate in what was sent", _CHAIN_REMEDY) from error
    return _arranged(certificates, _key_beside(key_text, text, password))


def from_binary(data: bytes, key_text: bytes = b"", password: bytes = b"") -> Upload:
    """The same from what Windows writes: a PFX (PKCS #12, RFC 7292) with its key, or certificates alone (.cer, .p7b).

    Raises:
        UploadError: the password is wrong, or it is something else.
    """
    for load in (_one_certificate, pkcs7.load_der_pkcs7_certificates):
        try:
            return _arranged(load(data), _key_beside(key_text, b"", password))
        except UNREADABLE:
            continue
    return _from_pfx(data, password)


def _one_certificate(data: bytes) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(data)]


def _key_beside(key_text: bytes, text: bytes, password: bytes) -> PrivateKeyTypes | None:
    found = _KEY.search(key_text) or _KEY.search(text)
    if key_text.strip(b" \t\r\n") and found is None:
        raise UploadError("there is no private key in what was sent as the key", "send it as PEM")
    return _pem_key(found.group(), password) if found else None


def _from_pfx(data: bytes, password: bytes) -> Upload:
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(data, password or None)
    except UNREADABLE as error:
        raise UploadError("the PFX cannot be opened: the password is wrong, or it is no PFX", "try again") from error
    if key is None:
        raise UploadError(
            "there is no private key in the PFX", "export it again with the private key (`Export-ExchangeCertificate`)"
        )
    return _arranged([*([certificate] if certificate else []), *others], key)


def public_of(pem: bytes) -> bytes:
    """The public key that belongs to a private key or to the first certificate in PEM; empty when there is neither."""
    try:
        found = _KEY.search(pem)
        if found:
            return _public(serialization.load_pem_private_key(found.group(), None))
        return _public(x509.load_pem_x509_certificate(pem))
    except (TypeError, *UNREADABLE):
        return b""


def key_in(pem: bytes) -> bytes:
    """The private key in PEM; empty when there is none."""
    found = _KEY.search(pem)
    return found.group() if found else b""


def _pem_key(pem: bytes, password: bytes) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(pem, password or None)
    except TypeError as error:
        if password:  # of no use for a key that has none
            return _pem_key(pem, b"")
        raise UploadError("the private key has a password", "send the password with it") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UploadError("the private key cannot be read: the password is wrong, or it is damaged", "") from error


def _arranged(certificates: list[x509.Certificate], key: PrivateKeyTypes | None) -> Upload:
    if not certificates:
        raise UploadError("there is no certificate in what was sent", _CHAIN_REMEDY)
    _refuse_damaged(certificates)
    if len(certificates) > MOST_CERTIFICATES:
        raise UploadError(f"there are {len(certificates)} certificates in what was sent", _CHAIN_REMEDY)
    first = _meant(certificates, key)
    chain, spare = _chain(first, [one for one in certificates if one != first])
    remarks = [f"{len(spare)} certificate(s) that are not issuers of it were left out"] if spare else []
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    return Upload(pem, _plain(key) if key is not None else b"", tuple(remarks))


def _refuse_damaged(certificates: list[x509.Certificate]) -> None:
    """The parser looks at parts of a certificate when it is asked for them, and says only then what is wrong."""
    try:
        for one in certificates:
            one.subject, one.issuer, one.extensions, _public(one)
    except UNREADABLE as error:
        raise UploadError("a certificate in what was sent is damaged", _CHAIN_REMEDY) from error


def _meant(certificates: list[x509.Certificate], key: PrivateKeyTypes | None) -> x509.Certificate:
    """The one that the key belongs to; without a key the one that issued no other."""
    if key is not None:
        ours = _public(key)
        for one in certificates:
            if _public(one) == ours:
                return one
    issuers = {one.issuer for one in certificates if one.issuer != one.subject}
    return next((one for one in certificates if one.subject not in issuers), certificates[0])


def _chain(
    first: x509.Certificate, others: list[x509.Certificate]
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """From the certificate upwards; and what is no part of that. A root is known to clients, and left out quietly."""
    chain, left = [first], list(others)
    while chain[-1].issuer != chain[-1].subject:
        above = next((one for one in left if _issued(one, chain[-1])), None)
        if above is None:
            break
        chain.append(above)
        left.remove(above)
    if len(chain) > 1 and chain[-1].issuer == chain[-1].subject:
        chain.pop()
    return chain, [one for one in left if one != first]


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, InvalidSignature, *UNREADABLE):
        return False
    return True


def _public(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _plain(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
