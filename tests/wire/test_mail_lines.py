"""Lines: CRLF and nothing else, in every way they may arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.mail_lines import BadLine, LineFault, Lines


def read(data: bytes, step: int, max_bytes: int = 20) -> list[bytes | LineFault]:
    """Every line of `data`, fed `step` bytes at a time, and the fault that ended it."""
    lines, found = Lines(max_bytes), []
    for start in range(0, len(data), step):
        lines.feed(data[start : start + step])
        try:
            while (line := lines.next()) is not None:
                found.append(line)
        except BadLine as error:
            return [*found, error.fault]
    return found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"NOOP\r\nQUIT\r\nxx", [b"NOOP", b"QUIT"]),
        (b"\r\n\r\n", [b"", b""]),
        (b"caf\xc3\xa9\x80\r\n", [b"caf\xc3\xa9\x80"]),
        (b"a" * 18 + b"\r\n", [b"a" * 18]),
        (b"ok\r\n" + b"a" * 19 + b"\r\n", [b"ok", LineFault.TOO_LONG]),
        (b"a" * 40, [LineFault.TOO_LONG]),
        (b"ok\r\nbad\nx\r\n", [b"ok", LineFault.BARE_LF]),
        (b"\n", [LineFault.BARE_LF]),
        (b"ba\rd\r\n", [LineFault.BARE_CR]),
        (b"bad\r\r\n", [LineFault.BARE_CR]),
        (b"ba\0d\r\n", [LineFault.NUL]),
        (b"ba\td\r\n", [LineFault.CONTROL]),
        (b"ba\x7fd\r\n", [LineFault.CONTROL]),
        (b"\x16\x03\x01\x02\x00", [LineFault.CONTROL]),
        (b"\x00", [LineFault.NUL]),
        (b"ba\rd\n", [LineFault.BARE_CR]),
    ],
)
def test_lines(data: bytes, expected: list[bytes | LineFault]) -> None:
    for step in (len(data), 1, 3):
        assert read(data, step) == expected


@given(
    data=st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"\0", b"bcd"]), max_size=30), step=st.integers(1, 9)
)
def test_any_split_gives_the_same(data: list[bytes], step: int) -> None:
    whole = b"".join(data)
    assert read(whole, step, 10) == read(whole, max(len(whole), 1), 10)


def test_the_rest_is_taken_at_once_and_lines_go_on_after_it() -> None:
    lines = Lines(100)
    lines.feed(b"DATA\r\nbody\n\r\n.\r\nQU")
    assert lines.next() == b"DATA"
    assert len(lines) == 12
    assert lines.take() == b"body\n\r\n.\r\nQU"
    assert len(lines) == 0
    lines.feed(b"IT\r\n")
    assert lines.next() == b"IT"


def test_the_limit_may_change_between_lines() -> None:
    lines = Lines(10)
    lines.feed(b"AUTH X\r\n")
    assert lines.next() == b"AUTH X"
    lines.max_bytes = 50
    lines.feed(b"a" * 40)
    assert lines.next() is None
    lines.feed(b"\r\n")
    assert lines.next() == b"a" * 40


def test_control_bytes_may_be_allowed_but_never_line_ends() -> None:
    lines = Lines(100, controls=True)
    lines.feed(b"a LOGIN u p\tw\x01\r\n")
    assert lines.next() == b"a LOGIN u p\tw\x01"
    for bad, fault in ((b"a\rb\r\n", LineFault.BARE_CR), (b"a\0b\r\n", LineFault.NUL), (b"ab\n", LineFault.BARE_LF)):
        lines = Lines(100, controls=True)
        lines.feed(bad)
        with pytest.raises(BadLine) as caught:
            lines.next()
        assert caught.value.fault is fault
