"""Sources that carry too large a share of a service's sessions: reported by workers, told once, shown while it lasts.

Decides: which report of several workers is shown.
Refuses to know: from which share on a source is too much (the worker counts and decides).
"""

from __future__ import annotations

from typing import Any

from mailbalancer.control.events import Events
from mailbalancer.ipc.messages import Imbalance
from mailbalancer.model import Config


class Imbalances:
    """The latest report of each worker about each service."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._reports: dict[tuple[str, int], Imbalance] = {}

    def follow(self, config: Config) -> None:
        """Forget services that are gone."""
        self._reports = {key: report for key, report in self._reports.items() if config.service(key[0]) is not None}

    def forget_worker(self, worker: int) -> None:
        """Its sessions are gone with it."""
        self._reports = {key: report for key, report in self._reports.items() if key[1] != worker}

    def take(self, worker: int, report: Imbalance, config: Config) -> None:
        """A worker reports.

        Raises:
            ValueError: it does not make sense.
        """
        service, sessions, total = report.service, report.sessions, report.total
        if config.service(service) is None or not isinstance(report.source, str):
            raise ValueError(f"imbalance of an unknown service {service!r}")
        if not isinstance(sessions, int) or not isinstance(total, int) or not 0 <= sessions <= total:
            raise ValueError(f"imbalance with {sessions!r} of {total!r} sessions")
        before = self._reports.pop((service, worker), None)
        if sessions == 0:
            return
        self._reports[service, worker] = report
        if before is None or before.source != report.source:
            self._events.warning(
                f"{service}: {sessions} of {total} sessions come from {report.source}, and persistence keeps them on "
                "one real server; if a NAT device or a proxy stands there, let it send the PROXY header, or do not "
                "persist by source"
            )

    def worst(self, service: str) -> dict[str, Any] | None:
        """The largest share reported for this service, for `status`."""
        reports = [report for (name, _), report in self._reports.items() if name == service]
        if not reports:
            return None
        worst = max(reports, key=lambda report: report.sessions / report.total)
        share = round(worst.sessions / worst.total, 3)
        return {"source": worst.source, "sessions": worst.sessions, "total": worst.total, "share": share}
