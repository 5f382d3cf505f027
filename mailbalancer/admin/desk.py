"""What the door is given of the balancer: the same facts and commands as the control socket has, and nothing else.

Decides: nothing; names what admin needs, so that it needs no other room.
Refuses to know: who stands behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mailbalancer.l4.paths import Path
from mailbalancer.model import Config

Event = dict[str, Any]


class Desk(Protocol):
    """Answers from memory, at once; only commands may take their time."""

    @property
    def config(self) -> Config:
        """What runs now."""
        ...

    @property
    def report(self) -> Callable[[], dict[str, Any]]:
        """The facts of `status`; raises MailbalancerError while the balancer is starting."""
        ...

    @property
    def obey(self) -> Callable[[str, dict[str, Any]], Awaitable[Any]]:
        """A command of the control socket and its arguments; raises MailbalancerError when it is refused."""
        ...

    @property
    def explain(self) -> Callable[[str, str, str], list[Path]]:
        """The ways from a client to a service's real servers (or the one named); raises MailbalancerError."""
        ...

    @property
    def timings(self) -> Callable[[str], dict[str, Any]]:
        """How long phases took at a service (empty: at all), as histograms by place; raises MailbalancerError while the
        balancer is starting."""
        ...

    def watch(self, told: Callable[[Event], None]) -> list[Event]:
        """Have `told` called with every event from now on; returns those that were before, newest last."""
        ...
