from __future__ import annotations

import ipaddress
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire import client_hello
from mailbalancer.wire.client_hello import BadClientHello, ClientHello
from tests.wire.feeding import feed, outcome

V12, V13 = 0x0303, 0x0304


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes((kind,)) + vector(2, name)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def versions(*numbers: int) -> bytes:
    return extension(43, vector(1, b"".join(n.to_bytes(2, "big") for n in numbers)))


def body(
    extensions: bytes | None = b"",
    version: int = V12,
    session_id: bytes = b"",
    suites: bytes = b"\x13\x01\xc0\x2f",
    compression: bytes = b"\0",
) -> bytes:
    fixed = version.to_bytes(2, "big") + bytes(32) + vector(1, session_id) + vector(2, suites) + vector(1, compression)
    return fixed if extensions is None else fixed + vector(2, extensions)


def wire(content: bytes, *cuts: int, extra: bytes = b"") -> bytes:
    """The hello in records cut at `cuts`; `extra` follows it inside the last record."""
    whole = b"\x01" + vector(3, content) + extra
    ends = [*cuts, len(whole)]
    return b"".join(b"\x16\x03\x01" + vector(2, whole[a:b]) for a, b in zip([0, *cuts], ends, strict=True))


GOOD = [
    ("no extensions at all", wire(body(None, version=0x0301)), ClientHello("", b"", (), (0x0301,), 0)),
    ("empty extensions", wire(body()), ClientHello("", b"", (), (V12,), 0)),
    ("name", wire(body(sni(b"Mail.Example.COM"))), ClientHello("mail.example.com", b"", (), (V12,), 0)),
    ("one label", wire(body(sni(b"ex1"))), ClientHello("ex1", b"", (), (V12,), 0)),
    ("underscore", wire(body(sni(b"_mta-sts.ex_1.example"))), ClientHello("_mta-sts.ex_1.example", b"", (), (V12,), 0)),
    ("IPv4 literal", wire(body(sni(b"192.0.2.1"))), ClientHello("", b"", (), (V12,), 0)),
    ("IPv6 literal", wire(body(sni(b"2001:DB8::1"))), ClientHello("", b"", (), (V12,), 0)),
    ("IPv6 in brackets", wire(body(sni(b"[::1]"))), ClientHello("", b"", (), (V12,), 0)),
    ("longest name", wire(body(sni(b"a." * 126 + b"b"))), ClientHello("a." * 126 + "b", b"", (), (V12,), 0)),
    ("session id", wire(body(session_id=b"s" * 32)), ClientHello("", b"s" * 32, (), (V12,), 0)),
    (
        "all with GREASE",
        wire(
            body(
                extension(0x1A1A, b"")
                + alpn(b"\x0a\x0a", b"h2", b"http/1.1")
                + versions(0xFAFA, V13, V12)
                + sni(b"a.b")
                + extension(0xAAAA, b"\0"),
                suites=b"\x3a\x3a\x13\x01",
            )
        ),
        ClientHello("a.b", b"", ("h2", "http/1.1"), (V13, V12), 0),
    ),
    ("cut in every header", wire(body(sni(b"a.b")), 1, 3, 5, 40, 60), ClientHello("a.b", b"", (), (V12,), 0)),
]


def named(text: bytes) -> bytes:
    return wire(body(sni(text)))


