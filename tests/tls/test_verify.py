"""Each kind of verification takes what it should and refuses the rest, naming the server and the reason."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from mailbalancer.model import Endpoint, Verify
from mailbalancer.tls import verify as verification
from mailbalancer.tls.certificate import read, today
from tests.support.certs import Authority, Issued
from tests.tls.handshake import Shake
from tests.tls.test_certificate import der

EX1 = Endpoint("192.0.2.11", 443)
SHA = "ab" * 32


@pytest.fixture(scope="module")
def right(authority: Authority) -> Issued:
    return authority.issue("mail.example.com", "192.0.2.11", "2001:db8::11")


def sha256(issued: Issued) -> str:
    seen = read(der(issued))
    assert seen is not None
    return seen.sha256


def outcome(shake: Shake, server: Issued, verify: Verify, endpoint: Endpoint = EX1, min_version: str = "1.2") -> str:
    """What the data plane says of this server: empty when it talks to it."""
    context = verification.context(verify, min_version)
    handshake = shake(server.server_context(), context, verification.expected_name(verify, endpoint))
    if handshake.client_error is not None:
        return verification.handshake_refusal(handshake.client_error, verify, endpoint)
    assert handshake.client is not None
    return verification.after_handshake(handshake.client, verify, endpoint)


def by_authority(authority: Authority, name: str = "") -> Verify:
    return Verify("ca", ca_file=str(authority.file), name=name)


@pytest.mark.parametrize("name", ["", "mail.example.com"])
def test_the_right_server(authority: Authority, right: Issued, shake: Shake, name: str) -> None:
    assert outcome(shake, right, by_authority(authority, name)) == ""


def test_an_address_of_version_6(authority: Authority, right: Issued, shake: Shake) -> None:
    assert outcome(shake, right, by_authority(authority), Endpoint("2001:db8::11", 443)) == ""
    refused = outcome(shake, right, by_authority(authority), Endpoint("2001:db8::12", 443))
    assert refused == "[2001:db8::12]:443: certificate refused: it is not for 2001:db8::12"


def test_wrong_name(authority: Authority, right: Issued, shake: Shake) -> None:
    refused = outcome(shake, right, by_authority(authority, "other.example.com"))
    assert refused == "192.0.2.11:443: certificate refused: it is not for other.example.com"
    refused = outcome(shake, right, by_authority(authority), Endpoint("192.0.2.12", 25))
    assert refused == "192.0.2.12:25: certificate refused: it is not for 192.0.2.12"


def test_wrong_authority(stranger: Authority, right: Issued, shake: Shake) -> None:
    refused = outcome(shake, right, by_authority(stranger, "mail.example.com"))
    assert refused.startswith("192.0.2.11:443: certificate refused: ")
    assert str(stranger.file) in refused


def test_full_trusts_the_system_only(right: Issued, shake: Shake) -> None:
    assert "certificate refused: " in outcome(shake, right, Verify(name="mail.example.com"))


def test_expired(authority: Authority, shake: Shake) -> None:
    old = authority.issue("mail.example.com", days=-1)
    assert "has expired" in outcome(shake, old, by_authority(authority, "mail.example.com"))


def test_the_certificate_itself_as_its_authority(authority: Authority, right: Issued, shake: Shake) -> None:
    file = right.chain.with_suffix(".own.pem")
    file.write_text(right.chain.read_text().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n")
    assert outcome(shake, right, Verify("ca", ca_file=str(file))) == ""


def test_pin(authority: Authority, right: Issued, shake: Shake) -> None:
    other = authority.issue("mail.example.com")
    pinned = Verify("pin", pin_sha256=sha256(right), name="whatever.test")
    assert outcome(shake, right, pinned) == ""
    refused = outcome(shake, other, pinned)
    assert refused.startswith("192.0.2.11:443: certificate is not the pinned one")
    assert sha256(other) in refused
    assert sha256(right) in refused


def test_several_pins_and_their_forms(authority: Authority, right: Issued, shake: Shake) -> None:
    other = authority.issue("mail.example.com")
    written = ":".join(sha256(right)[at : at + 2] for at in range(0, 64, 2)).upper()
    both = Verify("pin", pin_sha256=f"{SHA}, {written}")
    assert outcome(shake, right, both) == ""
    assert f"{SHA} or {sha256(right)}" in outcome(shake, other, both)


@pytest.mark.parametrize("pins", ["", ",", SHA])
def test_no_pin_and_no_certificate_match_nothing(right: Issued, pins: str) -> None:
    assert verification.pin_mismatch(der(right), Verify("pin", pin_sha256=pins)) != ""
    assert verification.pin_mismatch(b"", Verify("pin", pin_sha256=pins)) != ""


def test_none_takes_anything(stranger: Authority, shake: Shake) -> None:
    assert outcome(shake, stranger.issue("else.test", days=-1), Verify("none")) == ""


@pytest.mark.parametrize("kind", ["pin", "none", "full"])
def test_minimum_version(kind: str) -> None:
    verify = Verify(kind, pin_sha256=SHA)
    assert verification.context(verify).minimum_version is ssl.TLSVersion.TLSv1_2
    assert verification.context(verify, "1.3").minimum_version is ssl.TLSVersion.TLSv1_3


def test_contexts_are_kept_until_the_file_changes(authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.file.read_bytes())
    verify = Verify("ca", ca_file=str(file))
    first = verification.context(verify)
    assert verification.context(verify) is first
    file.write_bytes(stranger.file.read_bytes())
    assert verification.context(verify) is not first


def test_authorities_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        verification.context(Verify("ca", ca_file=str(tmp_path / "none.pem")))


def test_a_server_that_hangs_up_or_speaks_plainly() -> None:
    for said, words in ((b"", "connection closed"), (b"220 mail.example.com ESMTP\r\n", "TLS handshake failed")):
        near, far = socket.socketpair()
        answer = threading.Thread(target=_answer_plainly, args=(far, said))
        answer.start()
        with near:
            refused = _refusal(near)
        answer.join()
        assert refused.startswith("192.0.2.11:443: ")
        assert words in refused


def _refusal(near: socket.socket) -> str:
    try:
        verification.context(Verify("none")).wrap_socket(near)
    except OSError as error:
        return verification.handshake_refusal(error, Verify("none"), EX1)
    return ""


def _answer_plainly(sock: socket.socket, said: bytes) -> None:
    with sock:
        sock.recv(4096)
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)


def test_sentences_of_a_check_that_has_looked(authority: Authority, right: Issued) -> None:
    seen = read(der(right))
    assert seen is not None
    verify = by_authority(authority, "other.example.com")
    why = verification.why_refused(62, seen, verify, EX1, today())
    assert why == f"certificate is for {seen}, expected other.example.com"
    assert str(authority.file) in verification.why_refused(20, seen, verify, EX1, today())
    assert "pin it" in verification.why_refused(18, seen, verify, EX1, today())
    assert verification.why_refused(1, seen, verify, EX1, today()) == ""
