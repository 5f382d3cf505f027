"""Each warning once, also for a certificate that is met late, and again only for its successor."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mailbalancer.tls.expiry import Dated, due

END = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
MAIL = Dated("mail", "aa", END)


def before(days: float) -> datetime:
    return END - timedelta(days=days)


def test_a_life_told_in_five_sentences() -> None:
    said: dict[str, int] = {}
    told = []
    for quarter in range(40 * 4, -3 * 4, -1):
        sentences, said = due([MAIL], before(quarter / 4), said)
        told += [(quarter / 4, sentence) for sentence in sentences]
    assert [days for days, _ in told] == [30, 14, 7, 1, 0]
    assert "'mail' expires in 30 days (2027-03-01 12:00 UTC)" in told[0][1]
    assert "within a day" in told[3][1]
    assert "has expired" in told[4][1]


@pytest.mark.parametrize(
    ("days", "words"), [(31, ""), (20, "in 20 days"), (3.5, "in 4 days"), (0.1, "within a day"), (-5, "has expired")]
)
def test_met_late_it_is_told_once(days: float, words: str) -> None:
    sentences, said = due([MAIL], before(days), {})
    assert len(sentences) == (1 if words else 0)
    assert all(words in sentence for sentence in sentences)
    assert due([MAIL], before(days), said)[0] == []


def test_a_clock_that_jumps_back_says_nothing_twice() -> None:
    _, said = due([MAIL], before(6), {})
    sentences, said = due([MAIL], before(20), said)
    assert sentences == []
    assert due([MAIL], before(6), said)[0] == []
    assert len(due([MAIL], before(1), said)[0]) == 1


def test_a_successor_starts_afresh_and_the_old_one_is_forgotten() -> None:
    _, said = due([MAIL], before(6), {})
    successor = Dated("mail", "bb", END)
    sentences, said = due([successor], before(6), said)
    assert len(sentences) == 1
    assert set(said) == {"bb"}


def test_one_certificate_under_two_names_is_told_once() -> None:
    sentences, _ = due([MAIL, Dated("owa", "aa", END)], before(6), {})
    assert len(sentences) == 1
