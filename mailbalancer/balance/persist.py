"""Persistence: which real server a returning client goes back to.

Decides: what a table remembers and for how long, and what becomes of a bound client whose server cannot take it.
Refuses to know: what a key is made of, who else has a table, and how a move is counted.

A table maps a client's key to a real server's *name*, because the services of a group have slots of their own. Its
timeout slides: it runs from the last session's end, and not at all while a session is open. The table is bounded; what
was used longest ago goes first, and entries with open sessions go last.

A bound client, in words:
    its server is ready or draining, with room    → back to it
    its server is ready or draining, but full     → refused as full: it waits in the queue if there is one. Sending it
                                                    elsewhere would cost its login or its mailbox session, and would
                                                    leave its three RPC ports on two servers
    its server is down, disabled, drained, gone,
    or just failed to connect                     → a new pick, and the binding moves with it
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import chain
from typing import NamedTuple

from mailbalancer.balance.pool import Choice, Pool, Refusal, View

_NEVER = float("-inf")
#: Entries one `sweep` may drop: at 0.3 µs each this stays far below what a session would notice.
SWEEP_STEPS = 1000


class Entry(NamedTuple):
    """One binding as it stands: `expires_at` counts only while `sessions` is 0."""

    key: str
    name: str
    expires_at: float
    sessions: int


class _Binding:
    __slots__ = ("name", "reported_at", "sessions", "used_at")

    def __init__(self, name: str, used_at: float) -> None:
        self.name = name
        self.used_at = used_at
        self.reported_at = _NEVER
        self.sessions = 0


class Table:
    """The bindings of one persistence group in one worker.

    Args:
        timeout_s: how long a client without sessions is remembered.
        max_entries: most bindings kept, at least 1.
    """

    def __init__(self, timeout_s: float, max_entries: int) -> None:
        self.timeout_s = timeout_s
        self.max_entries = max_entries
        # Two dictionaries, each with the longest unused first: so expiry and eviction never search.
        self._idle: OrderedDict[str, _Binding] = OrderedDict()
        self._busy: OrderedDict[str, _Binding] = OrderedDict()

    def __len__(self) -> int:
        """Bindings held, those included that have expired and were not swept yet."""
        return len(self._idle) + len(self._busy)

    def __iter__(self) -> Iterator[Entry]:
        """Bindings held, longest unused first, those with open sessions last. Do not change the table meanwhile."""
        for key, binding in chain(self._idle.items(), self._busy.items()):
            yield Entry(key, binding.name, binding.used_at + self.timeout_s, binding.sessions)

    def configure(self, timeout_s: float, max_entries: int) -> None:
        """A reload: the new timeout holds for every binding from its last use on, the new bound at once."""
        self.timeout_s = timeout_s
        self.max_entries = max_entries
        self._evict()

    def lookup(self, key: str, now: float) -> str | None:
        """The real server this client is bound to. Looking does not prolong anything."""
        busy = self._busy.get(key)
        if busy is not None:
            return busy.name
        idle = self._idle.get(key)
        if idle is None:
            return None
        if self._expired(idle, now):
            del self._idle[key]
            return None
        return idle.name

    def bind(self, key: str, name: str, now: float) -> float:
        """Bind, move or refresh a client; returns the instant at which this expires if nothing more happens."""
        binding = self._refresh(key, name, now)
        if binding.name != name:
            binding.name = name
            binding.reported_at = _NEVER
        return now + self.timeout_s

    def opened(self, key: str) -> None:
        """A session of this client begins: its binding does not expire until as many have closed."""
        binding = self._idle.pop(key, None)
        if binding is not None:
            self._busy[key] = binding
        else:
            binding = self._busy.get(key)
        if binding is not None:
            binding.sessions += 1

    def closed(self, key: str, now: float) -> None:
        """A session ended; its binding's time starts anew. A key that was forgotten meanwhile is no error."""
        binding = self._busy.get(key)
        if binding is None:
            return
        binding.used_at = now
        binding.sessions -= 1
        if binding.sessions == 0:
            del self._busy[key]
            self._idle[key] = binding

    def learn(self, key: str, name: str, expires_at: float) -> None:
        """Another worker bound this client. Of two bindings the later wins, so that workers who crossed agree."""
        used_at = expires_at - self.timeout_s
        known = self._busy.get(key) or self._idle.get(key)
        if known is not None and (known.used_at, known.name) > (used_at, name):
            return
        binding = self._refresh(key, name, used_at)
        binding.name = name
        binding.reported_at = used_at

    def forget(self, key: str = "") -> int:
        """Forget one client, or all of them; returns how many. Their sessions go on."""
        if key:
            return sum(held.pop(key, None) is not None for held in (self._idle, self._busy))
        forgotten = len(self)
        self._idle.clear()
        self._busy.clear()
        return forgotten

    def needs_report(self, key: str, now: float) -> bool:
        """Whether others must be told of this binding now: new, moved, or half its time has passed since they were.

        Answering yes counts as told, so the caller reports at once.
        """
        binding = self._busy.get(key) or self._idle.get(key)
        if binding is None or now - binding.reported_at <= self.timeout_s / 2:
            return False
        binding.reported_at = now
        return True

    def overdue(self, now: float) -> list[Entry]:
        """Bindings with open sessions that others must be told of again: nobody looks these up while they last.

        Answering counts as told, as with `needs_report`.
        """
        due = [key for key, binding in self._busy.items() if now - binding.reported_at > self.timeout_s / 2]
        for key in due:
            self._busy[key].reported_at = now
        return [Entry(key, self._busy[key].name, now + self.timeout_s, self._busy[key].sessions) for key in due]

    def sweep(self, now: float, steps: int = SWEEP_STEPS) -> int:
        """Drop at most `steps` expired bindings; returns how many. What is left over goes at the next sweep."""
        dropped = 0
        while self._idle and dropped < steps:
            key, binding = next(iter(self._idle.items()))
            if not self._expired(binding, now):
                break
            del self._idle[key]
            dropped += 1
        return dropped

    def _expired(self, binding: _Binding, now: float) -> bool:
        return now - binding.used_at >= self.timeout_s

    def _refresh(self, key: str, name: str, used_at: float) -> _Binding:
        """The binding of this key, made if need be, as the most recently used."""
        for held in (self._busy, self._idle):
            binding = held.get(key)
            if binding is not None:
                held.move_to_end(key)
                binding.used_at = used_at
                return binding
        binding = self._idle[key] = _Binding(name, used_at)
        self._evict()
        return binding

    def _evict(self) -> None:
        while len(self) > self.max_entries:
            (self._idle or self._busy).popitem(last=False)


def select(
    pool: Pool,
    table: Table,
    key: str,
    hash_key: bytes,
    view: View,
    now: float,
    tried: Collection[str] = (),
    deterministic: bool = False,
) -> tuple[Choice | Refusal, bool]:
    """Choose for a session of a service that persists.

    Args:
        key: the client in the table.
        hash_key: the client for hashing schedules.
        tried: real servers that already failed for this session; a binding to one of them moves.
        deterministic: choose new servers by hash, because the table is shared between workers and two of them may
            meet a client for the first time at once.

    Returns:
        The choice or refusal, and whether a bound client was moved. The table is changed already.
    """
    bound = table.lookup(key, now)
    if bound is not None and (member := pool.takes_back(view, bound, tried)) is not None:
        if pool.returning(view, bound, tried) is None:
            return Refusal.ALL_FULL, False
        table.bind(key, bound, now)
        return Choice(member, "persistence"), False
    outcome = pool.pick(view, now, hash_key, tried, by_key=deterministic)
    if isinstance(outcome, Refusal):
        return outcome, False
    table.bind(key, outcome.member.name, now)
    return outcome, bound is not None
