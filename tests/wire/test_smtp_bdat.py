"""BDAT sizes: plain numbers or nothing."""

from __future__ import annotations

import pytest

from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_bdat import Chunk, ChunkBody, parse_bdat
from mailbalancer.wire.smtp_command import BadCommand, parse


@pytest.mark.parametrize(
    ("line", "chunk"),
    [
        (b"BDAT 0 LAST", Chunk(0, True)),
        (b"bdat 1000", Chunk(1000, False)),
        (b"BDAT 86 last", Chunk(86, True)),
        (b"BDAT  5  LAST ", Chunk(5, True)),
        (b"BDAT 999999999999999999", Chunk(10**18 - 1, False)),
    ],
)
def test_sizes(line: bytes, chunk: Chunk) -> None:
    assert parse_bdat(parse(line)) == chunk


@pytest.mark.parametrize(
    "argument",
    [
        *(b"", b"LAST", b"-1", b"+1", b"1_0", b"0x10", b"010", b"1 LAST LAST", b"1LAST", b"1 FIRST", b"1.5", b"1,5"),
        *("１２".encode(), "²".encode(), b"9" * 19, b"1\xa0", b"1 2"),
    ],
)
def test_anything_else_is_refused(argument: bytes) -> None:
    with pytest.raises(BadCommand) as caught:
        parse_bdat(parse(b"BDAT " + argument))
    assert caught.value.answer is Answer.BAD_CHUNK
    assert caught.value.answer.closes, "nobody knows where the next command begins"


def test_a_chunk_takes_what_is_its_own() -> None:
    body = ChunkBody(Chunk(10, True))
    assert body.take(4) == 4
    assert not body.done
    assert body.take(100) == 6
    assert body.done
    assert body.take(5) == 0
    assert ChunkBody(Chunk(0, True)).done
