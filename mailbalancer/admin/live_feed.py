"""What the page is told every second while somebody looks at it (server-sent events).

Decides: that facts are put together once for all viewers, and not at all without one; that a viewer who does not read
is left behind; how many there may be.
Refuses to know: what the page does with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from mailbalancer.admin import maintenance, views
from mailbalancer.admin.desk import Desk, Event
from mailbalancer.admin.gate import Refused
from mailbalancer.admin.latency import Latency
from mailbalancer.admin.words import Facts, worker_troubles
from mailbalancer.errors import MailbalancerError

TICK_S = 1.0
MOST_VIEWERS = 32
#: A viewer that takes nothing for so long is disconnected.
PATIENCE_S = 10.0
_COUNTERS = ("total", "refused", "failed", "bytes_in", "bytes_out")


class LiveFeed:
    """One feed for all viewers.

    Args:
        events: the newest ones, newest last; `told` counts all there ever were.
    """

    def __init__(self, desk: Desk, newest: Callable[[], tuple[int, list[Event]]]) -> None:
        self._desk = desk
        self._newest = newest
        self._viewers: dict[asyncio.Queue[bytes], str] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticking: asyncio.TimerHandle | None = None
        self._before: Mapping[str, Facts] = {}
        self._latencies: dict[str, Latency] = {}
        self._before_at = 0.0

    async def show(
        self, request: web.Request, service: str, may_stay: Callable[[], bool], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Tell one viewer, until it leaves or may stay no longer.

        Args:
            service: the one whose details are wanted too.

        Raises:
            Refused: 503 too many look already.
        """
        if len(self._viewers) >= MOST_VIEWERS:
            raise Refused(503, f"{MOST_VIEWERS} look already", "close a page", {"Retry-After": "10"})
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        queue: asyncio.Queue[bytes] = asyncio.Queue(2)
        task = asyncio.current_task()
        assert task is not None
        self._viewers[queue] = service
        self._tasks.add(task)
        try:
            await response.prepare(request)
            self._tick() if self._ticking is None else queue.put_nowait(self._payload(service, self._facts()))
            while may_stay():
                payload = await queue.get()
                async with asyncio.timeout(PATIENCE_S):
                    await response.write(payload)
        except (OSError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            del self._viewers[queue]
            self._tasks.discard(task)
        return response

    async def stop(self) -> None:
        """Send everybody away."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _tick(self) -> None:
        if not self._viewers:
            self._ticking = None
            return
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        facts = self._facts()
        made: dict[str, bytes] = {}
        for queue, service in self._viewers.items():
            if service not in made:
                made[service] = self._payload(service, facts)
            if not queue.full():  # who is late misses one
                queue.put_nowait(made[service])

    def _facts(self) -> dict[str, Any] | None:
        try:
            return self._desk.report()
        except MailbalancerError:
            return None  # still starting

    def _payload(self, service: str, report: dict[str, Any] | None) -> bytes:
        if report is None:
            return b": starting\n\n"
        lines = [views.line(one) for one in report["services"]]
        told, events = self._newest()
        facts = {
            "version": report["version"],
            "config_version": report["config_version"],
            "uptime_s": report["uptime_s"],
            "warnings": report["warnings"],
            "troubles": [trouble for worker in report["workers"] for trouble in worker_troubles(worker)],
            "workers": len(report["workers"]),
            "services": self._with_rates(lines),
            "events": events,
            "told": told,
            "service": None,
            "maintenance": [maintenance.told(report, one)["says"] for one in report["maintenance"]["active"]],
        }
        if service and (found := views.find(report, service)) is not None:
            facts["service"] = {**views.described(found), "latency": self._latency(service)}
        return f"data: {json.dumps(facts, default=str, separators=(',', ':'))}\n\n".encode()

    def _latency(self, service: str) -> list[dict[str, Any]]:
        """Of the last minute, as far as somebody has looked at this service for so long."""
        looked_at = set(self._viewers.values())
        self._latencies = {name: kept for name, kept in self._latencies.items() if name in looked_at}
        kept = self._latencies.setdefault(service, Latency())
        return kept.take(self._desk.timings(service), asyncio.get_running_loop().time())

    def _with_rates(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        now = asyncio.get_running_loop().time()
        elapsed_s = now - self._before_at
        if elapsed_s >= TICK_S / 2:
            self._rates = _rates(lines, self._before, elapsed_s if elapsed_s < 10 * TICK_S else 0.0)
            self._before, self._before_at = {line["name"]: line for line in lines}, now
        return [{**line, "rates": self._rates.get(line["name"], dict.fromkeys(_COUNTERS, 0.0))} for line in lines]

    _rates: dict[str, dict[str, float]] = {}  # noqa: RUF012 replaced, never changed


def _rates(lines: list[dict[str, Any]], before: Mapping[str, Facts], elapsed_s: float) -> dict[str, dict[str, float]]:
    """What every counter grows by in a second."""
    if not elapsed_s:
        return {}
    return {
        line["name"]: {key: round(max(0, line[key] - before[line["name"]][key]) / elapsed_s, 2) for key in _COUNTERS}
        for line in lines
        if line["name"] in before
    }
