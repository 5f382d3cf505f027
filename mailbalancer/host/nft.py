"""Our tables in the kernel.

Decides: that a script is checked before it is run, that only tables of our own name are ever written or removed, and
what its refusal means.
Refuses to know: what the script says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mailbalancer.host.commands import Commands, HostError

TABLE = "mailbalancer"
FAMILIES = ("inet", "netdev", "arp")


@dataclass(frozen=True, slots=True)
class Counter:
    """Packets and bytes that a named counter has seen."""

    packets: int
    bytes: int


class Nft:
    """Runs scripts, reads our tables, removes them."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def apply(self, script: str) -> None:
        """All of it, or nothing.

        Raises:
            HostError: the kernel or nft refuses it; nothing has changed.
        """
        self.check(script)
        try:
            self._commands.run(["nft", "-f", "-"], script)
        except HostError as error:
            raise _explained(error) from error

    def check(self, script: str) -> None:
        """Whether nft and the kernel would take this; nothing changes.

        Raises:
            HostError: they would not.
        """
        _only_ours(script)
        try:
            self._commands.run(["nft", "--check", "-f", "-"], script)
        except HostError as error:
            raise _explained(error) from error

    def tables(self) -> list[str]:
        """The families in which a table of ours is there now."""
        listed = json.loads(self._commands.run(["nft", "-j", "list", "tables"]) or '{"nftables": []}')
        found = [entry["table"] for entry in listed["nftables"] if "table" in entry]
        return [table["family"] for table in found if table["name"] == TABLE]

    def remove(self) -> list[str]:
        """Our tables go; returns their families."""
        families = self.tables()
        if families:
            self._commands.run(["nft", "-f", "-"], "".join(f"delete table {family} {TABLE}\n" for family in families))
        return families

    def counters(self, family: str) -> dict[str, Counter]:
        """Every named counter of our table in this family."""
        return {
            entry["name"]: Counter(entry["packets"], entry["bytes"])
            for entry in self._objects("counter", ["nft", "-j", "list", "counters", "table", family, TABLE])
        }

    def elements(self, family: str, name: str, kind: str = "set") -> list[Any]:
        """What a set or map of ours holds, as nft shows it."""
        found = list(self._objects(kind, ["nft", "-j", "list", kind, family, TABLE, name]))
        return list(found[0].get("elem", [])) if found else []

    def _objects(self, kind: str, arguments: list[str]) -> Iterator[dict[str, Any]]:
        listed = json.loads(self._commands.run(arguments) or '{"nftables": []}')
        return (entry[kind] for entry in listed["nftables"] if kind in entry)


def _only_ours(script: str) -> None:
    """The last guard before the kernel: every line names our table, whoever wrote it."""
    for line in script.split("\n"):
        if line and line.split(" ")[3:4] != [TABLE]:
            raise HostError(f"a fault of mailbalancer: this line is not about its own table: {line[:200]}")


def _explained(error: HostError) -> HostError:
    words = error.message
    if "Operation not permitted" in words:
        return HostError(
            "nft may not change the rules: CAP_NET_ADMIN is missing",
            "start as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit",
        )
    if "Operation not supported" in words or "No such file or directory" in words:
        return HostError(words, "the kernel lacks an nftables feature; see `mailbalancer host plan` for what is used")
    return error
