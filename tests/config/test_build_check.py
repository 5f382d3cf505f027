"""Checks: each type with its options, and the defaults that follow from the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.model import Verify

HEAD = "real_servers: {{a: 10.0.0.1}}\nservices:\n"
TEXT = HEAD + "  s: {{mode: tcp, listen: ':{port}', real_servers: [a], check: {check}}}\n"
PIN = "ab" * 32


@pytest.mark.parametrize(
    ("port", "check", "options"),
    [
        (25, "tcp", model.TcpCheck()),
        (443, "{type: tls, warn_days: 3, verify: none}", model.TlsCheck(Verify("none"), 3)),
        (443, f"{{type: tls, verify: {{pin: {PIN}, name: m.example}}}}",
         model.TlsCheck(Verify("pin", pin_sha256=PIN, name="m.example"))),
        (443, f"{{type: tls, verify: {{pin: [{PIN}, {'cd' * 32}]}}}}",
         model.TlsCheck(Verify("pin", pin_sha256=f"{PIN},{'cd' * 32}"))),
        (80, "http", model.HttpCheck()),
        (80, "{type: http, method: HEAD, path: /x, status: [200, 301-303], body: 'o.k'}",
         model.HttpCheck(method="HEAD", path="/x", statuses=(200, 301, 302, 303), body="o.k")),
        (443, "{type: https, host: mail.example.com}",
         model.HttpCheck(True, host="mail.example.com", verify=Verify(name="mail.example.com"))),
        (25, "smtp", model.SmtpCheck()),
        (465, "smtp", model.SmtpCheck(tls=True)),
        (465, "{type: smtp, port: 25}", model.SmtpCheck()),
        (465, "{type: smtp, tls: false}", model.SmtpCheck()),
        (25, "{type: smtp, helo: h.example, starttls: true, verify: none, rcpt_to: a@b.example}",
         model.SmtpCheck("h.example", True, False, Verify("none"), "<>", "a@b.example")),
        (993, "imap", model.ImapCheck(tls=True)),
        (143, "{type: imap, starttls: yes}", model.ImapCheck(True)),
        (995, "pop3", model.Pop3Check(tls=True)),
        (53, "{type: dns, name: Example.com, record: MX, protocol: tcp, rcode: NXDOMAIN}",
         model.DnsCheck("example.com", "MX", "tcp", "NXDOMAIN")),
    ],
    ids=range(16),
)  # fmt: skip
def test_options(load: Callable[[str], model.Config], port: int, check: str, options: model.CheckOptions) -> None:
    (service,) = load(TEXT.format(port=port, check=check)).services
    assert service.pool.check.options == options
    assert service.pool.check.type == check.strip("{}").removeprefix("type: ").split(",")[0]


@pytest.mark.parametrize(
    ("check", "header"),
    [
        ("tcp", "v1"),
        ("{port: 25}", "v1"),
        ("{port: 26}", ""),
        ("{port: 26, proxy_header: v2}", "v2"),
        ("{proxy_header: none}", ""),
    ],
)
def test_the_check_sends_the_header_that_the_service_sends(
    load: Callable[[str], model.Config], check: str, header: str
) -> None:
    text = TEXT.format(port=25, check=check).replace("mode: tcp", "mode: tcp, proxy_protocol: {send: v1}")
    (service,) = load(text).services
    assert service.pool.check.proxy_header == header


def test_an_authority_is_a_file_beside_the_configuration(load: Callable[..., model.Config], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")
    (service,) = load(TEXT.format(port=443, check="{type: tls, verify: {ca: ca.pem}}"), tmp_path).services
    assert service.pool.check.options == model.TlsCheck(Verify("ca", ca_file=str(tmp_path / "ca.pem")))


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ("{type: smtp, mail_from: a@b}", "check.mail_from: a sender alone asks nothing; write rcpt_to as well"),
        ("{type: smtp, rcpt_to: <>}", "check.rcpt_to: a recipient cannot be <>"),
        ("{type: smtp, tls: true, starttls: true}", "check: tls and starttls exclude each other"),
        ("{type: tls, verify: {ca: /none, pin: " + PIN + "}}", "check.verify: ca and pin exclude each other"),
        ("{type: tls, verify: {kind: none, ca: /none}}", "check.verify: none verifies nothing"),
        ("{type: tls, verify: {ca: /nonexistent/ca.pem}}", "check.verify.ca: /nonexistent/ca.pem cannot be read: No"),
        ("{type: tls, verify: {pin: xyz}}", "check.verify.pin: 'xyz' is not a SHA-256 fingerprint"),
        ("{type: tls, verify: off}", "check.verify: 'off' is not a value of kind (one of: full, none)"),
        ("{type: http, status: 700}", "check.status: '700' is not an HTTP status"),
        ("{type: http, body: '('}", "check.body: '(' is not a regular expression"),
        ("{type: http, method: 'G T'}", "check.method: 'G T' is not an HTTP method"),
        ("{type: dns, record: Z}", "check.record: 'Z' is not a value of record"),
    ],
)  # fmt: skip
def test_told(told: Callable[[str], list[str]], check: str, said: str) -> None:
    (line,) = told(TEXT.format(port=25, check=check))
    assert line.startswith(f"x.yaml:3: services.s.{said}")
