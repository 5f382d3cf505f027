"""Looking at a server's certificate as the service would: straight away or after STARTTLS."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mailbalancer.control.pin import Shown, shown
from mailbalancer.errors import MailbalancerError
from mailbalancer.model import Endpoint, Member, Mode, Pool, ServerTls, Service, Verify
from tests.support.certs import Authority, Issued


def service(port: int, tls: ServerTls | None, mode: Mode = Mode.HTTP) -> Service:
    members = (Member("ex1", Endpoint("127.0.0.1", port)), Member("ex2", Endpoint("127.0.0.1", 9)))
    return Service("owa", mode, (Endpoint("127.0.0.1", 0),), Pool("owa", "", members), server_tls=tls)


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    return Authority(tmp_path).issue("ex1.example.com", days=30.5)


def fingerprint(issued: Issued) -> str:
    return hashlib.sha256(issued.certificate.public_bytes(Encoding.DER)).hexdigest()


async def look(tls: ServerTls, mode: Mode, context: ssl.SSLContext, talk: tuple[bytes, ...] = ()) -> Shown:
    """Look at a server that has this conversation before TLS begins: what it says, each after a line of ours."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for number, said in enumerate(talk):
                if number:
                    await reader.readline()
                writer.write(said)
                await writer.drain()
            if talk:
                await writer.start_tls(context)
            await reader.read()
        except (ssl.SSLError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if talk else context)
    async with server:
        return await shown(service(server.sockets[0].getsockname()[1], tls, mode), "ex1", 5.0)


def test_a_certificate_that_nobody_would_trust_is_shown(issued: Issued) -> None:
    tls = ServerTls(Verify("full", name="mail.example.com"))
    found = asyncio.run(look(tls, Mode.HTTP, issued.server_context())).facts()
    assert (found["names"], found["issuer"]) == (["ex1.example.com"], "mailbalancer test authority")
    assert (found["sha256"], found["days_left"], found["others"]) == (fingerprint(issued), 30, ["ex2"])


@pytest.mark.parametrize(
    ("mode", "talk"),
    [
        (Mode.SMTP, (b"220 ex1 ESMTP\r\n", b"250-ex1\r\n250 STARTTLS\r\n", b"220 go\r\n")),
        (Mode.POP3, (b"+OK ready\r\n", b"+OK\r\nSTLS\r\n.\r\n", b"+OK go\r\n")),
    ],
)
def test_mail_servers_are_asked_for_tls_first(issued: Issued, mode: Mode, talk: tuple[bytes, ...]) -> None:
    tls = ServerTls(Verify("pin", pin_sha256="AA:" * 31 + "AA"), starttls="require")
    found = asyncio.run(look(tls, mode, issued.server_context(), talk))
    assert found.certificate.sha256 == fingerprint(issued)
    assert found.pinned == ("aa" * 32,)


@pytest.mark.parametrize(
    ("tls", "name", "words"),
    [
        (None, "ex1", "owa speaks no TLS to its real servers; add server_tls to services.owa first"),
        (ServerTls(), "ex3", "owa has no real server 'ex3'; it has: ex1, ex2"),
        (ServerTls(), "ex2", "no certificate of ex2 .127.0.0.1:9. could be seen: connection refused"),
    ],
)
def test_why_there_is_nothing_to_see(tls: ServerTls | None, name: str, words: str) -> None:
    with pytest.raises(MailbalancerError, match=words):
        asyncio.run(shown(service(9, tls), name, 5.0))
