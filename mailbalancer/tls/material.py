"""Certificates of ours: read once, validated, and from then on bytes in memory.

Decides: what makes certificate, issuers and key usable together, what is refused and what is only warned about, and
that the bytes which were validated are the bytes that are served: a worker gets them in its configuration and never
opens a file.
Refuses to know: services, and how certificates are chosen and shown (`offer`).
"""

from __future__ import annotations

import os
import re
import ssl
import stat
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mailbalancer.errors import MailbalancerError
from mailbalancer.model import Certificate as Listed
from mailbalancer.tls import openssl, profile
from mailbalancer.tls.certificate import UNREADABLE, Certificate, read, today
from mailbalancer.tls.staple import Staple, StapleError, read_staple

#: No chain and key come near this; a wrong path may lead to anything.
FILE_BYTES = 1024 * 1024
_RSA_BITS = 2048
_KEY = re.compile(rb"-----BEGIN ([A-Z0-9 ]*PRIVATE KEY)-----\r?\n.*?-----END \1-----", re.DOTALL)
_ENCRYPTED = re.compile(rb"ENCRYPTED PRIVATE KEY|^Proc-Type: *4, *ENCRYPTED", re.MULTILINE)


class CertificateError(MailbalancerError):
    """A certificate, or a file of authorities, that cannot be used. `file` is the one to look at."""

    def __init__(self, message: str, remedy: str, file: str) -> None:
        super().__init__(message, remedy)
        self.file = file


