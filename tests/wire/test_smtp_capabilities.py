"""The one list of capabilities a service shows."""

from __future__ import annotations

import pytest

from mailbalancer.wire.smtp_capabilities import (
    MOST,
    Showing,
    common,
    either,
    lines_of,
    parse_ehlo,
    parse_lines,
    render_ehlo,
    shown,
)
from mailbalancer.wire.smtp_reply import Replies

EXCHANGE = (
    b"250-ex1.example.com Hello\r\n250-SIZE 37748736\r\n250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n"
    b"250-STARTTLS\r\n250-X-ANONYMOUSTLS\r\n250-AUTH NTLM LOGIN\r\n250-X-EXPS GSSAPI NTLM\r\n250-8BITMIME\r\n"
    b"250-BINARYMIME\r\n250-CHUNKING\r\n250 XRDST\r\n"
)
POSTFIX = (
    b"250-mx.example.com\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-VRFY\r\n250-ETRN\r\n250-STARTTLS\r\n"
    b"250-AUTH login PLAIN\r\n250-AUTH=login PLAIN\r\n250-XCLIENT NAME ADDR\r\n250-ENHANCEDSTATUSCODES\r\n"
    b"250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8\r\n"
)


def parsed(data: bytes) -> dict[bytes, tuple[bytes, ...]]:
    replies = Replies()
    replies.feed(data)
    (reply,) = list(replies)
    return parse_ehlo(reply)


def test_parse() -> None:
    found = parsed(POSTFIX)
    assert found[b"SIZE"] == (b"10240000",)
    assert found[b"AUTH"] == found[b"AUTH="] == (b"login", b"PLAIN")
    assert found[b"XCLIENT"] == (b"NAME", b"ADDR")
    assert found[b"PIPELINING"] == ()
    assert b"MX.EXAMPLE.COM" not in found


def test_lines_that_are_no_capability_are_left_out() -> None:
    assert parsed(b"250-x\r\n250-\r\n250- y\r\n250-\x80\r\n250-A_B\r\n250 dsn \r\n") == {b"DSN": ()}


def test_common_to_all() -> None:
    found = common([parsed(EXCHANGE), parsed(POSTFIX)])
    assert list(found) == [b"SIZE", b"PIPELINING", b"DSN", b"ENHANCEDSTATUSCODES", b"STARTTLS", b"AUTH", b"8BITMIME"]
    assert found[b"SIZE"] == (b"10240000",)
    assert found[b"AUTH"] == (b"LOGIN",)
    assert common([]) == {}


def test_auth_without_a_common_mechanism_goes() -> None:
    assert common([{b"AUTH": (b"NTLM",)}, {b"AUTH": (b"PLAIN",)}]) == {}


def test_binarymime_needs_chunking_everywhere() -> None:
    both, one = {b"CHUNKING": (), b"BINARYMIME": ()}, {b"BINARYMIME": ()}
    assert common([both, both]) == both
    assert common([both, one]) == {}
    assert shown(both, Showing(hide=frozenset({b"CHUNKING"})), starttls=False, auth=True) == {}


@pytest.mark.parametrize(
    ("values", "smallest"),
    [
        ([(b"10",), (b"5",)], (b"5",)),
        ([(b"0",), (b"5",)], (b"5",)),
        ([(), (b"5",)], (b"5",)),
        ([(), (b"0",)], ()),
        ([(b"1_0",), (b"+3",), (b"7",)], (b"7",)),
    ],
)
def test_the_smallest_size(values: list[tuple[bytes, ...]], smallest: tuple[bytes, ...]) -> None:
    assert common([{b"SIZE": value} for value in values]) == {b"SIZE": smallest}


def test_hidden_towards_the_internet() -> None:
    found = shown(parsed(EXCHANGE), Showing(), starttls=False, auth=True)
    assert not {b"X-EXPS", b"X-ANONYMOUSTLS", b"XRDST", b"STARTTLS"} & set(found)
    assert {b"AUTH", b"CHUNKING", b"BINARYMIME", b"SIZE"} <= set(found)
    assert b"XCLIENT" not in shown(parsed(POSTFIX), Showing(keep=frozenset({b"XCLIENT"})), starttls=True, auth=True)


def test_between_exchange_servers() -> None:
    found = shown(parsed(EXCHANGE), Showing(exchange=True), starttls=False, auth=True)
    assert {b"X-EXPS", b"X-ANONYMOUSTLS", b"XRDST"} <= set(found)
    kept = shown(parsed(EXCHANGE), Showing(keep=frozenset({b"XRDST"})), starttls=False, auth=True)
    assert b"XRDST" in kept
    assert b"X-EXPS" not in kept


def test_starttls_is_ours() -> None:
    assert b"STARTTLS" in shown({}, Showing(), starttls=True, auth=True)
    assert b"STARTTLS" not in shown({b"STARTTLS": ()}, Showing(), starttls=False, auth=True)


def test_no_password_before_tls() -> None:
    found = shown(parsed(POSTFIX), Showing(exchange=True), starttls=True, auth=False)
    assert not [keyword for keyword in found if keyword.startswith((b"AUTH", b"X-EXPS"))]


def test_own_size_limit() -> None:
    own = Showing(max_message_bytes=1000)
    assert shown({b"SIZE": (b"5000",)}, own, starttls=False, auth=True)[b"SIZE"] == (b"1000",)
    assert shown({b"SIZE": (b"500",)}, own, starttls=False, auth=True)[b"SIZE"] == (b"500",)
    assert shown({}, own, starttls=False, auth=True)[b"SIZE"] == (b"1000",)


@pytest.mark.parametrize("data", [EXCHANGE, POSTFIX, b"250 alone\r\n"])
def test_what_is_rendered_reads_the_same(data: bytes) -> None:
    known = parsed(data)
    assert parsed(render_ehlo(b"mail.example.com", known)) == known
    assert render_ehlo(b"a\r\n250 b", {}) == b"250 a??250 b\r\n"


def test_what_a_server_has_said_at_two_times() -> None:
    first = parse_lines([b"SIZE 1000", b"AUTH LOGIN PLAIN", b"DSN"])
    second = parse_lines([b"PIPELINING", b"AUTH plain CRAM-MD5", b"SIZE 500"])
    both = either(first, second)
    assert lines_of(both) == [b"SIZE 500", b"AUTH LOGIN PLAIN CRAM-MD5", b"DSN", b"PIPELINING"]
    assert either(both, second) == both
    assert lines_of(parse_lines([b"AUTH=LOGIN PLAIN"])) == [b"AUTH=LOGIN PLAIN"]


def test_a_server_that_always_says_something_new_is_heard_only_so_far() -> None:
    known: dict[bytes, tuple[bytes, ...]] = {}
    for number in range(1000):
        known = either(known, parse_lines([b"X%d" % number, b"AUTH M%d" % number]))
    assert len(known) == MOST
    assert len(known[b"AUTH"]) == MOST
