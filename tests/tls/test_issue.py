"""Keys, requests and self-signed certificates, read again by another program: OpenSSL."""

from __future__ import annotations

import ipaddress
import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from mailbalancer.tls import issue
from mailbalancer.tls.certificate import today
from mailbalancer.tls.issue import KeyKind
from mailbalancer.tls.material import material_of
from tests.support.tools import require

NAMES = ["mail.example.com", "*.example.net", "192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize("kind", KeyKind)
def test_a_request_has_its_names_and_is_signed_with_its_key(kind: KeyKind) -> None:
    key = issue.new_key(kind)
    request = issue.request(key, NAMES)
    command = [require("openssl"), "req", "-verify", "-noout", "-subject", "-pubkey"]
    read = subprocess.run(command, input=request, capture_output=True, check=True)
    assert b"CN = mail.example.com" in read.stdout.replace(b"CN=", b"CN = ")
    loaded = serialization.load_pem_private_key(key, None)
    public = loaded.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert public.strip() in read.stdout
    assert issue.requested_names(request) == NAMES
    assert issue.requested_names(request[:-40]) == []
    assert isinstance(loaded, ec.EllipticCurvePrivateKey if kind is KeyKind.ECDSA_P256 else rsa.RSAPrivateKey)


def test_a_name_too_long_for_a_common_name_stands_among_the_others() -> None:
    long = f"{'a' * 60}.example.com"
    parsed = x509.load_pem_x509_csr(issue.request(issue.new_key(KeyKind.ECDSA_P256), [long]))
    assert parsed.subject == x509.Name([])
    assert issue.requested_names(parsed.public_bytes(serialization.Encoding.PEM)) == [long]
    certificate = issue.self_signed(issue.new_key(KeyKind.ECDSA_P256), [long], 1, today())
    assert x509.load_pem_x509_certificate(certificate).subject.rfc4514_string() == "CN=mailbalancer"


def test_a_self_signed_certificate_can_be_served_for_its_days() -> None:
    now, key = today(), issue.new_key(KeyKind.ECDSA_P256)
    certificate = issue.self_signed(key, NAMES, 30, now)
    material = material_of("test", key + certificate)
    assert material.names == ("mail.example.com", "*.example.net")
    assert (material.seen.key, material.warnings) == ("ECDSA P-256", ())
    parsed = x509.load_pem_x509_certificate(certificate)
    assert parsed.not_valid_before_utc < now
    assert abs(parsed.not_valid_after_utc - now - timedelta(days=30)) < timedelta(seconds=2)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(name) for name in NAMES[2:]]
