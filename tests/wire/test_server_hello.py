from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire import server_hello
from tests.support.certs import Authority, Issued
from tests.wire.feeding import feed


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def body(session: bytes = b"s" * 32, extensions: bytes | None = b"", version: int = 0x0303) -> bytes:
    fixed = version.to_bytes(2, "big") + bytes(32) + vector(1, session) + b"\xc0\x2f\0"
    return fixed if extensions is None else fixed + vector(2, extensions)


def wire(content: bytes, kind: int = 2, extra: bytes = b"", cut: int = 0) -> bytes:
    whole = bytes((kind,)) + vector(3, content) + extra
    pieces = [whole[:cut], whole[cut:]] if cut else [whole]
    return b"".join(b"\x16\x03\x03" + vector(2, piece) for piece in pieces)


HELLO_DONE = b"\x0e\0\0\0"
CASES = [
    ("plain", wire(body()), b"s" * 32),
    ("no extensions", wire(body(extensions=None)), b"s" * 32),
    ("TLS 1.0", wire(body(version=0x0301)), b"s" * 32),
    ("short id", wire(body(b"x")), b"x"),
    ("in two records", wire(body(), cut=30), b"s" * 32),
    ("with the flight behind it in its record", wire(body(), extra=HELLO_DONE), b"s" * 32),
    ("empty", wire(body(b"")), b""),
    ("TLS 1.3", wire(body(extensions=extension(43, b"\x03\x04"))), b""),
    ("SSL 3.0", wire(body(version=0x0300)), b""),
    ("id too long", wire(body(b"s" * 33)), b""),
    ("extension twice", wire(body(extensions=extension(5, b"") * 2)), b""),
    ("trailing bytes in the message", wire(body() + b"!"), b""),
    ("cut message", wire(body()[:40]), b""),
    ("alert", b"\x15\x03\x03\x00\x02\x02\x28", b""),
    ("client hello", wire(body(), kind=1), b""),
    ("SMTP", b"220 mail.example.com ESMTP\r\n", b""),
]


@pytest.mark.parametrize(("data", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_reads(data, expected):
    assert feed(server_hello.session_id, data, ValueError) == expected


def test_needs_more():
    whole = wire(body())
    assert [server_hello.session_id(whole[:cut]) for cut in range(len(whole))] == [None] * len(whole)


@pytest.fixture(scope="module")
def issued(tmp_path_factory) -> Issued:
    return Authority(tmp_path_factory.mktemp("ca")).issue("mail.example.com")


def first_flight(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes:
    """What the server writes first, through memory, without a socket."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_side = client.wrap_bio(down, up, server_hostname="mail.example.com")
    server_side = server.wrap_bio(up, down, server_side=True)
    for side in (client_side, server_side):
        with pytest.raises(ssl.SSLWantReadError):
            side.do_handshake()
    return down.read()


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_openssl_tls_1_2_with_its_session_cache(issued):
    server, client = issued.server_context(), trusting()
    server.options |= ssl.OP_NO_TICKET
    client.options |= ssl.OP_NO_TICKET
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    found = feed(server_hello.session_id, first_flight(server, client), ValueError)
    assert len(found) == 32


def test_openssl_tls_1_2_with_tickets_has_no_id(issued):
    client = trusting()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert feed(server_hello.session_id, first_flight(issued.server_context(), client), ValueError) == b""


def test_openssl_tls_1_3_echoes_and_is_not_believed(issued):
    flight = first_flight(issued.server_context(), trusting())
    assert flight[43] == 32  # the echoed id is there
    assert feed(server_hello.session_id, flight, ValueError) == b""


def test_openssl_hello_retry_request(issued):
    server = issued.server_context()
    server.set_ecdh_curve("secp384r1")  # not the group a client sends its key share for
    flight = first_flight(server, trusting())
    assert flight[11:19] == bytes.fromhex("cf21ad74e59a6111")  # the random that marks it, RFC 8446 section 4.1.3
    assert feed(server_hello.session_id, flight, ValueError) == b""


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(wire)))
def test_never_raises(data):
    whole = server_hello.session_id(data)
    for cut in range(len(data)):
        assert server_hello.session_id(data[:cut]) in (None, whole)
