"""Exact before wildcard before default; a wildcard stands for one label."""

from __future__ import annotations

import pytest

from mailbalancer.tls.names import Names

NAMES = Names(
    [
        ("default", ["mail.example.com"]),
        ("wild", ["*.example.com", "example.com"]),
        ("second", ["mail.example.com", "Autodiscover.Example.NET"]),
    ]
)


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("mail.example.com", "default"),  # the earlier of two that claim it
        ("MAIL.example.COM", "default"),
        ("mail.example.com.", "default"),
        ("owa.example.com", "wild"),
        ("example.com", "wild"),
        ("a.b.example.com", "default"),  # two labels
        (".example.com", "default"),
        ("*.example.com", "wild"),
        ("autodiscover.example.net", "second"),
        ("elsewhere.test", "default"),
        ("com", "default"),
        ("", "default"),
        (None, "default"),
    ],
)
def test_choice(asked: str | None, chosen: str) -> None:
    assert NAMES.choose(asked) == chosen


def test_there_is_always_a_default() -> None:
    with pytest.raises(ValueError, match="no default"):
        Names[str]([])
