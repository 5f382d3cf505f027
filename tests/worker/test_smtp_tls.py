"""STARTTLS on both sides of mode `smtp`, through a real worker and with real handshakes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from mailbalancer.ipc.board import Count
from mailbalancer.model import ClientTls, Mail, Mode, Schedule, ServerTls, Service, Verify
from tests.support.certs import Authority, Issued
from tests.support.lone_worker import LoneWorker, front, member, receive_all, service
from tests.support.mail_servers import SmtpServer
from tests.support.smtp_client import Talk
from tests.support.waiting import eventually


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("lb.test", "127.0.0.1")


def bridged(server: Any, *more: Any, outer: str = "none", inner: str = "none", verify: Verify | None = None) -> Service:
    return service(
        "mx",
        server,
        *more,
        mode=Mode.SMTP,
        mail=Mail("lb.test"),
        pool={"schedule": Schedule.PRIORITY},
        client_tls=ClientTls(("mail",), outer) if outer != "none" else None,
        server_tls=ServerTls(verify or Verify(), inner) if inner != "none" else None,
    )


def client_of(worker: LoneWorker) -> Talk:
    return Talk(worker.connect("mx"))


def send(client: Talk) -> bytes:
    client.say(b"EHLO client.test")
    return client.send()


@pytest.mark.parametrize("outer", ["none", "offer", "require", "implicit"])
@pytest.mark.parametrize("inner", ["none", "opportunistic", "require", "implicit"])
@pytest.mark.parametrize("kind", ["ca", "pin", "none"])
def test_every_pairing(
    worker: LoneWorker, authority: Authority, issued: Issued, outer: str, inner: str, kind: str
) -> None:
    pin = issued.certificate.fingerprint(hashes.SHA256()).hex() if kind == "pin" else ""
    verify = Verify(kind, str(authority.file) if kind == "ca" else "", pin)
    tls = issued.server_context() if inner != "none" else None
    with SmtpServer("mx1", tls=tls, implicit=inner == "implicit") as mx1:
        worker.configure(bridged(mx1, outer=outer, inner=inner, verify=verify), fronts={"mx": front("mx", issued)})
        client = client_of(worker)
        if outer == "implicit":
            client.secure(authority.client_context())
        assert client.reply().startswith(b"220 lb.test ")
        if outer in ("offer", "require"):
            shown = client.say(b"EHLO client.test")
            assert b"STARTTLS" in shown
            assert client.say(b"AUTH PLAIN AGEAYg==").startswith(b"530" if outer == "require" else b"538")
            if outer == "require":
                assert client.say(b"MAIL FROM:<a@x.test>").startswith(b"530 5.7.0 ")
            assert client.say(b"STARTTLS").startswith(b"220 ")
            client.secure(authority.client_context())
            assert client.say(b"MAIL FROM:<a@x.test>").startswith(b"503 5.5.1 ")  # everything said before is forgotten
            assert b"STARTTLS" not in client.say(b"EHLO client.test")
        assert send(client) == b"250 2.0.0 mx1 has it\r\n"
        assert mx1.conversations[0].secured == (inner != "none")
        line = eventually(lambda: [found for found in worker.log_lines() if found["message"] == "message"])[0]
        assert bool(line["client_tls"]) == (outer != "none")
        assert bool(line["server_tls"]) == (inner != "none")
        assert client.say(b"QUIT").startswith(b"221")
        assert b"AUTH" not in b"".join(mx1.commands)


def test_a_stripped_starttls_ends_in_454_and_nothing_is_said(worker: LoneWorker, issued: Issued) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(bridged(mx1, inner="require"))
        client = client_of(worker)
        assert receive_all(client.sock).startswith(b"454 4.7.0 ")
        assert mx1.commands == [b"EHLO lb.test"]
        assert "offers no STARTTLS" in worker.session_lines()[0]["failure"]


@pytest.mark.parametrize("inner", ["require", "opportunistic", "implicit"])
def test_a_server_that_is_not_who_it_should_be_is_passed_over(
    worker: LoneWorker, authority: Authority, issued: Issued, tmp_path_factory: pytest.TempPathFactory, inner: str
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger")).issue("127.0.0.1")
    verify = Verify("ca", str(authority.file))
    with (
        SmtpServer("mx1", tls=stranger.server_context(), implicit=inner == "implicit") as mx1,
        SmtpServer("mx2", tls=issued.server_context(), implicit=inner == "implicit") as mx2,
    ):
        worker.configure(bridged(mx1, member(mx2, priority=1), inner=inner, verify=verify))
        client = client_of(worker)
        assert client.reply().startswith(b"220 ")
        assert send(client).endswith(b"mx2 has it\r\n")
        client.say(b"QUIT")
        failure = worker.session_lines()[0]["failure"]
        assert "mx1" in failure
        assert "does not trust" in failure
        assert not any(command.startswith(b"MAIL") for command in mx1.commands)
        assert worker.count(Count.CONNECT_FAILED, "mx", "mx1") == 1


def test_what_a_server_says_behind_its_220_is_injected(
    worker: LoneWorker, authority: Authority, issued: Issued
) -> None:
    with SmtpServer("mx1", tls=issued.server_context()) as mx1:
        mx1.injected = b"250-injected\r\n250 AUTH PLAIN\r\n"
        worker.configure(bridged(mx1, inner="require", verify=Verify("ca", str(authority.file))))
        assert receive_all(client_of(worker).sock).startswith(b"454 4.7.0 ")
        assert "behind its answer to STARTTLS" in worker.session_lines()[0]["failure"]


INJECTED = b"EHLO evil\r\nMAIL FROM:<evil@x.test>\r\nRCPT TO:<evil@x.test>\r\nDATA\r\nevil\r\n.\r\n"


def test_no_command_is_carried_over_the_handshake_at_any_cut(
    worker: LoneWorker, authority: Authority, issued: Issued
) -> None:
    """Commands behind STARTTLS in one segment, in two with every cut, and in clear behind our 220."""
    with SmtpServer("mx1") as mx1:
        worker.configure(bridged(mx1, outer="offer"), fronts={"mx": front("mx", issued)})
        text = b"STARTTLS\r\n" + INJECTED
        for cut in (*range(1, 24), len(text)):
            client = client_of(worker)
            client.reply()
            client.say(b"EHLO client.test")
            client.sock.sendall(text[:cut])
            worker.after_beats(1)
            try:
                client.sock.sendall(text[cut:])
                client.secure(authority.client_context())
                client.sock.sendall(b"NOOP\r\n")
                assert not client.sock.recv(100)
            except (OSError, ssl.SSLError):
                pass
            client.sock.close()
        worker.session_lines(24)
        assert not [command for command in mx1.commands if b"evil" in command]
        assert not [command for command in mx1.commands if command == b"NOOP"]


def test_commands_behind_starttls_end_the_connection(worker: LoneWorker, authority: Authority, issued: Issued) -> None:
    """A client that handshakes properly all the same does not get through."""
    with SmtpServer("mx1") as mx1:
        worker.configure(bridged(mx1, outer="offer"), fronts={"mx": front("mx", issued)})
        client = client_of(worker)
        client.reply()
        client.say(b"EHLO client.test")
        client.sock.sendall(b"STARTTLS\r\nNOOP\r\n")
        with pytest.raises((OSError, EOFError)):
            secure_after_220(client, authority)
        assert worker.session_lines()[0]["end"] == "starttls_injection"
        assert b"NOOP" not in mx1.commands


def secure_after_220(client: Talk, authority: Authority) -> None:
    assert client.reply().startswith(b"220 ")
    client.secure(authority.client_context())
    client.reply()


@pytest.mark.parametrize("protocols", [["h2"], ["http/1.1"], ["imap", "pop3"]])
def test_a_client_that_speaks_another_protocol_is_refused(
    worker: LoneWorker, authority: Authority, issued: Issued, protocols: list[str]
) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(bridged(mx1, outer="implicit"), fronts={"mx": front("mx", issued)})
        context = authority.client_context()
        context.set_alpn_protocols(protocols)
        with worker.connect("mx") as sock, pytest.raises((ssl.SSLError, ConnectionResetError)):
            context.wrap_socket(sock, server_hostname="lb.test")
        assert worker.session_lines()[0]["end"] == "client_tls_failed"
        assert not mx1.connections


def test_smuggled_ends_in_tls_records(worker: LoneWorker, authority: Authority, issued: Issued) -> None:
    """The same families as without TLS; each piece is a record of its own."""
    with SmtpServer("mx1", tls=issued.server_context()) as mx1:
        verify = Verify("ca", str(authority.file))
        worker.configure(
            bridged(mx1, outer="implicit", inner="require", verify=verify), fronts={"mx": front("mx", issued)}
        )
        for stray in (b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\r\r\n.\r\r\n"):
            for cut in range(5 + len(stray) + 2):
                client = client_of(worker)
                client.secure(authority.client_context())
                client.reply()
                for command in (b"EHLO c", b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"DATA"):
                    client.say(command)
                text = b"first" + stray + b"MAIL FROM:<evil@x.test>\r\n.\r\n"
                client.sock.sendall(text[:cut])
                client.sock.sendall(text[cut:])
                assert client.reply().startswith(b"550 5.5.2 ")
                client.sock.close()
        assert not mx1.messages
        assert not [command for command in mx1.commands if b"evil" in command]


@pytest.mark.parametrize("inner", ["require", "implicit"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_with_servers_are_resumed(
    worker: LoneWorker, authority: Authority, issued: Issued, inner: str, version: ssl.TLSVersion
) -> None:
    tls = issued.server_context()
    tls.maximum_version = version
    with SmtpServer("mx1", tls=tls, implicit=inner == "implicit") as mx1:
        worker.configure(bridged(mx1, inner=inner, verify=Verify("ca", str(authority.file))))
        for _ in range(4):
            client = client_of(worker)
            client.begin()
            assert client.send().startswith(b"250 ")
            assert client.say(b"QUIT").startswith(b"221 ")
            assert client.end() == b""
        assert mx1.resumed == [False, True, True, True]
        assert all("server_tls" in line for line in worker.session_lines(4))


def test_a_session_that_was_not_verified_is_not_resumed(
    worker: LoneWorker, authority: Authority, issued: Issued
) -> None:
    """A pin is compared after the handshake: what was refused then must not come back as trusted."""
    pin = issued.certificate.fingerprint(hashes.SHA256()).hex()
    with SmtpServer("mx1", tls=issued.server_context()) as mx1:
        for verify in (Verify("pin", pin_sha256=pin[::-1]), Verify("pin", pin_sha256=pin)):
            worker.configure(bridged(mx1, inner="require", verify=verify))
            for _ in range(2):
                client = client_of(worker)
                if verify.pin_sha256 == pin:
                    client.begin()
                    client.say(b"QUIT")
                client.end()
        assert mx1.resumed == [False, False, False, True]
