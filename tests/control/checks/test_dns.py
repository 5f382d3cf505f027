from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.health import Verdict
from mailbalancer.control.checks.conversation import Failed
from mailbalancer.control.checks.dns import NotOurs, decode, question
from mailbalancer.control.checks.run import run_check
from mailbalancer.model import Check, DnsCheck, Endpoint

PLAIN = DnsCheck(name="example.com")
ASKED = question("example.com", "MX")


def reply(query: bytes, rcode: int = 0, flags: int = 0x8180, questions: int = 1) -> bytes:
    """A bare answer to a query, as a server without records gives it."""
    counts = questions.to_bytes(2, "big") + bytes(6)
    return query[:2] + (flags | rcode).to_bytes(2, "big") + counts + (query[12:] if questions else b"")


def ask_udp(make, options=PLAIN, timeout_s=10.0):
    """The result against a UDP server that answers each query with the datagrams `make(query)`."""

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            for datagram in make(data):
                self.transport.sendto(datagram, address)

    async def main():
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Server, ("127.0.0.1", 0))
        try:
            endpoint = Endpoint("127.0.0.1", transport.get_extra_info("sockname")[1])
            return await run_check(Check(type="dns", options=options, timeout_s=timeout_s), endpoint)
        finally:
            transport.close()

    return asyncio.run(main())


def ask_tcp(peers, make):
    async def main():
        async def handle(reader, writer):
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            answer = make(query)
            for byte in len(answer).to_bytes(2, "big") + answer:
                writer.write(bytes((byte,)))
                await writer.drain()

        async with peers.serve(handle) as endpoint:
            options = DnsCheck(name="example.com", protocol="tcp")
            return await run_check(Check(type="dns", options=options, timeout_s=10), endpoint)

    return asyncio.run(main())


def test_question_bytes():
    assert question(".", "SOA") == b"\0\0\x06\0\x01"
    assert question("a.example.", "mx") == b"\x01a\x07example\0\0\x0f\0\x01"
    assert question("x", "TYPE65")[-4:] == b"\0\x41\0\x01"


@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 64, ".".join(["x" * 60] * 5), "ä.example"])
def test_names_that_cannot_be_asked_for(name):
    with pytest.raises(Failed, match="is not a name"):
        question(name, "A")


@pytest.mark.parametrize("record", ["ANYTHING", "TYPE", "TYPE65536", "TYPE１"])
def test_types_that_cannot_be_asked_for(record):
    with pytest.raises(Failed, match="is not a record type"):
        question("a", record)


def test_answer_over_udp():
    result = ask_udp(lambda query: [reply(query)])
    assert (result.verdict, result.reason) == (Verdict.UP, "SOA example.com: NOERROR, answers: 0")
    assert result.detail["rcode"] == "NOERROR"


def test_truncation_is_normal_over_udp():
    assert ask_udp(lambda query: [reply(query, flags=0x8380)]).verdict is Verdict.UP


def test_strangers_datagrams_are_passed_over():
    def make(query):
        other_id = bytes((query[0] ^ 1,)) + query[1:]
        other_name = query[:12] + question("example.org", "SOA")
        return [b"", b"x", query, reply(other_id), reply(other_name, 2), reply(query)]

    assert ask_udp(make).verdict is Verdict.UP


def test_only_strangers_datagrams():
    result = ask_udp(lambda query: [query], timeout_s=0.2)
    assert result.reason == "no answer over UDP within 0.2 s"


@pytest.mark.parametrize("questions", [0, 1])
@pytest.mark.parametrize(("rcode", "word"), [(2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED"), (9, "RCODE9")])
def test_rcodes(rcode, word, questions):
    result = ask_udp(lambda query: [reply(query, rcode, questions=questions)])
    assert (result.verdict, result.reason) == (Verdict.DOWN, f"answer was {word}, expected NOERROR")


def test_an_expected_refusal_is_up():
    options = DnsCheck(name="example.com", record="A", rcode="NXDOMAIN")
    assert ask_udp(lambda query: [reply(query, 3)], options).verdict is Verdict.UP


def test_nobody_listens_on_udp(refused):
    result = asyncio.run(run_check(Check(options=DnsCheck(), timeout_s=10), refused))
    assert (result.verdict, result.reason) == (Verdict.DOWN, "connection refused, no answer over UDP")


def test_answer_over_tcp_byte_by_byte(peers):
    assert ask_tcp(peers, reply).verdict is Verdict.UP


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda query: reply(query, flags=0x8380), "the answer is truncated, which cannot be over TCP"),
        (lambda query: query, "the message does not answer our question: other identifier, or no response"),
        (lambda query: b"", "a message of 0 bytes is too short for DNS"),
        (lambda query: reply(query)[:-1], "the message answers another question than ours"),
    ],
)
def test_answers_over_tcp_that_are_none(peers, make, reason):
    result = ask_tcp(peers, make)
    assert (result.verdict, result.reason) == (Verdict.DOWN, reason)


def test_case_of_the_name_does_not_matter():
    query = b"\x12\x34\x01\x00\x00\x01" + bytes(6) + ASKED
    assert decode(reply(query).replace(b"example", b"eXaMpLe"), 0x1234, ASKED) == (0x8180, 0)


@given(st.binary(max_size=600))
def test_any_bytes_are_an_answer_or_not_ours(data):
    try:
        flags, answers = decode(data, 0x1234, ASKED)
    except NotOurs:
        return
    assert data[:2] == b"\x12\x34"
    assert flags & 0x8000
    assert 0 <= answers < 65536
