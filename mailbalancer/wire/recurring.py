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
        if not self.comes_again(key):
            return None
        self.keep(key, made)
        return made

    def comes_again(self, key: bytes) -> bool:
        """Whether these bytes came before, so that it is worth while to make something of them for `keep`."""
        if len(key) > LONGEST:
            return False
        mark, once = hash(key), self._once
        if mark in once:
            return True
        if len(once) >= _SEEN_ONCE:
            once.clear()
        once.add(mark)
        return False

    def keep(self, key: bytes, made: Made) -> None:
        """Remember what was made of bytes that came again."""
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[key] = made
