"""Commands, and the addresses of MAIL and RCPT."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.mail_lines import BadLine, Lines
from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_command import (
    MAX_AUTH_BYTES,
    MAX_COMMAND_BYTES,
    BadCommand,
    Command,
    parse,
    parse_mail,
    parse_rcpt,
    parse_whole,
)


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"QUIT", b"QUIT", b""),
        (b"ehlo  Mail.Example.com ", b"EHLO", b"Mail.Example.com "),
        (b"x-Exps GSSAPI", b"X-EXPS", b"GSSAPI"),
        (b"Mail FROM:<A@b>", b"MAIL", b"FROM:<A@b>"),
        (b"NOOP ", b"NOOP", b""),
        (b"XYZZY \xff\xfe", b"XYZZY", b"\xff\xfe"),
    ],
)
def test_verb_and_argument(line: bytes, verb: bytes, argument: bytes) -> None:
    command = parse(line)
    assert (command.verb, command.argument, command.raw) == (verb, argument, line + b"\r\n")


@pytest.mark.parametrize(
    "line", [b"", b" QUIT", b"*", b"\xc5\xb3uit", b"<html>", b"MAIL:x", b"{json}", b"12", "ＱUIT".encode()]
)
def test_no_command(line: bytes) -> None:
    with pytest.raises(BadCommand) as caught:
        parse(line)
    assert caught.value.answer is Answer.BAD_SYNTAX


@pytest.mark.parametrize("verb", [b"GET", b"post", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PRI"])
def test_http(verb: bytes) -> None:
    assert parse(verb + b" / HTTP/1.1").is_http


def test_not_http() -> None:
    assert not parse(b"GETS /").is_http


@pytest.mark.parametrize(
    "line", [b"XCLIENT ADDR=1.2.3.4", b"xforward NAME=x", b"XPROXY x", b"XPROXYFROM x", b"XSHADOW a"]
)
def test_impersonation(line: bytes) -> None:
    assert parse(line).impersonates
    assert not parse(b"X-EXPS GSSAPI").impersonates


@pytest.mark.parametrize(
    ("argument", "local", "domain", "parameters"),
    [
        (b"FROM:<a@Example.COM>", b"a", "example.com", {}),
        (b"from: <a@b> SIZE=100 body=8bitmime", b"a", "b", {b"SIZE": b"100", b"BODY": b"8bitmime"}),
        (b"FROM:<> RET=HDRS ENVID=q+3d", b"", "", {b"RET": b"HDRS", b"ENVID": b"q+3d"}),
        (b'FROM:<"a b\\"@x"@b.example>', b'"a b\\"@x"', "b.example", {}),
        (b"FROM:<a@[192.0.2.1]> SMTPUTF8", b"a", "[192.0.2.1]", {b"SMTPUTF8": b""}),
        (b"FROM:<a@[IPv6:2001:db8::1]>", b"a", "[ipv6:2001:db8::1]", {}),
        ("FROM:<ü@Ä.example>".encode(), "ü".encode(), "ä.example", {}),
        (b"FROM:a@b SIZE=5", b"a", "b", {b"SIZE": b"5"}),
        (b"FROM:<docomo..x.@b>", b"docomo..x.", "b", {}),
        (b"FROM:<a@b.>", b"a", "b", {}),
        (b"FROM:<a@b> AUTH=<>", b"a", "b", {b"AUTH": b"<>"}),
        (b"FROM:<prvs=0123=a@b>", b"prvs=0123=a", "b", {}),
        (b"FROM:<a+b/c{}|~*'@b>", b"a+b/c{}|~*'", "b", {}),
    ],
)
def test_senders(argument: bytes, local: bytes, domain: str, parameters: dict[bytes, bytes]) -> None:
    path = parse_mail(parse(b"MAIL " + argument))
    assert (path.local, path.domain, dict(path.parameters)) == (local, domain, parameters)
    assert not path.routed


@pytest.mark.parametrize(
    "address",
    [b"<@relay.example,@b:user@c.example>", b"<user%c.example@c.example>", b"<other!user@c.example>"],
)
def test_routed(address: bytes) -> None:
    path = parse_rcpt(parse(b"RCPT TO:" + address))
    assert path.routed
    assert path.domain == "c.example"


@pytest.mark.parametrize(
    "argument",
    [
        *(
            b"<a@b@c>",
            b"<a@b",
            b"a@b>",
            b"<a b@c>",
            b"<a@b> <c@d>",
            b"<a@b><c@d>",
            b"<a@b>c",
            b"<a@>",
            b"<@b>",
            b"<a@b..c>",
        ),
        *(
            b"<a@-b>",
            b"<a@[1.2.3.4>",
            b'<"a@b>',
            b"<a@b\xff>",
            b"<a,c@b>",
            b"<a@b> NOTIFY=",
            b"<a@b> =x",
            b"",
            b"<a;c@b>",
        ),
        *(b"<(a)a@b>", b"<a@b(c)>", b"<a\\@x@b>", b"<>", b"<a@.b>", b"<a@b>\xa0SIZE=1", b"<a@b> A=b=c"),
    ],
)
def test_addresses_that_could_be_read_in_two_ways(argument: bytes) -> None:
    with pytest.raises(BadCommand) as caught:
        parse_rcpt(parse(b"RCPT TO:" + argument))
    assert caught.value.answer in (Answer.BAD_RECIPIENT, Answer.BAD_ARGUMENTS)


@pytest.mark.parametrize(
    "line", [b"MAIL", b"MAIL <a@b>", b"MAIL TO:<a@b>", b"MAIL FROM <a@b>", b"MAIL FROM:<a@b> X=1 x=2"]
)
def test_malformed_mail(line: bytes) -> None:
    with pytest.raises(BadCommand) as caught:
        parse_mail(parse(line))
    assert caught.value.answer is Answer.BAD_ARGUMENTS


def test_postmaster_without_domain() -> None:
    path = parse_rcpt(parse(b"RCPT TO:<Postmaster>"))
    assert (path.local, path.domain, path.is_null) == (b"Postmaster", "", False)


@pytest.mark.parametrize(("value", "size"), [(b"0", 0), (b"12345678901234567890", 12345678901234567890), (b"007", 7)])
def test_size(value: bytes, size: int) -> None:
    assert parse_mail(parse(b"MAIL FROM:<a@b> SIZE=" + value)).size == size
    assert parse_mail(parse(b"MAIL FROM:<a@b>")).size is None


@pytest.mark.parametrize("value", [b"+1", b"1_0", b"-1", b"0x10", b"1" * 21, "１２".encode(), "²".encode(), b"1k"])
def test_size_is_a_plain_number(value: bytes) -> None:
    path = parse_mail(parse(b"MAIL FROM:<a@b> SIZE=" + value))
    with pytest.raises(BadCommand):
        _ = path.size


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for prefix in (b"", b"MAIL FROM:", b"RCPT TO:<", b'RCPT TO:<"'):
        with contextlib.suppress(BadCommand):
            command = parse(prefix + data)
            assert command.raw == prefix + data + b"\r\n"
            parse_mail(command)
            parse_rcpt(command)


def the_long_way(data: bytes) -> Command | None:
    """The command, if these bytes are one line that is a command, and not too long, and nothing else."""
    lines = Lines(MAX_AUTH_BYTES)
    lines.feed(data)
    try:
        line = lines.next()
        return parse(line) if line is not None and not lines.held and len(data) <= MAX_COMMAND_BYTES else None
    except (BadLine, BadCommand):
        return None


_WORDS = [b"MAIL", b"mail", b"DATA", b"Quit", b"RSET", b"X-EXPS", b"AUTH", b"1", b" ", b"  ", b"FROM:<a@b>", b":", b"-"]
_ODD = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\t",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\x0b",
    b"\x1c",
    b".",
    b"x" * 2030,
    b"<",
    b"\x85",
]


@given(
    st.lists(st.sampled_from(_WORDS + _ODD), max_size=6).map(b"".join), st.sampled_from([b"\r\n", b"\n", b"\r", b""])
)
def test_the_short_way_reads_as_the_long_way(text: bytes, end: bytes) -> None:
    assert parse_whole(text + end) == the_long_way(text + end)


@pytest.mark.parametrize("length", range(MAX_COMMAND_BYTES - 2, MAX_COMMAND_BYTES + 3))
def test_the_short_way_has_the_same_limit(length: int) -> None:
    data = b"NOOP " + b"x" * (length - 7) + b"\r\n"
    assert parse_whole(data) == the_long_way(data)
    assert (parse_whole(data) is None) is (length > MAX_COMMAND_BYTES)


@given(st.binary(max_size=40))
def test_the_short_way_takes_any_bytes_as_the_long_way(data: bytes) -> None:
    assert parse_whole(data) == the_long_way(data)
