"""nftables objects as data, and the script that brings the kernel from one set of them to another.

Decides: the text of each object; that a change touches only what differs, in one transaction; that what remembers
something (flows, clients, counts) keep it through every change.
Refuses to know: what the rules mean (`render`) and how a script is run (`host.nft`).

Every rule of a chain that differs is written anew, in the same transaction that removes the old ones: no packet meets
half a chain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TABLE = "mailbalancer"


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with its rules; `hook` is empty for one that others go to."""

    rules: tuple[str, ...]
    hook: str = ""

    def declaration(self) -> str:
        return f" {{ {self.hook} }}" if self.hook else ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table of ours: named counters and maps that remember, and chains that are written anew.

    Attributes:
        memory: declarations of maps and sets by name, such as `{ type ipv4_addr : mark; }`.
    """

    family: str
    counters: tuple[str, ...] = ()
    memory: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name: (map or set, declaration)
    fixed: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)  # name: (declaration, elements)
    chains: Mapping[str, Chain] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.family} {TABLE}"


def script(wanted: Sequence[Table], running: Sequence[Table] | None) -> str:
    """The transaction from `running` to `wanted`; empty when there is nothing to do.

    Args:
        running: None: it is not known what is there; whatever of ours it is, it goes.
    """
    before = {table.family: table for table in running or ()}
    lines: list[str] = []
    for table in wanted:
        if running is None:
            lines += [f"add table {table.place}", f"delete table {table.place}"]
        lines += _changes(table, before.get(table.family))
    gone = before.keys() - {table.family for table in wanted}
    lines += [f"delete table {family} {TABLE}" for family in sorted(gone)]
    return "".join(f"{line}\n" for line in lines)


def _changes(table: Table, before: Table | None) -> list[str]:
    if table == before:
        return []
    old = before or Table(table.family)
    place = table.place
    lines = [] if before else [f"add table {place}"]
    changed = {name: chain for name, chain in table.chains.items() if old.chains.get(name) != chain}
    gone = [name for name in old.chains if name not in table.chains]
    lines += [f"add counter {place} {name}" for name in table.counters if name not in old.counters]
    lines += [
        f"add {kind} {place} {name} {text}" for name, (kind, text) in table.memory.items() if name not in old.memory
    ]
    lines += [
        f"add chain {place} {name}{chain.declaration()}" for name, chain in changed.items() if name not in old.chains
    ]
    lines += [f"flush chain {place} {name}" for name in (*changed, *gone) if name in old.chains]
    lines += _fixed(table, old)
    lines += [f"add rule {place} {name} {rule}" for name, chain in changed.items() for rule in chain.rules]
    lines += [f"delete chain {place} {name}" for name in gone]
    lines += [f"delete map {place} {name}" for name in old.fixed if name not in table.fixed]
    lines += [f"delete {kind} {place} {name}" for name, (kind, _) in old.memory.items() if name not in table.memory]
    lines += [f"delete counter {place} {name}" for name in old.counters if name not in table.counters]
    return lines


def _fixed(table: Table, old: Table) -> list[str]:
    """Maps whose elements we write: flushed and filled when they differ."""
    lines: list[str] = []
    for name, (declaration, elements) in table.fixed.items():
        if name not in old.fixed:
            lines.append(f"add map {table.place} {name} {declaration}")
        elif old.fixed[name] != (declaration, elements):
            lines.append(f"flush map {table.place} {name}")
        else:
            continue
        if elements:
            lines.append(f"add element {table.place} {name} {{ {', '.join(elements)} }}")
    return lines
