from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailbalancer.model import Endpoint
from mailbalancer.wire import proxy_header
from mailbalancer.wire.proxy_header import SIGNATURE_V2, BadProxyHeader, ProxyHeader
from tests.wire.feeding import feed, outcome

A4, B4 = Endpoint("192.0.2.7", 50123), Endpoint("198.51.100.9", 25)
A6, B6 = Endpoint("2001:db8::7", 50123), Endpoint("2001:db8:1::9", 25)
INET = ipaddress.IPv4Address(A4.host).packed + ipaddress.IPv4Address(B4.host).packed + b"\xc3\xcb\x00\x19"
INET6 = ipaddress.IPv6Address(A6.host).packed + ipaddress.IPv6Address(B6.host).packed + b"\xc3\xcb\x00\x19"
UNIX = b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")


def v2(codes: bytes, block: bytes, announced: int | None = None) -> bytes:
    return SIGNATURE_V2 + codes + (len(block) if announced is None else announced).to_bytes(2, "big") + block


def tlv(kind: int, value: bytes, announced: int | None = None) -> bytes:
    return bytes((kind,)) + (len(value) if announced is None else announced).to_bytes(2, "big") + value


def with_crc(codes: bytes, block: bytes, wrong: int = 0) -> bytes:
    """A header with a checksum in the middle of its TLVs, computed over itself with four zero bytes in its place."""
    before, after = block + b"\x03\x00\x04", tlv(0x04, b"pad") + tlv(0x02, b"mail.example.com")
    blank = v2(codes, before + bytes(4) + after)
    checksum = proxy_header.crc32c(blank) ^ wrong
    return v2(codes, before + checksum.to_bytes(4, "big") + after)


