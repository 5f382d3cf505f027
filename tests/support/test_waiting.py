"""Waiting ends when the thing is true, and says what was missing when it is not."""

from __future__ import annotations

import pytest

from tests.support.waiting import eventually


def test_returns_the_first_true_value() -> None:
    values = iter([0, "", "here", "later"])
    assert eventually(lambda: next(values)) == "here"


def test_an_error_inside_counts_as_not_yet() -> None:
    turns = iter(range(3))

    def third_time() -> bool:
        if next(turns) < 2:
            raise ConnectionRefusedError("not listening yet")
        return True

    assert eventually(third_time)


def test_in_vain_names_what_was_waited_for_and_what_was_seen() -> None:
    with pytest.raises(AssertionError, match=r"in vain for: the server is up; last seen: ConnectionRefusedError: no"):
        eventually(lambda: _refuse(), timeout_s=0.05, what="the server is up")


def _refuse() -> bool:
    raise ConnectionRefusedError("no")
