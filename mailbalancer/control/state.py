"""What survives a restart: what the operator wants, who was not ready, and who goes where.

Decides: the format of the state file, that it is replaced whole or not at all, and that no state is worth not starting:
a file that cannot be read or written is a warning.
Refuses to know: what the states mean.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailbalancer.control.events import Events
from mailbalancer.ipc.messages import Binding, Bound
from mailbalancer.model import AdminState, MemberKey

FORMAT = 1
#: A file larger than this is not ours.
MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class SavedState:
    """What was written last.

    Attributes:
        wanted: operator's commands, where they differ from the configuration.
        not_ready: members that could take no new session; their return is ramped.
        bindings: persistence entries; `expires_at` is monotonic, of this run.
        drains: when each drain ends, monotonic, of this run.
        maintenance: what `Maintenance` has to remember.
    """

    wanted: dict[MemberKey, AdminState] = field(default_factory=dict)
    not_ready: set[MemberKey] = field(default_factory=set)
    bindings: list[Bound] = field(default_factory=list)
    drains: dict[MemberKey, float] = field(default_factory=dict)
    maintenance: dict[str, Any] = field(default_factory=dict)


class StateFile:
    """The file; an empty path means that nothing is kept."""

    def __init__(self, path: str, events: Events) -> None:
        self._path = Path(path) if path else None
        self._events = events
        self._failed = ""

    def read(self) -> SavedState:
        """What was saved; empty when there is nothing, or nothing that can be used."""
        if self._path is None:
            return SavedState()
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError("it is too large to be a state file")
            return _decoded(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return SavedState()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._events.warning(
                f"state file {self._path} cannot be used ({_words(error)}): "
                "operator's commands and persistence of the last run are forgotten"
            )
            return SavedState()

    def write(
        self,
        wanted: dict[MemberKey, AdminState],
        not_ready: Iterable[MemberKey],
        bindings: Iterable[Binding],
        drains: Mapping[MemberKey, float] | None = None,
        maintenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace the file: written beside it, flushed to the disk, renamed."""
        if self._path is None:
            return
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            facts = {**_encoded(wanted, not_ready, bindings, drains or {}), "maintenance": maintenance or {}}
            _write_through(fresh, json.dumps(facts).encode())
            fresh.replace(self._path)
            self._failed = ""
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            self._complain(_words(error))

    def _complain(self, why: str) -> None:
        """Once per cause: this is tried again every minute."""
        if why != self._failed:
            self._failed = why
            self._events.warning(
                f"state file {self._path} cannot be written ({why}): a restart would forget the operator's commands"
            )


def _write_through(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _encoded(
    wanted: dict[MemberKey, AdminState],
    not_ready: Iterable[MemberKey],
    bindings: Iterable[Binding],
    drains: Mapping[MemberKey, float],
) -> dict[str, Any]:
    to_wall_clock = time.time() - time.monotonic()
    return {
        "format": FORMAT,
        "wanted": [[*_parts(key), str(state)] for key, state in wanted.items()],
        "not_ready": [_parts(key) for key in not_ready],
        "drains": [[*_parts(key), ends_at + to_wall_clock] for key, ends_at in drains.items()],
        "bindings": [[b.group, b.key, b.real_server, b.expires_at + to_wall_clock] for b in bindings],
    }


def _decoded(data: dict[str, Any]) -> SavedState:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r} is not known")
    to_monotonic = time.monotonic() - time.time()
    return SavedState(
        {_key(parts): AdminState(state) for *parts, state in data["wanted"]},
        {_key(parts) for parts in data["not_ready"]},
        [
            Bound(str(group), str(key), str(real_server), float(expires_at) + to_monotonic)
            for group, key, real_server, expires_at in data["bindings"]
        ],
        # older files have neither
        {_key(parts): float(ends_at) + to_monotonic for *parts, ends_at in data.get("drains", [])},
        dict(data.get("maintenance", {})),
    )


def _parts(key: MemberKey) -> list[str]:
    return [key.service, key.route, key.real_server]


def _key(parts: list[str]) -> MemberKey:
    service, route, real_server = map(str, parts)
    return MemberKey(service, route, real_server)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
