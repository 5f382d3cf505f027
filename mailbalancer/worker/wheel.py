"""One timer wheel for every deadline of a worker: connect, PROXY header, queue, idle.

Decides: which items are due at `now`, to the tick.
Refuses to know: what is due, and clocks. An item that was active meanwhile is simply put in again by its owner, so
traffic never touches the wheel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")

#: Short enough for a connect timeout, long enough that an idle worker does next to nothing.
TICK_S = 0.1


class Wheel(Generic[Item]):
    """Items by the tick at which they are due. Items must be hashable and stand in at most one place each."""

    def __init__(self, now: float, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._next = int(now / tick_s)
        self._buckets: dict[int, set[Item]] = {}

    def add(self, item: Item, at: float) -> int:
        """Put an item in, due at the first tick not before `at`. The number returned is what `remove` wants."""
        key = int(at / self._tick_s) + 1
        if key < self._next:
            key = self._next
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = {item}
        else:
            bucket.add(item)
        return key

    def remove(self, item: Item, key: int) -> None:
        """Take an item out; one that is not there is no error."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            bucket.discard(item)
            if not bucket:
                del self._buckets[key]

    def due(self, now: float) -> Iterator[Item]:
        """Take out every item whose tick has come, one after the other.

        What is done with one item may concern another that is due too: removed or put in again, it is not delivered.
        """
        last = int(now / self._tick_s)
        if last - self._next > len(self._buckets):  # a long sleep: look at what there is, not at every tick missed
            keys = sorted(key for key in self._buckets if key <= last)
        else:
            keys = [key for key in range(self._next, last + 1) if key in self._buckets]
        self._next = last + 1
        for key in keys:
            while bucket := self._buckets.get(key):
                item = bucket.pop()
                if not bucket:
                    del self._buckets[key]
                yield item

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))
