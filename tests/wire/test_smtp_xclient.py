"""XCLIENT lines: what a client or its DNS chose stays one value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.smtp_xclient import MAX_LINE_BYTES, Client, NoXclient, host_name, xclient_lines, xtext

ALL = (b"NAME", b"ADDR", b"PORT", b"PROTO", b"HELO", b"LOGIN", b"DESTADDR", b"DESTPORT")


def test_postfix() -> None:
    client = Client("192.0.2.7", 50000, "pc.example.com", "10.0.1.100", 25)
    assert xclient_lines(ALL, client) == [
        b"XCLIENT NAME=pc.example.com PORT=50000 DESTADDR=10.0.1.100 DESTPORT=25 ADDR=192.0.2.7\r\n"
    ]


def test_only_what_is_offered() -> None:
    assert xclient_lines([b"addr", b"port", b"SESSION"], Client("192.0.2.7", 1, "x.y")) == [
        b"XCLIENT PORT=1 ADDR=192.0.2.7\r\n"
    ]


@pytest.mark.parametrize(
    ("address", "told"),
    [("2001:DB8:0::1", b"IPV6:2001:db8::1"), ("::ffff:192.0.2.1", b"192.0.2.1"), ("::1", b"IPV6:::1")],
)
def test_addresses(address: str, told: bytes) -> None:
    assert xclient_lines([b"ADDR"], Client(address, 1)) == [b"XCLIENT ADDR=" + told + b"\r\n"]


@pytest.mark.parametrize("offered", [(), (b"NAME", b"PORT")])
def test_without_addr_there_is_no_way(offered: tuple[bytes, ...]) -> None:
    with pytest.raises(NoXclient, match="smtpd_authorized_xclient_hosts"):
        xclient_lines(offered, Client("192.0.2.7", 1))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "a b",
            "a\r\nQUIT",
            "x ADDR=10.0.0.1",
            "[10.0.0.1]",
            "10.0.0.1",
            "1",
            "a.0x7f",
            "-a.b",
            "a..b",
            "a" * 64 + ".x",
        ),
        *("ü.example", "a.b" * 100, "a\0b", "[UNAVAILABLE", "a/b", ".", "x.１"),
    ],
)
def test_bad_reverse_names_are_unavailable(name: str) -> None:
    assert host_name(name) == "[UNAVAILABLE]"


@pytest.mark.parametrize(
    "name", ["mail.example.com", "a", "xn--4ca.example", "_dmarc.x-y.example", "10-0-0-1.dyn.example"]
)
def test_good_reverse_names(name: str) -> None:
    assert host_name(name) == name
    assert host_name(name + ".") == name


def test_xtext() -> None:
    assert xtext("a+b=c d\r\né") == b"a+2Bb+3Dc+20d+0D+0A+C3+A9"
    assert xtext("[UNAVAILABLE]") == b"[UNAVAILABLE]"


@given(st.text(max_size=400))
def test_lines_are_bounded_and_end_with_addr(name: str) -> None:
    lines = xclient_lines(ALL, Client("2001:db8:1111:2222:3333:4444:5555:6666", 65535, name, "2001:db8::1", 25))
    assert all(len(line) <= MAX_LINE_BYTES and line.count(b"\n") == 1 for line in lines)
    assert lines[-1].endswith(b" ADDR=IPV6:2001:db8:1111:2222:3333:4444:5555:6666\r\n")


def test_a_long_name_takes_a_line_of_its_own() -> None:
    name = ".".join(["a" * 60] * 4)
    lines = xclient_lines(ALL, Client("192.0.2.1", 1, name))
    assert b"".join(lines).count(b"NAME=") == 1
