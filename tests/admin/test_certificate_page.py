"""Certificates on the page, in a real browser: what is seen, renewed, requested and refused there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.serialization import pkcs12

from mailbalancer.admin.tokens import Role
from tests.admin.door import Door, open_door
from tests.support.browser import Browser
from tests.support.certs import Authority, Issued
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

CONFIG = """\
version: 1
workers: 1
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
certificates:
  mail: certs/mail.pem
  old: certs/old.pem   # nobody's any more
real_servers: {{ex1: 127.0.0.3}}
services:
  smtp:
    mode: imap
    listen: 127.0.0.1:{smtp}
    client_tls: {{starttls: implicit, certificate: mail}}
    server_tls: {{starttls: none}}
    check: {{type: none}}
    real_servers: {{ex1: 9}}
  owa:
    profile: exchange-2019-https
    listen: 127.0.0.1:{pop}
    host: mail.example.com
    certificate: mail
    check: {{type: tls, interval_s: 60, timeout_s: 1, verify: none}}
    real_servers: [ex1]
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority", "Example authority")


@pytest.fixture
def door(tmp_path: Path, authority: Authority) -> Iterator[Door]:
    (tmp_path / "certs").mkdir()
    for name, issued in (
        ("mail", authority.issue("mail.example.com", "autodiscover.example.com", days=20, rsa_bits=2048)),
        ("old", authority.issue("old.example.com", days=5)),
    ):
        issued.pem.rename(tmp_path / "certs" / f"{name}.pem")
        (tmp_path / "certs" / f"{name}.pem").chmod(0o600)
    with open_door(tmp_path, CONFIG) as door:
        door.make_tokens()
        yield door


@pytest.fixture
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        browser.size(1280, 900)
        yield browser


def look_at(browser: Browser, door: Door, role: Role = Role.ADMIN) -> None:
    browser.open(f"http://127.0.0.1:{door.port}/#/certificates")
    browser.sees("Log in", "Token")
    browser.type("#token", door.secrets[role])
    browser.click("Log in")
    browser.sees("Certificates", "Listed in the configuration")


def sha256(door: Door, name: str) -> str:
    return str(next(one["sha256"] for one in door.get("/certificates")["certificates"] if one["name"] == name))


def of(issued: Issued) -> str:
    return issued.certificate.fingerprint(hashes.SHA256()).hex()


def pfx_of(issued: Issued, folder: Path, password: str) -> Path:
    key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
    encrypted = serialization.BestAvailableEncryption(password.encode())
    content = pkcs12.serialize_key_and_certificates(b"x", key, issued.certificate, None, encrypted)  # type: ignore[arg-type]
    file = folder / "exchange.pfx"
    file.write_bytes(content)
    return file


def test_who_may_only_look_sees_no_button(browser: Browser, door: Door) -> None:
    look_at(browser, door, Role.OPERATE)
    text = browser.sees("19 days left", "mail.example.com, autodiscover.example.com", "Example authority", "RSA 2048")
    assert "to everybody who asks for no other" in text
    assert browser.run('document.querySelectorAll("main button").length') == 0


def test_a_pfx_is_looked_at_and_applied(browser: Browser, door: Door, authority: Authority, tmp_path: Path) -> None:
    fresh = authority.issue("mail.example.com", days=300)
    before = sha256(door, "mail")
    look_at(browser, door)
    browser.click("renew mail")
    browser.click("Look at it", "dialog")
    browser.sees("Choose the file")
    browser.choose("#certificate-file", pfx_of(fresh, tmp_path, "geheim"))
    browser.click("Look at it", "dialog")
    browser.sees("the password is wrong")
    browser.type("#certificate-password", "geheim")
    browser.click("Look at it", "dialog")
    browser.sees("Show this certificate as mail?", "ECDSA P-256", "the next handshake shows it")
    assert sha256(door, "mail") == before, "only looked at so far"
    browser.click("Apply", "dialog")
    browser.sees("299 days left")
    assert sha256(door, "mail") == of(fresh)


def test_a_pair_that_does_not_match_is_refused_in_words(browser: Browser, door: Door, authority: Authority) -> None:
    one, other = authority.issue("mail.example.com"), authority.issue("other.example.com")
    before = sha256(door, "mail")
    look_at(browser, door)
    browser.click("renew mail")
    browser.choose("#certificate-file", one.chain)
    browser.choose("#certificate-key", other.key)
    browser.click("Look at it", "dialog")
    browser.sees("do not belong together")
    assert sha256(door, "mail") == before


