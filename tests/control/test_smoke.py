from __future__ import annotations

import asyncio
import ipaddress
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from aiosmtpd.smtp import SMTP
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mailbalancer.control.smoke import WIDTH, dialled, lasting, options_for, render, server_name, smoke
from mailbalancer.model import (
    Check,
    DnsCheck,
    Endpoint,
    HttpCheck,
    ImapCheck,
    Member,
    Mode,
    Pool,
    Pop3Check,
    ProxyProtocol,
    Route,
    Service,
    SmtpCheck,
    TcpCheck,
    TlsCheck,
)

LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SMTP_CHECK = Check(type="smtp", options=SmtpCheck(mail_from="<>", rcpt_to="postmaster@example.com"))


def service(front: Endpoint, *servers: Endpoint, check: Check = SMTP_CHECK, **more) -> Service:
    members = tuple(Member(f"ex{number}", endpoint) for number, endpoint in enumerate(servers, 1))
    return Service("mail", Mode.TCP, (front,), Pool("mail", "", members, check=check), **more)


def context_for(folder, name: str) -> ssl.SSLContext:
    """A TLS server with a self-signed certificate: smoke looks at certificates, it does not verify them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    now = datetime.now(UTC)
    certificate = (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{certificate.serial_number:x}.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class NoMail:
    """Takes everything but a message."""

    def __init__(self) -> None:
        self.messages = 0

    async def handle_DATA(self, *_):
        self.messages += 1
        return "250 taken"


@asynccontextmanager
async def listening(server: asyncio.Server):
    async with server:
        yield Endpoint(*server.sockets[0].getsockname()[:2])


async def mail_server(stack: AsyncExitStack, hostname: str, handler=None, **more) -> Endpoint:
    loop = asyncio.get_running_loop()

    def make() -> SMTP:
        return SMTP(handler or NoMail(), hostname=hostname, ident="ESMTP", loop=loop, **more)

    return await stack.enter_async_context(listening(await loop.create_server(make, "127.0.0.1", 0)))


async def line_server(stack: AsyncExitStack, handle, **more) -> Endpoint:
    return await stack.enter_async_context(listening(await asyncio.start_server(handle, "127.0.0.1", 0, **more)))


async def forwarder(stack: AsyncExitStack, target: Endpoint) -> Endpoint:
    """What the balancer does to bytes, as far as smoke can see."""

    async def pump(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def handle(reader, writer):
        out_reader, out_writer = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(pump(reader, out_writer), pump(out_reader, writer), return_exceptions=True)

    return await line_server(stack, handle)


def run(scenario):
    async def main():
        async with AsyncExitStack() as stack:
            return await scenario(stack)

    return asyncio.run(main())


def report_of(make_service, timeout_s=10.0, limit=10):
    async def scenario(stack):
        return await smoke(await make_service(stack), timeout_s=timeout_s, limit=limit)

    return run(scenario)


def said(dialogue) -> list[str]:
    return [line.text for line in dialogue.lines if line.direction == ">"]


def test_one_server_behind_a_faithful_balancer(tmp_path):
    mail = NoMail()
    tls = context_for(tmp_path, "mail.example.com")

    async def make(stack):
        real = await mail_server(stack, "ex1", mail, tls_context=tls)
        return service(await forwarder(stack, real), real)

    report = report_of(make)
    (comparison,) = report.comparisons
    assert report.went_well
    assert comparison.differences == ()
    assert comparison.conversation == "smtp"
    for dialogue in (comparison.through, *comparison.direct):
        assert said(dialogue) == [
            "EHLO mailbalancer.invalid",
            "STARTTLS",
            "EHLO mailbalancer.invalid",
            "MAIL FROM:<>",
            "RCPT TO:<postmaster@example.com>",
            "RSET",
            "QUIT",
        ]
        assert dialogue.facts["STARTTLS"] == "offered"
        assert dialogue.facts["certificate"].startswith("for mail.example.com, until ")
        assert dialogue.lines[-1].text.startswith("221")
    assert mail.messages == 0


def test_differences_are_named(tmp_path):
    async def make(stack):
        first = await mail_server(stack, "ex1", tls_context=context_for(tmp_path, "ex1.example.com"))
        second = await mail_server(stack, "ex2", data_size_limit=1000)
        return service(await forwarder(stack, first), first, second)

    report = report_of(make)
    (comparison,) = report.comparisons
    ex2 = comparison.direct[1].title
    assert all(line.startswith(ex2) for line in comparison.differences)
    told = "\n".join(comparison.differences)
    assert f"{ex2}: banner is '220 ex2 ESMTP', through the service '220 ex1 ESMTP'" in told
    assert f"{ex2}: STARTTLS is 'not offered', through the service 'offered'" in told
    assert f"{ex2}: capabilities: offers SIZE 1000, the service does not" in told
    assert f"{ex2}: capabilities: does not offer SIZE 33554432, STARTTLS, the service does" in told


def test_certificates_are_compared(tmp_path):
    async def make(stack):
        first = await mail_server(stack, "mx", tls_context=context_for(tmp_path, "old.example.com"))
        second = await mail_server(stack, "mx", tls_context=context_for(tmp_path, "new.example.com"))
        return service(first, second)

    (difference,) = report_of(make).comparisons[0].differences
    assert "certificate is 'for new.example.com" in difference
    assert "through the service 'for old.example.com" in difference


def test_a_dead_service_before_living_servers():
    async def make(stack):
        async with listening(await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)) as gone:
            pass
        return service(gone, await mail_server(stack, "ex1"))

    report = report_of(make)
    (comparison,) = report.comparisons
    assert not report.went_well
    assert comparison.through.problem == "connection refused"
    assert comparison.differences == (
        f"{comparison.direct[0].title}: went well; {comparison.through.title}: connection refused",
    )


def test_a_dripping_server_runs_out_of_time():
    async def make(stack):
        async def drip(reader, writer):
            while not reader.at_eof():
                writer.write(b"2")
                await writer.drain()
                await asyncio.sleep(0.005)

        endpoint = await line_server(stack, drip)
        return service(endpoint, endpoint)

    report = report_of(make, timeout_s=0.2)
    assert report.comparisons[0].through.problem.startswith("banner not complete within 0.2 s, so far '22")


def test_nothing_is_said_after_a_handshake_that_failed():
    async def make(stack):
        async def handle(reader, writer):
            writer.write(b"220 mx\r\n")
            await reader.readline()
            writer.write(b"250-mx\r\n250 STARTTLS\r\n")
            await reader.readline()
            writer.write(b"220 go\r\n")
            await reader.read(5)
            writer.write(b"this is no TLS\r\n")
            await reader.read()
            writer.close()

        endpoint = await line_server(stack, handle)
        return service(endpoint, endpoint)

    through = report_of(make).comparisons[0].through
    assert through.problem == "the server answers the TLS handshake with something that is not TLS"
    assert said(through) == ["EHLO mailbalancer.invalid", "STARTTLS"]


def test_the_proxy_header_is_sent_where_it_is_wanted():
    first_bytes: dict[str, bytes] = {}

    async def make(stack):
        def keep(name):
            async def handle(reader, writer):
                first_bytes[name] = await reader.read(100)
                writer.write(b"421 4.3.2 away\r\n")
                writer.close()

            return handle

        front, real = await line_server(stack, keep("front")), await line_server(stack, keep("real"))
        return service(front, real, proxy_protocol=ProxyProtocol(accept_from=(LOOPBACK,), send="v1"))

    report = report_of(make)
    assert first_bytes["real"].startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 "), "Postfix refuses PROXY UNKNOWN"
    assert first_bytes["front"].startswith(b"\r\n\r\n\0\r\nQUIT\n")
    assert report.comparisons[0].direct[0].problem == "in maintenance: banner was '421 4.3.2 away'"


def test_no_header_for_a_service_that_wants_none():
    async def make(stack):
        endpoint = await mail_server(stack, "ex1")
        return service(
            endpoint, endpoint, proxy_protocol=ProxyProtocol(accept_from=(ipaddress.ip_network("10.0.0.0/8"),))
        )

    assert report_of(make).went_well


def test_more_real_servers_than_the_limit():
    async def make(stack):
        endpoint = await mail_server(stack, "ex1")
        return service(endpoint, endpoint, endpoint, endpoint)

    report = report_of(make, limit=1)
    assert (len(report.comparisons[0].direct), report.comparisons[0].left_out) == (1, 2)
    assert "2 more real servers were not asked" in render(report)


def test_any_protocol_that_greets_and_one_that_waits(monkeypatch):
    monkeypatch.setattr("mailbalancer.control.smoke.GREETING_S", 0.05)

    async def make(stack):
        async def greet(reader, writer):
            writer.write(b"I am rpc1\r\n")
            await reader.read()
            writer.close()

        async def wait(reader, writer):
            await reader.read()
            writer.close()

        return service(await line_server(stack, greet), await line_server(stack, wait), check=Check())

    report = report_of(make)
    (comparison,) = report.comparisons
    assert report.went_well
    assert comparison.through.facts["greeting"] == "I am rpc1"
    assert comparison.direct[0].facts["greeting"] == "the server waits for the client to speak"
    assert len(comparison.differences) == 1


@pytest.mark.parametrize(
    ("options", "greeting", "answers", "asked"),
    [
        (
            ImapCheck(),
            b"* OK hi\r\n",
            [b"* CAPABILITY IMAP4rev1\r\na OK\r\n", b"* BYE\r\n"],
            ["a CAPABILITY", "z LOGOUT"],
        ),
        (Pop3Check(), b"+OK <1.2@mx>\r\n", [b"+OK\r\nUSER\r\n.\r\n", b"+OK bye\r\n"], ["CAPA", "QUIT"]),
    ],
)
def test_other_mail_protocols(options, greeting, answers, asked):
    async def make(stack):
        async def handle(reader, writer):
            writer.write(greeting)
            for answer in answers:
                await reader.readline()
                writer.write(answer)
            writer.close()

        endpoint = await line_server(stack, handle)
        return service(endpoint, endpoint, check=Check(options=options))

    report = report_of(make)
    (comparison,) = report.comparisons
    assert report.went_well
    assert said(comparison.through) == asked
    assert comparison.differences == ()
    assert comparison.through.facts["capabilities"] in ("IMAP4rev1", "USER")


def test_http_shows_status_and_headers():
    async def make(stack):
        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /owa\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        endpoint = await line_server(stack, handle)
        return service(endpoint, endpoint, check=Check(options=HttpCheck(path="/x")))

    report = report_of(make)
    through = report.comparisons[0].through
    assert through.problem == "status 302 Found (redirects to /owa), expected 200"
    assert through.facts["status"] == "302"
    assert "GET /x HTTP/1.1" in said(through)
    assert "Location: /owa" in [line.text for line in through.lines]


def test_each_route_is_asked_with_its_own_name(tmp_path):
    names: list[str] = []
    tls = context_for(tmp_path, "mail.example.com")
    tls.sni_callback = lambda _socket, name, _context: names.append(name)

    async def make(stack):
        async def handle(reader, writer):
            await reader.read()
            writer.close()

        endpoint = await line_server(stack, handle, ssl=tls)
        pools = [Pool("web", route, (Member("ex1", endpoint),)) for route in ("", "owa", "any")]
        routes = (Route("owa", ("owa.example.com",), pools[1]), Route("any", ("*.example.org",), pools[2]))
        return Service("web", Mode.TLS, (endpoint,), pools[0], routes)

    report = report_of(make)
    assert [each.route for each in report.comparisons] == ["", "owa", "any"]
    assert names == [None, None, "owa.example.com", "owa.example.com", "smoke.example.org", "smoke.example.org"]
    assert report.went_well
    assert "web, route owa: tls conversation" in render(report)


# ---------------------------------------------------------------- choosing, without a network


@pytest.mark.parametrize(
    ("port", "options"),
    [
        (25, SmtpCheck()),
        (587, SmtpCheck()),
        (2525, SmtpCheck()),
        (465, SmtpCheck(tls=True)),
        (110, Pop3Check()),
        (995, Pop3Check(tls=True)),
        (143, ImapCheck()),
        (993, ImapCheck(tls=True)),
        (443, TlsCheck()),
        (8443, TlsCheck()),
        (53, DnsCheck()),
        (59531, TcpCheck()),
    ],
)
def test_conversation_by_well_known_port(port, options):
    ours, others = Endpoint("127.0.0.1", port), Endpoint("127.0.0.1", 50000)
    for chosen in (service(ours, others, check=Check()), service(others, ours, check=Check())):
        assert options_for(chosen, chosen.pool) == options


def test_the_check_decides_unless_it_asks_another_port():
    front = Endpoint("127.0.0.1", 25)
    http = HttpCheck(path="/up")
    asked = service(front, front, check=Check(options=http))
    assert options_for(asked, asked.pool) == http
    asked = service(front, front, check=Check(options=http, port=8080))
    assert options_for(asked, asked.pool) == SmtpCheck()


def test_wildcards_are_dialled_on_loopback():
    assert dialled(Endpoint("0.0.0.0", 25)) == Endpoint("127.0.0.1", 25)
    assert dialled(Endpoint("::", 25)) == Endpoint("::1", 25)
    assert dialled(Endpoint("10.0.1.100", 25)) == Endpoint("10.0.1.100", 25)


def test_a_service_without_routes_keeps_the_name_of_its_check():
    alone = service(Endpoint("127.0.0.1", 25))
    assert server_name(alone, alone.pool) == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "220 EX1 Microsoft ESMTP MAIL Service ready at Tue, 4 Jun 2024 10:00:00 +0200",
            "220 EX1 Microsoft ESMTP MAIL Service ready at Wed, 15 Jan 2025 23:59:59 +0100",
        ),
        ("+OK ready <1896.697170952@mx>", "+OK ready <22.5@mx>"),
    ],
)
def test_what_changes_every_minute_is_no_difference(one, other):
    assert lasting(one) == lasting(other)
    assert lasting(one) != lasting(other.replace("EX1", "EX2").replace("ready", "steady"))


def test_rendering_is_plain_and_fits(tmp_path):
    async def make(stack):
        first = await mail_server(stack, "x" * 150, tls_context=context_for(tmp_path, "mail.example.com"))
        second = await mail_server(stack, "ex2")
        return service(first, first, second)

    text = render(report_of(make))
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    assert "\x1b" not in text
    assert lines[0] == "mail: smtp conversation"
    assert [line.count("> QUIT") for line in lines if "QUIT" in line] == [2, 2]
    assert "Differences:" in lines
    assert any(line.startswith("  - ex2 127.0.0.1:") for line in lines)
