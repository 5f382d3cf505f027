"""What the sessions of one service share in this worker: limits, lists, queue, pools, persistence, imbalance.

Decides: whether a client is served at all, and what is written to the board about it.
Refuses to know: sockets. `balance` decides who gets a session; this file puts the question and does the counting.

A `Service` lives as long as a session refers to it. A reload configures it anew in place, so that sessions opened
before follow the new timeouts and limits, and those of a service that is no longer configured simply run on.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mailbalancer import model
from mailbalancer.balance.admit import AddressLists, WaitQueue
from mailbalancer.balance.imbalance import SourceCounter
from mailbalancer.balance.persist import Table, select
from mailbalancer.balance.pool import Choice, Pool, PoolMember, Refusal
from mailbalancer.ipc.board import Count
from mailbalancer.ipc.messages import Bound, Imbalance, Remark, Up
from mailbalancer.model import Endpoint, MemberKey, Mode, SourceKey
from mailbalancer.tls import verify
from mailbalancer.tls.offer import Offer
from mailbalancer.wire import proxy_header
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.source_address import SourceAddress
from mailbalancer.worker.source_classes import SourceClasses
from mailbalancer.worker.timings import tls_counts

#: The same remark about the same server is not repeated within this time.
REMARK_S = 0.5
#: How often a session chooses when other workers take the place it was given in the same moment.
CHOICES = 3
# Looking a member of an enum up costs more than what is done with it here.
_SESSIONS: Final = int(Count.SESSIONS)
_TOTAL: Final = int(Count.TOTAL)


@dataclass(frozen=True, slots=True)
class Target:
    """A member of a pool, ready to be connected to."""

    name: str
    slot: int
    endpoint: Endpoint
    family: int
    sockaddr: tuple[str, int]


class Seeker(Protocol):
    """Whoever needs a real server of a service: a `tcp` session, or a `Placement` of another mode.

    Attributes:
        address, port: the client.
        route: whose pool is asked.
        tried: servers that failed already.
        why: set by `choose`: what decided.
        tls_session: the TLS session that the client asks to resume.
        held_table, held_key: set by `choose`: the binding that does not expire while this one lives.
        bind_address, source_slot: set by `choose` where classes are configured: what to leave from.
    """

    address: str
    port: int
    route: str
    tried: tuple[str, ...]
    why: str
    tls_session: str
    target: Target | None
    held_table: Table | None
    held_key: str
    bind_address: str
    source_slot: int

    def __hash__(self) -> int: ...

    def leave_queue(self, choice: Target | Refusal) -> None:
        """There is an answer now."""

    def wait_until(self, deadline_at: float) -> None:
        """This deadline, instead of any that was set."""

    def reached(self) -> Endpoint:
        """The address of ours that the client connected to."""


class ServicePool:
    """One pool of a service: the pure pool, its targets and, when clients come back to their server, its table."""

    def __init__(self, config: model.Pool, slots: Mapping[MemberKey, int], table: Table | None, shared: bool) -> None:
        self.config = config
        self.table = table
        self.shared = shared
        members = [PoolMember(m.real_server, slots[config.key(m)], m.priority, m.max_sessions) for m in config.members]
        self.pool = Pool(members, config.schedule, random.random)
        self.targets = {
            m.real_server: Target(
                m.real_server,
                slots[config.key(m)],
                m.endpoint,
                socket.AF_INET6 if m.endpoint.is_ipv6 else socket.AF_INET,
                (m.endpoint.host, m.endpoint.port),
            )
            for m in config.members
        }
        self.by_tls_session = config.persist is not None and config.persist.by == "tls_session_id"


class Service:
    """The runtime of one service in one worker."""

    def __init__(self, engine: Engine, tell: Callable[[Up], None]) -> None:
        self._engine = engine
        self._tell = tell
        self.offer: Offer | None = None  # what clients are shown, when this service speaks TLS to them
        self.server_context: ssl.SSLContext | None = None  # towards the servers, when it speaks TLS to them
        self._pools: dict[str, ServicePool] = {}
        self._queue: WaitQueue[Seeker] = WaitQueue(0)
        self._serving = False
        self.source_slots: Mapping[SourceKey, int] = {}
        self.classes: SourceClasses | None = None
        self._sources: SourceCounter | None = None
        self._remarked: dict[tuple[str, str, str], float] = {}

    def configure(
        self,
        config: model.Service,
        slot: int,
        slots: Mapping[MemberKey, int],
        tables: Mapping[str, Table],
    ) -> None:
        """Follow this configuration from now on; sessions stay."""
        engine = self._engine
        self.config = config
        self.name = config.name
        self.slot = slot
        self.is_tls = config.mode is Mode.TLS
        self.buffer = engine.buffer[: min(config.buffer_bytes, len(engine.buffer))]
        self.trusts_headers = bool(config.proxy_protocol.accept_from)
        self._proxies = AddressLists(config.proxy_protocol.accept_from, ())
        self._lists = AddressLists(config.allow, config.deny)
        self._restricted = bool(config.allow or config.deny)
        self.source = SourceAddress(engine, config.name, config.source, self._tell)
        has_classes = bool(config.source.classes)
        self.classes = SourceClasses(engine, config.source, self.source_slots) if has_classes else None
        self._queue.size = config.queue.size
        self._sessions_cell = engine.cell(slot, Count.SESSIONS)
        self._total_cell = engine.cell(slot, Count.TOTAL)
        self._refused_cell = engine.cell(slot, Count.REFUSED)
        self._queued_cell = engine.cell(slot, Count.QUEUED)
        self._pools = {
            pool.route: ServicePool(
                pool, slots, tables[pool.persist.group] if pool.persist else None, config.shares_bindings(pool)
            )
            for pool in (config.pool, *(route.pool for route in config.routes))
        }
        self._exact = {h: r.name for r in config.routes for h in r.hosts if not h.startswith("*.")}
        self._wildcard = {h[2:]: r.name for r in config.routes for h in r.hosts if h.startswith("*.")}
        tls = config.server_tls
        self.server_context = verify.context(tls.verify, tls.min_version) if tls is not None else None
        source = config.pool.persist if config.pool.persist and config.pool.persist.by == "source" else None
        if source is None:
            self._sources = None
        elif self._sources is None:
            self._sources = SourceCounter(source.warn_share)
        else:
            self._sources.warn_share = source.warn_share

    def retire(self) -> None:
        """No longer configured: its sessions run on, those without a server yet get none. The slots that its members
        had may soon mean others."""
        self._pools = {"": ServicePool(model.Pool(self.name, "", ()), {}, None, shared=False)}
        self.serve_queue()

    # ------------------------------------------------------------ admission

    def opened(self) -> None:
        """A connection was accepted."""
        ints = self._engine.ints
        ints[self._sessions_cell] += 1
        ints[self._total_cell] += 1

    def arrived(self) -> None:
        """A proxy has connected; its client is counted as a session of its own when the proxy has said who it is."""
        self._engine.ints[self._sessions_cell] += 1

    def shook_hands(self, tls: ssl.SSLSocket | None) -> None:
        """A handshake with a client is over; None: it failed."""
        for count in tls_counts(tls) if tls is not None else (Count.TLS_FAILED,):
            self._engine.ints[self._engine.cell(self.slot, count)] += 1

    def refusal(self, address: str) -> str:
        """Why this client is not served; empty when it is."""
        if self._restricted and not self._lists.admits(address):
            return self._refused("denied")
        limit = self.config.max_sessions
        if limit and self._engine.view.sessions(self.slot) > limit:  # the one at the door is counted already
            return self._refused("service_full")
        return ""

    def _refused(self, why: str) -> str:
        self._engine.ints[self._refused_cell] += 1
        return why

    def trusts_header_from(self, address: str) -> bool:
        """Whether the peer is a proxy that must tell us who the client is."""
        return self.trusts_headers and self._proxies.admits(address)

    def route_for(self, sni: str) -> str | None:
        """The route for this server name: exact before wildcard; empty for the service's own pool; None: refuse."""
        route = self._exact.get(sni)
        if route is None and sni:
            route = self._wildcard.get(sni.partition(".")[2])
        if route is None and (self.config.unknown_sni == "default" or not self.config.routes):
            return "" if self._pools[""].targets else None
        return route

    # ------------------------------------------------------------ choice

    def choose(self, session: Seeker) -> Target | Refusal:
        """A server for this session, counted on the board from this moment; with classes also an address of ours that
        has room there."""
        return self._choose(session) if self.classes is None else self._choose_for_class(session, self.classes)

    def _choose_for_class(self, session: Seeker, classes: SourceClasses) -> Target | Refusal:
        tried, crowded = session.tried, False
        try:
            while not isinstance(chosen := self._choose(session), Refusal):
                leave = classes.leave(session.address, chosen.slot, chosen.endpoint)
                if leave is not None:
                    session.bind_address, session.source_slot = leave
                    return chosen
                crowded = True
                self._take_back(chosen)
                session.tried += (chosen.name,)
        finally:
            session.tried = tried
        if crowded and chosen is Refusal.NONE_READY:
            self._engine.ints[self._refused_cell] -= 1
            return Refusal.ALL_FULL
        return chosen

    def _take_back(self, target: Target) -> None:
        """The session is not on this server after all."""
        engine = self._engine
        engine.ints[engine.cell(target.slot, Count.SESSIONS)] -= 1
        engine.ints[engine.cell(target.slot, Count.TOTAL)] -= 1

    def _choose(self, session: Seeker) -> Target | Refusal:
        pool, view, now = self._pool_of(session), self._engine.view, self._engine.reactor.now
        for _ in range(CHOICES):
            if pool.table is None:
                chosen = pool.pool.pick(view, now, session.address.encode(), session.tried)
            else:
                chosen = self._persistent(pool, pool.table, session, now)
            if not isinstance(chosen, Choice):
                return self._refusal_counted(chosen)
            if self._occupy(chosen.member):
                session.why = chosen.why
                return pool.targets[chosen.member.name]
        return Refusal.ALL_FULL

    def _refusal_counted(self, refusal: Refusal) -> Refusal:
        if refusal is Refusal.NONE_READY:
            self._engine.ints[self._refused_cell] += 1
        return refusal

    def _occupy(self, member: PoolMember) -> bool:
        """Count a session on this member. False: other workers have taken the last places in the same moment, so it is
        not counted after all. Every worker counts before it looks, so a limit is never exceeded."""
        engine, slot = self._engine, member.slot
        ints, here = engine.ints, engine.cell(slot, _SESSIONS)
        ints[here] += 1
        if (member.max_sessions or slot in engine.view.limited) and engine.view.exceeded(slot, member.max_sessions):
            ints[here] -= 1
            return False
        ints[engine.cell(slot, _TOTAL)] += 1
        return True

    def closed(self, session: Seeker, *, waiting: bool) -> None:
        """A session is over; somebody who waits may have its place."""
        self._engine.ints[self._sessions_cell] -= 1
        if waiting or session.held_table is not None or self._queue.waiting:
            self.release(session, waiting=waiting)

    def left(self) -> None:
        """One connection of a client less."""
        self._engine.ints[self._sessions_cell] -= 1

    def release(self, session: Seeker, *, waiting: bool) -> None:
        """This one needs no server any more; somebody who waits may have its place."""
        if waiting:
            self._unqueue(session)
        if session.held_table is not None:
            session.held_table.closed(session.held_key, self._engine.reactor.now)
            session.held_table = None
            if self._sources is not None and session.held_key == session.address:
                self._sources.closed(session.address)
        if self._queue.waiting:
            self.serve_queue()

    def header_for(self, session: Seeker) -> bytes:
        """The PROXY header that goes to the server first; empty when the service sends none."""
        version = self.config.proxy_protocol.send
        if not version:
            return b""
        return proxy_header.encode(version, Endpoint(session.address, session.port), session.reached())

    # ------------------------------------------------------------ persistence

    def _persistent(self, pool: ServicePool, table: Table, session: Seeker, now: float) -> Choice | Refusal:
        """Back to the server that persistence remembers, or a new one, remembered from now on."""
        view, address = self._engine.view, session.address.encode()
        if not pool.by_tls_session:
            key = session.address
        elif table.lookup(session.tls_session, now) is None:
            # A new TLS session, or one nobody remembers: bound when the server hands out its id.
            return pool.pool.pick(view, now, address, session.tried)
        else:
            key = session.tls_session
        chosen, moved = select(pool.pool, table, key, address, view, now, session.tried, pool.shared)
        if isinstance(chosen, Refusal):
            return chosen
        if moved:
            self._engine.ints[self._engine.cell(chosen.member.slot, Count.MOVED)] += 1
        self._hold(pool, table, session, key)
        self._report(pool, table, key, chosen.member.name, now)
        return chosen

    def _hold(self, pool: ServicePool, table: Table, session: Seeker, key: str) -> None:
        """While this session lives, its binding does not expire. Held once, however often it chooses."""
        if session.held_table is None:
            table.opened(key)
            session.held_table, session.held_key = table, key
            if self._sources is not None and not pool.by_tls_session:
                self._sources.opened(session.address)

    def _report(self, pool: ServicePool, table: Table, key: str, name: str, now: float) -> None:
        if table.needs_report(key, now):
            assert pool.config.persist is not None
            self._tell(Bound(pool.config.persist.group, key, name, now + table.timeout_s))

    def learns_tls_session(self, session: Seeker) -> bool:
        """Whether the server's first bytes must be looked at for a session id."""
        return self.is_tls and self._pool_of(session).by_tls_session

    def bind_tls_session(self, session: Seeker, tls_session: str) -> None:
        """The server has named its TLS session: whoever presents that id again goes to the same server."""
        pool = self._pool_of(session)
        if pool.table is None or session.target is None:
            return
        now, name = self._engine.reactor.now, session.target.name
        pool.table.bind(tls_session, name, now)
        self._hold(pool, pool.table, session, tls_session)
        self._report(pool, pool.table, tls_session, name, now)

    def _pool_of(self, session: Seeker) -> ServicePool:
        return self._pools.get(session.route) or self._pools[""]

    def watch_balance(self) -> None:
        """Once a second: does one address, probably a NAT device, carry too many of the sessions?"""
        if self._sources is None:
            return
        total = self._engine.view.sessions(self.slot)
        report = self._sources.observe(total)
        if report is not None:
            self._tell(Imbalance(self.name, report.source, report.sessions, total))

    # ------------------------------------------------------------ what servers say

    def remark(self, target: Target, kind: str, reason: str, route: str = "") -> None:
        """Tell the supervisor what a server said, or why it cannot be connected to; `kind` as in `Remark`."""
        now, about = self._engine.reactor.now, (route, target.name, kind)
        if now - self._remarked.get(about, -REMARK_S) >= REMARK_S:
            self._remarked[about] = now
            self._tell(Remark(self.name, route, target.name, kind, reason))

    # ------------------------------------------------------------ queue

    def wait(self, session: Seeker) -> bool:
        """Every ready server is full: wait in the queue. False when there is none or it is full too."""
        no_queue = self.classes is not None and self.classes.refuses
        if no_queue or not self._queue.push(session):
            self._engine.ints[self._refused_cell] += 1
            return False
        self._engine.ints[self._queued_cell] += 1
        session.wait_until(self._engine.reactor.now + self.config.queue.timeout_s)
        return True

    def serve_queue(self) -> None:
        """Give free places to those who wait, first come first served. Also called each tick: a place that another
        worker freed is seen on the board only."""
        if self._serving or not self._queue.waiting:  # a session that ends while it is served comes back here
            return
        self._serving = True
        try:
            self._serve_waiting()
        finally:
            self._serving = False

    def _serve_waiting(self) -> None:
        """Ask for everybody who may get another answer than those before: one who waits for the server that
        persistence remembers does not hold up the others."""
        alike = len(self._pools) == 1 and self._pools[""].table is None
        full: set[tuple[str, str | None, tuple[str, ...]]] = set()
        for session in list(self._queue.waiting):
            wants = (session.route, self._bound_to(session), session.tried)
            if wants in full or session not in self._queue.waiting:
                continue
            choice = self.choose(session)
            if choice is not Refusal.ALL_FULL:
                self._unqueue(session)  # first: when its connect fails at once it may have to wait again
                session.leave_queue(choice)
            elif alike and not session.tried:
                return
            else:
                full.add(wants)

    def _bound_to(self, session: Seeker) -> str | None:
        """The real server that persistence remembers for this session."""
        pool = self._pool_of(session)
        if pool.table is None:
            return None
        key = session.tls_session if pool.by_tls_session else session.address
        return pool.table.lookup(key, self._engine.reactor.now)

    def _unqueue(self, session: Seeker) -> None:
        if self._queue.remove(session):
            self._engine.ints[self._queued_cell] -= 1
