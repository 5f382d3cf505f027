"""Which of several certificates answers to a name: exactly, by wildcard, or the default.

Decides: the order of the choice (RFC 6125 section 6.4: a wildcard stands for exactly one label, the leftmost).
Refuses to know: what is chosen, and TLS. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Names(Generic[T]):
    """Things that are found by host name.

    Args:
        entries: each thing with the names it is for. The first thing is the default; a name that two things claim
            belongs to the earlier one.
    """

    def __init__(self, entries: Iterable[tuple[T, Iterable[str]]]) -> None:
        self._by_name: dict[str, T] = {}
        self._all: list[T] = []
        for thing, names in entries:
            self._all.append(thing)
            for name in names:
                self._by_name.setdefault(_plain(name), thing)
        if not self._all:
            raise ValueError("there is nothing to choose from, so there is no default")

    @property
    def default(self) -> T:
        """For a client that names nobody, or somebody else."""
        return self._all[0]

    def choose(self, name: str | None) -> T:
        """The thing for this name. An unknown name gets the default: the client compares the names itself."""
        if not name:
            return self.default
        asked = _plain(name)
        exact = self._by_name.get(asked)
        if exact is not None:
            return exact
        first, dot, rest = asked.partition(".")
        wild = self._by_name.get(f"*.{rest}") if first and dot and rest else None
        return self.default if wild is None else wild


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")
