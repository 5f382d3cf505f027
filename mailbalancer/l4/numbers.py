"""Numbers for names: what the kernel's objects and marks are called.

Decides: that a name has the same number after a restart as before it (nearly always: it is a hash of the name, and only
a clash moves it), so that connections which outlive the program still count for their server.
Refuses to know: what the names mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2s

from mailbalancer.errors import MailbalancerError
from mailbalancer.l4.ruleset import HIGHEST_NUMBER


class Numbers:
    """Gives each name a number that no other has, as long as it is wanted."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    def get(self, name: str) -> int | None:
        """The number of this name, if it has one."""
        return self._numbers.get(name)

    def names(self) -> dict[int, str]:
        """What each number stands for."""
        return {number: name for name, number in self._numbers.items()}

    def follow(self, names: Iterable[str]) -> None:
        """These names have numbers from now on; names that had one keep it, others lose theirs.

        Raises:
            MailbalancerError: there are more names than numbers.
        """
        wanted = sorted(set(names))
        if len(wanted) > HIGHEST_NUMBER:
            raise MailbalancerError(f"{len(wanted)} real servers in layer 4 services are more than can be told apart")
        self._numbers = {name: self._numbers[name] for name in wanted if name in self._numbers}
        taken = set(self._numbers.values())
        for name in wanted:
            if name not in self._numbers:
                number = first_choice(name)
                while number in taken:
                    number = number % HIGHEST_NUMBER + 1
                self._numbers[name] = number
                taken.add(number)


def first_choice(name: str) -> int:
    """The number a name has unless another name was there first, 1 to HIGHEST_NUMBER."""
    return int.from_bytes(blake2s(name.encode()).digest()[:4], "big") % HIGHEST_NUMBER + 1
