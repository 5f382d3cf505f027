"""Real Dovecot behind `tcp` and `tls` services: IMAP, POP3 and submission, with the PROXY header on and off."""

from __future__ import annotations

import imaplib
import poplib
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Dovecot, Postfix
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

VERSIONS = ("none", "v1", "v2")
MAIL_NAME = "mail.example.com"


def check(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "interval_s": 1, "timeout_s": 5, "rise": 1, "fall": 1, **more}


def service(listen: int, behind: int, kind: str, version: str = "none") -> dict[str, Any]:
    return {
        "mode": "tcp",
        "listen": f"127.0.0.1:{listen}",
        "real_servers": {"store1": behind},
        "check": check(kind),
        "proxy_protocol": {"send": version},
    }


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    names = [f"{kind}-{version}" for kind in ("imap", "pop3", "submission") for version in VERSIONS]
    return dict(zip([*names, "imaps"], free_ports(10), strict=True))


@pytest.fixture(scope="module")
def balancer(
    store1: Dovecot, authority: Authority, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancer]:
    behind = {
        "imap": (store1.imap_port, store1.proxied_imap_port),
        "pop3": (store1.pop3_port, store1.proxied_pop3_port),
        "submission": (store1.submission_port, store1.proxied_submission_port),
    }
    services = {
        f"{kind}-{version}": service(
            ports[f"{kind}-{version}"], behind[kind][version != "none"], kind.replace("submission", "smtp"), version
        )
        for kind in behind
        for version in VERSIONS
    }
    services["imaps"] = {
        "mode": "tls",
        "listen": f"127.0.0.1:{ports['imaps']}",
        "unknown_sni": "refuse",
        "routes": [
            {
                "name": "mail",
                "host": MAIL_NAME,
                "real_servers": {"store1": store1.imaps_port},
                "check": check("imap", tls=True, verify={"ca": str(authority.file), "name": MAIL_NAME}),
            }
        ],
    }
    config = {"real_servers": {"store1": "127.0.0.1"}, "services": services}
    with Balancer(config, tmp_path_factory.mktemp("balancer")) as running:
        yield running


@pytest.mark.parametrize("name", [f"{kind}-{v}" for kind in ("imap", "pop3", "submission") for v in VERSIONS])
def test_checks_find_dovecot_up(balancer: Balancer, name: str) -> None:
    server = eventually(lambda: checked(balancer, name), what="checked")
    assert server["up"] is True, server["check"]
    assert "store1" in server["check"]["detail"]["banner"]


def checked(balancer: Balancer, service: str, route: str = "") -> dict[str, Any] | None:
    server = balancer.real_server(service, "store1", route)
    return server if server["check"] else None


def test_the_check_inside_tls_verifies_the_name(balancer: Balancer) -> None:
    server = eventually(lambda: checked(balancer, "imaps", "mail"), what="checked")
    assert server["up"] is True, server["check"]
    assert server["check"]["detail"]["cert_days"] > 80


@pytest.mark.parametrize("version", VERSIONS)
def test_imap_login(balancer: Balancer, store1: Dovecot, ports: dict[str, int], version: str) -> None:
    before = len(store1.logins("imap"))
    with imaplib.IMAP4("127.0.0.1", ports[f"imap-{version}"], timeout=10) as imap:
        imap.login("joe", store1.PASSWORD)
        assert imap.select("INBOX")[0] == "OK"
        assert imap.append("INBOX", "", None, b"Subject: hello\r\n\r\n" + b"x" * 200_000 + b"\r\n")[0] == "OK"  # type: ignore[arg-type]
        imap.select("INBOX")
        _, found = imap.fetch("1", "(RFC822.SIZE)")
        assert b"200" in found[0]  # type: ignore[operator]
    eventually(lambda: len(store1.logins("imap")) > before)
    assert store1.logins("imap")[before:] == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("kind", "version", "source", "seen"),
    [
        ("imap", "none", "127.0.0.21", "127.0.0.1"),
        ("imap", "v1", "127.0.0.22", "127.0.0.22"),
        ("imap", "v2", "127.0.0.23", "127.0.0.23"),
        ("pop3", "none", "127.0.0.24", "127.0.0.1"),
        ("pop3", "v1", "127.0.0.25", "127.0.0.25"),
        ("pop3", "v2", "127.0.0.26", "127.0.0.26"),
    ],
)
def test_dovecot_sees_the_address_that_is_configured(
    balancer: Balancer, store1: Dovecot, ports: dict[str, int], kind: str, version: str, source: str, seen: str
) -> None:
    before = len(store1.logins(kind))
    port = ports[f"{kind}-{version}"]
    if kind == "imap":
        imap = ImapFrom(source, port)
        imap.login("joe", store1.PASSWORD)
        imap.logout()
    else:
        pop3 = Pop3From(source, port)
        pop3.user("joe")
        pop3.pass_(store1.PASSWORD)
        assert pop3.stat()[0] >= 0
        pop3.quit()
    eventually(lambda: len(store1.logins(kind)) > before)
    assert store1.logins(kind)[before:] == [seen]


