"""The judgement of the gateway probe, row by row."""

from __future__ import annotations

import pytest

from mailbalancer.l4.way_back import Met, Probe, Verdict, judge

OWN, OTHER = "02:00:00:00:00:11", "02:00:00:00:00:99"
FAR = "192.0.2.1"


@pytest.mark.parametrize(
    ("far", "near", "verdict", "words"),
    [
        (Probe(FAR, Met.ANSWERED, OWN), None, Verdict.GOOD, "through the balancer"),
        (Probe(FAR, Met.ANSWERED, OTHER), None, Verdict.UNKNOWN, f"another machine ({OTHER})"),
        (Probe(FAR, Met.ANSWERED, ""), None, Verdict.UNKNOWN, "replace the address"),
        (Probe(FAR, Met.REFUSED), None, Verdict.UNKNOWN, "refuses connections"),
        (Probe(FAR, Met.LOCAL, error="no route"), None, Verdict.UNKNOWN, "no route"),
        (Probe(FAR, Met.SILENCE), None, Verdict.BAD, "set its gateway"),
        (Probe(FAR, Met.SILENCE), Probe("10.0.1.1", Met.SILENCE), Verdict.BAD, "set its gateway"),
        (Probe(FAR, Met.SILENCE), Probe("10.0.1.1", Met.ANSWERED, OTHER), Verdict.BAD, f"another machine ({OTHER})"),
        (Probe(FAR, Met.SILENCE), Probe("10.0.1.1", Met.ANSWERED, OWN), Verdict.UNKNOWN, "filtered"),
    ],
)
def test_judgement(far: Probe, near: Probe | None, verdict: Verdict, words: str) -> None:
    way = judge("10.0.2.11", OWN, far, near)
    assert way.verdict is verdict
    assert words in way.reason
