"""Servers that behave as told, and certificates that are good, expired, misnamed or self-signed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailbalancer.model import Endpoint

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Pair:
    """A certificate with its key in one PEM file."""

    path: Path
    certificate: x509.Certificate

    @property
    def sha256(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        return context


class Authority:
    """A certificate authority for one test run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Authority")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=400))
            .not_valid_after(now + timedelta(days=400))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / "authority.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: str, from_days: float = -30, to_days: float = 90.5, self_signed: bool = False) -> Pair:
        """A certificate for these DNS names and addresses, valid between two days counted from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "common name")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=from_days))
            .not_valid_after(now + timedelta(days=to_days))
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .sign(key if self_signed else self._key, hashes.SHA256())
        )
        path = self._folder / f"{certificate.serial_number:x}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
        return Pair(path, certificate)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Heard:
    """What a scripted server heard, over all its connections."""

    endpoint: Endpoint
    lines: list[str] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # the first connection is over


class Peers:
    """Makes servers on free loopback ports."""

    @asynccontextmanager
    async def serve(
        self, handler: Handler, *, tls: Pair | None = None, host: str = "127.0.0.1"
    ) -> AsyncIterator[Endpoint]:
        """A server that handles every connection with `handler`; connections still open at the end are cut."""
        open_now: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            open_now.add(task)
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                open_now.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, host, 0, ssl=tls.server_context() if tls else None)
        try:
            yield Endpoint(host, server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for task in list(open_now):
                task.cancel()
            await asyncio.sleep(0)

    @asynccontextmanager
    async def script(
        self, greeting: bytes, answers: dict[str, bytes], *, tls: Pair | None = None, upgrade: Pair | None = None
    ) -> AsyncIterator[Heard]:
        """A line server: greets, answers each line by its longest known beginning, closes after QUIT and LOGOUT.

        After a STARTTLS or STLS that is answered well it goes on inside TLS with the certificate `upgrade`.
        """
        heard = Heard(Endpoint("127.0.0.1", 0))

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await _follow(heard, greeting, answers, upgrade, reader, writer)
            finally:
                heard.ended.set()

        async with self.serve(handle, tls=tls) as heard.endpoint:
            yield heard


async def _follow(
    heard: Heard,
    greeting: bytes,
    answers: dict[str, bytes],
    upgrade: Pair | None,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    writer.write(greeting)
    while line := (await reader.readline()).decode("latin-1").rstrip("\r\n"):
        heard.lines.append(line)
        known = max((start for start in answers if line.startswith(start)), key=len, default=None)
        writer.write(answers[known] if known is not None else b"500 5.5.1 unknown\r\n")
        if upgrade and line.endswith(("STARTTLS", "STLS")):
            await writer.start_tls(upgrade.server_context())
            heard.lines.append("(TLS)")
        if line.endswith(("QUIT", "LOGOUT")):
            return


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.fixture
def silent() -> Handler:
    """Handles a connection by never saying a word."""
    return say_nothing


@pytest.fixture
def dripping() -> Callable[[bytes], Handler]:
    """Handles a connection by sending a beginning and then one byte every few milliseconds, for ever."""

    def begin(start: bytes) -> Handler:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(start)
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.005)

        return drip

    return begin


@pytest.fixture
def refused() -> Endpoint:
    """An address on which nothing listens: the port was free a moment ago."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Endpoint("127.0.0.1", listener.getsockname()[1])
