"""What was validated is what is served; what cannot work is refused by name; what works badly is said."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mailbalancer.model import Certificate
from mailbalancer.tls.material import CertificateError, read_all, read_authorities, read_material, weakness
from tests.support.certs import Authority, Issued
from tests.support.tools import require
from tests.tls.handshake import listed, material


@pytest.fixture
def issued(authority: Authority) -> Issued:
    made = authority.issue("mail.example.com", "*.example.com", "192.0.2.1")
    for file in (made.key, made.pem):
        file.chmod(0o600)
    return made


def refusal(certificate: Certificate) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        read_material(certificate)
    return caught.value


def changed(file: Path, content: bytes) -> Path:
    made = file.with_name(f"changed-{os.urandom(4).hex()}.pem")
    made.write_bytes(content)
    made.chmod(0o600)
    return made


def test_two_files_or_one(issued: Issued) -> None:
    two = read_material(listed(issued))
    one = read_material(Certificate("mail", str(issued.pem)))
    assert two.names == one.names == ("mail.example.com", "*.example.com")
    assert two.seen.names == ("mail.example.com", "*.example.com", "192.0.2.1")
    assert two.seen.sha256 == one.seen.sha256
    assert two.warnings == one.warnings == ()


def test_the_key_is_never_printed_and_survives_the_way_to_a_worker(issued: Issued) -> None:
    made = material(issued)
    assert b"PRIVATE KEY" in made.pem
    assert "PRIVATE" not in repr(made) + str(made)
    assert pickle.loads(pickle.dumps(made)) == made


def test_what_was_read_is_kept_when_the_files_change(issued: Issued) -> None:
    made = material(issued)
    issued.key.write_bytes(b"")
    assert b"PRIVATE KEY" in made.pem


def test_rsa(authority: Authority) -> None:
    assert read_material(listed(authority.issue("rsa.example.com", rsa_bits=2048))).names == ("rsa.example.com",)


def test_a_pair_that_does_not_match_names_both_files(authority: Authority, issued: Issued) -> None:
    other = authority.issue("mail.example.com")
    error = refusal(Certificate("mail", str(issued.chain), str(other.key)))
    assert str(issued.chain) in error.message
    assert str(other.key) in error.message
    assert "do not belong together" in error.message


def test_one_file_that_does_not_match(authority: Authority, issued: Issued) -> None:
    other = authority.issue("mail.example.com")
    file = changed(issued.pem, issued.chain.read_bytes() + other.key.read_bytes())
    assert "the certificate and the key in" in refusal(Certificate("mail", str(file))).message


def test_a_chain_that_begins_with_the_issuer(authority: Authority, issued: Issued) -> None:
    own = issued.certificate.public_bytes(serialization.Encoding.PEM)
    file = changed(issued.chain, authority.file.read_bytes() + own)
    error = refusal(Certificate("mail", str(file), str(issued.key)))
    assert "begins with an issuer; certificate number 2" in error.message
    assert "first" in error.remedy


def test_a_stranger_in_the_chain_is_warned_about(stranger: Authority, issued: Issued) -> None:
    own = issued.certificate.public_bytes(serialization.Encoding.PEM)
    file = changed(issued.chain, own + stranger.file.read_bytes())
    (warning,) = read_material(Certificate("mail", str(file), str(issued.key))).warnings
    assert "certificate 2 is not the issuer of certificate 1" in warning


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_with_the_remedy(issued: Issued, form: serialization.PrivateFormat) -> None:
    key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
    locked = key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(b"secret"))
    file = changed(issued.key, locked)
    error = refusal(Certificate("mail", str(issued.chain), str(file)))
    assert f"the key in {file} is encrypted" in error.message
    assert f"openssl pkey -in {file}" in error.remedy
    assert error.file == str(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no readable certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no readable certificate"),
        (b"x" * (1024 * 1024 + 1), "larger than 1024 KiB"),
    ],
)
def test_no_certificate(issued: Issued, content: bytes, words: str) -> None:
    file = changed(issued.chain, content)
    error = refusal(Certificate("mail", str(file), str(issued.key)))
    assert words in error.message
    assert str(file) in error.message


def test_no_key(issued: Issued) -> None:
    assert "holds no private key" in refusal(Certificate("mail", str(issued.chain))).message
    broken = changed(issued.key, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert "cannot be used" in refusal(Certificate("mail", str(issued.chain), str(broken))).message


def test_paths_that_lead_nowhere(issued: Issued, tmp_path: Path) -> None:
    assert "No such file" in refusal(Certificate("mail", str(tmp_path / "none.pem"))).message
    assert "is not a file" in refusal(Certificate("mail", str(tmp_path))).message
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is not a file" in refusal(Certificate("mail", str(issued.chain), str(pipe))).message


def test_openssl_has_the_last_word(authority: Authority) -> None:
    error = refusal(listed(authority.issue("short.example.com", rsa_bits=1024)))
    assert "OpenSSL refuses" in error.message
    assert "too small" in error.message


def test_expired_is_served_but_said(authority: Authority) -> None:
    old = authority.issue("old.example.com", days=-3)
    old.key.chmod(0o600)
    (warning,) = material(old).warnings
    assert warning == "certificate 'mail': certificate expired 3 days ago"


def test_a_key_that_everybody_can_read_is_said(issued: Issued) -> None:
    issued.key.chmod(0o644)
    (warning,) = material(issued).warnings
    assert f"can read the private key in {issued.key}" in warning
    assert f"chmod o= {issued.key}" in warning


def test_all_of_them_and_what_is_wrong(issued: Issued, tmp_path: Path) -> None:
    usable, errors = read_all((listed(issued, "good"), Certificate("bad", str(tmp_path / "none"))))
    assert set(usable) == {"good"}
    assert [error.file for error in errors] == [str(tmp_path / "none")]


def test_authorities(authority: Authority, issued: Issued) -> None:
    assert read_authorities(str(authority.file)).count("BEGIN CERTIFICATE") == 1
    with pytest.raises(CertificateError, match="no readable certificate"):
        read_authorities(str(issued.key))


def test_an_answer_of_the_issuer(authority: Authority, issued: Issued, tmp_path: Path) -> None:
    file = tmp_path / "ocsp.der"
    file.write_bytes(authority.answer(issued))
    made = read_material(listed(issued, ocsp_file=file))
    assert made.staple is not None
    assert made.staple.answer == file.read_bytes()
    assert made.warnings == ()


def test_a_useless_answer_is_left_out_and_said(authority: Authority, issued: Issued, tmp_path: Path) -> None:
    made = read_material(listed(issued, ocsp_file=tmp_path / "none.der"))
    assert made.staple is None
    assert "served without OCSP answer" in made.warnings[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rsa:1024", "-sha256"), "its RSA key has 1024 bits"),
        (("rsa:2048", "-sha1"), "signed with SHA1"),
        (("rsa:2048", "-sha256"), ""),
    ],
)
def test_what_openssl_lets_pass_may_still_be_weak(tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    """Whether it lets it pass is this machine's security level; what we say of it is the same everywhere."""
    files = ("-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate"))
    command = [require("openssl"), "req", "-x509", "-nodes", "-subj", "/CN=x", "-newkey", *arguments, *files]
    subprocess.run(command, check=True, capture_output=True)
    certificate = x509.load_pem_x509_certificate((tmp_path / "certificate").read_bytes())
    said = weakness(certificate)
    assert words in said
    assert bool(words) == bool(said)