@dataclass(frozen=True, slots=True)
class Material:
    """One certificate with its issuers, its key and its OCSP answer, validated together.

    Attributes:
        name: what the configuration calls it.
        names: host names it is for, as they stand in it (`*.example.com` included), to be chosen by SNI.
        seen: who issued it, until when, its SHA-256; safe to print.
        warnings: sentences about what works, but not well.
        pem: key, certificate, issuers. Never printed.
        staple: the OCSP answer, if one can be shown.
    """

    name: str
    names: tuple[str, ...]
    seen: Certificate
    warnings: tuple[str, ...] = ()
    pem: bytes = field(default=b"", repr=False)
    staple: Staple | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was read. `exposed`: every user of the machine can read it."""

    path: str
    content: bytes = field(repr=False)
    exposed: bool


def read_material(listed: Listed, now: datetime | None = None) -> Material:
    """Read and validate the files of one certificate.

    Raises:
        CertificateError: the first thing that makes it unusable.
    """
    chain_file = _read(listed.chain_file)
    key_file = _read(listed.key_file) if listed.key_file else chain_file
    return _material(listed, chain_file, key_file, now or today())


def material_of(name: str, pem: bytes, now: datetime | None = None) -> Material:
    """The same for what is in no file yet: key, certificate and issuers as PEM.

    Raises:
        CertificateError: the first thing that makes it unusable.
    """
    sent = _File("what was sent", pem, exposed=False)
    return _material(Listed(name, sent.path), sent, sent, now or today())


def _material(listed: Listed, chain_file: _File, key_file: _File, now: datetime) -> Material:
    chain = _chain(chain_file)
    key_pem = _key_pem(key_file)
    _refuse_foreign_key(chain, chain_file, key_pem, key_file)
    der = chain[0].public_bytes(serialization.Encoding.DER)
    seen = read(der)
    if seen is None:
        raise CertificateError(
            f"the certificate in {chain_file.path} cannot be read", "have it issued again", chain_file.path
        )
    pem = key_pem + b"\n" + b"".join(one.public_bytes(serialization.Encoding.PEM) for one in chain)
    _try(pem, chain_file.path)
    staple, staple_warning = _staple(listed, chain, now)
    warnings = (
        _exposed(key_file),
        seen.expiry(now, 0),
        weakness(chain[0]),
        *_out_of_order(chain, chain_file.path),
        staple_warning,
    )
    told = tuple(f"certificate '{listed.name}': {warning}" for warning in warnings if warning)
    return Material(listed.name, _host_names(chain[0]), seen, told, pem, staple)


def read_all(certificates: tuple[Listed, ...]) -> tuple[dict[str, Material], list[CertificateError]]:
    """Every certificate by its name, and what is wrong with the others."""
    usable: dict[str, Material] = {}
    errors: list[CertificateError] = []
    for listed in certificates:
        try:
            usable[listed.name] = read_material(listed)
        except CertificateError as error:
            errors.append(error)
    return usable, errors


def read_authorities(path: str) -> str:
    """The certificates of authorities in a PEM file, for `Offer.show`.

    Raises:
        CertificateError: the file cannot be read or holds none.
    """
    chain = _chain(_read(path))
    return "".join(one.public_bytes(serialization.Encoding.PEM).decode("ascii") for one in chain)


# ------------------------------------------------------------ files


def _read(path: str) -> _File:
    try:
        status, content = _look_into(path)
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}", _remedy(error), path) from error
    except ValueError as error:  # a NUL in the path
        raise CertificateError(f"{path!r} cannot be read: {error}", "check the path", path) from error
    if not stat.S_ISREG(status.st_mode):
        raise CertificateError(f"{path} is not a file", "name the PEM file", path)
    if len(content) > FILE_BYTES:
        raise CertificateError(f"{path} is larger than {FILE_BYTES // 1024} KiB", "name the PEM file", path)
    return _File(path, content, exposed=bool(status.st_mode & stat.S_IROTH))


def _look_into(path: str) -> tuple[os.stat_result, bytes]:
    """The content of a regular file, and of nothing else: a pipe would wait for its writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return status, b""
        with open(descriptor, "rb", closefd=False) as stream:
            return status, stream.read(FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "give the user that mailbalancer runs as the right to read it, for example by a group"
    return "check the path" if isinstance(error, FileNotFoundError) else ""


# ------------------------------------------------------------ certificates and key


def _chain(file: _File) -> list[x509.Certificate]:
    remedy = "it must hold the certificate, then its issuers, as PEM (-----BEGIN CERTIFICATE-----)"
    try:
        chain = x509.load_pem_x509_certificates(file.content)
        for one in chain:
            one.subject, one.issuer, one.extensions, one.signature_hash_algorithm  # noqa: B018 parsed when they are looked at
    except UNREADABLE as error:
        raise CertificateError(f"{file.path} holds no readable certificate", remedy, file.path) from error
    return chain


def _key_pem(file: _File) -> bytes:
    found = _KEY.search(file.content)
    if found is None:
        remedy = "it must hold the key as PEM (-----BEGIN PRIVATE KEY-----); or name it with `key:`"
        raise CertificateError(f"{file.path} holds no private key", remedy, file.path)
    if _ENCRYPTED.search(found.group()):
        remedy = (
            f"nobody is there to type a password: openssl pkey -in {file.path} -out plain.key, and protect that file"
        )
        raise CertificateError(f"the key in {file.path} is encrypted", remedy, file.path)
    return found.group()


def _refuse_foreign_key(chain: list[x509.Certificate], chain_file: _File, key_pem: bytes, key_file: _File) -> None:
    try:
        ours = _public(serialization.load_pem_private_key(key_pem, None).public_key())
        theirs = [_public(one.public_key()) for one in chain]
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        remedy = "use an RSA or elliptic-curve key"
        raise CertificateError(f"the key in {key_file.path} cannot be used", remedy, key_file.path) from error
    if ours == theirs[0]:
        return
    if ours in theirs:
        number = theirs.index(ours) + 1
        message = f"{chain_file.path} begins with an issuer; certificate number {number} in it belongs to the key"
        raise CertificateError(message, "put that one first, then its issuers", chain_file.path)
    if chain_file is key_file:
        message = f"the certificate and the key in {chain_file.path} do not belong together"
    else:
        message = f"the certificate in {chain_file.path} and the key in {key_file.path} do not belong together"
    raise CertificateError(message, "name the key that the certificate was requested with", key_file.path)


def _public(key: object) -> bytes:
    public: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public


def _try(pem: bytes, path: str) -> None:
    """OpenSSL has the last word: it refuses what its security level forbids, as keys that are too short."""
    scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    profile.configure(scratch)
    try:
        profile.load_pair(scratch, pem)
    except ssl.SSLError as error:
        words = (error.reason or str(error)).replace("_", " ").lower()
        raise CertificateError(
            f"OpenSSL refuses the certificate in {path}: {words}", "have it issued again", path
        ) from error


# ------------------------------------------------------------ warnings


def _exposed(key_file: _File) -> str:
    if not key_file.exposed:
        return ""
    return f"every user of this machine can read the private key in {key_file.path}; chmod o= {key_file.path}"


def weakness(certificate: x509.Certificate) -> str:
    """What OpenSSL's security level of this machine let pass, and clients may not (RFC 9325 section 4.5)."""
    key, digest = certificate.public_key(), certificate.signature_hash_algorithm
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS:
        return f"its RSA key has {key.key_size} bits, and fewer than {_RSA_BITS} are weak: have it issued for a new key"
    if isinstance(digest, hashes.SHA1 | hashes.MD5):
        return f"it is signed with {digest.name.upper()}, which clients refuse: have it issued again"
    return ""


def _out_of_order(chain: list[x509.Certificate], path: str) -> list[str]:
    """Old clients follow the chain as it is sent (RFC 5246 section 7.4.2): each one is issued by the next."""
    warnings = []
    for place, (one, following) in enumerate(pairwise(chain), 1):
        if one.issuer != following.subject:
            warnings.append(
                f"in {path}, certificate {place + 1} is not the issuer of certificate {place}: "
                "some clients will not find the chain; put each certificate's issuer right after it"
            )
    return warnings


def _staple(listed: Listed, chain: list[x509.Certificate], now: datetime) -> tuple[Staple | None, str]:
    if not listed.ocsp_file:
        return None, ""
    reason = openssl.why_impossible()
    if reason:
        return None, f"OCSP stapling is not possible with this Python: {reason}"
    try:
        return read_staple(listed.ocsp_file, _read(listed.ocsp_file).content, chain, now), ""
    except (StapleError, CertificateError) as error:
        return None, f"served without OCSP answer: {error}"


def _host_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(alternative.get_values_for_type(x509.DNSName))