class ImapFrom(imaplib.IMAP4):
    """An IMAP client that connects from a given local address."""

    def __init__(self, source: str, port: int) -> None:
        self._source = source
        super().__init__("127.0.0.1", port, timeout=10)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return socket_from(self._source, self.port, timeout)


class Pop3From(poplib.POP3):
    """A POP3 client that connects from a given local address."""

    def __init__(self, source: str, port: int) -> None:
        self._source = source
        super().__init__("127.0.0.1", port, timeout=10)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return socket_from(self._source, self.port, timeout)


def socket_from(source: str, port: int, timeout: float | None) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout, (source, 0))


@pytest.mark.parametrize("version", VERSIONS)
def test_submission_hands_a_message_on(
    balancer: Balancer, store1: Dovecot, mx1: Postfix, ports: dict[str, int], version: str
) -> None:
    before = len(mx1.clients())
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "joe@example.com", "somebody@example.com", version
    message.set_content("hello")
    with smtplib.SMTP("127.0.0.1", ports[f"submission-{version}"], timeout=10) as client:
        client.login("joe", store1.PASSWORD)
        assert client.send_message(message) == {}
    eventually(lambda: len(mx1.clients()) == before + 1, what="Postfix has it")


def test_starttls_passes_through(balancer: Balancer, authority: Authority, store1: Dovecot, ports: Any) -> None:
    with imaplib.IMAP4("127.0.0.1", ports["imap-v2"], timeout=10) as imap:
        context = authority.client_context()
        context.check_hostname = True
        assert imap.starttls(context)[0] == "OK"
        assert imap.login("joe", store1.PASSWORD)[0] == "OK"


def s_client(port: int, *options: str, said: str = "a LOGOUT\r\n") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-ign_eof", *options],
        input=said,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("protocol", ["-tls1_2", "-tls1_3"])
def test_tls_passes_through_by_its_name(
    balancer: Balancer, authority: Authority, ports: dict[str, int], protocol: str
) -> None:
    trusted = ["-CAfile", str(authority.file), "-verify_return_error", "-verify_hostname", MAIL_NAME]
    done = s_client(ports["imaps"], "-servername", MAIL_NAME, protocol, *trusted)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verify return code: 0 (ok)" in done.stdout
    assert "store1 ready" in done.stdout
    assert "a OK Logout completed" in done.stdout


def test_a_name_without_a_route_is_refused_with_an_alert(balancer: Balancer, ports: dict[str, int]) -> None:
    done = s_client(ports["imaps"], "-servername", "elsewhere.example.com")
    assert done.returncode != 0
    assert "unrecognized name" in done.stderr
    eventually(lambda: "end=unknown_sni" in balancer.log_text(), what="the session's line")


def test_no_name_at_all_is_refused(balancer: Balancer, ports: dict[str, int]) -> None:
    assert s_client(ports["imaps"], "-noservername").returncode != 0


@pytest.mark.parametrize("kind", ["imap", "pop3"])
def test_a_check_without_the_header_that_dovecot_wants_is_down(kind: str, store1: Dovecot, tmp_path: Path) -> None:
    behind = store1.proxied_imap_port if kind == "imap" else store1.proxied_pop3_port
    one = service(free_port(), behind, kind, "v2")
    one["check"] = check(kind, timeout_s=1, proxy_header="none")
    config = {"real_servers": {"store1": "127.0.0.1"}, "services": {kind: one}}
    with Balancer(config, tmp_path) as balancer:
        server = eventually(lambda: checked(balancer, kind), what="checked")
        assert server["up"] is False
        assert "greeting" in server["check"]["reason"], server["check"]


def test_the_log_of_dovecot_has_no_complaint_about_checks(certificate: Any, tmp_path: Path) -> None:
    with Dovecot("quiet", certificate) as quiet:
        config = {
            "real_servers": {"store1": "127.0.0.1"},
            "services": {
                f"{kind}-{v}": service(free_port(), port, kind, v)
                for kind, ports in {
                    "imap": (quiet.imap_port, quiet.proxied_imap_port, quiet.proxied_imap_port),
                    "pop3": (quiet.pop3_port, quiet.proxied_pop3_port, quiet.proxied_pop3_port),
                }.items()
                for v, port in zip(VERSIONS, ports, strict=True)
            },
        }
        with Balancer(config, tmp_path) as balancer:
            for name in config["services"]:
                eventually(lambda name=name: checked(balancer, name), what=f"{name} is checked")
                assert balancer.real_server(name, "store1")["up"] is True
            log = quiet.log_text()  # before the balancer stops in the middle of a check
    assert "Error" not in log, log
    assert "Connection closed" not in log, log
