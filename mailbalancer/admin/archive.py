"""The configurations that ran: the last 50, to look at, to compare and to go back to.

Decides: how many are kept and what is known about each; a folder that cannot be written costs the memory of a restart
and nothing else.
Refuses to know: what a configuration means, and when one is applied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mailbalancer.admin import files
from mailbalancer.errors import MailbalancerError

KEPT = 50
_MAX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Archived:
    """A configuration that was applied. `who` is a token's name, or `file` when the file was changed by hand."""

    number: int
    at: str
    who: str
    what: str
    text: str


class Archive:
    """One file per configuration in `folder`; without a folder they are kept in memory.

    Attributes:
        complaint: why the folder cannot be used; empty while it can.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._kept: list[Archived] = []
        self.complaint = ""
        if folder is not None:
            self._read(folder)

    def __iter__(self) -> Iterator[Archived]:
        return iter(self._kept)

    def newest(self) -> Archived | None:
        return self._kept[-1] if self._kept else None

    def find(self, number: int) -> Archived | None:
        return next((one for one in self._kept if one.number == number), None)

    def keep(self, text: str, at: str, who: str, what: str) -> Archived | None:
        """Remember what runs from now on; None when it is what ran before."""
        newest = self.newest()
        if newest is not None and newest.text == text:
            return None
        fresh = Archived(newest.number + 1 if newest else 1, at, who, what, text)
        self._kept.append(fresh)
        gone, self._kept = self._kept[:-KEPT], self._kept[-KEPT:]
        if self._folder is not None:
            self._write(self._folder, fresh, gone)
        return fresh

    def _write(self, folder: Path, fresh: Archived, gone: list[Archived]) -> None:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files.replace(_file(folder, fresh.number), json.dumps(asdict(fresh)).encode(), 0o600)
            for old in gone:
                _file(folder, old.number).unlink(missing_ok=True)
            self.complaint = ""
        except (OSError, MailbalancerError) as error:
            self.complaint = f"the history of configurations cannot be written to {folder}: {error}"

    def _read(self, folder: Path) -> None:
        try:
            found = sorted(path for path in folder.glob("*.json") if path.stem.isascii() and path.stem.isdigit())
        except OSError as error:
            self.complaint = f"the history of configurations in {folder} cannot be read: {error}"
            return
        for path in found[-KEPT:]:
            try:
                if path.stat().st_size <= _MAX_BYTES:
                    self._kept.append(_archived(json.loads(path.read_bytes())))
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.complaint = f"{path} is no configuration of the history: {error!r}"
        self._kept.sort(key=lambda one: one.number)


def _archived(data: dict[str, object]) -> Archived:
    number = data["number"]
    if not isinstance(number, int):
        raise TypeError("number is no number")
    return Archived(number, str(data["at"]), str(data["who"]), str(data["what"]), str(data["text"]))


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.json"
