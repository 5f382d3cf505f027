"""What the workers know about returning clients, all together.

Decides: which reports of a worker are believed, how many are kept, and what a new worker or a restarted balancer
starts with.
Refuses to know: how a worker uses its table, and where bindings are saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mailbalancer.ipc.messages import Binding, Bound
from mailbalancer.model import Config

#: No key is longer: an IPv6 address has 45 characters, a TLS session id 64 hexadecimal digits.
MAX_KEY_CHARS = 256


@dataclass(frozen=True, slots=True)
class _Group:
    """One persistence group of the running configuration."""

    timeout_s: float
    max_entries: int
    shared: bool  # every worker must know every entry
    real_servers: frozenset[str]


class Bindings:
    """The replica of the workers' tables: by group, then by key, the longest unused entry first."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._tables: dict[str, dict[str, Binding]] = {}

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables.values())

    def follow(self, config: Config) -> None:
        """Know the groups of this configuration. Tables of groups that are gone go with them."""
        self._groups = _groups(config)
        self._tables = {name: self._tables.get(name, {}) for name in self._groups}
        for name, group in self._groups.items():
            table = self._tables[name]
            for key in [k for k, b in table.items() if b.real_server not in group.real_servers]:
                del table[key]
            self._shrink(table, group)

    def prepare(self, config: Config) -> None:
        """This configuration is being tried: believe what workers report about its groups, beside those that run."""
        for name, group in _groups(config).items():
            self._groups[name] = _merged(self._groups[name], group) if name in self._groups else group
            self._tables.setdefault(name, {})

    def groups(self) -> list[str]:
        return sorted(self._groups)

    def is_shared(self, group: str) -> bool:
        return group in self._groups and self._groups[group].shared

    def learn(self, bound: Bound, now: float) -> Binding:
        """Keep what a worker reports.

        Raises:
            ValueError: it names something that is not in the configuration, or is no binding at all. Workers handle
                bytes from strangers, so their word is checked.
        """
        binding = Binding(bound.group, bound.key, bound.real_server, bound.expires_at)
        group = self._checked(binding)
        latest = now + group.timeout_s
        if binding.expires_at > latest:
            binding = Binding(binding.group, binding.key, binding.real_server, latest)
        table = self._tables[binding.group]
        table.pop(binding.key, None)  # a refreshed entry is the youngest
        table[binding.key] = binding
        self._shrink(table, group)
        return binding

    def forget(self, group: str = "", key: str = "") -> int:
        """Forget one key, a group, or (group empty) all; returns how many entries that were."""
        before = len(self)
        for name in [group] if group else list(self._tables):
            if key:
                self._tables.get(name, {}).pop(key, None)
            else:
                self._tables.get(name, {}).clear()
        return before - len(self)

    def expire(self, now: float) -> None:
        for name, table in self._tables.items():
            if any(binding.expires_at <= now for binding in table.values()):
                self._tables[name] = {key: b for key, b in table.items() if b.expires_at > now}

    def valid(self, now: float) -> Iterator[Binding]:
        """Everything that has not expired."""
        for table in self._tables.values():
            yield from (binding for binding in table.values() if binding.expires_at > now)

    def restore(self, saved: Iterable[Bound], now: float) -> int:
        """Take over what was saved, as far as it still fits the configuration; returns how many entries that were."""
        before = len(self)
        for bound in saved:
            try:
                self.learn(bound, now)
            except ValueError:
                continue  # the group or the real server was removed while we were away
        return len(self) - before

    def listed(self, group: str, limit: int, now: float) -> list[dict[str, Any]]:
        """For `persistence list`: each group with at most `limit` entries, the youngest first."""
        names = [group] if group else sorted(self._groups)
        return [self._listed_group(name, limit, now) for name in names if name in self._groups]

    def _listed_group(self, name: str, limit: int, now: float) -> dict[str, Any]:
        live = [binding for binding in reversed(self._tables[name].values()) if binding.expires_at > now]
        entries = [
            {"key": b.key, "real_server": b.real_server, "expires_in_s": round(b.expires_at - now, 1)}
            for b in live[:limit]
        ]
        timeout_s = self._groups[name].timeout_s
        return {"group": name, "timeout_s": timeout_s, "entries": entries, "more": len(live) - len(entries)}

    def _checked(self, binding: Binding) -> _Group:
        words = (binding.group, binding.key, binding.real_server)
        if not all(isinstance(word, str) and 0 < len(word) <= MAX_KEY_CHARS for word in words):
            raise ValueError("a binding needs a group, a key and a real server")
        expires_at: object = binding.expires_at
        if isinstance(expires_at, bool) or not isinstance(expires_at, (int, float)) or not math.isfinite(expires_at):
            raise ValueError("a binding needs an instant at which it expires")
        group = self._groups.get(binding.group)
        if group is None:
            raise ValueError(f"there is no persistence group {binding.group!r}")
        if binding.real_server not in group.real_servers:
            raise ValueError(f"persistence group {binding.group!r} has no real server {binding.real_server!r}")
        return group

    @staticmethod
    def _shrink(table: dict[str, Binding], group: _Group) -> None:
        while len(table) > group.max_entries:
            del table[next(iter(table))]


def _groups(config: Config) -> dict[str, _Group]:
    """Services of one group bring their real servers together; the longest timeout and largest table hold for all."""
    groups: dict[str, _Group] = {}
    for service in config.services:
        for pool in service.pools():
            if pool.persist is None:
                continue
            name = pool.persist.group
            entries = pool.persist.max_entries * config.workers
            names = frozenset(member.real_server for member in pool.members)
            new = _Group(pool.persist.timeout_s, entries, service.shares_bindings(pool), names)
            groups[name] = _merged(groups[name], new) if name in groups else new
    return groups


def _merged(one: _Group, other: _Group) -> _Group:
    return _Group(
        max(one.timeout_s, other.timeout_s),
        max(one.max_entries, other.max_entries),
        one.shared or other.shared,
        one.real_servers | other.real_servers,
    )
