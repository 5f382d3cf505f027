"""Returning clients that the kernel remembers for layer 4 services: shown and forgotten like those of layer 7.

Decides: what an entry of a map means in the operator's words.
Refuses to know: how clients get there (rules) and who asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mailbalancer.host.nft import Nft
from mailbalancer.l4.tables import TABLE, Table


@dataclass(frozen=True, slots=True)
class KernelClients:
    """Reads and writes maps of clients.

    Args:
        tables: what is in the kernel.
        names: what our numbers stand for.
    """

    nft: Nft
    tables: tuple[Table, ...]
    names: Mapping[int, str]

    def groups(self) -> set[str]:
        """Persistence groups with clients in the kernel."""
        return {group for _, _, group in self._maps()}

    def listed(self, group: str, limit: int) -> tuple[list[dict[str, Any]], int]:
        """At most so many clients of a group, and how many more there are.

        Raises:
            HostError: the kernel does not tell.
        """
        found = [entry for family, name, _ in self._maps(group) for entry in self._entries(family, name)]
        return found[:limit], max(0, len(found) - limit)

    def forget(self, group: str = "", key: str = "") -> int:
        """One client, or all; in one group, or (empty) in all. Returns how many entries that were.

        Raises:
            HostError: the kernel refuses.
        """
        wanted = _canonical(key)
        lines, count = [], 0
        for family, name, _ in self._maps(group):
            here = [entry["key"] for entry in self._entries(family, name)]
            if key and wanted in here:
                lines.append(f"delete element {family} {TABLE} {name} {{ {wanted} }}")
                count += 1
            elif not key and here:
                lines.append(f"flush map {family} {TABLE} {name}")
                count += len(here)
        if lines:
            self.nft.apply("".join(f"{line}\n" for line in lines))
        return count

    def _maps(self, group: str = "") -> Iterator[tuple[str, str, str]]:
        """Family and name of each map of clients, and its group."""
        for table in self.tables:
            for name in table.memory:
                if name.startswith("clients_"):
                    found = self.names.get(int(name.split("_")[1]), "").removeprefix("group ")
                    if found and group in ("", found):
                        yield table.family, name, found

    def _entries(self, family: str, name: str) -> Iterator[dict[str, Any]]:
        for key, mark in self.nft.elements(family, name, "map"):
            element = key["elem"]
            yield {
                "key": str(element["val"]),
                "real_server": self.names.get(int(mark) & 0xFFFF, "").removeprefix("machine "),
                "expires_in_s": float(element.get("expires", element.get("timeout", 0))),
            }


def _canonical(text: str) -> str:
    """The address as the kernel prints it; empty: it is none, and nobody is remembered under it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return "" if getattr(address, "scope_id", None) else str(address)