BAD = [
    ("SSL 2.0", b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10", "SSL 2.0"),
    ("HTTP", b"GET / HTTP/1.1\r\n\r\n", "plain-text"),
    ("server hello", b"\x16\x03\x03\x00\x04\x02\x00\x00\x00", "message type 2"),
    ("SSL 3.0", wire(body(version=0x0300)), "0x0300"),
    ("version 4", wire(body(version=0x0401)), "0x0401"),
    ("something behind", wire(body(), extra=b"\x0b"), "follows the ClientHello"),
    ("empty body", wire(b""), "beyond its end"),
    ("session id too long", wire(body(session_id=b"s" * 33)), "session id of 33"),
    ("odd suites", wire(body(suites=b"\x13\x01\xc0")), "cipher suites"),
    ("no suites", wire(body(suites=b"")), "cipher suites"),
    ("no compression", wire(body(compression=b"")), "compression"),
    ("bytes after the extensions", wire(body() + b"!"), "1 bytes too many"),
    ("extension cut", wire(body(sni(b"a.b")[:-1])), "beyond"),
    ("SNI twice", wire(body(sni(b"a.b") + sni(b"a.b"))), "there twice"),
    ("unknown twice", wire(body(extension(99, b"") * 2)), "there twice"),
    ("SNI empty", wire(body(extension(0, b""))), "SNI"),
    ("SNI empty list", wire(body(extension(0, vector(2, b"")))), "SNI"),
    ("SNI two names", wire(body(extension(0, vector(2, (b"\0" + vector(2, b"a.b")) * 2)))), "too many"),
    ("SNI trailing bytes", wire(body(extension(0, vector(2, b"\0" + vector(2, b"a.b")) + b"x"))), "too many"),
    ("SNI other kind", wire(body(sni(b"a.b", kind=1))), "type 1"),
    ("ALPN empty name", wire(body(alpn(b"h2", b""))), "empty protocol"),
    ("ALPN trailing", wire(body(extension(16, vector(2, vector(1, b"h2")) + b"x"))), "too many"),
    ("versions odd", wire(body(extension(43, vector(1, b"\x03\x04\x03")))), "supported_versions"),
    ("versions empty", wire(body(extension(43, vector(1, b"")))), "supported_versions"),
    ("versions trailing", wire(body(extension(43, vector(1, b"\x03\x04") + b"x"))), "too many"),
    *[
        (f"SNI {name[:20]!r}", named(name), "not a host name")
        for name in (
            b"",
            b".",
            b"mail.example.com.",
            b".example.com",
            b"a..b",
            b"a b",
            b"a.b\0.evil",
            b"m\xc3\xbcller.example",
            b"\xe2\x84\xaa.example",
            b"-a.b",
            b"a-.b",
            b"*.example.com",
            b"a/b",
            b"a.b\n",
            b"a.b\r\n",
            b"x" * 64 + b".b",
            b"a." * 127,
            b"a." * 126 + b"bc",
            b"a:b.c",
        )
    ],
]


@pytest.mark.parametrize(("data", "expected"), [c[1:] for c in GOOD], ids=[c[0] for c in GOOD])
def test_reads(data, expected):
    found = feed(client_hello.parse, data, BadClientHello)
    assert found == ClientHello(expected.sni, expected.session_id, expected.alpn, expected.versions, len(data))


@pytest.mark.parametrize(("data", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_refuses(data, words):
    with pytest.raises(BadClientHello, match=words):
        feed(client_hello.parse, data, BadClientHello)


@pytest.mark.parametrize(
    ("newest", "offered"),
    [(ssl.TLSVersion.TLSv1_2, (V12,)), (ssl.TLSVersion.TLSv1_3, (V13, V12))],
)
def test_what_openssl_sends(newest, offered):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = newest
    context.set_alpn_protocols(["h2", "http/1.1"])
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="OWA.example.com")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    data = outgoing.read()
    found = feed(client_hello.parse, data, BadClientHello)
    assert (found.sni, found.alpn, found.versions, found.length) == (
        "owa.example.com",
        ("h2", "http/1.1"),
        offered,
        len(data),
    )


labels = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,10}[A-Za-z0-9_])?", fullmatch=True)


@given(
    st.lists(labels, min_size=1, max_size=5).map(".".join),
    st.binary(max_size=32),
    st.lists(st.integers(1, 150), max_size=5),
)
def test_every_host_name_comes_back_in_small_letters(name, session, cuts):
    content = body(sni(name.encode()) + versions(V13), session_id=session)
    found = client_hello.parse(wire(content, *sorted({cut for cut in cuts if cut < len(content)})))
    assert found is not None
    try:
        expected = "" if ipaddress.ip_address(name) else name
    except ValueError:
        expected = name.lower()
    assert (found.sni, found.session_id) == (expected, session)


GOOD_WIRE = GOOD[-2][1]


@given(st.one_of(st.binary(max_size=80).map(lambda b: wire(body(b))), st.binary(max_size=80).map(wire)))
def test_any_body_is_read_or_refused(data):
    assert outcome(client_hello.parse, data, BadClientHello) is not None


@given(st.integers(0, len(GOOD_WIRE) - 1), st.binary(min_size=1, max_size=3), st.integers(0, 3))
def test_a_damaged_hello_gives_one_answer_at_any_split(place, noise, removed):
    data = GOOD_WIRE[:place] + noise + GOOD_WIRE[place + removed :]
    whole = outcome(client_hello.parse, data, BadClientHello)
    for cut in range(len(data)):
        assert outcome(client_hello.parse, data[:cut], BadClientHello) in (None, whole)
