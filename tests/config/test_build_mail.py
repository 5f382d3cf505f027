"""Mail services: defaults that follow from ports, combinations that cannot work, classes that would be open relays."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.model import Config
from tests.support.certs import Authority

Load = Callable[..., Config]
Told = Callable[..., list[str]]

HEAD = "certificates: {mail: mail.pem}\nreal_servers: {ex1: 10.0.2.11, ex2: 10.0.2.12}\nservices:\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    issued = Authority(tmp_path).issue("mail.example.com")
    (tmp_path / "mail.pem").write_bytes(issued.pem.read_bytes())
    return tmp_path


def service(load: Load, text: str, folder: Path) -> model.Service:
    (found,) = load(HEAD + f"  s: {{{text}, real_servers: [ex1, ex2]}}\n", folder).services
    return found


@pytest.mark.parametrize(
    ("text", "outer", "inner", "check"),
    [
        ("mode: smtp, listen: ':25'", None, None, model.SmtpCheck()),
        (
            "mode: smtp, listen: ':25', client_tls: {certificate: mail}, server_tls: {}",
            "offer",
            "require",
            model.SmtpCheck(starttls=True),
        ),
        (
            "mode: smtp, listen: ':465', client_tls: {certificate: mail}, server_tls: {}",
            "implicit",
            "implicit",
            model.SmtpCheck(tls=True),
        ),
        (
            "mode: imap, listen: ':993', real_server_port: 143, client_tls: {certificate: mail}, server_tls: {}",
            "implicit",
            "require",
            model.ImapCheck(starttls=True),
        ),
        (
            "mode: pop3, listen: ':110', client_tls: {starttls: require, certificate: mail}, "
            "server_tls: {starttls: opportunistic, verify: none}",
            "require",
            "opportunistic",
            model.Pop3Check(verify=model.Verify("none")),
        ),
    ],
)
def test_tls_and_check_follow_from_what_is_written(
    load: Load, folder: Path, text: str, outer: str | None, inner: str | None, check: object
) -> None:
    found = service(load, text, folder)
    assert (found.client_tls and found.client_tls.starttls) == outer
    assert (found.server_tls and found.server_tls.starttls) == inner
    assert found.pool.check.options == check


def test_everything_of_smtp(load: Load, folder: Path) -> None:
    (folder / "domains").write_text("# ours\nexample.org\n  *.Example.NET # all\n\n")
    found = service(
        load,
        "mode: smtp, listen: ':25', hostname: MX.example.com, banner: ready, client_address: xclient, "
        "bare_newlines: normalise, greeting_timeout_s: 3, capabilities: {hide: chunking, stated: [SIZE 100]}, "
        "policy: {recipient_domains: example.com, recipient_domains_file: domains, senders_deny: ['@Spam.example'], "
        "messages_per_source_minute: 5, relay_clients: 10.1.0.0/16}, log_addresses: true",
        folder,
    )
    assert found.mail == model.Mail(
        host="mx.example.com",
        greeting_timeout_s=3.0,
        client_address="xclient",
        hide=("CHUNKING",),
        smtp=model.Smtp(
            banner="ready",
            bare_newlines="normalise",
            capabilities=("SIZE 100",),
            policy=model.MailPolicy(
                recipient_domains=frozenset({"example.com", "example.org", "*.example.net"}),
                relay_clients=(ipaddress.ip_network("10.1.0.0/16"),),
                senders_deny=frozenset({"spam.example"}),
                messages_per_source_minute=5,
            ),
            log_addresses=True,
        ),
    )
    assert found.pinned_to_worker


CLASSES = (
    "source: {classes: [{name: relay, clients: [10.1.20.0/24], address: [10.0.2.6, 10.0.2.8]}, "
    "{name: internet, clients: any, address: 10.0.2.7}], per_source_limit: 20}"
)


def test_source_classes(load: Load, folder: Path) -> None:
    source = service(load, f"mode: smtp, listen: ':25', {CLASSES}", folder).source
    assert [(one.name, one.addresses) for one in source.classes] == [
        ("relay", ("10.0.2.6", "10.0.2.8")),
        ("internet", ("10.0.2.7",)),
    ]
    assert source.per_source_limit == 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("client_tls: {starttls: offer}", "client_tls: 'certificate' is missing"),
        ("client_tls: {certificate: other}", "client_tls.certificate: 'other' is not in certificates"),
        ("policy: {recipient_domains_file: nowhere}", "policy.recipient_domains_file: "),
        ("policy: {recipient_domains: 'a b'}", "'a b' is not a host name"),
        ("policy: {senders_allow: 'a b@c'}", "policy.senders_allow"),
        ('banner: "a\\nb"', "cannot stand in a greeting"),
        ('capabilities: {stated: "SIZE 1\\n250 X"}', "is not a capability"),
        ("source: {per_source_limit: 20}", "needs classes"),
        ("source: {classes: [{name: a, clients: 10.0.0.0/8, address: 10.0.2.6}]}", "end with a class for clients: any"),
        (
            "source: {classes: [{name: a, clients: any, address: 10.0.2.6}, "
            "{name: b, clients: any, address: 10.0.2.7}]}",
            "put it last",
        ),
        (CLASSES.replace("20}", "20, when_full: queue}"), "needs a queue"),
        (
            CLASSES.replace("10.0.2.7", "'fd00::7'"),
            "class 'internet' has no IPv4 address, so its clients never reach ex1",
        ),
    ],
)
def test_what_cannot_work_is_told(told: Told, folder: Path, text: str, said: str) -> None:
    lines = told(HEAD + f"  s: {{mode: smtp, listen: ':25', real_servers: [ex1, ex2], {text}}}\n", folder)
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_what_is_for_smtp_only(told: Told, folder: Path) -> None:
    (line,) = told(
        HEAD + "  s: {mode: imap, listen: ':143', real_servers: [ex1, ex2], capabilities: {keep: X}}\n", folder
    )
    assert "'keep' is for mode smtp" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bare_newlines: pass", "can be tricked"),
        ("server_tls: {verify: none}", "not verified"),
        (CLASSES.replace("10.0.2.7", "10.0.2.6"), "open relay for everybody"),
        (CLASSES.replace("10.1.20.0/24", "8.0.0.0/8"), "has all of 8.0.0.0/8"),
    ],
)
def test_what_is_dangerous_is_said(load: Load, folder: Path, text: str, said: str) -> None:
    config = load(HEAD + f"  s: {{mode: smtp, listen: ':25', real_servers: [ex1, ex2], {text}}}\n", folder)
    assert len(config.warnings) == 2  # the certificate is in no service
    assert any(said in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("classes", "server", "warned"),
    [
        ("[{name: all, clients: any, address: 10.0.2.6}]", "ex1", True),
        ("[{name: all, clients: any, address: [10.0.2.9, 10.0.2.8]}]", "ex2", True),
        ("[{name: all, clients: any, address: 10.0.2.9}]", "ex1", False),
        ("[{name: all, clients: any, address: 10.0.2.6}]", "ex3", False),
        (
            "[{name: few, clients: 10.1.20.9, address: 10.0.2.6}, {name: all, clients: any, address: 10.0.2.9}]",
            "ex1",
            False,
        ),
    ],
)
def test_an_address_for_a_few_is_not_everybodys_in_another_service(
    load: Load, folder: Path, classes: str, server: str, warned: bool
) -> None:
    """The server sees the address alone, whatever service it comes from."""
    text = HEAD.replace("real_servers: {", "real_servers: {ex3: 10.0.2.13, ", 1)
    text += f"  s: {{mode: smtp, listen: ':25', real_servers: [ex1, ex2], {CLASSES}}}\n"
    text += f"  t: {{mode: tcp, listen: ':26', real_servers: [{server}], source: {{classes: {classes}}}}}\n"
    found = [warning for warning in load(text, folder).warnings if "services.s.source" in warning]
    assert bool(found) is warned
    if warned:
        assert "so does everybody in service t: 10.0.2.1" in found[0]
