"""Certificates through the door of a real balancer: brought, made, renewed and removed; and no key ever comes out."""

from __future__ import annotations

import base64
import os
import pwd
import re
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from mailbalancer.admin.tokens import Role
from tests.admin.door import Answer, Door, open_door
from tests.support.certs import Authority, Issued
from tests.support.program import run_cli
from tests.support.tools import require

CONFIG = """\
version: 1
workers: 2
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
certificates:
  # the one that everybody sees
  mail: certs/mail.pem   # key and chain
  web: {web}
real_servers:
  ex1: 127.0.0.3
services:
  smtp:
    mode: imap   # speaks TLS first
    listen: 127.0.0.1:{smtp}
    client_tls: {{starttls: implicit, certificate: [mail, web]}}
    server_tls: {{starttls: none}}
    check: {{type: none}}
    real_servers: {{ex1: 9}}
  pop:
    mode: tcp
    listen: "127.0.0.1:{pop}"
    check: {{type: none}}
    real_servers: {{ex1: 9}}
"""
HERE = "/api/v1/certificates"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def door(tmp_path: Path, authority: Authority) -> Iterator[Door]:
    certs = tmp_path / "certs"
    certs.mkdir()
    authority.issue("mail.example.com", days=20).pem.rename(certs / "mail.pem")
    (certs / "mail.pem").chmod(0o600)
    web = authority.issue("web.example.com", "*.web.example.com").pem
    with open_door(tmp_path, CONFIG, web=web) as door:
        door.make_tokens()
        yield door


def private(issued: Issued) -> Any:
    return serialization.load_pem_private_key(issued.key.read_bytes(), None)


def sha256_shown(door: Door, name: str = "mail.example.com") -> str:
    """The certificate that a client sees now."""
    listen = door.get("/services/smtp")["listen"][0].rpartition(":")[2]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", int(listen)), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=name) as encrypted,
    ):
        der = encrypted.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256()).hex()


def sha256_of(issued: Issued) -> str:
    return issued.certificate.fingerprint(hashes.SHA256()).hex()


def listed(door: Door, name: str) -> Any:
    return next(one for one in door.get("/certificates")["certificates"] if one["name"] == name)


def put(door: Door, name: str, body: Any, query: str = "") -> Answer:
    return door.ask("PUT", f"{HERE}/{name}{query}", body)


# ---------------------------------------------------------------- looking


