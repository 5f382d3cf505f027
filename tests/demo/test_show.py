"""What the demo has heard from the balancer already, and what is new."""

from __future__ import annotations

import pytest

from mailbalancer.demo.show import new_events


def _events(*texts: str) -> list[dict[str, str]]:
    return [{"at": "2026-01-01T00:00:00Z", "level": "info", "text": text} for text in texts]


@pytest.mark.parametrize(
    ("heard", "now", "new"),
    [
        ("", "", ""),
        ("", "ab", "ab"),
        ("ab", "ab", ""),
        ("ab", "abc", "c"),
        ("abc", "bcd", "d"),
        ("abc", "cde", "de"),
        ("abc", "def", "def"),
        ("aa", "aaa", "a"),
    ],
)
def test_new_events(heard: str, now: str, new: str) -> None:
    assert new_events(_events(*heard), _events(*now)) == _events(*new)
