"""Modes `imap` and `pop3` through a real worker: greeting, the next server, login, relay."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.model import ClientTls, Mail, Mode, Schedule, ServerTls, Service, Verify
from tests.support.certs import Authority, Issued
from tests.support.lone_worker import Door, LoneWorker, front, member, receive, receive_all, service
from tests.support.mail_servers import CLOSE, ImapServer, LineServer, Pop3Server
from tests.support.servers import Recorder

BOTH = pytest.mark.parametrize(("mode", "kind"), [(Mode.IMAP, ImapServer), (Mode.POP3, Pop3Server)])
#: What is said, by protocol: a login and how its answer begins, the words for "no server", for leaving.
LOGIN = {Mode.IMAP: [b"a LOGIN u p"], Mode.POP3: [b"USER u", b"PASS p"]}
NOBODY = {Mode.IMAP: b"* BYE [UNAVAILABLE] ", Mode.POP3: b"-ERR [SYS/TEMP] "}
STARTTLS = {Mode.IMAP: b"a STARTTLS", Mode.POP3: b"STLS"}


def mailbox(mode: Mode, *servers: Any, mail: dict[str, Any] | None = None, **options: Any) -> Service:
    return service("box", *servers, mode=mode, mail=Mail("lb.test", **(mail or {})), **options)


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


def line(sock: socket.socket) -> bytes:
    found = bytearray()
    while not found.endswith(b"\r\n"):
        byte = sock.recv(1)
        if not byte:
            break
        found += byte
    return bytes(found)


def login(sock: socket.socket, mode: Mode) -> bytes:
    said = b""
    for command in LOGIN[mode]:
        sock.sendall(command + b"\r\n")
        said = line(sock)
    return said


@BOTH
def test_the_greeting_is_the_servers_and_bytes_flow_after_the_login(
    worker: LoneWorker, mode: Mode, kind: type[LineServer]
) -> None:
    with kind("mx1") as mx1:
        worker.configure(mailbox(mode, mx1))
        client = worker.connect("box")
        assert b"mx1 ready" in line(client)
        assert b"mx1" in login(client, mode)
        assert worker.list_sessions().sessions[0]["state"] == "relaying"
        data = bytes(range(256)) * 8192
        client.settimeout(20)
        client.sendall(data[:1000])
        assert receive(client, 1000) == data[:1000]
        client.sendall(b"\0\n\r" + b"x" * 500_000)
        assert receive(client, 500_003) == b"\0\n\r" + b"x" * 500_000
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b""
        found = worker.session_lines()[0]
        assert (found["end"], found["server"]) == ("client_closed", "mx1")
        assert found["in"] > 501_000
        worker.eventually_counts(0, Count.SESSIONS, "box", "mx1")


@BOTH
@pytest.mark.parametrize("greeting", [b"* BYE no\r\n", b"-ERR no\r\n", CLOSE, b"* PREAUTH hello\r\n", b"220 SMTP\r\n"])
def test_a_server_that_does_not_greet_is_passed_over(
    worker: LoneWorker, mode: Mode, kind: type[LineServer], greeting: bytes
) -> None:
    with kind("mx1") as mx1, kind("mx2") as mx2:
        mx1.answers["GREETING"] = greeting
        worker.configure(mailbox(mode, mx1, member(mx2, priority=1), pool={"schedule": Schedule.PRIORITY}))
        with worker.connect("box") as client:
            assert b"mx2 ready" in line(client)
        assert worker.session_lines()[0]["tried"] == "mx1"


@BOTH
def test_when_nobody_is_left_the_client_is_told(worker: LoneWorker, mode: Mode, kind: type[LineServer]) -> None:
    with kind("mx1") as mx1:
        mx1.answers["GREETING"] = CLOSE
        worker.configure(mailbox(mode, mx1))
        with worker.connect("box") as client:
            assert receive_all(client).startswith(NOBODY[mode])


@BOTH
def test_a_silent_server_and_a_silent_client(worker: LoneWorker, mode: Mode, kind: type[LineServer]) -> None:
    with Recorder("mx1") as silent, kind("mx2") as mx2:
        worker.configure(
            mailbox(
                mode,
                silent,
                member(mx2, priority=1),
                mail={"greeting_timeout_s": 0.3, "login_timeout_s": 0.4},
                pool={"schedule": Schedule.PRIORITY},
            )
        )
        with worker.connect("box") as client:
            assert b"mx2 ready" in line(client)
            assert b"Timeout" in receive_all(client)
        found = worker.session_lines()[0]
        assert (found["end"], found["failure"]) == ("idle_timeout", "mx1: was not ready within 0.3 s")


@BOTH
def test_a_server_that_dies_before_the_login(worker: LoneWorker, mode: Mode, kind: type[LineServer]) -> None:
    with kind("mx1") as mx1:
        mx1.answers["LOGIN"] = mx1.answers["USER"] = CLOSE
        worker.configure(mailbox(mode, mx1))
        with worker.connect("box") as client:
            line(client)
            client.sendall(LOGIN[mode][0] + b"\r\n")
            told = receive_all(client)
            assert b"Lost the connection" in told


def test_literals_pass_and_oversized_ones_do_not(worker: LoneWorker) -> None:
    with Door("mx1") as door:
        worker.configure(mailbox(Mode.IMAP, door))
        login = b"a LOGIN {3+}\r\nu\r\n {3+}\r\np p\r\n"
        with worker.connect("box") as client, door.accept() as server:
            server.sendall(b"* OK ready\r\n")
            line(client)
            client.sendall(login)
            assert receive(server, len(login)) == login
            server.sendall(b"a OK in\r\n* 1 EXISTS\r\n")
            assert line(client) + line(client) == b"a OK in\r\n* 1 EXISTS\r\n"
        with worker.connect("box") as client, door.accept() as server:
            server.sendall(b"* OK ready\r\n")
            line(client)
            client.sendall(b"a LOGIN {100000}\r\n")
            assert b"* BYE" in receive_all(client)
            assert receive_all(server) == b""


@BOTH
def test_a_forged_proxy_header_ends_the_connection(worker: LoneWorker, mode: Mode, kind: type[LineServer]) -> None:
    with Recorder("mx1") as silent:
        worker.configure(mailbox(mode, silent))
        with worker.connect("box") as client:
            client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 143\r\n")
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        assert worker.session_lines()[0]["end"] == "spoofed_proxy_header"


# ---------------------------------------------------------------- TLS


def bridged(mode: Mode, server: LineServer, authority: Authority, client: str, inner: str) -> Service:
    return mailbox(
        mode,
        server,
        client_tls=ClientTls(("mail",), client) if client != "none" else None,
        server_tls=ServerTls(Verify("ca", str(authority.file)), inner) if inner != "none" else None,
    )


@BOTH
@pytest.mark.parametrize("outer", ["none", "offer", "require", "implicit"])
@pytest.mark.parametrize("inner", ["none", "opportunistic", "require", "implicit"])
def test_every_pairing_of_tls(
    worker: LoneWorker,
    authority: Authority,
    issued: Issued,
    mode: Mode,
    kind: type[LineServer],
    outer: str,
    inner: str,
) -> None:
    tls = issued.server_context() if inner != "none" else None
    with kind("mx1", tls=tls, implicit=inner == "implicit") as mx1:
        worker.configure(bridged(mode, mx1, authority, outer, inner), fronts={"box": front("box", issued)})
        client = worker.connect("box")
        context = authority.client_context()
        if outer == "implicit":
            client = context.wrap_socket(client, server_hostname="lb.test")
        assert b"mx1" in line(client)
        if outer == "require":
            for command in LOGIN[mode][:1]:
                client.sendall(command + b"\r\n")
                assert b"STARTTLS first" in (refused := line(client)) or b"STLS first" in refused
        if outer in ("offer", "require"):
            client.sendall(STARTTLS[mode] + b"\r\n")
            assert b"OK" in line(client)
            client = context.wrap_socket(client, server_hostname="lb.test")
        assert b"mx1" in login(client, mode)
        client.sendall(b"y" * 200_000)
        assert receive(client, 200_000) == b"y" * 200_000
        client.close()
        assert mx1.secured == [inner != "none"]
        assert worker.session_lines()[0]["end"] in ("client_closed", "client_reset")


@BOTH
@pytest.mark.parametrize("inner", ["none", "require", "implicit"])
def test_a_client_that_does_not_wait_is_answered(
    worker: LoneWorker, authority: Authority, issued: Issued, inner: str, mode: Mode, kind: type[LineServer]
) -> None:
    tls = issued.server_context() if inner != "none" else None
    with kind("ms1", tls=tls, implicit=inner == "implicit") as ms1:
        worker.configure(bridged(mode, ms1, authority, "none", inner))
        client = worker.connect("box")
        said = {Mode.IMAP: b"a NOOP\r\nb LOGOUT\r\n", Mode.POP3: b"CAPA\r\nQUIT\r\n"}[mode]
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(4)  # less than any timeout of the session
        heard = receive_all(client)
        assert heard.count(b"\r\n") >= 3, heard
        assert worker.session_lines()[0]["end"] in ("logout", "server_lost", "client_closed")


@BOTH
def test_a_stripped_starttls_never_carries_a_password(
    worker: LoneWorker, authority: Authority, issued: Issued, mode: Mode, kind: type[LineServer]
) -> None:
    with kind("mx1") as mx1:
        mx1.answers["STARTTLS"] = b"mb1 BAD no such command\r\n"
        mx1.answers["STLS"] = b"-ERR no such command\r\n"
        worker.configure(bridged(mode, mx1, authority, "none", "require"))
        with worker.connect("box") as client:
            assert receive_all(client).startswith(NOBODY[mode])
        assert [mx1.word(found) for found in mx1.lines] == ["STARTTLS" if mode is Mode.IMAP else "STLS"]


@BOTH
def test_what_a_server_says_before_tls_is_injected(
    worker: LoneWorker, authority: Authority, issued: Issued, mode: Mode, kind: type[LineServer]
) -> None:
    with kind("mx1", tls=issued.server_context()) as mx1:
        mx1.injected = b"* OK injected\r\n"
        worker.configure(bridged(mode, mx1, authority, "none", "require"))
        with worker.connect("box") as client:
            assert receive_all(client).startswith(NOBODY[mode])
        assert "behind its answer to STARTTLS" in worker.session_lines()[0]["failure"]


@BOTH
def test_what_a_client_says_before_tls_is_injected(
    worker: LoneWorker, authority: Authority, issued: Issued, mode: Mode, kind: type[LineServer]
) -> None:
    with kind("mx1") as mx1:
        worker.configure(bridged(mode, mx1, authority, "offer", "none"), fronts={"box": front("box", issued)})
        with worker.connect("box") as client:
            line(client)
            client.sendall(STARTTLS[mode] + b"\r\n" + LOGIN[mode][0] + b"\r\n")
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        assert worker.session_lines()[0]["end"] == "starttls_injection"
        assert not mx1.lines


@BOTH
def test_nothing_is_carried_over_the_handshake_at_any_cut(
    worker: LoneWorker, authority: Authority, issued: Issued, mode: Mode, kind: type[LineServer]
) -> None:
    """Commands behind STARTTLS or STLS, in two segments with every cut; the client handshakes all the same."""
    with kind("mx1") as mx1:
        worker.configure(bridged(mode, mx1, authority, "offer", "none"), fronts={"box": front("box", issued)})
        text = STARTTLS[mode] + b"\r\n" + LOGIN[mode][0] + b"\r\n"
        context = authority.client_context()
        cuts = range(1, len(text))
        for cut in cuts:
            client = worker.connect("box")
            line(client)
            client.sendall(text[:cut])
            worker.after_beats(1)
            with contextlib.suppress(OSError):
                client.sendall(text[cut:])
                line(client)
                client = context.wrap_socket(client, server_hostname="lb.test")
                client.sendall(b"x NOOP\r\n")
                assert not client.recv(100)
            client.close()
        worker.session_lines(len(cuts))
        assert not mx1.lines


def test_a_plain_client_sees_that_login_is_disabled(worker: LoneWorker, authority: Authority, issued: Issued) -> None:
    with ImapServer("mx1", tls=issued.server_context()) as mx1:
        worker.configure(bridged(Mode.IMAP, mx1, authority, "require", "none"), fronts={"box": front("box", issued)})
        with worker.connect("box") as client:
            greeting = line(client)
            assert b"LOGINDISABLED" in greeting
            assert b"AUTH=PLAIN" not in greeting
