"""What people bring: every order, every wrapping, and nonsense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7, pkcs12
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.tls.upload import UploadError, from_binary, from_pem, key_in, public_of
from tests.support.certs import Authority, Issued

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("mail.example.com")


def key_of(issued: Issued) -> Any:
    return serialization.load_pem_private_key(issued.key.read_bytes(), None)


def locked(issued: Issued, password: bytes, form: Any = serialization.PrivateFormat.PKCS8) -> bytes:
    encrypted = serialization.BestAvailableEncryption(password)
    content: bytes = key_of(issued).private_bytes(PEM, form, encrypted)
    return content


def leaf(issued: Issued) -> bytes:
    return issued.certificate.public_bytes(PEM)


def test_the_order_does_not_matter(authority: Authority, issued: Issued) -> None:
    """The root is left out quietly: clients have it, or do not believe it."""
    root, key = authority.certificate.public_bytes(PEM), issued.key.read_bytes()
    for text in (leaf(issued) + root + key, root + leaf(issued) + key, key + root + leaf(issued)):
        found = from_pem(text)
        assert (found.chain, found.remarks) == (leaf(issued), ())
        assert public_of(found.key) == public_of(leaf(issued))
    assert from_pem(root + leaf(issued)).chain == leaf(issued), "also where no key says which one is meant"
    assert from_pem(leaf(issued), key).key == found.key


def test_strangers_are_left_out_and_said(authority: Authority, issued: Issued) -> None:
    other = authority.issue("other.example.com")
    found = from_pem(leaf(other) + leaf(issued), issued.key.read_bytes())
    assert found.chain == leaf(issued)
    assert "1 certificate(s)" in found.remarks[0]


def test_the_root_alone_is_what_is_meant(authority: Authority) -> None:
    root = authority.certificate.public_bytes(PEM)
    assert from_pem(root).chain == root


@pytest.mark.parametrize(
    "form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL], ids=["pkcs8", "old"]
)
def test_a_key_leaves_without_its_password(issued: Issued, form: Any) -> None:
    key = locked(issued, b"geheim", form)
    found = from_pem(leaf(issued), key, b"geheim")
    assert serialization.load_pem_private_key(found.key, None)
    with pytest.raises(UploadError, match="has a password"):
        from_pem(leaf(issued), key)
    with pytest.raises(UploadError, match="password is wrong"):
        from_pem(leaf(issued), key, b"else")
    assert from_pem(leaf(issued), issued.key.read_bytes(), b"of no use").key


def test_what_windows_writes(authority: Authority, issued: Issued) -> None:
    pfx = pkcs12.serialize_key_and_certificates(
        b"x", key_of(issued), issued.certificate, [authority.certificate], serialization.BestAvailableEncryption(b"p")
    )
    assert from_binary(pfx, password=b"p").chain == leaf(issued)
    with pytest.raises(UploadError, match="password is wrong"):
        from_binary(pfx, password=b"q")
    without = pkcs12.serialize_key_and_certificates(b"x", None, issued.certificate, None, serialization.NoEncryption())
    with pytest.raises(UploadError, match="no private key in the PFX"):
        from_binary(without)
    bundle = [authority.certificate, issued.certificate]
    for content in (issued.certificate.public_bytes(DER), pkcs7.serialize_certificates(bundle, DER)):
        assert from_binary(content).chain == leaf(issued)
        assert from_binary(content, issued.key.read_bytes()).key
    assert from_pem(pkcs7.serialize_certificates(bundle, PEM)).chain == leaf(issued)


def test_too_many_are_no_chain(authority: Authority) -> None:
    with pytest.raises(UploadError, match="21 certificates"):
        from_pem(b"".join(leaf(authority.issue(f"{number}.example")) for number in range(21)))


def test_issuers_follow_what_they_issued(tmp_path: Path) -> None:
    """A chain of three, the names of two of them the same (as of an authority whose key was renewed)."""
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
    old, new = (Authority(folder, "the same name") for folder in folders)
    issued = new.issue("mail.example.com")
    text = old.certificate.public_bytes(PEM) + new.certificate.public_bytes(PEM) + leaf(issued)
    found = from_pem(text, issued.key.read_bytes())
    assert found.chain == leaf(issued)
    assert "1 certificate(s)" in found.remarks[0], "the old one signed nothing here"


@given(st.binary(max_size=200), st.binary(max_size=50), st.binary(max_size=10))
def test_nonsense_is_refused_in_words(data: bytes, key: bytes, password: bytes) -> None:
    for read in (from_pem, from_binary):
        with pytest.raises(UploadError):
            read(data, key, password)
    assert public_of(data) == b""


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_certificate_is_refused_or_still_one(issued: Issued, data: st.DataObject) -> None:
    for content, read in ((issued.pem.read_bytes(), from_pem), (issued.certificate.public_bytes(DER), from_binary)):
        at = data.draw(st.integers(0, len(content) - 1))
        damaged = content[:at] + data.draw(st.binary(max_size=3)) + content[at + 1 :]
        try:
            found = read(damaged)
        except UploadError:
            continue
        assert x509.load_pem_x509_certificates(found.chain)


def test_a_key_is_found_among_other_things(issued: Issued) -> None:
    assert key_in(issued.pem.read_bytes()).strip() == issued.key.read_bytes().strip()
    assert key_in(leaf(issued)) == b""
