"""What `status` says: configuration, board and members brought together into plain facts.

Decides: the shape of the answer (docs list every field) and how the numbers of the workers become one.
Refuses to know: how it is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from mailbalancer import __version__
from mailbalancer.control.certificate_watch import CertificateWatch
from mailbalancer.control.events import Events, iso_utc
from mailbalancer.control.imbalance import Imbalances
from mailbalancer.control.members import Members, Record
from mailbalancer.control.rollout import Target
from mailbalancer.control.workers import Worker, Workers
from mailbalancer.ipc.board import BOUNDS_S, Availability, Beat, Board, Count, Phase
from mailbalancer.model import Check, Endpoint, HttpCheck, MemberKey, Persist, Pool, Route, Service, SourceKey

_AVAILABILITY = {
    int(Availability.CLOSED): "closed",
    int(Availability.RETURNING): "returning",
    int(Availability.READY): "ready",
}
_TRAFFIC = {
    "sessions": Count.SESSIONS,
    "total": Count.TOTAL,
    "connect_ok": Count.CONNECT_OK,
    "connect_failed": Count.CONNECT_FAILED,
    "bytes_in": Count.BYTES_IN,
    "bytes_out": Count.BYTES_OUT,
    "moved": Count.MOVED,
    "retried": Count.RETRIED,
    "messages": Count.MESSAGES,
    "messages_refused": Count.MESSAGES_REFUSED,
}
#: What only `http` services count.
_HTTP = {
    "requests": Count.REQUESTS,
    "long_polls": Count.LONG_POLLS,
    "pinned": Count.PINNED,
    "reused": Count.REUSED,
    "pinned_reused": Count.PINNED_REUSED,
}
#: What only services count whose clients speak TLS to us.
_TLS = {
    "1.3": Count.TLS_1_3,
    "1.2": Count.TLS_1_2,
    "older": Count.TLS_OLDER,
    "resumed": Count.TLS_RESUMED,
    "failed": Count.TLS_FAILED,
}


class Status:
    """Reads; changes nothing."""

    def __init__(
        self,
        board: Board,
        workers: Workers,
        members: Members,
        imbalances: Imbalances,
        events: Events,
        certificates: CertificateWatch,
    ) -> None:
        self._certificates = certificates
        self._board = board
        self._workers = workers
        self._members = members
        self._imbalances = imbalances
        self._events = events
        self._started_at = time.time()
        #: What the real servers of an `smtp` service have in common after EHLO.
        self.offers: Callable[[str], list[str]] = lambda service: []
        #: What the kernel has counted for a member, where it forwards: instead of what the workers have.
        self.probed: Callable[[MemberKey], Mapping[str, Any]] = lambda key: {}
        self.noticed: Callable[[Service], Mapping[str, Any]] = lambda service: {}
        self.network: Callable[[], dict[str, Any]] = dict
        self.kernel: Callable[[MemberKey], Mapping[str, int]] = lambda key: {}
        self.maintenance: Callable[[float], dict[str, Any]] = lambda wall: {"active": [], "windows": []}
        self.own_address: Callable[[Service], dict[str, Any]] = lambda service: {"sessions": 0, "networks": []}
        self._started = time.monotonic()

    def report(self, running: Target, warnings: list[str]) -> dict[str, Any]:
        """Everything, as it is now."""
        now = time.monotonic()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "config": running.config.path,
            "config_version": running.version,
            "started_at": iso_utc(self._started_at),
            "uptime_s": round(now - self._started, 1),
            "warnings": warnings,
            "workers": [self._worker(worker, running, now) for worker in self._workers],
            "services": [self._service(service, running, now) for service in running.config.services],
            "certificates": self._certificates.listed(),
            "maintenance": self.maintenance(time.time()),
            "network": self.network(),
            "events": self._events.listed(),
        }

    def timings(self, running: Target, wanted: str = "") -> dict[str, Any]:
        """How long phases took, as histograms: of every real server in its service, and of services without one.

        Apart from `report`, which is made every second while somebody looks.

        Args:
            wanted: the only service; empty: all.
        """
        allocation = running.allocation
        places = [(name, "", "", slot) for name, slot in allocation.services.items()]
        places += [(key.service, key.route, key.real_server, slot) for key, slot in allocation.members.items()]
        phases = [phase.name.lower() for phase in Phase]
        return {
            "bounds_s": list(BOUNDS_S),
            "places": [
                {
                    "service": service,
                    "route": route,
                    "real_server": real_server,
                    "phases": dict(zip(phases, self._board.timings(slot), strict=True)),
                }
                for service, route, real_server, slot in places
                if wanted in ("", service)
            ],
        }

    def of_service(self, name: str, running: Target) -> dict[str, Any]:
        """What is known of one service and of the segments, in the shape of the whole report."""
        now, found = time.monotonic(), running.config.service(name)
        services = [self._service(found, running, now)] if found is not None else []
        return {"services": services, "network": self.network()}

    def _worker(self, worker: Worker, running: Target, now: float) -> dict[str, Any]:
        board, index, life = self._board, worker.index, worker.life
        beat_at = board.floats[board.beat(index, Beat.AT)]
        slots = running.allocation.services.values()
        return {
            "index": index,
            "pid": life.pid if life else 0,
            "alive": life is not None,
            "beat_age_s": round(max(0.0, now - beat_at), 3) if beat_at else None,
            "sessions": sum(board.ints[board.count(index, slot, Count.SESSIONS)] for slot in slots),
            "open_files": board.ints[board.beat(index, Beat.OPEN_FILES)],
            "paused": bool(board.ints[board.beat(index, Beat.PAUSED)]),
            "config_version": board.ints[board.beat(index, Beat.CONFIG_VERSION)],
            "restarts": max(0, worker.starts - 1),
        }

    def _service(self, service: Service, running: Target, now: float) -> dict[str, Any]:
        slot = running.allocation.services[service.name]
        pools = [self._pool(service, pool, now) for pool in service.pools()]
        behind = [server for pool in pools for server in pool["real_servers"]]
        return {
            "name": service.name,
            "mode": str(service.mode),
            "listen": list(service.places),
            "profile": service.profile,
            "sessions": self._together(service, behind, slot, "sessions"),
            "total": self._together(service, behind, slot, "total"),
            "refused": self._board.total(slot, Count.REFUSED),
            "queued": self._board.total(slot, Count.QUEUED),
            "bytes_in": sum(server["bytes_in"] for server in behind),
            "bytes_out": sum(server["bytes_out"] for server in behind),
            "imbalance": self._imbalances.worst(service.name),
            "own_address": self._own_address(service),
            **self.noticed(service),
            "client_tls": service.client_tls and {"certificates": list(service.client_tls.certificates)},
            "server_tls": service.server_tls and {"verify": service.server_tls.verify.kind},
            **self._http(service, slot),
            "handshakes": service.client_tls and {word: self._board.total(slot, count) for word, count in _TLS.items()},
            "sources": self._sources(service, running),
            "capabilities": self.offers(service.name),
            "pools": pools,
        }

    def _own_address(self, service: Service) -> dict[str, Any]:
        """Sessions that real servers saw with our address although the service shows clients' own, and whose."""
        given = self.own_address(service)
        members = (self._members[pool.key(member)] for pool in service.pools() for member in pool.members)
        given["sessions"] += sum(self._board.total(record.slot, Count.OWN_ADDRESS) for record in members)
        return given

    def _http(self, service: Service, slot: int) -> dict[str, Any]:
        """Counters and routes without real servers, of an `http` service only."""
        if service.http is None:
            return {}
        counted = {word: self._board.total(slot, count) for word, count in _HTTP.items()}
        return {**counted, "answers": [_answered(route) for route in service.routes if not route.pool.members]}

    def _sources(self, service: Service, running: Target) -> list[dict[str, Any]]:
        """Sessions of each class's addresses at each real server, beside what servers allow one address."""
        total, allocation = self._board.total, running.allocation
        there: dict[tuple[str, Endpoint], int] = {}
        for pool in service.pools():
            for member in pool.members:
                place = member.real_server, member.endpoint
                sessions = total(allocation.members[pool.key(member)], Count.SESSIONS)
                there[place] = there.get(place, 0) + sessions
        return [
            {
                "class": one.name,
                "address": address,
                "real_server": server,
                "sessions": total(allocation.sources[SourceKey(address, endpoint)], Count.SESSIONS),
                "limit": service.source.limit_at(sessions),
            }
            for one in service.source.classes
            for address in one.addresses
            for (server, endpoint), sessions in there.items()
        ]

    def _together(self, service: Service, behind: list[dict[str, Any]], slot: int, word: str) -> int:
        """Of a service that the kernel forwards, what its real servers have; nobody else counts there."""
        return sum(server[word] for server in behind) if service.l4 else self._board.total(slot, _TRAFFIC[word])

    def _traffic(self, record: Record) -> dict[str, int]:
        counted = {word: self._board.total(record.slot, count) for word, count in _TRAFFIC.items()}
        return {**counted, **self.kernel(record.key)}

    def _polls(self, record: Record, now: float) -> dict[str, Any]:
        """Requests that wait for news at a server, and when the last one has ended at the latest."""
        polls = self._board.total(record.slot, Count.LONG_POLLS)
        ends_at, drained_at = self._board.latest(record.slot, Count.POLLS_END_AT), record.state.drain_ends_at
        if record.pool.drop_after_drain and drained_at is not None:
            ends_at = min(ends_at, drained_at)
        return {"long_polls": polls, "long_polls_end_in_s": round(max(0.0, ends_at - now), 1) if polls else None}

    def _pool(self, service: Service, pool: Pool, now: float) -> dict[str, Any]:
        own = [route for route in service.routes if route.name == pool.route]
        return {
            "route": pool.route,
            "hosts": [host for route in own for host in route.hosts],
            "paths": [path for route in own for path in route.paths],
            "schedule": str(pool.schedule),
            "persist": pool.persist and _persist(pool.persist),
            "ramp_s": pool.ramp_s,
            "drain_s": pool.drain_s,
            "real_servers": [
                {
                    **self._member(self._members[pool.key(member)], now),
                    **(self._polls(self._members[pool.key(member)], now) if service.http else {}),
                    "extended_protection": self._certificates.finding(service, pool.key(member)),
                }
                for member in pool.members
            ],
        }

    def _member(self, record: Record, now: float) -> dict[str, Any]:
        state, member = record.state, record.member
        drain_ends_at = state.drain_ends_at
        return {
            "name": member.real_server,
            "endpoint": str(member.endpoint),
            "up": state.health.up if record.is_checked else None,
            "admin": str(state.admin),
            "availability": _AVAILABILITY[record.availability],
            "availability_reason": record.barred or state.why,
            "out_of_service": record.barred,
            "ramp_percent": int(100 * record.ramped(now)),
            "weight": member.weight * state.weight_factor,
            "configured_weight": member.weight,
            "max_sessions": member.max_sessions,
            **self._traffic(record),
            "maintenance": state.health.maintenance,
            "back_pressure": state.health.back_pressure,
            "back_pressure_reason": state.pressure,
            "drain_ends_in_s": None if drain_ends_at is None else round(max(0.0, drain_ends_at - now), 1),
            "way_back": None,
            **self.probed(record.key),
            "check": _check(record, now),
            "last_flip": record.flip
            and {"up": record.flip.up, "reason": record.flip.reason, "at": iso_utc(record.flip_at)},
        }


def _persist(persist: Persist) -> dict[str, Any]:
    return {
        "by": persist.by,
        "fallback": list(persist.fallback),
        "group": persist.group,
        "timeout_s": persist.timeout_s,
    }


def _answered(route: Route) -> dict[str, Any]:
    """A route that is answered here: what for, and how."""
    own = route.http
    does = f"redirects to {own.redirect.to}" if own is not None and own.redirect else ""
    if own is not None and own.respond:
        does = f"answers {own.respond.status}"
    return {"route": route.name, "hosts": list(route.hosts), "paths": list(route.paths), "does": does or "refuses"}


def _check(record: Record, now: float) -> dict[str, Any] | None:
    result = record.result
    if result is None:
        return None
    return {
        "type": record.pool.check.type,
        "asks": _asks(record.pool.check),
        "verdict": str(result.verdict),
        "reason": result.reason,
        "ago_s": round(now - record.result_at, 1),
        "took_s": round(result.took_s, 4),
        "detail": dict(result.detail),
    }


def _asks(check: Check) -> str:
    """What a check asks for, where that says which part of a server it looks at: the path of a page."""
    return check.options.path if isinstance(check.options, HttpCheck) else ""
