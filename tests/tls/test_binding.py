"""Match only for the same certificate; what was not seen is unknown, never a match."""

from __future__ import annotations

import pytest

from mailbalancer.tls.binding import Binding, compare


@pytest.mark.parametrize(
    ("served", "shown", "binding"),
    [
        ("ab12", "ab12", Binding.MATCH),
        ("ab12", "AB12", Binding.MATCH),
        ("ab12", "cd34", Binding.MISMATCH),
        ("ab12", "", Binding.UNKNOWN),
        ("", "ab12", Binding.UNKNOWN),
        ("", "", Binding.UNKNOWN),
    ],
)
def test_comparison(served: str, shown: str, binding: Binding) -> None:
    found = compare("ex1", served, shown)
    assert found.binding is binding
    assert found.text.startswith("ex1")
    assert found.alarming == (binding is Binding.MISMATCH)


def test_mismatch_names_both_and_the_remedy() -> None:
    text = compare("ex1", "ab" * 32, "cd" * 32).text
    assert "cdcdcdcd" in text
    assert "abababab" in text
    assert "install the same certificate" in text
