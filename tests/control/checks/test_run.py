"""The deadline, the certificates and the words, over every type of check."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct

import pytest

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks import conversation, run
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import (
    Check,
    DnsCheck,
    Endpoint,
    HttpCheck,
    ImapCheck,
    Pop3Check,
    SmtpCheck,
    TcpCheck,
    TlsCheck,
    Verify,
)

NAME = "mail.example.com"
EVERY_TYPE = {
    "tcp": TcpCheck(expect=b"hello"),
    "tls": TlsCheck(),
    "http": HttpCheck(),
    "https": HttpCheck(tls=True),
    "smtp": SmtpCheck(),
    "smtps": SmtpCheck(tls=True),
    "imap": ImapCheck(),
    "pop3": Pop3Check(),
    "dns": DnsCheck(protocol="tcp"),
}


def run_against(peers, handler, options, timeout_s=10.0, **more):
    async def main():
        async with peers.serve(handler, **more) as endpoint:
            return await run_check(Check(options=options, timeout_s=timeout_s), endpoint)

    return asyncio.run(main())


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_connection_refused(refused, name):
    result = asyncio.run(run_check(Check(options=EVERY_TYPE[name]), refused))
    assert (result.verdict, result.reason) == (Verdict.DOWN, "connection refused")


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_a_silent_server_runs_out_of_time(peers, silent, name):
    result = run_against(peers, silent, EVERY_TYPE[name], timeout_s=0.2)
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("no ")
    assert result.reason.endswith(" within 0.2 s")


#: Beginnings after which a server may go on for ever without breaking a rule of the protocol.
DRIPS = {
    "tcp": (TcpCheck(expect=b"hello"), b"hell"),
    "tls": (TlsCheck(), b"\x16\x03\x03\x3f\xff"),  # a record of 16 KiB
    "http head": (HttpCheck(), b"HTTP/1.1 200 OK\r\nX: "),
    "http body": (HttpCheck(), b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"),
    "smtp": (SmtpCheck(), b"220 "),
    "imap": (ImapCheck(), b"* OK "),
    "pop3": (Pop3Check(), b"+OK "),
    "dns": (DnsCheck(protocol="tcp"), b"\xff\xff"),
}


@pytest.mark.parametrize("name", DRIPS)
def test_a_dripping_server_runs_out_of_time(peers, dripping, name):
    options, start = DRIPS[name]
    result = run_against(peers, dripping(start), options, timeout_s=0.2)
    assert result.verdict is Verdict.DOWN
    assert " within 0.2 s" in result.reason


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_a_server_that_closes_at_once(peers, name):
    async def close(reader, writer):
        writer.close()

    result = run_against(peers, close, EVERY_TYPE[name])
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith(("connection ", "'hello' expected, the answer was ''"))


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_a_server_that_resets(peers, name):
    async def reset(reader, writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    result = run_against(peers, reset, EVERY_TYPE[name])
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith(("connection reset by the server", "connection closed by the server"))


def test_half_a_banner_then_end(peers):
    async def half(reader, writer):
        writer.write(b"220 ma")

    result = run_against(peers, half, SmtpCheck())
    assert result.reason == "connection closed in the middle of the banner, so far '220 ma'"


def test_a_line_without_end(peers):
    async def flood(reader, writer):
        writer.write(b"x" * 100_000)
        await reader.read()

    result = run_against(peers, flood, Pop3Check())
    assert result.reason.startswith("greeting has a line of more than 4096 bytes: 'xxx")


def test_ipv6(peers):
    async def greet(reader, writer):
        writer.write(b"hello")
        await reader.read()

    assert run_against(peers, greet, TcpCheck(expect=b"hello"), host="::1").verdict is Verdict.UP


def test_another_port_than_the_members(peers, silent):
    async def main():
        async with peers.serve(silent) as endpoint:
            return await run_check(Check(port=endpoint.port), Endpoint(endpoint.host, 1))

    assert asyncio.run(main()).verdict is Verdict.UP


def test_type_none_asks_nobody(refused):
    assert asyncio.run(run_check(Check(type="none"), refused)).verdict is Verdict.UP


def test_out_of_descriptors_is_told_apart_from_a_dead_server(refused, monkeypatch):
    def no_more(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    async def patched():  # the loop has its own sockets by now
        monkeypatch.setattr(conversation.socket, "socket", no_more)
        try:
            return await run_check(Check(), refused)
        finally:
            monkeypatch.undo()

    result = asyncio.run(patched())
    assert (result.reason, result.detail["fault"]) == ("Too many open files", "balancer")


def test_a_bug_in_a_conversation_is_a_reason_and_no_crash(refused, monkeypatch):
    async def broken(options, talk):
        raise KeyError("oops")

    monkeypatch.setitem(run._CONVERSATIONS, TcpCheck, broken)
    result = asyncio.run(run_check(Check(), refused))
    assert (result.verdict, result.reason) == (Verdict.DOWN, "the check itself failed: KeyError: 'oops'")


def test_cancelling_closes_the_connection(peers):
    async def main():
        connected, gone = asyncio.Event(), asyncio.Event()

        async def watch(reader, writer):
            connected.set()
            await reader.read()
            gone.set()

        async with peers.serve(watch) as endpoint:
            task = asyncio.create_task(run_check(Check(options=SmtpCheck(), timeout_s=60), endpoint))
            await connected.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await gone.wait()

    asyncio.run(main())


# ---------------------------------------------------------------- certificates


def judge(peers, silent, pair, verify, warn_days=14):
    return run_against(peers, silent, TlsCheck(verify, warn_days), tls=pair)


def ca(authority, name=NAME):
    return Verify("ca", ca_file=str(authority.path), name=name)


def test_good_certificate(peers, silent, authority):
    pair = authority.issue(NAME)
    result = judge(peers, silent, pair, ca(authority))
    assert (result.verdict, result.reason) == (Verdict.UP, f"TLS handshake done, certificate for {NAME}")
    assert result.detail["cert_days"] == 90
    assert result.detail["cert_sha256"] == pair.sha256


def test_the_address_is_expected_when_no_name_is(peers, silent, authority):
    assert judge(peers, silent, authority.issue("127.0.0.1"), ca(authority, "")).verdict is Verdict.UP
    result = judge(peers, silent, authority.issue(NAME, "10.0.0.1"), ca(authority, ""))
    assert result.reason == f"certificate is for {NAME}, 10.0.0.1, expected 127.0.0.1"


def test_the_systems_authorities_are_used_for_full(peers, silent, authority, monkeypatch):
    pair = authority.issue(NAME)
    result = judge(peers, silent, pair, Verify("full", name=NAME))
    assert result.reason == (
        f"certificate of {NAME} is issued by Test Authority, an authority that the system does not trust"
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    assert judge(peers, silent, pair, Verify("full", name=NAME)).verdict is Verdict.UP


def test_warned_before_it_expires(peers, silent, authority):
    pair = authority.issue(NAME, to_days=5.5)
    result = judge(peers, silent, pair, ca(authority))
    assert result.verdict is Verdict.UP
    assert result.reason.endswith("; certificate expires in 5 days")
    assert "expires" not in judge(peers, silent, pair, ca(authority), warn_days=5).reason


def test_expired_is_down(peers, silent, authority):
    result = judge(peers, silent, authority.issue(NAME, to_days=-3.5), ca(authority))
    assert (result.verdict, result.reason) == (Verdict.DOWN, "certificate expired 3 days ago")


@pytest.mark.parametrize("kind", ["pin", "none"])
def test_expired_is_only_told_where_dates_are_not_verified(peers, silent, authority, kind):
    """As sessions do it: a pin states that exactly this certificate is right."""
    pair = authority.issue(NAME, to_days=-3.5)
    result = judge(peers, silent, pair, Verify(kind, pin_sha256=pair.sha256 if kind == "pin" else ""))
    assert result.verdict is Verdict.UP
    assert result.reason.endswith("; certificate expired 3 days ago")
    assert result.detail["cert_days"] == -4


def test_not_yet_valid(peers, silent, authority):
    result = judge(peers, silent, authority.issue(NAME, from_days=2), ca(authority))
    assert result.verdict is Verdict.DOWN
    assert result.reason.startswith("certificate is not valid before ")


def test_wrong_name(peers, silent, authority):
    result = judge(peers, silent, authority.issue("mail2.example.com"), ca(authority))
    assert result.reason == "certificate is for mail2.example.com, expected mail.example.com"


def test_many_names_are_cut_and_made_safe(peers, silent, authority):
    names = [f"host{number}.example.com" for number in range(9)]
    result = judge(peers, silent, authority.issue("a\x1b[31m", *names), ca(authority))
    assert result.reason.startswith("certificate is for a\\x1b[31m, host0.example.com")
    assert "and 6 more, expected" in result.reason


def test_self_signed(peers, silent, authority):
    pair = authority.issue(NAME, self_signed=True)
    result = judge(peers, silent, pair, ca(authority))
    assert result.verdict is Verdict.DOWN
    assert result.reason == f"certificate of {NAME} is self-signed; pin it (sha256 {pair.sha256}) to trust it"


def test_self_signed_named_as_its_own_authority(peers, silent, authority):
    pair = authority.issue(NAME, self_signed=True)
    assert judge(peers, silent, pair, Verify("ca", ca_file=str(pair.path), name=NAME)).verdict is Verdict.UP


def test_pin(peers, silent, authority):
    pair, other = authority.issue(NAME, self_signed=True), authority.issue(NAME)
    colons = ":".join(pair.sha256[at : at + 2].upper() for at in range(0, 64, 2))
    assert judge(peers, silent, pair, Verify("pin", pin_sha256=colons)).verdict is Verdict.UP
    result = judge(peers, silent, other, Verify("pin", pin_sha256=pair.sha256))
    assert result.verdict is Verdict.DOWN
    assert result.reason == (
        f"certificate is not the pinned one: its sha256 is {other.sha256}, pinned is {pair.sha256}"
    )


def test_authorities_that_cannot_be_read(peers, silent, authority, tmp_path):
    pair = authority.issue(NAME)
    missing, empty = tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.write_text("no certificate\n")
    for path in (missing, empty):
        result = judge(peers, silent, pair, Verify("ca", ca_file=str(path), name=NAME))
        assert result.verdict is Verdict.DOWN
        assert result.reason.startswith(f"{path} cannot be used to verify a certificate: ")


def test_a_renewed_file_of_authorities_is_read_again(peers, silent, authority, tmp_path):
    first = authority.issue(NAME, self_signed=True)
    path = tmp_path / "trusted.pem"
    path.write_bytes(first.path.read_bytes())
    verify = Verify("ca", ca_file=str(path), name=NAME)
    assert judge(peers, silent, first, verify).verdict is Verdict.UP
    second = authority.issue(NAME, self_signed=True)
    path.write_bytes(second.path.read_bytes())
    assert judge(peers, silent, second, verify).verdict is Verdict.UP
    assert judge(peers, silent, first, verify).verdict is Verdict.DOWN
