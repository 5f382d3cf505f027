"""Modes `imap` and `pop3` in the real program, in front of Dovecot: TLS in every pairing, IDLE, and nobody left."""

from __future__ import annotations

import imaplib
import poplib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from tests.support.certs import Authority, Issued
from tests.support.mail_servers import ImapServer, Pop3Server
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Dovecot
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

NAME = "mail.example.com"
MODES = ("imap", "pop3")
OUTER = ("none", "offer", "require", "implicit")
INNER = ("none", "opportunistic", "require", "implicit")
IDLE_S = 3.0
WRONG = {
    "wrong-name": "elsewhere.example.com",
    "wrong-pin": "pin",
}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    pairs = [f"{mode}-{outer}-{inner}" for mode in MODES for outer in OUTER for inner in INNER]
    names = [*pairs, *(f"{mode}-{fault}" for mode in MODES for fault in (*WRONG, "pinned"))]
    return dict(zip(names, free_ports(len(names)), strict=True))


@pytest.fixture(scope="module")
def balancer(
    store1: Dovecot,
    authority: Authority,
    certificate: Issued,
    ports: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Balancer]:
    pin = certificate.certificate.fingerprint(hashes.SHA256()).hex()
    known = {"ca": str(authority.file), "name": NAME}
    behind = {"imap": (store1.imap_port, store1.imaps_port), "pop3": (store1.pop3_port, store1.pop3s_port)}

    def service(mode: str, name: str, inner: str, **more: Any) -> dict[str, Any]:
        port = behind[mode][inner == "implicit"]
        check = {"type": mode, "interval_s": 1, "timeout_s": 1, "tls": inner == "implicit", "verify": known}
        base = {"mode": mode, "listen": f"127.0.0.1:{ports[f'{mode}-{name}']}", "hostname": NAME, "check": check}
        return {**base, "real_servers": {"store1": port}, "idle_timeout_s": IDLE_S, **more}

    services = {}
    for mode in MODES:
        for outer in OUTER:
            for inner in INNER:
                more: dict[str, Any] = {}
                if outer != "none":
                    more["client_tls"] = {"certificate": "mail", "starttls": outer}
                if inner != "none":
                    more["server_tls"] = {"starttls": inner, "verify": known}
                services[f"{mode}-{outer}-{inner}"] = service(mode, f"{outer}-{inner}", inner, **more)
        for name, verify in {
            "wrong-name": {"ca": str(authority.file), "name": WRONG["wrong-name"]},
            "wrong-pin": {"pin": pin[::-1]},
            "pinned": {"pin": pin},
        }.items():
            tls = {"starttls": "require", "verify": verify}
            services[f"{mode}-{name}"] = service(mode, name, "require", server_tls=tls)
    config = {
        "certificates": {"mail": str(certificate.pem)},
        "real_servers": {"store1": "127.0.0.1"},
        "services": services,
    }
    with Balancer(config, tmp_path_factory.mktemp("balancer")) as running:
        yield running


def imap_client(port: int, authority: Authority, outer: str) -> imaplib.IMAP4:
    if outer == "implicit":
        return imaplib.IMAP4_SSL("127.0.0.1", port, ssl_context=trusting(authority), timeout=10)
    client = imaplib.IMAP4("127.0.0.1", port, timeout=10)
    if outer in ("offer", "require"):
        assert "STARTTLS" in client.capabilities
        client.starttls(trusting(authority))
    assert "STARTTLS" not in client.capabilities
    return client


def trusting(authority: Authority) -> ssl.SSLContext:
    """Trusts the test's authority; the certificate has the address in it."""
    return authority.client_context()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_imap_with_tls_on_both_sides(
    balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], outer: str, inner: str
) -> None:
    before = len(store1.log_text())
    with imap_client(ports[f"imap-{outer}-{inner}"], authority, outer) as client:
        assert client.login("joe", store1.PASSWORD)[0] == "OK"
        assert client.select("INBOX")[0] == "OK"
        message = b"Subject: x\r\n\r\n" + b"y" * 100_000 + b"\r\n"
        assert client.append("INBOX", "", None, message)[0] == "OK"
        _, found = client.select("INBOX")
        _, parts = client.fetch(found[0].decode(), "(BODY[])")  # type: ignore[union-attr]
        assert parts[0][1] == message  # type: ignore[index]
    login = eventually(
        lambda: [line for line in store1.log_text()[before:].splitlines() if "Login: user=<joe>" in line]
    )
    assert (", TLS" in login[-1]) == (inner != "none"), login


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_pop3_with_tls_on_both_sides(
    balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], outer: str, inner: str
) -> None:
    port = ports[f"pop3-{outer}-{inner}"]
    before = len(store1.log_text())
    if outer == "implicit":
        client: poplib.POP3 = poplib.POP3_SSL("127.0.0.1", port, context=trusting(authority), timeout=10)
    else:
        client = poplib.POP3("127.0.0.1", port, timeout=10)
    if outer in ("offer", "require"):
        assert "STLS" in client.capa()
        client.stls(trusting(authority))
    client.user("joe")
    client.pass_(store1.PASSWORD)
    assert client.stat()[0] >= 0
    client.quit()
    login = eventually(
        lambda: [line for line in store1.log_text()[before:].splitlines() if "Login: user=<joe>" in line]
    )
    assert (", TLS" in login[-1]) == (inner != "none"), login


