"""What comes again and again, so that it need not be read again.

Decides: what is remembered: whatever came twice, if it is not too long. What comes once (a request with a token that is
new each time) pushes nothing out and costs a hash.
Refuses to know: what is made of it. The key is the whole of the bytes, so what is remembered cannot be wrong for them.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Made = TypeVar("Made")

LONGEST: Final = 4096
_REMEMBERED: Final = 256
_SEEN_ONCE: Final = 4096


class Recurring(Generic[Made]):
    """What was made of byte strings that came more than once.

    Attributes:
        get: what was made of these bytes (at most LONGEST of them; to look for more costs time); None: nothing yet.
    """

    __slots__ = ("_known", "_once", "get")

    def __init__(self) -> None:
        self._known: dict[bytes, Made] = {}
        self._once: set[int] = set()
        self.get = self._known.get

    def came(self, key: bytes, made: Made) -> Made | None:
        """These bytes came; the second time, what was made of them is remembered and handed back."""
        if len(key) > LONGEST:
            return None
        if hash(key) not in self._once:
            if len(self._once) >= _SEEN_ONCE:
                self._once.clear()
            self._once.add(hash(key))
            return None
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = made
        return made
