from __future__ import annotations

import asyncio
import re

import pytest
from aiosmtpd.smtp import SMTP

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, Endpoint, SmtpCheck, Verify

PLAIN = SmtpCheck()
BANNER = b"220-mail.example.com ESMTP\r\n220 welcome\r\n"
ANSWERS = {
    "EHLO": b"250-mail.example.com\r\n250-SIZE 37748736\r\n250 STARTTLS\r\n",
    "STARTTLS": b"220 2.0.0 ready\r\n",
    "MAIL": b"250 2.1.0 ok\r\n",
    "RCPT": b"250 2.1.5 ok\r\n",
    "RSET": b"250 2.0.0 ok\r\n",
    "QUIT": b"221 2.0.0 bye\r\n",
}
ENVELOPE = SmtpCheck(mail_from="<>", rcpt_to="postmaster@example.com")


def check(options: SmtpCheck = PLAIN, timeout_s: float = 10.0, proxy_header: str = "") -> Check:
    return Check(type="smtp", options=options, timeout_s=timeout_s, proxy_header=proxy_header)


def talk_to(peers, greeting=BANNER, answers=(), options=PLAIN, **more) -> tuple[Result, list[str]]:
    async def main():
        async with peers.script(greeting, {**ANSWERS, **dict(answers)}, **more) as server:
            result = await run_check(check(options), server.endpoint)
            await server.ended.wait()
            return result, server.lines

    return asyncio.run(main())


def test_banner_ehlo_quit(peers):
    result, lines = talk_to(peers)
    assert (result.verdict, result.reason) == (Verdict.UP, "banner and EHLO answered well")
    assert result.detail["banner"] == "220 mail.example.com ESMTP"
    assert lines == ["EHLO mailbalancer.invalid", "QUIT"]


def test_envelope_is_taken_back_before_data(peers):
    result, lines = talk_to(peers, options=ENVELOPE)
    assert result.verdict is Verdict.UP
    assert lines[1:] == ["MAIL FROM:<>", "RCPT TO:<postmaster@example.com>", "RSET", "QUIT"]


def test_real_server():
    class Nobody:
        async def handle_DATA(self, *_):
            raise AssertionError("a check never sends a message")

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(Nobody(), hostname="mx", loop=loop), "127.0.0.1", 0)
        async with server:
            endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
            return await run_check(check(ENVELOPE), endpoint)

    result = asyncio.run(main())
    assert (result.verdict, result.reason) == (Verdict.UP, "banner, EHLO and MAIL answered well")


@pytest.mark.parametrize("step", ["banner", "EHLO", "MAIL", "RCPT", "RSET"])
@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (b"421 4.3.2 Service not active\r\n", Verdict.MAINTENANCE),
        (b"421-4.3.2 Service\r\n421 4.3.2 not active\r\n", Verdict.MAINTENANCE),
        (b"452 4.3.1 Insufficient system resources\r\n", Verdict.BACK_PRESSURE),
        (b"421 4.4.2 Timed out\r\n", Verdict.DOWN),
        (b"452 4.2.2 Mailbox full\r\n", Verdict.DOWN),
        (b"421 4.3.20 other\r\n", Verdict.DOWN),
        (b"554 no\r\n", Verdict.DOWN),
    ],
)
def test_refusals_mean_what_exchange_means_and_quit_is_said(peers, step, reply, verdict):
    greeting = reply if step == "banner" else BANNER
    result, lines = talk_to(peers, greeting, {step: reply}, ENVELOPE)
    assert result.verdict is verdict
    what = "banner" if step == "banner" else f"answer to {step}"
    assert f"{what} was '{reply.decode()[:3]} " in result.reason
    assert lines[-1] == "QUIT"


def test_reason_has_the_servers_own_words_made_safe(peers):
    result, _ = talk_to(peers, b"554 no\x1b[31m \xe9\r\n")
    assert result.reason == "banner was '554 no\\x1b[31m \\xe9'"


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "banner is not SMTP: 'SSH-2.0-OpenSSH'"),
        (b"220-one\r\n250 two\r\n", "banner is not SMTP: '250 two'"),
        ("２20 x\r\n".encode(), "banner is not SMTP: '\\xef\\xbc\\x9220 x'"),
        (b"2200 x\r\n", "banner is not SMTP: '2200 x'"),
        (b"220-x\r\n" * 128, "banner has more than 128 lines"),
    ],
)
def test_what_is_not_smtp(peers, greeting, reason):
    result, _ = talk_to(peers, greeting)
    assert (result.verdict, result.reason) == (Verdict.DOWN, reason)


def test_starttls_verified(peers, authority):
    pair = authority.issue("mail.example.com")
    options = SmtpCheck(starttls=True, verify=Verify("ca", ca_file=str(authority.path), name="mail.example.com"))
    result, lines = talk_to(peers, options=options, upgrade=pair)
    assert (result.verdict, result.reason) == (Verdict.UP, "banner, EHLO and STARTTLS answered well")
    assert result.detail["cert_days"] == 90
    assert lines == ["EHLO mailbalancer.invalid", "STARTTLS", "(TLS)", "EHLO mailbalancer.invalid", "QUIT"]