def test_a_request_is_made_and_its_certificate_joins_the_key(
    browser: Browser, door: Door, authority: Authority, tmp_path: Path
) -> None:
    look_at(browser, door)
    browser.click("New signing request")
    browser.type("#certificate-name, #request-name", "pop")
    browser.type("#request-hosts", "pop.example.com, 192.0.2.7")
    browser.click("Make it", "dialog")
    browser.sees("Send this to your authority for pop")
    request = str(browser.run('document.querySelector("#csr").value'))
    browser.click("I have it", "dialog")
    browser.sees("a key waits for the certificate of pop.example.com, 192.0.2.7")
    signed = tmp_path / "signed.cer"
    certificate = authority.sign(x509.load_pem_x509_csr(request.encode()))
    signed.write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    browser.click("The certificate has come")
    browser.choose("#certificate-file", signed)
    browser.click("Look at it", "dialog")
    browser.sees("+  pop: certs/pop.pem")
    browser.click("Apply", "dialog")
    browser.sees("89 days left")
    assert sha256(door, "pop") == certificate.fingerprint(hashes.SHA256()).hex()
    assert "a key waits" not in browser.text()


def test_what_nobody_shows_can_be_removed(browser: Browser, door: Door) -> None:
    look_at(browser, door)
    assert browser.run("""document.querySelector('[aria-label="remove mail"]') === null"""), "it is in use"
    browser.click("remove old")
    browser.sees("its key is destroyed", "-  old: certs/old.pem")
    browser.click("Remove", "dialog")
    eventually(lambda: "old.example.com" not in browser.text(), what="it is gone")
    assert not (door.folder / "certs" / "old.pem").exists()
    assert "nobody's any more" not in door.file


def test_a_certificate_for_tests(browser: Browser, door: Door) -> None:
    look_at(browser, door)
    browser.click("Self-signed, for tests")
    browser.type("#request-name", "test")
    browser.type("#request-hosts", "test.example.com")
    browser.type("#request-days", "3")
    browser.click("Make it", "dialog")
    browser.sees("test.example.com", "nobody")
    assert "test: certs/test.pem" in door.file


def test_names_in_a_certificate_are_never_html(browser: Browser, door: Door, authority: Authority) -> None:
    """Whoever is asked to sign writes the issuer; whoever sends a certificate writes its names."""
    evil = "<img src=x onerror=document.title='hacked'>"
    folder = door.folder / "evil"
    folder.mkdir()
    issued = Authority(folder, evil[:60]).issue("evil.example.com")
    file = folder / "evil.pem"
    file.write_bytes(issued.pem.read_bytes())
    look_at(browser, door)
    browser.click("Add a certificate")
    browser.type("#certificate-name", "evil")
    browser.choose("#certificate-file", file)
    browser.click("Look at it", "dialog")
    browser.sees("Show this certificate as evil?", "<img src=x")
    browser.click("Apply", "dialog")
    browser.sees("evil.example.com", "<img src=x")
    assert browser.run("document.title") == "mailbalancer"
    assert browser.run('document.querySelectorAll("main img, dialog img").length') == 0


@pytest.mark.parametrize(("width", "dark"), [(360, True), (360, False), (1280, True), (1280, False)])
def test_nothing_is_wider_than_the_window(browser: Browser, door: Door, width: int, dark: bool) -> None:
    """`MAILBALANCER_PICTURES` names a folder for what was seen."""
    browser.size(width, 900, phone=width < 500, dark=dark)
    door.ask("POST", "/api/v1/certificates/pop/request", {"names": ["pop.example.com"], "key": "ecdsa-p256"})
    look_at(browser, door)
    pictures = os.environ.get("MAILBALANCER_PICTURES")
    for name, button in (("list", ""), ("upload", "renew mail"), ("request", "signing request for mail")):
        if button:
            browser.click(button)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), name
        assert browser.run("""(() => { const d = document.querySelector("dialog");
            return !d.open || d.scrollWidth <= d.clientWidth; })()"""), name
        if pictures:
            browser.screenshot(Path(pictures) / f"{name}-{width}-{'dark' if dark else 'light'}.png", whole=not button)
        browser.run('document.querySelector("dialog").close()')
