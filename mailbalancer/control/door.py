"""The second way in, beside the control socket: what is given to whoever serves it, and what is asked of them.

Decides: that a door gets facts and commands and nothing of the supervisor itself.
Refuses to know: HTTP, pages and tokens; that is another room's, and `wiring` brings the two together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from mailbalancer.control.events import Events
from mailbalancer.l4.paths import Path
from mailbalancer.model import Config


@dataclass(slots=True)
class Desk:
    """Where a door asks.

    Attributes:
        config: what runs now.
        report: the facts of `status`; raises MailbalancerError while starting.
        obey: a command of the control socket and its arguments; raises MailbalancerError when refused.
        explain: the ways from a client to a service's real servers (or the one that is named).
        timings: how long phases took at a service (empty: at all), as histograms; raises MailbalancerError while
            starting.
    """

    config: Config
    report: Callable[[], dict[str, Any]]
    obey: Callable[[str, dict[str, Any]], Awaitable[Any]]
    events: Events
    explain: Callable[[str, str, str], list[Path]]
    timings: Callable[[str], dict[str, Any]]

    def watch(self, told: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
        """Call `told` with every event from now on; returns those that are remembered, newest last."""
        return self.events.watch(told)


class Door(Protocol):
    """It runs in the supervisor's event loop: it never waits otherwise than by `await`, and starts no thread."""

    async def start(self, desk: Desk) -> None:
        """Open it, before any worker exists.

        Raises:
            MailbalancerError: it cannot be opened.
        """
        ...

    @property
    def commands(self) -> Collection[str]:
        """What the control socket can ask of it."""
        ...

    async def obey(self, command: str, arguments: dict[str, Any]) -> Any:
        """One of `commands`; raises MailbalancerError when it is refused."""
        ...

    async def follow(self, config: Config) -> None:
        """This configuration runs now. Never raises."""
        ...

    async def stop(self) -> None:
        """Close it."""
        ...