def test_starttls_with_a_wrong_name_is_explained(peers, authority):
    pair = authority.issue("mail2.example.com")
    options = SmtpCheck(starttls=True, verify=Verify("ca", ca_file=str(authority.path), name="mail.example.com"))
    result, lines = talk_to(peers, options=options, upgrade=pair)
    assert result.verdict is Verdict.DOWN
    assert result.reason == "certificate is for mail2.example.com, expected mail.example.com"
    assert "EHLO" not in lines[-1]  # nothing is said inside TLS that was refused, but QUIT


def test_starttls_not_offered(peers):
    result, lines = talk_to(peers, answers={"EHLO": b"250-x\r\n250 SIZE 1\r\n"}, options=SmtpCheck(starttls=True))
    assert (result.verdict, result.reason) == (Verdict.DOWN, "STARTTLS is not offered, only SIZE 1")
    assert lines[-1] == "QUIT"


def test_starttls_injection_is_refused(peers, authority):
    answers = {"STARTTLS": b"220 ready\r\n250 injected\r\n"}
    options = SmtpCheck(starttls=True, verify=Verify("none"))
    result, _ = talk_to(peers, answers=answers, options=options, upgrade=authority.issue("x"))
    assert result.verdict is Verdict.DOWN
    assert result.reason == "plain text followed the consent to TLS, before the handshake: '250 injected'"


def test_starttls_then_plain_text_instead_of_a_handshake(peers):
    async def main():
        async def handle(reader, writer):
            writer.write(BANNER)
            for _ in range(2):
                line = await reader.readline()
                writer.write(ANSWERS[line.decode().split()[0]])
            await reader.read(5)  # the ClientHello has begun
            writer.write(b"220 now you are on your own\r\n")
            await reader.read()

        async with peers.serve(handle) as endpoint:
            return await run_check(check(SmtpCheck(starttls=True, verify=Verify("none"))), endpoint)

    result = asyncio.run(main())
    assert (result.verdict, result.reason) == (
        Verdict.DOWN,
        "the server answers the TLS handshake with something that is not TLS",
    )


def test_implicit_tls(peers, authority):
    pair = authority.issue("127.0.0.1")
    options = SmtpCheck(tls=True, verify=Verify("ca", ca_file=str(authority.path)))
    result, lines = talk_to(peers, options=options, tls=pair)
    assert result.verdict is Verdict.UP
    assert lines == ["EHLO mailbalancer.invalid", "QUIT"]


@pytest.mark.parametrize(
    ("version", "ends", "first"),
    [
        # Postfix refuses PROXY UNKNOWN, so the check is a client like others
        ("v1", b"\n", rb"PROXY TCP4 127\.0\.0\.1 127\.0\.0\.1 [0-9]+ [0-9]+\r\n"),
        ("v2", b"\x20\0\0\0", rb"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
    ],
)
def test_proxy_header_comes_first(peers, version, ends, first):
    seen = bytearray()

    async def main():
        async def handle(reader, writer):
            seen.extend(await reader.readuntil(ends))
            writer.write(BANNER + b"".join(ANSWERS[word] for word in ("EHLO", "QUIT")))
            await reader.read()

        async with peers.serve(handle) as endpoint:
            return await run_check(check(proxy_header=version), endpoint)

    assert asyncio.run(main()).verdict is Verdict.UP
    assert re.fullmatch(first, seen)


def test_dripping_banner_runs_out_of_time(peers, dripping):
    async def main():
        async with peers.serve(dripping(b"220 sl")) as endpoint:
            return await run_check(check(timeout_s=0.2), endpoint)

    result = asyncio.run(main())
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("banner not complete within 0.2 s, so far '220 slx")


def test_endless_lines_run_out_of_lines_or_time(peers):
    async def main():
        async def handle(reader, writer):
            while True:
                writer.write(b"220-and\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)

        async with peers.serve(handle) as endpoint:
            return await run_check(check(timeout_s=0.2), endpoint)

    assert asyncio.run(main()).reason == "no rest of the banner within 0.2 s"


def test_quit_is_said_after_a_timeout(peers):
    heard = []

    async def main():
        over = asyncio.Event()

        async def handle(reader, writer):
            writer.write(BANNER)
            while line := await reader.readline():
                heard.append(line)
            over.set()

        async with peers.serve(handle) as endpoint:
            result = await run_check(check(timeout_s=0.2), endpoint)
            await over.wait()
            return result

    assert asyncio.run(main()).reason == "no answer to EHLO within 0.2 s"
    assert heard == [b"EHLO mailbalancer.invalid\r\n", b"QUIT\r\n"]


def test_a_name_that_would_be_two_commands_is_not_sent(peers):
    result, lines = talk_to(peers, options=SmtpCheck(helo="x\r\nMAIL FROM:<>"))
    assert result.verdict is Verdict.DOWN
    assert "only printable ASCII" in result.reason
    assert lines == ["QUIT"]
