"""Mozilla's intermediate profile, as real clients meet it, and keys that never touch a disk."""

from __future__ import annotations

import os
import ssl

import pytest
from cryptography.hazmat.primitives import serialization

from mailbalancer.tls import profile
from tests.support.certs import Authority, Issued
from tests.tls.handshake import Shake


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("mail.example.com", rsa_bits=2048)


@pytest.fixture
def context(issued: Issued) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    profile.configure(made)
    profile.load_pair(made, issued.pem.read_bytes())
    return made


def test_only_forward_secret_and_authenticated_ciphers(context: ssl.SSLContext) -> None:
    old = [cipher for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert [cipher["name"] for cipher in old] == profile.CIPHERS.split(":")
    assert all(cipher["aead"] for cipher in context.get_ciphers())


@pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"])
def test_other_ciphers_are_refused(context: ssl.SSLContext, authority: Authority, shake: Shake, ciphers: str) -> None:
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    assert shake(context, client, "mail.example.com").client_error is not None


def test_the_client_chooses_among_good_ciphers(context: ssl.SSLContext, authority: Authority, shake: Shake) -> None:
    for first in ("ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES256-GCM-SHA384"):
        client = authority.client_context()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(f"{first}:ECDHE-RSA-AES128-GCM-SHA256")
        handshake = shake(context, client, "mail.example.com")
        assert handshake.client is not None
        assert (handshake.client.cipher() or ("",))[0] == first


@pytest.mark.parametrize(("minimum", "spoken"), [("1.2", "TLSv1.2"), ("1.3", None)])
def test_oldest_version(
    context: ssl.SSLContext, authority: Authority, shake: Shake, minimum: str, spoken: str | None
) -> None:
    profile.configure(context, minimum)
    client = authority.client_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    handshake = shake(context, client, "mail.example.com")
    assert (handshake.client.version() if handshake.client and not handshake.client_error else None) == spoken


@pytest.mark.parametrize("group", ["X448", "secp521r1"])
def test_other_groups_are_refused(context: ssl.SSLContext, authority: Authority, shake: Shake, group: str) -> None:
    client = authority.client_context()
    client.set_ecdh_curve(group)
    assert shake(context, client, "mail.example.com").client_error is not None


def test_a_peer_that_vanishes_is_noticed(context: ssl.SSLContext, authority: Authority, shake: Shake) -> None:
    handshake = shake(context, authority.client_context(), "mail.example.com")
    assert handshake.client is not None
    assert handshake.server is not None
    os.close(handshake.client.detach())
    handshake.server.suppress_ragged_eofs = False
    with pytest.raises(ssl.SSLEOFError):
        handshake.server.recv(1)


def test_an_encrypted_key_asks_nobody(issued: Issued, context: ssl.SSLContext) -> None:
    key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(ssl.SSLError):
        profile.load_pair(context, locked + issued.chain.read_bytes())


def test_nothing_stays_open(issued: Issued, context: ssl.SSLContext) -> None:
    before = set(os.listdir("/proc/self/fd"))
    profile.load_pair(context, issued.pem.read_bytes())
    assert set(os.listdir("/proc/self/fd")) <= before
