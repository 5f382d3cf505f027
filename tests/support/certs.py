"""A throw-away certificate authority, so that no test ever needs a private key in git or a name outside the machine.

Decides: nothing about trust; it makes what a test asks for, also what must be refused (expired, wrong name, not yet
valid). Keys are P-256, because making one takes microseconds.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Issued:
    """One server certificate and its key, as files."""

    chain: Path  # certificate, then the authority's
    key: Path
    pem: Path  # key and chain in one file
    certificate: x509.Certificate

    def server_context(self, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
        """What a server that shows this certificate needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = minimum
        context.load_cert_chain(self.chain, self.key)
        return context


class Authority:
    """A certificate authority that lives in one folder and is trusted by nobody but the test."""

    def __init__(self, folder: Path, name: str = "mailbalancer test authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        now = _now()
        self.certificate = (
            _builder(self._name, self._name, self._key, now - datetime.timedelta(days=1), 3650)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / "authority.pem"
        self.file.write_bytes(_pem(self.certificate))

    def issue(
        self, *names: str, days: float = 90, starts_in_days: float = -1, rsa_bits: int = 0, for_clients: bool = False
    ) -> Issued:
        """A server certificate for DNS names and IP addresses.

        Args:
            names: the first one also names the files.
            days: until it expires, from now; negative for one that has expired.
            starts_in_days: when it becomes valid, from now; it is moved before the end where `days` is negative.
            rsa_bits: size of an RSA key; 0: an elliptic-curve key.
            for_clients: to be shown by a client instead of a server.
        """
        key = rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if for_clients else ExtendedKeyUsageOID.SERVER_AUTH
        ends = _now() + datetime.timedelta(days=days)
        starts = min(_now() + datetime.timedelta(days=starts_in_days), ends - datetime.timedelta(days=1))
        lifetime = (ends - starts) / datetime.timedelta(days=1)
        certificate = (
            _builder(_name(names[0]), self._name, key, starts, lifetime)
            .add_extension(x509.SubjectAlternativeName([_alternative(n) for n in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._write(names[0], certificate, key)

    def sign(self, request: x509.CertificateSigningRequest, days: float = 90) -> x509.Certificate:
        """What an authority makes of a request: its key and its names."""
        lifetime = datetime.timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(request.subject)
            .issuer_name(self._name)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - datetime.timedelta(days=1))
            .not_valid_after(_now() + lifetime)
        )
        for extension in request.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        return builder.sign(self._key, hashes.SHA256())

    def answer(
        self, issued: Issued, *, revoked: bool = False, starts_in_days: float = -1, days: float | None = 7
    ) -> bytes:
        """What this authority's OCSP responder says about a certificate, DER; `days` None: without an end."""
        starts = _now() + datetime.timedelta(days=starts_in_days)
        response = ocsp.OCSPResponseBuilder().add_response(
            cert=issued.certificate,
            issuer=self.certificate,
            algorithm=hashes.SHA1(),
            cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update=starts,
            next_update=None if days is None else _now() + datetime.timedelta(days=days),
            revocation_time=starts if revoked else None,
            revocation_reason=None,
        )
        signed = response.responder_id(ocsp.OCSPResponderEncoding.HASH, self.certificate)
        return signed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def client_context(self) -> ssl.SSLContext:
        """What a client that trusts this authority, and only it, needs."""
        return ssl.create_default_context(cafile=str(self.file))

    def _write(self, name: str, certificate: x509.Certificate, key: Key) -> Issued:
        stem = f"{name.replace('*', 'any').replace(':', '_')}-{certificate.serial_number % 0xFFFFFF:06x}"
        chain, key_file, pem = (self._folder / f"{stem}{end}" for end in (".chain.pem", ".key.pem", ".pem"))
        key_bytes = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain.write_bytes(_pem(certificate) + _pem(self.certificate))
        key_file.write_bytes(key_bytes)
        pem.write_bytes(key_bytes + chain.read_bytes())
        return Issued(chain, key_file, pem, certificate)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    starts: datetime.datetime,
    days: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + datetime.timedelta(days=days))
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
