"""`certificates list` for a terminal.

Decides: columns and order: what ends first stands first.
Refuses to know: where the facts come from. PURE: facts in, renderables out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mailbalancer.admin.encryption import days_tone
from mailbalancer.admin.words import Tone, plain

Facts = Mapping[str, Any]
_STYLES = {Tone.GOOD: "green", Tone.WARNING: "yellow", Tone.BAD: "bold red", Tone.QUIET: "dim"}


def listed(facts: Facts) -> RenderableType:
    """A table, and below it what is to be said in sentences."""
    found = sorted(facts["certificates"], key=lambda one: one["days_left"])
    parts: list[RenderableType] = [_table(found) if found else Text("no certificate is listed in the configuration")]
    parts += [Text(f"{plain(one['name'])}: a key waits for the certificate of {', '.join(map(plain, one['names']))}")
              for one in facts["waiting"]]  # fmt: skip
    parts += list(_sentences(found))
    return Group(*parts)


def _table(found: list[Facts]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("certificate", "days left", "names", "issuer", "key", "shown by"):
        table.add_column(heading, justify="right" if heading == "days left" else "left", overflow="fold")
    for one in found:
        days = Text(str(one["days_left"]), _STYLES[days_tone(one["days_left"])])
        names = ", ".join(map(plain, one["names"]))
        table.add_row(plain(one["name"]), days, names, plain(one["issuer"]), plain(one["key"]), _users(one))
    return table


def _users(one: Facts) -> str:
    """`owa (default), pop (mail.example.com)`: in brackets who gets it."""
    users = [f"{plain(shown['service'])} ({_whom(shown)})" for shown in one["shown_by"]]
    return ", ".join([*users, *(["page and API"] if one["door"] else [])]) or "nobody"


def _whom(shown: Facts) -> str:
    return "default" if shown["default"] else ", ".join(map(plain, shown["sni"])) or "never chosen"


def _sentences(found: list[Facts]) -> Iterator[Text]:
    for one in found:
        for protection in one["extended_protection"]:
            style = _STYLES[Tone.BAD] if protection["binding"] == "MISMATCH" else ""
            words = f"{protection['service']}: Extended Protection {protection['binding']}: {protection['text']}"
            yield Text(plain(words), style)
        for warning in one["warnings"]:
            yield Text(f"warning: {plain(warning)}", _STYLES[Tone.WARNING])