GOOD = [
    ("v1 tcp4", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25\r\n", A4, B4, False),
    ("v1 tcp6", b"PROXY TCP6 2001:db8::7 2001:DB8:1::9 50123 25\r\n", A6, B6, False),
    ("v1 tcp6 long", b"PROXY TCP6 2001:0db8:0:0:0:0:0:7 2001:db8:1::9 50123 25\r\n", A6, B6, False),
    ("v1 mapped", b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 50123 25\r\n", A4, B4, False),
    (
        "v1 edge ports",
        b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
        Endpoint("0.0.0.0", 0),
        Endpoint("255.255.255.255", 65535),
        False,
    ),
    ("v1 unknown", b"PROXY UNKNOWN\r\n", None, None, False),
    ("v1 unknown and more", b"PROXY UNKNOWN what ever 1 2\r\n", None, None, False),
    ("v1 longest", b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, None, False),
    ("v2 local", v2(b"\x20\x00", b""), None, None, True),
    ("v2 local with a block", v2(b"\x20\x11", INET), None, None, True),
    ("v2 local with half a block and odd codes", v2(b"\x20\xff", b"abc"), None, None, True),
    ("v2 tcp4", v2(b"\x21\x11", INET), A4, B4, False),
    ("v2 udp4", v2(b"\x21\x12", INET), A4, B4, False),
    ("v2 tcp6", v2(b"\x21\x21", INET6), A6, B6, False),
    ("v2 udp6", v2(b"\x21\x22", INET6), A6, B6, False),
    (
        "v2 mapped",
        v2(b"\x21\x21", bytes(10) + b"\xff\xff" + INET[:4] + bytes(10) + b"\xff\xff" + INET[4:]),
        A4,
        B4,
        False,
    ),
    ("v2 unix", v2(b"\x21\x31", UNIX), None, None, False),
    ("v2 unix dgram", v2(b"\x21\x32", UNIX + tlv(4, b"")), None, None, False),
    ("v2 unspec", v2(b"\x21\x00", b""), None, None, False),
    ("v2 unspec with a block", v2(b"\x21\x00", b"\x01\xff\xff"), None, None, False),
    (
        "v2 tlvs",
        v2(b"\x21\x11", INET + tlv(0xEA, b"vpce-0123") + tlv(0x20, b"\x01\0\0\0\0") + tlv(4, b"")),
        A4,
        B4,
        False,
    ),
    ("v2 largest", v2(b"\x21\x11", INET + tlv(0x28, b"c" * (4096 - 16 - 12 - 3))), A4, B4, False),
    ("v2 checksum", with_crc(b"\x21\x11", INET), A4, B4, False),
    ("v2 checksum ipv6", with_crc(b"\x21\x21", INET6), A6, B6, False),
]

BAD = [
    ("not a header", b"EHLO client.example\r\n", "expected a PROXY header"),
    ("lower case", b"proxy TCP4 192.0.2.7 198.51.100.9 50123 25\r\n", "expected a PROXY header"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01", "expected a PROXY header"),
    ("broken signature", b"\r\n\r\n\0\r\nQUIT\r", "expected a PROXY header"),
    ("two spaces", b"PROXY  TCP4 192.0.2.7 198.51.100.9 50123 25\r\n", "protocol"),
    ("tab", b"PROXY TCP4\t192.0.2.7 198.51.100.9 50123 25\r\n", "protocol"),
    ("udp", b"PROXY UDP4 192.0.2.7 198.51.100.9 50123 25\r\n", "protocol"),
    ("lower protocol", b"PROXY tcp4 192.0.2.7 198.51.100.9 50123 25\r\n", "protocol"),
    ("nothing", b"PROXY \r\n", "protocol"),
    ("unknown glued", b"PROXY UNKNOWNS\r\n", "protocol"),
    ("unknown with NUL", b"PROXY UNKNOWN \0\r\n", "protocol"),
    ("unknown with a bare CR", b"PROXY UNKNOWN \r \r\n", "protocol"),
    ("inner spaces", b"PROXY TCP4 192.0.2.7  198.51.100.9 50123 25\r\n", "one space"),
    ("trailing space", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25 \r\n", "one space"),
    ("one port", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123\r\n", "one space"),
    ("one too many", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25 7\r\n", "one space"),
    ("bare LF", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25\n", "without CR"),
    ("bare CR", b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25\r\r\n", "port"),
    ("too long", b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "within 107"),
    ("endless", b"PROXY TCP4 " + b"1" * 300, "within 107"),
    *[
        (f"v1 address {a!r}", b"PROXY TCP4 " + a + b" 198.51.100.9 50123 25\r\n", "not an IPv4")
        for a in (
            b"192.0.2.07",
            b"192.0.2",
            b"192.0.2.256",
            b"+192.0.2.7",
            b"0x7f.0.0.1",
            b"1.2.3.4/8",
            b"2001:db8::7",
            b"::1",
            b"localhost",
            b"\xd9\xa1.2.3.4",
            b"\xff.1.1.1",
            b"1.2.3.4\x0b",
        )
    ],
    *[
        (f"v1 address {a!r}", b"PROXY TCP6 " + a + b" 2001:db8::9 50123 25\r\n", "not an IPv6")
        for a in (b"192.0.2.7", b"2001:db8", b"1::2::3", b"fe80::1%eth0", b"[::1]", b"00001::1", b"::g", b":::")
    ],
    *[
        (f"v1 port {p!r}", b"PROXY TCP4 192.0.2.7 198.51.100.9 " + p + b" 25\r\n", "port")
        for p in (
            b"65536",
            b"025",
            b"00",
            b"+25",
            b"-1",
            b"2_5",
            b"0x19",
            b"25\t",
            b"1e3",
            b"\xd9\xa1",
            b"999999999999",
        )
    ],
    ("v2 empty port", b"PROXY TCP4 192.0.2.7 198.51.100.9  25\r\n", "port"),
    ("v2 version 1", v2(b"\x11\x11", INET), "version 1"),
    ("v2 version 3", v2(b"\x31\x11", INET), "version 3"),
    ("v2 command 2", v2(b"\x22\x11", INET), "command 2"),
    *[
        (f"v2 codes {code:02x}", v2(bytes((0x21, code)), INET6), "assigned")
        for code in (0x01, 0x02, 0x10, 0x13, 0x20, 0x23, 0x30, 0x33, 0x41, 0xF1)
    ],
    ("v2 short block", v2(b"\x21\x11", INET[:-1]), "family needs 12"),
    ("v2 ipv4 block for ipv6", v2(b"\x21\x21", INET), "family needs 36"),
    ("v2 short unix", v2(b"\x21\x31", UNIX[:-1]), "family needs 216"),
    ("v2 too large", v2(b"\x21\x11", INET, announced=4081), "at most 4096"),
    ("v2 huge", v2(b"\x20\x00", b"", announced=65535), "at most 4096"),
    ("v2 tlv cut in its header", v2(b"\x21\x11", INET + b"\x04\x00"), "reaches beyond"),
    ("v2 tlv too long", v2(b"\x21\x11", INET + tlv(4, b"abc", announced=4)), "reaches beyond"),
    (
        "v2 second tlv too long",
        v2(b"\x21\x21", INET6 + tlv(4, b"abc") + tlv(5, b"", announced=65535)),
        "reaches beyond",
    ),
    ("v2 checksum wrong", with_crc(b"\x21\x11", INET, wrong=1), "damaged"),
    ("v2 checksum of 3 bytes", v2(b"\x21\x11", INET + tlv(3, b"abc")), "CRC32c"),
    ("v2 checksum twice", v2(b"\x21\x11", INET + tlv(3, bytes(4)) * 2), "damaged"),
]


@pytest.mark.parametrize(("data", "source", "destination", "local"), [c[1:] for c in GOOD], ids=[c[0] for c in GOOD])
def test_reads(data, source, destination, local):
    version = 1 if data.startswith(b"PROXY") else 2
    assert feed(proxy_header.parse, data, BadProxyHeader) == ProxyHeader(source, destination, local, version, len(data))


@pytest.mark.parametrize(("data", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_refuses(data, words):
    with pytest.raises(BadProxyHeader, match=words):
        feed(proxy_header.parse, data, BadProxyHeader)


def test_a_second_checksum_is_refused_even_when_the_first_is_right():
    # The first field's checksum is computed with the second one in place, so only their number is wrong.
    blank = v2(b"\x21\x11", INET + tlv(3, bytes(4)) + tlv(3, b"\x01\x02\x03\x04"))
    checksum = proxy_header.crc32c(blank).to_bytes(4, "big")
    with pytest.raises(BadProxyHeader, match="at most one"):
        proxy_header.parse(blank.replace(tlv(3, bytes(4)), tlv(3, checksum)))


def test_checksum_known_values():
    # RFC 3720 appendix B.4
    assert proxy_header.crc32c(b"123456789") == 0xE3069283
    assert proxy_header.crc32c(bytes(32)) == 0x8A9136AA
    assert proxy_header.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_codes_are_refused_before_the_length_is_there():
    with pytest.raises(BadProxyHeader, match="version"):
        proxy_header.parse(SIGNATURE_V2 + b"\x31")
    with pytest.raises(BadProxyHeader, match="assigned"):
        proxy_header.parse(SIGNATURE_V2 + b"\x21\x99")


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", None),
        (b"P", None),
        (b"PROXY", None),
        (b"PROXY ", True),
        (b"PROXY TCP4", True),
        (b"PROXYX", False),
        (b"EHLO", False),
        (b"\r\n", None),
        (SIGNATURE_V2[:11], None),
        (SIGNATURE_V2, True),
        (SIGNATURE_V2 + b"x", True),
        (b"\r\n\r\n\0\r\nQUIX", False),
        (b"\r\nPROXY ", False),
    ],
)
def test_looks_like(data, answer):
    assert proxy_header.looks_like(data) is answer


def test_encode_says_what_the_specification_shows():
    assert proxy_header.encode("v1", A4, B4) == b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25\r\n"
    assert proxy_header.encode("v2", A4, B4) == v2(b"\x21\x11", INET)
    assert proxy_header.encode("v2", A6, B6) == v2(b"\x21\x21", INET6)
    assert proxy_header.encode_local("v1", A4, B4) == b"PROXY TCP4 192.0.2.7 198.51.100.9 50123 25\r\n"
    assert proxy_header.encode_local("v2", A4, B4) == v2(b"\x20\x00", b"")


def test_encode_leaves_the_zone_of_a_link_local_address_at_home():
    words = proxy_header.encode("v1", Endpoint("fe80::1%eth0", 1), Endpoint("fe80::2", 25))
    assert words == b"PROXY TCP6 fe80::1 fe80::2 1 25\r\n"


@pytest.mark.parametrize("version", ["", "v3", "1", "V2"])
def test_encode_knows_two_versions(version):
    with pytest.raises(ValueError, match="use 'v1' or 'v2'"):
        proxy_header.encode(version, A4, B4)
    with pytest.raises(ValueError, match="use 'v1' or 'v2'"):
        proxy_header.encode_local(version, A4, B4)


ports = st.integers(0, 65535)
hosts = st.ip_addresses().map(lambda ip: str(getattr(ip, "ipv4_mapped", None) or ip))
endpoints = st.builds(Endpoint, hosts, ports)


@given(st.sampled_from(["v1", "v2"]), endpoints, endpoints, st.binary(max_size=20))
@example("v1", A4, B6, b"")
@example("v2", A6, B4, b"")
def test_what_is_encoded_is_read_again(version, source, destination, payload):
    data = proxy_header.encode(version, source, destination)
    read = proxy_header.parse(data + payload)
    assert read == ProxyHeader(source, destination, False, int(version[1]), len(data))


#: Bytes that come near the grammar; plain noise would stop at the first byte.
near = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda tail: b"PROXY " + tail, st.text("TCP46UNKOW 0123456789.:af\r\n\t+", max_size=110).map(str.encode)),
    st.builds(lambda codes, block: v2(codes, block), st.binary(min_size=2, max_size=2), st.binary(max_size=60)),
    st.builds(
        lambda code, block, n: v2(bytes((0x21, code)), block, n),
        st.sampled_from([0, 0x11, 0x21, 0x31]),
        st.binary(max_size=260),
        st.one_of(st.none(), st.integers(0, 5000)),
    ),
)


@given(near, st.lists(st.integers(0, 300), max_size=6))
def test_any_bytes_give_one_answer_at_any_split_and_no_other_error(data, cuts):
    def judged(piece):
        return outcome(proxy_header.parse, piece, BadProxyHeader)

    whole = judged(data)
    at_cuts = [judged(data[:cut]) for cut in sorted(cuts)]
    assert all(answer is None or answer == whole for answer in at_cuts)
    if isinstance(whole, ProxyHeader):
        assert judged(data[: whole.length]) == whole
        assert judged(data[: whole.length - 1]) is None
