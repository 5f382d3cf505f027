from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire import tls_records
from mailbalancer.wire.tls_records import MAX_HELLO_BYTES, MAX_RECORDS, BadTls, Fields, first_message, read_extensions
from tests.wire.feeding import feed, outcome


def record(fragment: bytes, kind: int = 22, version: int = 0x0301) -> bytes:
    return bytes((kind,)) + version.to_bytes(2, "big") + len(fragment).to_bytes(2, "big") + fragment


def message(body: bytes, kind: int = 1, announced: int | None = None) -> bytes:
    return bytes((kind,)) + (len(body) if announced is None else announced).to_bytes(3, "big") + body


def read(data):
    return first_message(data, 1)


BODY = bytes(range(100))
BAD = [
    ("SSL 2.0", b"\x80\x2e\x01\x03\x01\x00\x15", "SSL 2.0"),
    ("plain text", b"GET / HTTP/1.1\r\n", "plain-text"),
    ("alert", record(b"\x02\x28", kind=21), "record type 21"),
    ("application data", record(message(BODY), kind=23), "record type 23"),
    ("version 2.x", record(message(BODY), version=0x0200), "version 2.x"),
    ("empty record", record(b""), "1 to 16384"),
    ("record too long", b"\x16\x03\x01\x40\x01", "1 to 16384"),
    ("other message", record(message(BODY, kind=2)), "message type 2"),
    ("hello too long", record(message(b"", announced=MAX_HELLO_BYTES + 1)), "at most 65536"),
    ("alert in between", record(message(BODY)[:50]) + record(b"\x02\x28", kind=21), "middle of a hello"),
    ("empty record in between", record(message(BODY)[:50]) + record(b""), "1 to 16384"),
    ("dust", b"".join(record(b"\x01\x00\x01\x00"[i : i + 1] or b"\0") for i in range(MAX_RECORDS)), "more than 64"),
]


@pytest.mark.parametrize(("data", "words"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_refuses(data, words):
    with pytest.raises(BadTls, match=words):
        feed(read, data, BadTls)


@pytest.mark.parametrize("cuts", [[], [1], [4], [5], [1, 2, 3, 4], [50], [103], list(range(1, 60))])
def test_puts_records_together(cuts):
    whole = message(BODY)
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    wire = b"".join(record(piece) for piece in pieces)
    found = feed(read, wire, BadTls)
    assert (found.body, found.length, found.ends_record) == (BODY, len(wire), True)


def test_says_when_the_record_goes_on():
    wire = record(message(BODY) + b"next message")
    found = feed(read, wire, BadTls)
    assert (found.body, found.length, found.ends_record) == (BODY, 5 + 4 + 100, False)


def test_the_longest_hello_fits():
    whole = message(bytes(MAX_HELLO_BYTES))
    wire = b"".join(record(whole[i : i + 16384]) for i in range(0, len(whole), 16384))
    found = first_message(wire, 1)
    assert found is not None
    assert len(found.body) == MAX_HELLO_BYTES
    assert first_message(wire[:-1], 1) is None


def test_fields_never_reach_outside():
    fields = Fields(b"\x00\x03abc\x01x!", "things")
    assert fields.vector(2) == b"abc"
    assert fields.vector(1) == b"x"
    with pytest.raises(BadTls, match="things: 1 bytes too many"):
        fields.end()
    with pytest.raises(BadTls, match="things: a field of 2 bytes"):
        fields.take(2)
    assert fields.number(1) == 0x21
    fields.end()


def test_extensions():
    assert read_extensions(b"") == {}
    assert read_extensions(b"\x00\x05\x00\x01!\x0a\x0a\x00\x00") == {5: b"!", 0x0A0A: b""}
    with pytest.raises(BadTls, match="extension 5 is there twice"):
        read_extensions(b"\x00\x05\x00\x01!\x00\x05\x00\x00")
    with pytest.raises(BadTls, match="beyond"):
        read_extensions(b"\x00\x05\x00\x02!")


near = st.lists(
    st.one_of(
        st.builds(record, st.builds(message, st.binary(max_size=30), st.sampled_from([1, 1, 2]))),
        st.builds(record, st.binary(max_size=20), st.sampled_from([22, 22, 21])),
        st.binary(max_size=8),
    ),
    max_size=4,
).map(b"".join)


@given(near, st.lists(st.integers(0, 120), max_size=6))
def test_any_bytes_give_one_answer_at_any_split_and_no_other_error(data, cuts):
    whole = outcome(read, data, BadTls)
    for cut in cuts:
        assert outcome(read, data[:cut], BadTls) in (None, whole)
    if isinstance(whole, tls_records.FirstMessage):
        assert outcome(read, data[: whole.length - 1], BadTls) is None
