"""Flows as the kernel describes them: nested attributes, whole, cut short, and strange."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.host.conntrack import Entry, read_entry

STATUS, PROTOINFO, MARK = 3, 4, 8
MAIL = 0x6D620007


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def tcp(state: int) -> bytes:
    inner = attribute(1, bytes([state])) + attribute(2, b"\x07")
    return attribute(PROTOINFO | 0x8000, attribute(1 | 0x8000, inner))


def mark(value: int) -> bytes:
    return attribute(MARK, struct.pack("!I", value))


def status(bits: int) -> bytes:
    return attribute(STATUS, struct.pack("!I", bits))


@pytest.mark.parametrize(
    ("message", "entry", "is_open"),
    [
        (mark(MAIL) + tcp(3) + status(0b1110), Entry(MAIL, 3, True), True),
        (tcp(1) + mark(MAIL) + status(0b1000), Entry(MAIL, 1, False), True),  # a SYN that nobody has answered
        (mark(MAIL) + tcp(7) + status(0b1110), Entry(MAIL, 7, True), False),  # TIME_WAIT
        (mark(MAIL) + status(0b10), Entry(MAIL, None, True), True),  # UDP
        (attribute(99, b"who knows") + mark(1), Entry(1, None, False), True),
        (b"", Entry(), True),
    ],
)
def test_what_an_entry_says(message: bytes, entry: Entry, is_open: bool) -> None:
    found = read_entry(message)
    assert found == entry
    assert found.is_open is is_open


def test_every_cut_is_survived() -> None:
    whole = mark(MAIL) + tcp(3) + status(2)
    for cut in range(len(whole)):
        read_entry(whole[:cut])


@given(st.binary(max_size=200))
def test_anything_is_survived(message: bytes) -> None:
    read_entry(message)
