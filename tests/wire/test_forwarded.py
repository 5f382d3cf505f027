from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.forwarded import (
    MAX_HOPS,
    Identity,
    Trusted,
    forwarded_field,
    identify,
    plain_address,
    seen_here,
    x_forwarded_fields,
)
from mailbalancer.wire.http_head import RequestHead, RequestReader

TRUSTED = Trusted([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8:aaaa::/48")])
NOBODY = Trusted([])


def head(*fields: bytes) -> RequestHead:
    lines = b"".join(field + b"\r\n" for field in fields)
    read = RequestReader().read(b"GET / HTTP/1.1\r\nHost: mail.example.com\r\n" + lines + b"\r\n")
    assert read is not None
    return read


def seen(peer: str = "10.0.0.1") -> Identity:
    return seen_here(plain_address(peer), True, b"mail.example.com", 443)


def hops(*values: bytes, peer: str = "10.0.0.1", trusted: Trusted = TRUSTED) -> tuple[str, ...]:
    identity = identify(head(*(b"X-Forwarded-For: " + value for value in values)), trusted, seen(peer))
    assert identity.client == identity.hops[0]
    return identity.hops


CHAINS = [
    ([], ("10.0.0.1",)),
    ([b"203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
    ([b"203.0.113.7, 10.0.0.9"], ("203.0.113.7", "10.0.0.9", "10.0.0.1")),
    ([b"203.0.113.7", b"10.0.0.9"], ("203.0.113.7", "10.0.0.9", "10.0.0.1")),
    ([b"1.1.1.1, 203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
    ([b"1.1.1.1", b"203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
    ([b"10.0.0.5, 203.0.113.7, 10.0.0.9"], ("203.0.113.7", "10.0.0.9", "10.0.0.1")),
    ([b"10.0.0.8,10.0.0.9"], ("10.0.0.8", "10.0.0.9", "10.0.0.1")),
    ([b"203.0.113.7:50123"], ("203.0.113.7", "10.0.0.1")),
    ([b"[2001:DB8::7]:443"], ("2001:db8::7", "10.0.0.1")),
    ([b"[2001:DB8::7]"], ("2001:db8::7", "10.0.0.1")),
    ([b"2001:DB8:0::7"], ("2001:db8::7", "10.0.0.1")),
    ([b"1.1.1.1, 2001:db8:aaaa::1"], ("1.1.1.1", "2001:db8:aaaa::1", "10.0.0.1")),
    ([b"::ffff:203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
    ([b"::ffff:10.0.0.3"], ("10.0.0.3", "10.0.0.1")),
    ([b"203.0.113.7, unknown"], ("10.0.0.1",)),
    ([b"203.0.113.7, "], ("10.0.0.1",)),
    ([b"203.0.113.7,, 10.0.0.9"], ("10.0.0.9", "10.0.0.1")),
    ([b""], ("10.0.0.1",)),
    ([b"203.0.113.07"], ("10.0.0.1",)),
    ([b"203.0.113.7/32"], ("10.0.0.1",)),
    ([b"0x0a.0.0.1"], ("10.0.0.1",)),
    ([b"fe80::1%eth0"], ("10.0.0.1",)),
    ([b"203.0.113.7 203.0.113.8"], ("10.0.0.1",)),
    ([b"localhost"], ("10.0.0.1",)),
    ([b"\xd9\xa1.1.1.1"], ("10.0.0.1",)),
    ([b"1.1.1.1:99999999"], ("10.0.0.1",)),
    ([b"<script>, 203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
]


@pytest.mark.parametrize(("values", "expected"), CHAINS)
def test_the_chain_is_walked_from_the_right(values, expected):
    assert hops(*values) == expected


@pytest.mark.parametrize("values", [values for values, _ in CHAINS])
def test_a_stranger_is_not_believed(values):
    assert hops(*values, peer="203.0.113.99") == ("203.0.113.99",)
    assert hops(*values, trusted=NOBODY) == ("10.0.0.1",)


def test_a_chain_that_never_ends_is_cut():
    found = hops(b"10.0.0.2, " * 2000 + b"10.0.0.3")
    assert len(found) == MAX_HOPS + 1
    assert found[-2:] == ("10.0.0.3", "10.0.0.1")


def test_a_mapped_peer_is_the_address_it_carries():
    assert hops(b"203.0.113.7", peer="::ffff:10.0.0.1") == ("203.0.113.7", "10.0.0.1")


def test_a_trusted_proxy_tells_what_the_client_spoke():
    told = head(b"X-Forwarded-Proto: HTTP", b"X-Forwarded-Host: Other.example:81", b"X-Forwarded-Port: 81")
    found = identify(told, TRUSTED, seen())
    assert (found.proto, found.host, found.port) == ("http", "Other.example:81", 81)
    found = identify(told, TRUSTED, seen("203.0.113.99"))
    assert (found.proto, found.host, found.port) == ("https", "mail.example.com", 443)


@pytest.mark.parametrize(
    "field",
    [
        b"X-Forwarded-Proto: ftp",
        b"X-Forwarded-Proto: http, https",
        b"X-Forwarded-Proto: http\r\nX-Forwarded-Proto: http",
        b"X-Forwarded-Host: a b",
        b"X-Forwarded-Host: evil.example/path",
        b"X-Forwarded-Host: a, b",
        b'X-Forwarded-Host: "a"',
        b"X-Forwarded-Port: 0",
        b"X-Forwarded-Port: 65536",
        b"X-Forwarded-Port: +80",
        b"X-Forwarded-Port: 080",
        b"X-Forwarded-Port: \xb2",
        b"X-Forwarded-Port: 80, 81",
    ],
)
def test_what_makes_no_sense_is_what_we_see_ourselves(field):
    assert identify(head(field), TRUSTED, seen()) == seen()


def test_what_the_server_is_told():
    identity = Identity("2001:db8::7", ("2001:db8::7", "10.0.0.1"), "https", "mail.example.com:443", 443)
    assert x_forwarded_fields(identity) == (
        b"X-Forwarded-For: 2001:db8::7, 10.0.0.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\n"
        b"X-Forwarded-Host: mail.example.com:443\r\n"
    )
    assert forwarded_field(identity) == (
        b'Forwarded: for="[2001:db8::7]";host="mail.example.com:443";proto=https, for=10.0.0.1\r\n'
    )


def test_an_old_client_without_host_has_none():
    identity = seen_here("203.0.113.7", False, b"", 80)
    assert x_forwarded_fields(identity) == (
        b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 80\r\n"
    )
    assert forwarded_field(identity) == b"Forwarded: for=203.0.113.7;proto=http\r\n"


def standard(*values: bytes) -> Identity:
    fields = (b"Forwarded: " + value for value in values)
    return identify(head(*fields, b"X-Forwarded-For: 6.6.6.6"), TRUSTED, seen(), "forwarded")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([b"for=203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
        ([b"For=203.0.113.7;proto=http;by=10.0.0.1"], ("203.0.113.7", "10.0.0.1")),
        ([b'for="[2001:db8::7]:4711"'], ("2001:db8::7", "10.0.0.1")),
        ([b'for="203.0.113.7:80"'], ("203.0.113.7", "10.0.0.1")),
        ([b"for=1.1.1.1, for=203.0.113.7"], ("203.0.113.7", "10.0.0.1")),
        ([b"for=203.0.113.7", b"for=10.0.0.9"], ("203.0.113.7", "10.0.0.9", "10.0.0.1")),
        ([b"for=1.1.1.1, for=_hidden"], ("10.0.0.1",)),
        ([b"for=1.1.1.1, for=unknown, for=10.0.0.9"], ("10.0.0.9", "10.0.0.1")),
        ([b"for=1.1.1.1, proto=http"], ("10.0.0.1",)),
        ([b"for=1.1.1.1;for=2.2.2.2"], ("10.0.0.1",)),
        ([b"for=1.1.1.1 ;"], ("10.0.0.1",)),
        ([b"for = 1.1.1.1"], ("10.0.0.1",)),
        ([b'for="1.1.1.1'], ("10.0.0.1",)),
        ([b'for=1.1.1.1;x=", for=203.0.113.7;host="a"'], ("203.0.113.7", "10.0.0.1")),
        ([b'x=", for=10.0.0.9", for=203.0.113.7'], ("203.0.113.7", "10.0.0.1")),
        ([b""], ("10.0.0.1",)),
        ([], ("10.0.0.1",)),
    ],
)
def test_the_standard_form_is_walked_in_the_same_way(values, expected):
    assert standard(*values).hops == expected


def test_the_standard_form_tells_of_the_clients_element_only():
    found = standard(b'for=1.1.1.1;proto=http;host=evil.example, for=203.0.113.7;proto=http;host="h.example:81"')
    assert (found.client, found.proto, found.host, found.port) == ("203.0.113.7", "http", "h.example:81", 443)
    assert standard(b"for=203.0.113.7, for=10.0.0.9;proto=http").proto == "https"


def test_only_one_form_is_read():
    assert standard().hops == ("10.0.0.1",)
    both = head(b"Forwarded: for=6.6.6.6", b"X-Forwarded-For: 203.0.113.7")
    assert identify(both, TRUSTED, seen()).client == "203.0.113.7"


def test_trust_is_remembered_and_bounded():
    trusted = Trusted([ipaddress.ip_network("10.0.0.0/8")])
    for number in range(10_000):
        assert str(ipaddress.ip_address(0x0A000000 + number)) in trusted
        assert str(ipaddress.ip_address(0xC0000200 + number)) not in trusted
    assert "10.0.0.1" in trusted
    assert "2001:db8::1" not in trusted


@pytest.mark.parametrize(
    ("text", "plain"),
    [("192.0.2.1", "192.0.2.1"), ("::FFFF:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"), ("x", ""), ("", "")],
)
def test_one_spelling_of_an_address(text, plain):
    assert plain_address(text) == plain


addresses = st.ip_addresses().map(lambda ip: plain_address(str(ip)))


@given(st.lists(addresses, max_size=6), st.sampled_from(["x_forwarded", "forwarded"]))
def test_what_one_balancer_writes_the_next_one_believes(chain, form):
    everybody = Trusted([ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")])
    told = Identity(chain[0] if chain else "", tuple(chain), "http", "h.example", 443)
    write = x_forwarded_fields if form == "x_forwarded" else forwarded_field
    fields = write(told).removesuffix(b"\r\n") if chain else b"X: y"
    found = identify(head(fields), everybody, seen(), form)
    assert found.hops == (*chain, "10.0.0.1")
    if chain:
        assert (found.proto, found.host) == ("http", "h.example")


@given(
    st.binary(max_size=60),
    st.sampled_from([b"Forwarded: ", b"X-Forwarded-For: "]),
    st.sampled_from([b"", b"for=1.1.1.1;"]),
)
def test_nothing_a_client_sends_gets_past_what_the_trusted_proxy_adds(noise, name, start):
    value = bytes(byte for byte in noise if byte in b"\t" or 0x20 <= byte != 0x7F)
    form = "forwarded" if name.startswith(b"F") else "x_forwarded"
    added = b', for=203.0.113.7;host="a"' if form == "forwarded" else b", 203.0.113.7"
    assert identify(head(name + start + value + added), TRUSTED, seen(), form).hops == ("203.0.113.7", "10.0.0.1")
