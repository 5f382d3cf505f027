"""Replies: one strict grammar, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.smtp_reply import MAX_LINE_BYTES, MAX_LINES, BadReply, Replies, Reply


def read(data: bytes, step: int) -> list[Reply | str]:
    replies, found = Replies(), []
    for start in range(0, len(data), step):
        replies.feed(data[start : start + step])
        try:
            found += list(replies)
        except BadReply:
            return [*found, "refused"]
    return found


def every_way(data: bytes) -> list[Reply | str]:
    whole = read(data, max(len(data), 1))
    assert read(data, 1) == whole
    assert read(data, 3) == whole
    return whole


def test_several_replies_in_one_read() -> None:
    found = every_way(b"250-mail.example.com\r\n250-SIZE 10\r\n250 DSN\r\n354 go on\r\n250\r\n221 2.0.0 Bye\r\n4")
    assert [reply.code for reply in found if isinstance(reply, Reply)] == [250, 354, 250, 221]
    first, _, empty, bye = found
    assert isinstance(first, Reply)
    assert first.lines == (b"mail.example.com", b"SIZE 10", b"DSN")
    assert first.raw == b"250-mail.example.com\r\n250-SIZE 10\r\n250 DSN\r\n"
    assert isinstance(empty, Reply)
    assert empty.lines == (b"",)
    assert isinstance(bye, Reply)
    assert bye.enhanced == "2.0.0"


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"250-a\r\n251 b\r\n",
            b"250-a\r\nb\r\n",
            b"150 x\r\n",
            b"650 x\r\n",
            b"260 x\r\n",
            b"25 x\r\n",
            b"2500 x\r\n",
        ),
        *(b"250_x\r\n", b" 250 x\r\n", b"hello\r\n", b"\r\n", "２５０ x\r\n".encode(), b"250 a\n", b"250 a\rb\r\n"),
        *(
            b"250 \0\r\n",
            b"250 " + b"x" * MAX_LINE_BYTES,
            b"250-x\r\n" * (MAX_LINES + 1),
            b"250-" + b"x" * 2000 + b"\n",
        ),
        (b"250-" + b"x" * 1500 + b"\r\n") * 60,
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    assert every_way(data) == ["refused"]


@pytest.mark.parametrize(
    ("line", "enhanced"),
    [
        (b"421 4.3.2 Service not active", "4.3.2"),
        (b"452 4.3.1 Insufficient system resources", "4.3.1"),
        (b"452 4.3.1", "4.3.1"),
        (b"250 4.3.1 not its class", ""),
        (b"421 4.3 no", ""),
        (b"421 4.3.2x no", ""),
        (b"421 no", ""),
        (b"421", ""),
    ],
)
def test_enhanced_status_codes(line: bytes, enhanced: str) -> None:
    (reply,) = every_way(line + b"\r\n")
    assert isinstance(reply, Reply)
    assert reply.enhanced == enhanced
    assert reply.inactive == (line.startswith(b"421") and enhanced == "4.3.2")
    assert reply.overloaded == (line.startswith(b"452") and enhanced == "4.3.1")


def test_words_for_a_log_are_printable_and_short() -> None:
    (reply,) = every_way(b"550-\x1b[31m\xe2\x80\xae\r\n550 no\r\n".replace(b"\x1b", b"\x9b"))
    assert isinstance(reply, Reply)
    assert reply.words() == "550 ?[31m??? no"
    (long,) = every_way(b"550 " + b"x" * 1000 + b"\r\n")
    assert isinstance(long, Reply)
    assert len(long.words()) == 200


def test_clean_tells_what_was_injected_before_tls() -> None:
    replies = Replies()
    replies.feed(b"220 go\r\n")
    assert next(iter(replies)).code == 220
    assert replies.clean
    replies.feed(b"250-half a reply\r\n")
    assert replies.next() is None
    assert not replies.clean
    assert replies.take() == b"250-half a reply\r\n"


@given(st.binary(max_size=80), st.integers(1, 10))
def test_any_split_gives_the_same(data: bytes, step: int) -> None:
    assert read(data, step) == read(data, max(len(data), 1))


def the_long_way(data: bytes) -> Reply | None:
    """The reply, if these bytes are one reply of one line, and nothing else."""
    replies = Replies()
    replies.feed(data)
    try:
        reply = replies.next()
    except BadReply:
        return None
    return reply if reply is not None and replies.clean and reply.raw.count(b"\n") == 1 else None


_PIECES = [
    b"250",
    b"354",
    b"199",
    b"600",
    b"2",
    b" ",
    b"-",
    b"2.0.0",
    b"Ok",
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b"\t",
    b"\x7f",
]
_ENDS = [b"\r\n", b"\n", b"\r", b""]


@given(st.lists(st.sampled_from([*_PIECES, b"\xff", b"x" * 2040]), max_size=6).map(b"".join), st.sampled_from(_ENDS))
def test_the_short_way_reads_as_the_long_way(text: bytes, end: bytes) -> None:
    assert Replies().only(text + end) == the_long_way(text + end)


@pytest.mark.parametrize("length", range(MAX_LINE_BYTES - 2, MAX_LINE_BYTES + 3))
def test_the_short_way_has_the_same_limit(length: int) -> None:
    data = b"250 " + b"x" * (length - 6) + b"\r\n"
    assert Replies().only(data) == the_long_way(data)
    assert (Replies().only(data) is None) is (length > MAX_LINE_BYTES)


@pytest.mark.parametrize("before", [b"2", b"250-first\r\n", b"250-first\r\n2"])
def test_the_short_way_is_closed_behind_half_a_reply(before: bytes) -> None:
    replies = Replies()
    replies.feed(before)
    assert replies.next() is None
    assert replies.only(b"250 last\r\n") is None


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        (b"554 5.7.1 <joe@example.com>: Relay access denied", "554 5.7.1 <(address)>: Relay access denied"),
        (b"550 5.1.1 No mailbox joe@example.com, sorry", "550 5.1.1 No mailbox (address), sorry"),
        (b"550 \xc3\xbc.b@x.test unknown", "550 (address) unknown"),
        (b'550 "a b"@x.test unknown', '550 "a b"(address) unknown'),
        (b"550 smtp;550 user=joe@example.com;x", "550 smtp;550 user=(address);x"),
        (b"250 2.0.0 Ok: queued as 4ABC", "250 2.0.0 Ok: queued as 4ABC"),
        (b"250 2.6.0 <201@x> [Hostname=ex1] Queued mail", "250 2.6.0 <201@x> [Hostname=ex1] Queued mail"),
    ],
)
def test_addresses_are_kept_out_of_the_log(said: bytes, logged: str) -> None:
    replies = Replies()
    replies.feed(said + b"\r\n")
    reply = replies.next()
    assert reply is not None
    assert reply.words() == logged
