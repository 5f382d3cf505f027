"""The report: medians over the rounds and ratios to HAProxy, as one Markdown table.

Decides: how a figure is written, and what a ratio is (figure over HAProxy's; for times and memory less is better).
Refuses to know: how a figure was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

MISSING = "-"


@dataclass(slots=True)
class Row:
    """One thing measured: for each proxy the figures of all rounds, or words where no number says it."""

    title: str
    write: Callable[[float], str]
    figures: dict[str, list[float]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def add(self, proxy: str, figure: float) -> None:
        self.figures.setdefault(proxy, []).append(figure)

    def median(self, proxy: str) -> float | None:
        figures = self.figures.get(proxy)
        return statistics.median(figures) if figures else None

    def cell(self, proxy: str) -> str:
        median = self.median(proxy)
        return self.write(median) if median is not None else self.words.get(proxy, MISSING)

    def ratio(self, proxy: str, to: str) -> str:
        """How many times the figure of `to`; a dash where there is nothing to divide."""
        mine, other = self.median(proxy), self.median(to)
        return f"{mine / other:.2f}" if mine is not None and other and other > 0 and mine >= 0 else MISSING


def render(rows: Sequence[Row], versions: Mapping[str, str], base: str) -> str:
    """The table: one column per proxy, then the ratios to `base`."""
    proxies = list(versions)
    others = [name for name in proxies if name != base] if base in versions else []
    head = ["", *(f"{name} {version}" for name, version in versions.items()), *(f"{o} / {base}" for o in others)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        lines.append([row.title, *(row.cell(p) for p in proxies), *(row.ratio(o, base) for o in others)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def per_second(value: float) -> str:
    return f"{value:,.0f}/s"


def milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def gigabytes_per_second(value: float) -> str:
    return f"{value / 1e9:.2f} GB/s"


def kilobytes(value: float) -> str:
    return f"{value / 1000:.1f} kB"


def times(value: float) -> str:
    return f"{value:.2f} ×"


def cores(value: float) -> str:
    return f"{value:.2f}"


def points(value: float) -> str:
    return f"{value:+.1f} points"