def test_the_list_says_who_shows_what_to_whom(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    mail, web = listed(door, "mail"), listed(door, "web")
    assert (mail["days_left"], mail["names"], mail["key"]) == (19, ["mail.example.com"], "ECDSA P-256")
    assert mail["shown_by"] == [{"service": "smtp", "default": True, "sni": ["mail.example.com"]}]
    assert web["shown_by"] == [{"service": "smtp", "default": False, "sni": ["web.example.com", "*.web.example.com"]}]
    shown = door.balancer.cli("certificates", "list")
    assert re.search(r"mail +19 .*smtp \(default\)", shown.stdout), shown
    assert "smtp (web.example.com, *.web.example.com)" in shown.stdout


def test_what_ends_soon_is_said_in_log_metric_and_list(tmp_path: Path, authority: Authority) -> None:
    """At 30, 14, 7 and 1 days and after the end, each once however often the file is read; and not before."""
    ends = {"a": 31.5, "b": 29.5, "c": 13.5, "d": 6.5, "e": 0.5, "f": -1.5}
    listed_here = "".join(f"  {name}: {authority.issue(f'{name}.example', days=n).pem}\n" for name, n in ends.items())
    config = CONFIG.replace("  mail: certs/mail.pem   # key and chain\n  web: {web}\n", listed_here)
    with open_door(tmp_path, config.replace("[mail, web]", "a")) as door:
        door.make_tokens()
        door.balancer.command("reload")
        log = [line for line in door.balancer.log_text().splitlines() if "expire" in line and "warning" in line]
        for name, words in {
            "b": "expires in 30 days",
            "c": "expires in 14 days",
            "d": "expires in 7 days",
            "e": "expires within a day",
            "f": "has expired",
        }.items():
            assert len([line for line in log if f"certificate '{name}' {words}" in line]) == 1, (name, log)
        assert not [line for line in log if "certificate 'a'" in line]
        found = {one["name"]: one["days_left"] for one in door.get("/certificates")["certificates"]}
        assert found == {"a": 31, "b": 29, "c": 13, "d": 6, "e": 0, "f": -2}
        metrics = door.ask("GET", "/metrics").body.decode()
        for name, days in found.items():
            told = re.search(rf'mailbalancer_certificate_remaining_seconds{{certificate="{name}"}} (\S+)', metrics)
            assert told is not None
            assert abs(float(told[1]) - days * 86400) < 1, "in whole days"


# ---------------------------------------------------------------- renewing


def test_a_renewed_certificate_is_shown_at_once_and_its_file_is_private(door: Door, authority: Authority) -> None:
    before = door.file
    fresh = authority.issue("mail.example.com")
    body = {"pem": fresh.chain.read_text(), "key": fresh.key.read_text()}
    looked = put(door, "mail", body, "?dry_run=true").json
    assert (looked["applied"], looked["certificate"]["sha256"]) == (False, sha256_of(fresh))
    assert sha256_shown(door) != sha256_of(fresh)
    answer = put(door, "mail", body)
    assert (answer.status, answer.json["applied"]) == (200, True), answer
    assert sha256_shown(door) == sha256_of(fresh)
    assert listed(door, "mail")["sha256"] == sha256_of(fresh)
    assert door.file == before
    file = door.folder / "certs" / "mail.pem"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_uid == os.geteuid()
    assert [path.name for path in file.parent.iterdir()] == ["mail.pem"]


def test_a_pfx_out_of_windows_is_taken_with_its_password(door: Door, authority: Authority) -> None:
    fresh = authority.issue("mail.example.com")
    secret = serialization.BestAvailableEncryption(b"geh eim")
    pfx = pkcs12.serialize_key_and_certificates(
        b"mail", private(fresh), fresh.certificate, [authority.certificate], secret
    )
    body = {"pfx": base64.b64encode(pfx).decode(), "password": "wrong"}
    refused = put(door, "mail", body)
    assert (refused.status, "password is wrong" in refused.json["error"]) == (422, True)
    assert put(door, "mail", {**body, "password": "geh eim"}).status == 200
    assert sha256_shown(door) == sha256_of(fresh)
    file = door.folder / "mail.pfx"
    file.write_bytes(pfx)
    (door.folder / "password").write_text("geh eim\n")
    again = door.balancer.cli(
        "certificates", "replace", "mail", "--pfx", str(file), "--password-file", str(door.folder / "password")
    )
    assert (again.returncode, "it is in place" in again.stdout) == (0, True), again


def test_what_does_not_work_changes_nothing(door: Door, authority: Authority) -> None:
    one, other = authority.issue("one.example.com"), authority.issue("other.example.com")
    weak = authority.issue("weak.example.com", rsa_bits=1024)
    before, shown, file = door.file, sha256_shown(door), (door.folder / "certs" / "mail.pem").read_bytes()
    for body, status, words in (
        ({"pem": one.chain.read_text(), "key": other.key.read_text()}, 422, "do not belong together"),
        ({"pem": one.chain.read_text()}, 422, "did not come with it"),
        ({"pem": weak.pem.read_text()}, 422, "too small"),
        ({"pem": "nothing"}, 422, "no readable certificate"),
        ({"pem": one.chain.read_text(), "key": "nothing"}, 422, "no private key"),
        ({"pfx": "AAAA"}, 422, "no PFX"),
        ({"pfx": "%"}, 400, "base64"),
        ({}, 400, "either as pem or as pfx"),
    ):
        answer = put(door, "mail", body)
        assert (answer.status, words in answer.json["error"]) == (status, True), answer
    assert (door.file, sha256_shown(door)) == (before, shown)
    assert (door.folder / "certs" / "mail.pem").read_bytes() == file


def test_an_expired_certificate_is_taken_with_a_warning(door: Door, authority: Authority) -> None:
    old = authority.issue("mail.example.com", days=-3)
    answer = put(door, "mail", {"pem": old.pem.read_text()})
    assert answer.status == 200, answer
    assert any("expired 3 days ago" in warning for warning in answer.json["warnings"]), answer.json
    assert "has expired" in door.balancer.log_text()


def test_a_chain_in_any_order_is_put_in_order(door: Door, authority: Authority) -> None:
    fresh, stranger = authority.issue("mail.example.com"), authority.issue("stranger.example.com")
    parts = fresh.chain.read_text().partition("-----END CERTIFICATE-----\n")
    leaf, issuer = parts[0] + parts[1], parts[2]
    body = {"pem": issuer + stranger.chain.read_text().replace(issuer, "") + leaf + fresh.key.read_text()}
    answer = put(door, "mail", body)
    assert answer.status == 200, answer
    assert any("left out" in warning for warning in answer.json["warnings"])
    assert sha256_shown(door) == sha256_of(fresh)


def test_files_of_others_are_not_written(door: Door, authority: Authority) -> None:
    """`web` lies outside the folder, where certbot may look after it: a new file takes its place."""
    outside = Path(yaml.safe_load(door.file)["certificates"]["web"])
    before, fresh = outside.read_bytes(), authority.issue("web.example.com")
    comments = re.findall(r"#.*", door.file)
    assert put(door, "web", {"pem": fresh.pem.read_text()}).status == 200
    assert yaml.safe_load(door.file)["certificates"]["web"] == "certs/web.pem"
    assert re.findall(r"#.*", door.file) == comments
    assert outside.read_bytes() == before
    assert sha256_shown(door, "web.example.com") == sha256_of(fresh)


# ---------------------------------------------------------------- new ones


def test_a_new_certificate_is_listed_and_removed_again(door: Door, authority: Authority) -> None:
    before, fresh = door.file, authority.issue("new.example.com")
    body = {"pem": fresh.pem.read_text()}
    assert put(door, "new", body, "?only=existing").status == 404
    assert put(door, "new", body, "?only=new").status == 200
    assert yaml.safe_load(door.file)["certificates"]["new"] == "certs/new.pem"
    assert put(door, "new", body, "?only=new").status == 409
    assert listed(door, "new")["shown_by"] == []
    assert door.ask("DELETE", f"{HERE}/new?dry_run=true").json["applied"] is False
    assert (door.folder / "certs" / "new.pem").exists()
    assert door.ask("DELETE", f"{HERE}/new").status == 200
    assert not (door.folder / "certs" / "new.pem").exists()
    assert door.file == before
    assert door.ask("DELETE", f"{HERE}/new").status == 404


def test_what_somebody_needs_is_not_removed(door: Door) -> None:
    answer = door.ask("DELETE", f"{HERE}/mail")
    assert (answer.status, answer.json["error"]) == (409, "certificate 'mail' is used by service smtp")


def test_a_file_that_is_in_the_way_stays(door: Door, authority: Authority) -> None:
    stranger = door.folder / "certs" / "new.pem"
    stranger.write_text("mine")
    answer = put(door, "new", {"pem": authority.issue("new.example.com").pem.read_text()})
    assert (answer.status, "is there already" in answer.json["error"]) == (409, True)
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize("kind", ["rsa-2048", "rsa-3072", "ecdsa-p256"])
def test_a_key_made_here_waits_for_its_certificate(door: Door, authority: Authority, kind: str) -> None:
    names = ["mail.example.com", "*.example.net", "192.0.2.1", "2001:db8::1"]
    made = door.ask("POST", f"{HERE}/mail/request", {"names": names, "key": kind})
    assert made.status == 200, made
    csr = made.json["csr"].encode()
    read = subprocess.run([require("openssl"), "req", "-verify", "-noout", "-text"], input=csr, capture_output=True)
    text = read.stdout.decode()
    assert read.returncode == 0, read
    assert "DNS:mail.example.com, DNS:*.example.net, IP Address:192.0.2.1, IP Address:2001:DB8:0:0:0:0:0:1" in text
    assert {"rsa-2048": "(2048 bit)", "rsa-3072": "(3072 bit)", "ecdsa-p256": "P-256"}[kind] in text
    assert door.ask("POST", f"{HERE}/mail/request", {"names": names}).status == 409
    assert door.get("/certificates")["waiting"] == [{"name": "mail", "names": names}]
    assert door.get("/certificates/mail/request")["csr"].encode() == csr
    signed = authority.sign(x509.load_pem_x509_csr(csr))
    answer = put(door, "mail", {"pem": signed.public_bytes(serialization.Encoding.PEM).decode()})
    assert answer.status == 200, answer
    assert sha256_shown(door) == signed.fingerprint(hashes.SHA256()).hex()
    assert door.get("/certificates")["waiting"] == []
    assert [path.name for path in (door.folder / "certs").iterdir()] == ["mail.pem"]


def test_a_key_that_waits_can_be_given_up(door: Door) -> None:
    door.ask("POST", f"{HERE}/new/request", {"names": ["new.example.com"], "key": "ecdsa-p256"})
    waiting = door.folder / "certs" / "new.waiting.key"
    assert stat.S_IMODE(waiting.stat().st_mode) == 0o600
    assert door.ask("DELETE", f"{HERE}/new/request").status == 200
    assert not waiting.exists()
    assert door.ask("DELETE", f"{HERE}/new/request").status == 404
    assert door.ask("GET", f"{HERE}/new/request").status == 404


def test_a_renewal_with_the_same_key_needs_no_key(door: Door, authority: Authority) -> None:
    key = serialization.load_pem_private_key((door.folder / "certs" / "mail.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    csr = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    signed = authority.sign(csr)
    assert put(door, "mail", {"pem": signed.public_bytes(serialization.Encoding.PEM).decode()}).status == 200
    assert sha256_shown(door) == signed.fingerprint(hashes.SHA256()).hex()


def test_a_self_signed_certificate_is_for_tests(door: Door) -> None:
    made = door.ask("POST", f"{HERE}/mail/self-signed", {"names": ["mail.example.com"], "days": 5, "key": "ecdsa-p256"})
    assert made.status == 200, made
    assert made.json["certificate"]["days_left"] in (4, 5)
    assert any("nobody vouches for it" in warning for warning in made.json["warnings"])
    assert sha256_shown(door) == made.json["certificate"]["sha256"]
    for wrong in ({"names": []}, {"names": ["a b"]}, {"names": [":::"]}, {"names": ["x"], "days": 10_000}):
        assert door.ask("POST", f"{HERE}/new/self-signed", wrong).status == 400


# ---------------------------------------------------------------- who may, and what is never said


def test_only_an_administrator_may_and_everything_is_written_down(door: Door, authority: Authority) -> None:
    fresh = authority.issue("mail.example.com")
    body = {"pem": fresh.chain.read_text(), "key": fresh.key.read_text(), "password": "geh-eim"}
    for role in (Role.METRICS, Role.READ, Role.OPERATE):
        assert door.ask("PUT", f"{HERE}/mail", body, token=door.secrets[role]).status == 403
    assert put(door, "mail", body).status == 200
    entry = door.get("/audit")["entries"][-1]
    assert (entry["who"], entry["outcome"]) == ("a-admin", "done")
    assert entry["what"].startswith("certificate_upload /api/v1/certificates/mail")
    door.balancer.cli("certificates", "csr", "x", "--name", "x.example.com", "--key-type", "ecdsa-p256")
    entry = door.get("/audit")["entries"][-1]
    assert (entry["who"], entry["from"]) == ("command-line", "control socket")
    refused = door.balancer.cli("certificates", "csr", "x", "--name", "x.example.com")
    assert (refused.returncode, "waits for its certificate" in refused.stderr) == (1, True)
    assert door.get("/audit")["entries"][-1]["outcome"].startswith("refused: a key waits")


def secrets_in(pem: bytes) -> set[bytes]:
    """What must not be seen of a private key: a line out of its middle, and its secret number as hex and decimal."""
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    numbers = key.private_numbers()
    number = numbers.private_value if isinstance(numbers, ec.EllipticCurvePrivateNumbers) else numbers.d
    lines = [line for line in pem.split(b"PRIVATE KEY-----")[1].split(b"\n") if len(line) >= 40]
    return {lines[0][:40], lines[len(lines) // 2][:40], f"{number:x}".encode()[:40], str(number).encode()[:40]}


def test_no_output_has_anything_of_a_key(door: Door, authority: Authority, tmp_path: Path) -> None:
    certs = door.folder / "certs"
    brought = authority.issue("mail.example.com", rsa_bits=2048)
    keys = [brought.key.read_bytes(), (certs / "mail.pem").read_bytes()]
    body = {"pem": brought.chain.read_text(), "key": brought.key.read_text(), "password": "geh-eim-1"}
    said = [put(door, "mail", body, query).body for query in ("?dry_run=true", "")]
    encrypted = private(brought).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"geh-eim-2"),
    )
    for password in ("geh-eim-2", "geh-eim-3"):
        said.append(put(door, "mail", {**body, "key": encrypted.decode(), "password": password}).body)
    said.append(door.ask("PUT", f"{HERE}/mail", {**body, "key": [brought.key.read_text()]}).body)
    said.append(door.ask("POST", f"{HERE}/new/request", {"names": ["new.example.com"], "key": "ecdsa-p256"}).body)
    keys.append((certs / "new.waiting.key").read_bytes())
    said.append(door.ask("POST", f"{HERE}/test/self-signed", {"names": ["t.example.com"], "key": "ecdsa-p256"}).body)
    keys.append((certs / "test.pem").read_bytes())
    paths = [path for path, methods in door.get("/openapi.json")["paths"].items() if "get" in methods]
    known = {"{certificate}": "new", "{service}": "smtp", "{real_server}": "ex1", "{number}": "1", "{profile}": "dns"}
    for path in paths:
        for word, value in known.items():
            path = path.replace(word, value)
        said.append(door.ask("GET", path).body)
    said.append(door.ask("GET", "/metrics").body)
    for command in (("certificates", "list", "--json"), ("status", "--json"), ("events", "--json")):
        shown = door.balancer.cli(*command)
        said.append((shown.stdout + shown.stderr).encode())
    for command, file in (("backup", tmp_path / "b.tar.gz"), ("support", tmp_path / "s.tar.gz")):
        assert door.balancer.cli(command, str(file)).returncode == 0
        said.append(subprocess.run(["tar", "-xOzf", str(file)], capture_output=True, check=True).stdout)
    said += [path.read_bytes() for path in (door.folder / "configurations").iterdir()]
    said.append(door.balancer.log_text().encode())
    everything = b"\n".join(said)
    assert b"mail.example.com" in everything
    for secret in {b"PRIVATE KEY", b"geh-eim", *(secret for key in keys for secret in secrets_in(key))}:
        assert secret not in everything, everything[max(0, everything.find(secret) - 300) :][:400]


# ---------------------------------------------------------------- the command line, with and without a balancer


def test_the_command_line_does_it_too(door: Door, authority: Authority) -> None:
    fresh = authority.issue("cli.example.com")
    files = ("--chain", str(fresh.chain), "--key", str(fresh.key))
    looked = door.balancer.cli("certificates", "upload", "cli", *files, "--dry-run")
    assert "+  cli: certs/cli.pem" in looked.stdout, looked
    added = door.balancer.cli("certificates", "upload", "cli", *files)
    assert (added.returncode, "cli: cli.example.com; ECDSA P-256" in added.stdout) == (0, True), added
    assert listed(door, "cli")["sha256"] == sha256_of(fresh)
    for command, words in (
        (("upload", "cli", *files), "there is a certificate 'cli' already"),
        (("replace", "none", *files), "there is no certificate 'none'"),
        (("remove", "mail"), "is used by service smtp"),
        (("upload", "x", "--chain", "/nowhere"), "/nowhere cannot be read"),
        (("upload", "x", "--chain", str(fresh.chain)), "did not come with it"),
    ):
        refused = door.balancer.cli("certificates", *command)
        assert (refused.returncode, words in refused.stderr) == (1, True), refused
    assert door.balancer.cli("certificates", "upload", "x").returncode == 2
    assert door.balancer.cli("certificates", "remove", "cli").stdout == "cli removed\n"
    signed = door.balancer.cli(
        "certificates", "self-signed", "t", "--name", "t.example.com", "--key-type", "ecdsa-p256"
    )
    assert "nobody vouches for it" in signed.stderr, signed


def test_without_a_balancer_the_files_are_written(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an installation: the configuration names a certificate that is not there yet."""
    monkeypatch.setenv("COLUMNS", "200")
    user = "nobody" if os.geteuid() == 0 else ""  # whom the balancer becomes, and who must read the key then
    reader = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    file = tmp_path / "mailbalancer.yaml"
    file.write_text(
        f"control_socket: {tmp_path}/c\nstate_file: ''\nuser: '{user}'\nreal_servers: {{a: 127.0.0.1}}\n"
        "certificates: {mail: certs/mail.pem}  # to come\n"
        "services: {s: {mode: imap, listen: '127.0.0.1:1143', client_tls: {starttls: implicit, certificate: mail}, "
        "server_tls: {starttls: none}, real_servers: {a: 9}}}\n"
    )
    own = ("-c", str(file))
    made = run_cli("certificates", "csr", "mail", "--name", "mail.example.com", "--key-type", "ecdsa-p256", *own)
    assert made.stdout.startswith("-----BEGIN CERTIFICATE REQUEST-----"), made
    assert "a key waits" in run_cli("certificates", "list", *own).stdout
    signed = tmp_path / "signed.crt"
    certificate = authority.sign(x509.load_pem_x509_csr(made.stdout.encode()))
    signed.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    added = run_cli("certificates", "replace", "mail", "--chain", str(signed), *own)
    assert added.returncode == 0, added
    status = (tmp_path / "certs" / "mail.pem").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, reader)
    assert "# to come" in file.read_text()
    shown = run_cli("certificates", "list", *own)
    assert re.search(r"mail +\d+ .*s \(default\)", shown.stdout), shown
