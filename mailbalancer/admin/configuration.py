"""The configuration file, changed through the door: checked like the file, applied, and written back, or none of it.

Decides: the order (check, write, reload; the old text back when the reload refuses), that two writers never overwrite
each other (`etag`), and what is remembered.
Refuses to know: what is changed (a function from text to text), and who may.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mailbalancer.admin import files
from mailbalancer.admin.archive import Archive
from mailbalancer.admin.desk import Desk
from mailbalancer.admin.edit import difference
from mailbalancer.admin.gate import Refused
from mailbalancer.config.load import load_text
from mailbalancer.errors import MailbalancerError

Change = Callable[[str], str]
#: What has to be on the disk before a text can be checked, from the text that is there now; taken back by itself.
Beside = Callable[[str], AbstractContextManager[None]]


class Configuration:
    """One file and its history."""

    def __init__(self, desk: Desk, archive: Archive) -> None:
        self._desk = desk
        self.archive = archive
        self._one_at_a_time = asyncio.Lock()
        self._by: tuple[str, str] = ("file", "at the start")

    @property
    def path(self) -> Path:
        return Path(self._desk.config.path)

    def text(self) -> str:
        """What is in the file now.

        Raises:
            MailbalancerError: it cannot be read.
        """
        try:
            return self.path.read_bytes().decode()
        except OSError as error:
            raise MailbalancerError(f"{self.path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise MailbalancerError(f"{self.path} is not UTF-8", "save it as UTF-8") from error

    def applied(self) -> None:
        """A configuration was applied: at the start, by a reload, or by a change through the door."""
        try:
            self.archive.keep(self.text(), now(), *self._by)
        except MailbalancerError:
            return  # it was read a moment ago; what comes next is remembered again

    def differs(self) -> bool:
        """Whether the file says something else than what runs, as after a change by hand that was not reloaded."""
        newest = self.archive.newest()
        return newest is not None and newest.text != self.text()

    def check(self, text: str) -> list[str]:
        """The warnings about a text that could be applied.

        Raises:
            ConfigError: every problem.
        """
        return list(load_text(text, str(self.path), folder=self.path.parent).warnings)

    async def change(
        self,
        change: Change,
        if_match: str,
        who: str,
        what: str,
        dry_run: bool = False,
        beside: Beside | None = None,
    ) -> dict[str, Any]:
        """Apply a change and write it to the file.

        Args:
            if_match: the etag that the writer has seen.
            dry_run: say what would happen, and do nothing.
            beside: another file that changes with it; both do, or neither.

        Raises:
            Refused: 412 the file has changed since, 428 no etag.
            ConfigError: the result has problems; nothing has changed.
            MailbalancerError: it cannot be written or run; nothing has changed.
        """
        if not if_match:
            raise Refused(428, "say which configuration you change", "send `If-Match` with the ETag of /api/v1/config")
        async with self._one_at_a_time:
            old = self.text()
            if if_match not in ("*", etag(old)):
                raise Refused(412, "the configuration has changed since you read it", "read it again")
            fresh = change(old)
            with beside(old) if beside is not None else nullcontext():
                return await self._checked_and_applied(old, fresh, who, what, dry_run)

    async def _checked_and_applied(self, old: str, fresh: str, who: str, what: str, dry_run: bool) -> dict[str, Any]:
        warnings = self.check(fresh)
        told = {"etag": etag(fresh), "diff": difference(old, fresh), "warnings": warnings, "applied": not dry_run}
        if dry_run:
            return {**told, "etag": etag(old), "changes": []}
        result = await self._apply(old, fresh, who, what)
        return {**told, "changes": result["changes"], "warnings": [*result["warnings"], *warnings]}

    async def _apply(self, old: str, fresh: str, who: str, what: str) -> dict[str, Any]:
        with files.replaced(self.path, fresh.encode()) if fresh != old else nullcontext():
            self._by = (who, what)
            try:
                result: dict[str, Any] = await self._desk.obey("reload", {})
            finally:
                self._by = ("file", "changed by hand")
        return result


def etag(text: str) -> str:
    """Names one text, as HTTP wants it (RFC 9110 section 8.8.3)."""
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def now() -> str:
    """The wall clock as people and programs read it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
