"""TLS to clients and to servers, with certificates of our own making."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from mailbalancer.ipc.board import Count
from mailbalancer.model import ClientTls, Http, HttpLimits, Mode, Persist, ServerTls, Service, Verify
from tests.support.certs import Authority
from tests.support.lone_worker import LoneWorker, Place, front, receive_all, service
from tests.support.waiting import eventually
from tests.support.web import Asked, Cut, SecureWeb, Web, Wire, reply

GET = b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n\r\n"
SIZE = 8 * 1024 * 1024


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def web(*servers: Place, **options: object) -> Service:
    return service("web", *servers, mode=Mode.HTTP, http=options.pop("http", Http()), **options)  # type: ignore[arg-type]


def connect(worker: LoneWorker, authority: Authority, name: str = "mail.example.com") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(worker.connect("web"), server_hostname=name)


def test_clients(worker: LoneWorker, authority: Authority) -> None:
    issued = authority.issue("mail.example.com")
    persist = Persist("cookie", group="web", cookie="mbs", same_site="none")
    with Web("ex1") as ex1:
        worker.configure(
            web(ex1, client_tls=ClientTls(("mail",)), http=Http(hsts_s=99), pool={"persist": persist}),
            fronts={"web": front("web", issued)},
        )
        with connect(worker, authority) as client:
            assert client.selected_alpn_protocol() == "http/1.1"
            wire = Wire(client)
            for _ in range(3):
                client.sendall(GET)
                answer = wire.answer()
                assert answer.body == b"ex1 /"
            assert answer.value("Strict-Transport-Security") == "max-age=99"
            assert answer.value("Set-Cookie").endswith("; Path=/; HttpOnly; SameSite=None; Secure")
        assert ex1.requests[0].value("X-Forwarded-Proto") == "https"
        (line, *_) = eventually(
            lambda: [line for line in worker.log_lines() if line["message"] == "request"], what="a line in the log"
        )
        assert (line["tls"], line["sni"]) == ("TLSv1.3", "mail.example.com")


def test_a_client_that_does_not_speak_tls(worker: LoneWorker, authority: Authority) -> None:
    issued = authority.issue("mail.example.com")
    limits = HttpLimits(head_timeout_s=0.4)
    with Web("ex1") as ex1:
        worker.configure(
            web(ex1, client_tls=ClientTls(("mail",)), http=Http(limits=limits)), fronts={"web": front("web", issued)}
        )
        with worker.connect("web") as client:
            client.sendall(GET)
            said = b""
            with contextlib.suppress(ConnectionResetError):
                said = receive_all(client)
            assert b"HTTP" not in said
        with worker.connect("web") as silent:
            assert silent.recv(1) == b""
        assert not ex1.connections
        worker.eventually_counts(0, Count.SESSIONS, "web")
    assert any("TLS handshake" in line.get("failure", "") for line in worker.log_lines())


def test_large_bodies_both_ways(worker: LoneWorker, authority: Authority) -> None:
    issued = authority.issue("mail.example.com", "127.0.0.1")

    def count(asked: Asked) -> bytes:
        return reply(bytes(SIZE), "200 OK", f"X-Digest: {hashlib.sha256(asked.request.body).hexdigest()}")

    with SecureWeb("ex1", issued) as ex1:
        ex1.handler = count
        tls = ServerTls(Verify("ca", ca_file=str(authority.file)))
        worker.configure(
            web(ex1, client_tls=ClientTls(("mail",)), server_tls=tls), fronts={"web": front("web", issued)}
        )
        body = bytes(range(256)) * (SIZE // 256)
        with connect(worker, authority) as client:
            head = f"POST / HTTP/1.1\r\nHost: m\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            client.sendall(head + body)  # and only then read: one TLS connection does not bear two threads
            answer = Wire(client).answer()
        assert answer.value("X-Digest") == hashlib.sha256(body).hexdigest()
        assert answer.body == bytes(SIZE)


def test_a_server_is_verified(worker: LoneWorker, authority: Authority, tmp_path: Path) -> None:
    """Each refusal counts as a failed connect, names server and reason, and the next server is tried."""
    (tmp_path / "other").mkdir()
    good = authority.issue("mail.example.com")
    bad = {
        "wrong name": authority.issue("other.example.com"),
        "wrong authority": Authority(tmp_path / "other").issue("mail.example.com"),
        "expired": authority.issue("mail.example.com", days=-1, starts_in_days=-3),
    }
    tls = ServerTls(Verify("ca", ca_file=str(authority.file), name="mail.example.com"))
    for reason, issued in bad.items():
        with SecureWeb("bad", issued) as ex1, SecureWeb("good", good) as ex2:
            worker.configure(web(ex1, server_tls=tls))
            with worker.connect("web") as client:
                client.sendall(GET)
                assert Wire(client).answer().status == 503, reason
            worker.configure(web(ex1, ex2, server_tls=tls))
            for _ in range(4):
                with worker.connect("web") as client:
                    client.sendall(GET)
                    assert Wire(client).answer().body == b"good /", reason
            assert not ex1.requests
    failures = [line["failure"] for line in worker.log_lines() if line["message"] == "request" and "failure" in line]
    assert any("bad: " in failure and "it is not for mail.example.com" in failure for failure in failures)
    assert any("does not trust" in failure for failure in failures)
    assert any("has expired" in failure for failure in failures)
    assert worker.count(Count.CONNECT_FAILED, "web", "bad") >= 3


def test_a_pinned_server(worker: LoneWorker, authority: Authority) -> None:
    issued, renewed = authority.issue("a.example.com"), authority.issue("a.example.com")
    der = issued.certificate.public_bytes(serialization.Encoding.DER)
    tls = ServerTls(Verify("pin", pin_sha256=hashlib.sha256(der).hexdigest()))
    with SecureWeb("ex1", issued) as ex1:
        worker.configure(web(ex1, server_tls=tls))
        with worker.connect("web") as client:
            client.sendall(GET)
            assert Wire(client).answer().status == 200
        ex1.context = renewed.server_context()
        with worker.connect("web") as client:
            client.sendall(GET)
            assert Wire(client).answer().status == 503
    assert any("certificate is not the pinned one" in line.get("failure", "") for line in worker.log_lines())


def test_sessions_with_servers_are_resumed(worker: LoneWorker, authority: Authority) -> None:
    issued = authority.issue("mail.example.com")
    tls = ServerTls(Verify("ca", ca_file=str(authority.file), name="mail.example.com"))
    with SecureWeb("ex1", issued) as ex1:
        worker.configure(web(ex1, server_tls=tls))
        for _ in range(4):
            with worker.connect("web") as client:
                client.sendall(GET)
                assert Wire(client).answer().status == 200
        assert ex1.resumed == [False, True, True, True]


def test_an_answer_until_the_end_that_was_cut_under_tls(worker: LoneWorker, authority: Authority) -> None:
    """Without close_notify the end may be an attacker's: what came last may not be all."""
    issued = authority.issue("mail.example.com")

    def half(asked: Asked) -> None:
        asked.wire.socket.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        raw = socket.socket(fileno=asked.wire.socket.detach())
        raw.close()

    with SecureWeb("ex1", issued) as ex1:
        ex1.handler = half
        worker.configure(web(ex1, server_tls=ServerTls(Verify("none"))))
        with worker.connect("web") as client:
            client.sendall(GET)
            with pytest.raises((ConnectionResetError, Cut)):
                Wire(client).answer()
