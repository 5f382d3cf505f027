"""Real Postfix and Dovecot behind `smtp`, `imap` and `pop3` services, driven by swaks and Python's own clients."""

from __future__ import annotations

import hashlib
import imaplib
import poplib
import smtplib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.certs import Authority, Issued
from tests.support.ports import free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Dovecot, Postfix
from tests.support.swaks import deliver, swaks
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

MAIL_NAME = "mail.example.com"
OUTER = ("none", "offer", "require", "implicit")
MODES = [f"{mode}-{outer}" for mode in ("smtp", "submission", "imap", "pop3") for outer in OUTER]


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip([*MODES, "xclient", "proxy"], free_ports(len(MODES) + 2), strict=True))


@pytest.fixture(scope="module")
def balancer(
    mx1: Postfix,
    store1: Dovecot,
    authority: Authority,
    certificate: Issued,
    ports: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Balancer]:
    verify = {"ca": str(authority.file), "name": MAIL_NAME}
    behind = {
        "smtp": ("smtp", "mx1", mx1.port),
        "submission": ("smtp", "store1", store1.submission_port),
        "imap": ("imap", "store1", store1.imap_port),
        "pop3": ("pop3", "store1", store1.pop3_port),
    }
    services: dict[str, Any] = {}
    for name in MODES:
        kind, _, outer = name.partition("-")
        mode, server, port = behind[kind]
        services[name] = {
            "mode": mode,
            "listen": f"127.0.0.1:{ports[name]}",
            "real_servers": {server: port},
            "hostname": "lb.example.com",
            "server_tls": {"starttls": "opportunistic" if kind == "submission" else "require", "verify": verify},
        }
        if outer != "none":
            services[name]["client_tls"] = {"starttls": outer, "certificate": "mail"}
        if kind in ("imap", "pop3"):
            services[name]["client_address"] = "id" if kind == "imap" else "xclient"
    services["xclient"] = {
        "mode": "smtp",
        "listen": f"127.0.0.1:{ports['xclient']}",
        "real_servers": {"mx1": mx1.port},
        "client_address": "xclient",
    }
    services["proxy"] = {
        "mode": "smtp",
        "listen": f"127.0.0.1:{ports['proxy']}",
        "real_servers": {"mx1": mx1.proxied_port},
        "proxy_protocol": {"send": "v2"},
    }
    config = {
        "certificates": {"mail": {"chain": str(certificate.chain), "key": str(certificate.key)}},
        "real_servers": {"mx1": "127.0.0.1", "store1": "127.0.0.1"},
        "services": services,
    }
    with Balancer(config, tmp_path_factory.mktemp("balancer")) as running:
        yield running


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("kind", ["smtp", "submission"])
def test_swaks_delivers(balancer: Balancer, ports: dict[str, int], kind: str, outer: str) -> None:
    how = {"none": [], "offer": ["--tls"], "require": ["--tls"], "implicit": ["--tlsc"]}[outer]
    if kind == "submission":
        how = [*how, "--auth", "PLAIN", "--auth-user", "joe", "--auth-password", Dovecot.PASSWORD]
    said = deliver(ports[f"{kind}-{outer}"], *how)
    assert "lb.example.com" in said
    if outer == "require":
        assert "530 5.7.0" in swaks(ports[f"{kind}-{outer}"]).stdout


@pytest.mark.parametrize(("name", "source"), [("xclient", "127.0.0.41"), ("proxy", "127.0.0.42")])
def test_postfix_is_told_who_the_client_is(
    balancer: Balancer, mx1: Postfix, ports: dict[str, int], name: str, source: str
) -> None:
    deliver(ports[name], source=source)
    eventually(lambda: source in mx1.clients(), what=f"{source} in the log of Postfix")


def test_fifty_megabytes_and_pipelining(balancer: Balancer, ports: dict[str, int]) -> None:
    with smtplib.SMTP("127.0.0.1", ports["smtp-none"], timeout=60) as client:
        client.ehlo()
        assert client.has_extn("pipelining")
        line = hashlib.sha256(b"x").hexdigest().encode() + b"\r\n"
        client.sendmail("a@example.org", ["b@example.com"], b"Subject: big\r\n\r\n" + line * (9_000_000 // len(line)))


@pytest.mark.parametrize("outer", OUTER)
def test_imap(balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], outer: str) -> None:
    port = ports[f"imap-{outer}"]
    if outer == "implicit":
        imap: imaplib.IMAP4 = imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=authority.client_context(), timeout=10)
    else:
        imap = imaplib.IMAP4("127.0.0.1", port, timeout=10)
    with imap:
        if outer == "require":
            assert "LOGINDISABLED" in imap.capabilities
        if outer in ("offer", "require"):
            imap.starttls(authority.client_context())
        imap.login("joe", store1.PASSWORD)
        assert imap.select("INBOX")[0] == "OK"
        imap.append("INBOX", "", None, b"Subject: hello\r\n\r\n" + b"x" * 200_000 + b"\r\n")  # type: ignore[arg-type]


@pytest.mark.parametrize("outer", OUTER)
def test_pop3(balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], outer: str) -> None:
    port = ports[f"pop3-{outer}"]
    if outer == "implicit":
        pop3: poplib.POP3 = poplib.POP3_SSL("127.0.0.1", port, context=authority.client_context(), timeout=10)
    else:
        pop3 = poplib.POP3("127.0.0.1", port, timeout=10)
    if outer in ("offer", "require"):
        pop3.stls(authority.client_context())
    pop3.user("joe")
    pop3.pass_(store1.PASSWORD)
    pop3.list()
    pop3.quit()


def test_dovecot_is_told_who_the_client_is(balancer: Balancer, store1: Dovecot, ports: dict[str, int]) -> None:
    for kind, source in (("imap", "127.0.0.51"), ("pop3", "127.0.0.52")):
        with socket.create_connection(("127.0.0.1", ports[f"{kind}-none"]), 10, (source, 0)) as sock:
            sock.recv(1000)
            login = b"a LOGIN joe %b\r\n" if kind == "imap" else b"USER joe\r\nPASS %b\r\n"
            sock.sendall(login % store1.PASSWORD.encode())
            eventually(lambda kind=kind, source=source: source in store1.logins(kind), what=f"{source} in {kind}")


def test_checks_follow_the_mode(balancer: Balancer) -> None:
    for name in MODES:
        server = "mx1" if name.startswith("smtp") else "store1"
        found = eventually(lambda name=name, server=server: balancer.real_server(name, server)["check"], what=name)
        assert found["verdict"] == "up", (name, found)
