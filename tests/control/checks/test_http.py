from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, Endpoint, HttpCheck, Verify

PLAIN = HttpCheck()
HEALTHCHECK = b"HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n200 OK<br/>EX1.example.com\n"


def answered(peers, answer, options=PLAIN, **more):
    """The result, and the request as the server saw it."""
    seen = []

    async def main():
        async def handle(reader, writer):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if more.get("hold"):
                await reader.read()

        async with peers.serve(handle, tls=more.get("tls")) as endpoint:
            return await run_check(Check(type="http", options=options, timeout_s=10), endpoint)

    result = asyncio.run(main())
    return result, seen[0].decode().split("\r\n") if seen else []


def test_request_is_exactly_as_configured(peers):
    options = HttpCheck(path="/owa/healthcheck.htm?a=%2F%20b/../c", host="mail.example.com")
    result, request = answered(peers, HEALTHCHECK, options)
    assert (result.verdict, result.reason, result.detail["status"]) == (Verdict.UP, "status 200 OK", 200)
    assert request[0] == "GET /owa/healthcheck.htm?a=%2F%20b/../c HTTP/1.1"
    assert "Host: mail.example.com" in request
    assert "Connection: close" in request


def test_host_is_the_address_when_none_is_configured(peers):
    _, request = answered(peers, HEALTHCHECK)
    assert any(line.startswith("Host: 127.0.0.1:") for line in request)


def test_a_whole_answer_on_a_connection_left_open(peers):
    assert answered(peers, HEALTHCHECK, hold=True)[0].verdict is Verdict.UP


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503 Service Unavailable, expected 200 or 204"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/owa\r\nContent-Length: 0\r\n\r\n",
            "status 302 Found (redirects to https://127.0.0.1:1/owa), expected 200 or 204",
        ),
        (b"220 mail ESMTP\r\n\r\n", "the answer is not valid HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "the answer is not valid HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "the answer is not valid HTTP: "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "the answer is not valid HTTP: "),
        (b"HTTP/1.1 200 OK\r\nX: ", "connection closed by the server, no answer to GET /"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "connection closed by the server, no answer to GET /"),
    ],
)
def test_answers_that_are_down(peers, answer, reason):
    result, _ = answered(peers, answer, HttpCheck(statuses=(200, 204)))
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith(reason)


@pytest.mark.parametrize(
    "answer",
    [
        HEALTHCHECK,
        b"HTTP/1.0 200 OK\r\n\r\nEX1.example.com",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEALTHCHECK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nEX1.e\r\nb\r\nxample.com\n\r\n0\r\n\r\n",
    ],
)
def test_body_pattern(peers, answer):
    assert answered(peers, answer, HttpCheck(body=r"EX[0-9]\.example\.com"))[0].verdict is Verdict.UP
    result, _ = answered(peers, answer, HttpCheck(body="EX2"))
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("'EX2' is not in the body, which starts '")


@pytest.mark.parametrize(("at", "verdict"), [(65536 - 5, Verdict.UP), (65536 - 4, Verdict.DOWN)])
def test_the_first_64_kib_of_the_body_are_searched(peers, at, verdict):
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * at + b"HELLO" + b"x" * 200_000
    assert answered(peers, answer, HttpCheck(body="HELLO"))[0].verdict is verdict


@pytest.mark.parametrize(
    "options",
    [HttpCheck(path="/a b"), HttpCheck(path="/\r\nX: y"), HttpCheck(host="a\r\nX: y"), HttpCheck(method="G T")],
)
def test_a_request_that_would_be_another_one_is_not_sent(peers, options):
    result, request = answered(peers, HEALTHCHECK, options)
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("the request cannot be sent: ")
    assert request == []


def test_a_pattern_that_is_none(peers):
    assert "is not a regular expression" in answered(peers, HEALTHCHECK, HttpCheck(body="("))[0].reason


def test_https(peers, authority):
    verify = Verify("ca", ca_file=str(authority.path), name="mail.example.com")
    result, _ = answered(
        peers, HEALTHCHECK, HttpCheck(tls=True, verify=verify), tls=authority.issue("mail.example.com")
    )
    assert result.verdict is Verdict.UP


def test_a_real_web_server():
    async def main():
        async def page(request: web.Request) -> web.Response:
            return web.Response(text=f"you asked {request.host} for {request.path_qs}")

        app = web.Application()
        app.router.add_get("/{tail:.*}", page)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            endpoint = Endpoint("127.0.0.1", runner.addresses[0][1])
            options = HttpCheck(path="/owa?x=1", host="mail.example.com", body=r"mail\.example\.com for /owa\?x=1")
            return await run_check(Check(options=options, timeout_s=10), endpoint)
        finally:
            await runner.cleanup()

    assert asyncio.run(main()).reason == "status 200 OK"