def test_no_login_in_clear_where_tls_is_required(balancer: Balancer, store1: Dovecot, ports: dict[str, int]) -> None:
    before = store1.log_text().count("Login:")
    with imaplib.IMAP4("127.0.0.1", ports["imap-require-none"], timeout=10) as imap:
        assert "LOGINDISABLED" in imap.capabilities
        assert not [word for word in imap.capabilities if word.startswith("AUTH=")]
        with pytest.raises(imaplib.IMAP4.error):
            imap.login("joe", store1.PASSWORD)
    pop3 = poplib.POP3("127.0.0.1", ports["pop3-require-none"], timeout=10)
    with pytest.raises(poplib.error_proto):
        pop3.user("joe")
    pop3.quit()
    assert store1.log_text().count("Login:") == before


@pytest.mark.parametrize("fault", WRONG)
def test_a_server_that_is_not_who_it_should_be_gets_no_password(
    balancer: Balancer, ports: dict[str, int], fault: str
) -> None:
    assert said_by(ports[f"imap-{fault}"]).startswith(b"* BYE ")
    assert said_by(ports[f"pop3-{fault}"]).startswith(b"-ERR ")


def said_by(port: int) -> bytes:
    """Everything that is said to a client that says nothing."""
    with socket.create_connection(("127.0.0.1", port), 20) as client, client.makefile("rb") as lines:
        return lines.read()


def test_a_pinned_certificate_is_trusted(balancer: Balancer, store1: Dovecot, ports: dict[str, int]) -> None:
    with imaplib.IMAP4("127.0.0.1", ports["imap-pinned"], timeout=10) as client:
        assert client.login("joe", store1.PASSWORD)[0] == "OK"


@pytest.mark.parametrize("name", ["imap-none-none", "imap-implicit-require"])
def test_idle_lasts_as_long_as_somebody_speaks_in_time(
    balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], name: str
) -> None:
    """The clock is shortened: IDLE is renewed in time several times over, and then not."""
    outer = name.split("-")[1]
    client = imap_client(ports[name], authority, outer)
    client.login("joe", store1.PASSWORD)
    client.select("INBOX")
    began = time.monotonic()
    while time.monotonic() - began < 2 * IDLE_S:
        client.send(b"i IDLE\r\n")
        assert client.readline().startswith(b"+ ")
        time.sleep(IDLE_S / 2)
        client.send(b"DONE\r\n")
        while not (line := client.readline()).startswith(b"i "):
            assert line.startswith(b"* "), line
        assert line.startswith(b"i OK")
    client.send(b"i IDLE\r\n")
    assert client.readline().startswith(b"+ ")
    while line := client.readline():  # nothing but news, until the balancer ends it
        assert line.startswith(b"* "), line
    client.shutdown()
    eventually(lambda: f"service={name} " in balancer.log_text() and "end=idle_timeout" in balancer.log_text())


def test_curl_reads_the_mailbox(
    balancer: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int]
) -> None:
    for url, options in {
        f"imap://{NAME}:{ports['imap-require-require']}/": ["--ssl-reqd"],
        f"imaps://{NAME}:{ports['imap-implicit-implicit']}/": [],
        f"pop3://{NAME}:{ports['pop3-require-require']}/": ["--ssl-reqd"],
        f"pop3s://{NAME}:{ports['pop3-implicit-implicit']}/": [],
    }.items():
        port = url.split(":")[2].rstrip("/")
        done = subprocess.run(
            [
                *(require("curl"), "-sv", "--max-time", "20", *options, "--cacert", str(authority.file)),
                *("--resolve", f"{NAME}:{port}:127.0.0.1", "-u", f"jane:{store1.PASSWORD}", url),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "SSL certificate verify ok" in done.stderr


@pytest.mark.parametrize(
    ("mode", "kind", "last"),
    [("imap", ImapServer, b"* BYE [UNAVAILABLE] "), ("pop3", Pop3Server, b"-ERR [SYS/TEMP] ")],
)
def test_a_dead_server_is_passed_over_and_nobody_left_is_said(
    mode: str, kind: type[ImapServer] | type[Pop3Server], last: bytes, tmp_path: Path
) -> None:
    port = free_port()
    with kind("a") as a, kind("b") as b:
        one = {
            "mode": mode,
            "listen": f"127.0.0.1:{port}",
            "real_servers": {"a": a.port, "b": b.port},
            "check": {"type": mode, "interval_s": 60},
        }
        with Balancer({"real_servers": {"a": "127.0.0.1", "b": "127.0.0.1"}, "services": {"box": one}}, tmp_path) as up:
            eventually(lambda: all(up.real_server("box", name)["check"] for name in "ab"), what="checked")
            a.answers["GREETING"] = b"* BYE not now\r\n" if mode == "imap" else b"-ERR not now\r\n"
            for _ in range(6):
                with socket.create_connection(("127.0.0.1", port), 10) as client:
                    assert b"b ready" in client.recv(1000)
            b.stop()
            assert said_by(port).startswith(last)


@pytest.mark.parametrize("name", ["imap-offer-require", "pop3-implicit-none", "imap-none-implicit"])
def test_smoke_holds_the_conversation(balancer: Balancer, name: str) -> None:
    shown = balancer.cli("smoke", name)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "TLSv1.3, TLS_AES" in shown.stdout
    assert "store1 ready" in shown.stdout
