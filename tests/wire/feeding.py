"""Feeds the same bytes to a parser in every way a network may deliver them.

A parser here takes everything that has arrived and gives None (more is needed), an answer, or a ValueError of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

Parse = Callable[[Any], Any]


class Refused:
    """Stands for every refusal. Its words may quote more the more has arrived; the verdict may not differ."""

    def __repr__(self) -> str:
        return "REFUSED"


REFUSED: Final = Refused()


def outcome(parse: Parse, data: bytes | memoryview, errors: type[ValueError]) -> Any:
    """What `parse` makes of `data`: its answer, None, or REFUSED."""
    try:
        return parse(data)
    except errors:
        return REFUSED


def first_outcome(parse: Parse, data: bytes, errors: type[ValueError], cuts: Iterable[int]) -> Any:
    """What a reader sees who asks again at each of `cuts`, and at the end, until there is an answer."""
    for cut in [*cuts, len(data)]:
        answer = outcome(parse, data[:cut], errors)
        if answer is not None:
            return answer
    return None


def feed(parse: Parse, data: bytes, errors: type[ValueError], trailing: bytes = b"\x00trailing\r\n") -> Any:
    """Feed whole, byte by byte, and with bytes trailing; the answers must be one. Returns it, or raises the error."""
    whole = outcome(parse, data, errors)
    assert first_outcome(parse, data, errors, range(len(data))) == whole, "byte by byte"
    if whole is not None:
        assert outcome(parse, data + trailing, errors) == whole, "with trailing bytes"
        assert outcome(parse, memoryview(bytearray(data)), errors) == whole, "as a view"
    return parse(data)
