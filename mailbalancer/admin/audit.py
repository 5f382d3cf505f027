"""Who changed what: every change that came through the door, in the log and in a bounded memory.

Decides: what is written about a change, and how many are remembered.
Refuses to know: what the change does.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from mailbalancer.admin.gate import Visitor
from mailbalancer.log import Log

REMEMBERED = 1000
#: Longer texts (a whole configuration) are in the history of configurations.
MOST_CHARACTERS = 4000


class Audit:
    """Newest last."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)

    def record(self, visitor: Visitor, what: str, outcome: str, before: str = "", after: str = "") -> None:
        """A change was made, or refused.

        Args:
            what: the operation and its arguments.
            outcome: `done`, or why it was refused.
        """
        before, after = before[:MOST_CHARACTERS], after[:MOST_CHARACTERS]
        entry = {"who": visitor.name, "role": str(visitor.role), "from": visitor.peer, "what": what[:MOST_CHARACTERS]}
        entry |= {"outcome": outcome[:MOST_CHARACTERS], "before": before, "after": after}
        self._log.info("audit", **entry)
        self._last.append({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry})

    def listed(self, limit: int) -> list[dict[str, Any]]:
        return list(self._last)[-limit:] if limit else []
