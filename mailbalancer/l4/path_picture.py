"""The way of a client drawn as people draw it: boxes, numbered arrows, and below them what each arrow means.

Decides: where things stand, how long texts fold, and that it can be read on white and on black.
Refuses to know: what is true of the way (`paths`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from html import escape

from mailbalancer.l4.paths import Hop, Outcome, Path

_WIDTH = 880
_BOX_WIDTH, _BOX_HEIGHT = 256, 78
_CENTRES = {"client": 150, "balancer": 440, "server": 730}
_TOP = 24
_STEP = 48  # from one arrow to the next
_LINE = 18
#: So many characters of 13 px fit beside the numbers, also where the font is a wide one.
_COLUMNS = 108
_BOX_COLUMNS = 32
#: Longer texts between or in boxes (IPv6) are folded or written smaller.
_ARROW_COLUMNS = 40
_ADDRESS_COLUMNS = 36

_STYLE = """
    .card { fill: #ffffff; stroke: #c9d1d9; }
    .box { fill: #f3f6fa; stroke: #57708c; stroke-width: 1.5; }
    .post { stroke: #c9d1d9; stroke-dasharray: 2 4; }
    text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1f2933; }
    .name { font-weight: 600; font-size: 14px; }
    .small { font-size: 12px; fill: #52606d; } .tiny { font-size: 10px; fill: #52606d; }
    .digit { font-weight: 600; fill: #ffffff; }
    .works { stroke: #2f855a; } .fails { stroke: #c05050; } .unknown { stroke: #8a6d00; }
    .beyond { stroke: #a9b6c3; } .disc.beyond, .tip.beyond { fill: #a9b6c3; }
    .arrow { stroke-width: 2.5; fill: none; } .arrow.fails, .arrow.unknown, .arrow.beyond { stroke-dasharray: 7 4; }
    .cross { stroke: #c05050; stroke-width: 3; }
    .disc { stroke: none; } .disc.works, .tip.works { fill: #2f855a; } .disc.fails, .tip.fails { fill: #c05050; }
    .disc.unknown, .tip.unknown { fill: #8a6d00; } .tip { stroke: none; }
    .verdict { stroke-width: 1.5; } .verdict.works { fill: #e5f5ea; } .verdict.fails { fill: #fbe9e9; }
    .verdict.unknown { fill: #fbf3d9; }
    @media (prefers-color-scheme: dark) {
      .card { fill: #11161d; stroke: #30363d; }
      .box { fill: #1a222d; stroke: #7f9bb8; }
      .post { stroke: #3d4650; }
      text { fill: #e6edf3; } .small, .tiny { fill: #a9b6c3; } .digit { fill: #11161d; }
      .works { stroke: #4cab78; } .fails { stroke: #e07b7b; } .unknown { stroke: #d3b24c; }
      .beyond { stroke: #57606a; } .disc.beyond, .tip.beyond { fill: #57606a; }
      .cross { stroke: #e07b7b; }
      .disc.works, .tip.works { fill: #4cab78; } .disc.fails, .tip.fails { fill: #e07b7b; }
      .disc.unknown, .tip.unknown { fill: #d3b24c; }
      .verdict.works { fill: #12301f; } .verdict.fails { fill: #351a1c; } .verdict.unknown { fill: #332b10; }
    }
"""


def svg(path: Path) -> str:
    """A picture of 880 pixels' width; how high depends on what is to be said."""
    arrows_end = _TOP + _BOX_HEIGHT + _STEP * len(path.hops) + 14
    legend, legend_end = _legend(path.hops, arrows_end + 26)
    verdict, height = _verdict(path, legend_end + 8)
    return "\n".join(
        [*_head(path, height), *_boxes(path, arrows_end), *_arrows(path.hops), *legend, *verdict, "</svg>"]
    )


def _head(path: Path, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" aria-labelledby="t d">'
    )
    yield f'<title id="t">{escape(f"{path.client} to {path.service} on {path.server}: {path.outcome}")}</title>'
    yield f'<desc id="d">{escape(" ".join(f"{hop.statement}." for hop in path.hops))} {escape(path.sentence)}</desc>'
    yield f"<style>{_STYLE}</style><defs>"
    for style in (*Outcome, "beyond"):
        yield (
            f'<marker id="{style}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
            f'orient="auto" markerUnits="userSpaceOnUse"><path class="tip {style}" d="M0 0 10 5 0 10z"/></marker>'
        )
    yield f'</defs><rect class="card" x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10"/>'


def _boxes(path: Path, arrows_end: int) -> Iterator[str]:
    address = path.server.rpartition(" ")[2]
    balancer = path.hops[0].carries.rpartition(" ")[2]
    texts = {
        "client": ("client", path.client, ""),
        "balancer": (f"balancer, service {path.service}", balancer, ""),
        "server": (f"real server {path.real_server}", address, f"sees {path.seen_as}"),
    }
    for place, (name, *lines) in texts.items():
        centre = _CENTRES[place]
        bottom = _TOP + _BOX_HEIGHT
        yield f'<line class="post" x1="{centre}" y1="{bottom}" x2="{centre}" y2="{arrows_end}"/>'
        yield (
            f'<rect class="box" x="{centre - _BOX_WIDTH // 2}" y="{_TOP}" width="{_BOX_WIDTH}" '
            f'height="{_BOX_HEIGHT}" rx="6"/>'
        )
        yield _text(centre, _TOP + 24, _cut(name), "name", middle=True)
        for at, line in enumerate(filter(None, lines)):
            style = "small" if len(line) <= _ADDRESS_COLUMNS else "tiny"
            yield _text(centre, _TOP + 45 + _LINE * at, line, style, middle=True)


def _arrows(hops: Sequence[Hop]) -> Iterator[str]:
    for at, (hop, style, (start, end)) in enumerate(zip(hops, _styles(hops), _ways(hops), strict=True)):
        y = _TOP + _BOX_HEIGHT + 34 + _STEP * at
        step = 1 if end > start else -1
        yield (
            f'<line class="arrow {style}" x1="{start + 12 * step}" y1="{y}" x2="{end - 3 * step}" y2="{y}" '
            f'marker-end="url(#{style})"/>'
        )
        yield from _disc(start, y, at + 1, style)
        yield from _carried((start + end) // 2, y, hop.carries)
        if hop.outcome is Outcome.FAILS:
            yield f'<path class="cross" d="M{end - (end - start) // 5 - 7} {y - 7}l14 14m0 -14l-14 14"/>'


def _carried(x: int, y: int, carries: str) -> Iterator[str]:
    """Source and destination: above the arrow, or on both sides of it where they are long."""
    if len(carries) <= _ARROW_COLUMNS:
        yield _text(x, y - 8, carries, "small", middle=True)
        return
    source, _, destination = carries.partition(" → ")
    yield _text(x, y - 8, f"{source} →", "tiny", middle=True)
    yield _text(x, y + 15, destination, "tiny", middle=True)


def _ways(hops: Sequence[Hop]) -> list[tuple[int, int]]:
    client, balancer, server = _CENTRES.values()
    there = [(client, balancer), (balancer, server)]
    return there + ([(server, client)] if len(hops) == 3 else [(server, balancer), (balancer, client)])


def _legend(hops: Sequence[Hop], y: int) -> tuple[list[str], int]:
    parts: list[str] = []
    for at, (hop, style) in enumerate(zip(hops, _styles(hops), strict=True)):
        parts += _disc(36, y - 4, at + 1, style)
        said, known = _folded(hop.statement), _folded(hop.rests_on)
        for number, line in enumerate([*said, *known]):
            parts.append(_text(56, y + _LINE * number, line, "small" if number >= len(said) else ""))
        y += _LINE * (len(said) + len(known))
        y += 8
    return parts, y - _LINE


def _verdict(path: Path, y: int) -> tuple[list[str], int]:
    lines = _folded(f"{path.outcome}: {path.sentence}")
    notes = [line for note in path.notes for line in _folded(f"note: {note}")]
    height = _LINE * (len(lines) + len(notes)) + 16
    parts = [f'<rect class="verdict {path.outcome}" x="20" y="{y}" width="{_WIDTH - 40}" height="{height}" rx="6"/>']
    for at, line in enumerate([*lines, *notes]):
        parts.append(_text(34, y + 21 + _LINE * at, line, "small" if at >= len(lines) else ""))
    return parts, y + height + 20


def _styles(hops: Sequence[Hop]) -> list[str]:
    """As they are known; what lies behind the place where the way ends is drawn pale."""
    ended, styles = False, []
    for hop in hops:
        styles.append("beyond" if ended else str(hop.outcome))
        ended = ended or hop.outcome is Outcome.FAILS
    return styles


def _disc(x: int, y: int, number: int, style: str) -> list[str]:
    return [
        f'<circle class="disc {style}" cx="{x}" cy="{y}" r="10"/>',
        _text(x, y + 5, str(number), "digit", middle=True),
    ]


def _text(x: int, y: int, content: str, style: str = "", *, middle: bool = False) -> str:
    about = (f' class="{style}"' if style else "") + (' text-anchor="middle"' if middle else "")
    return f'<text x="{x}" y="{y}"{about}>{escape(content)}</text>'


def _folded(content: str) -> list[str]:
    return textwrap.wrap(content, _COLUMNS)


def _cut(name: str) -> str:
    return name if len(name) <= _BOX_COLUMNS else f"{name[: _BOX_COLUMNS - 1]}…"
