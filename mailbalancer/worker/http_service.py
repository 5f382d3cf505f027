"""What the connections of one `http` service share in this worker: routes, persistence, limits, idle connections.

Decides: which route a request takes and what is done there, which real server its client goes back to, and which idle
connection to a server may be used again by whom.
Refuses to know: sockets and framing (`http_connection`, `http_server`); how keys and cookies are made (`balance`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from mailbalancer import model
from mailbalancer.balance import http_keys
from mailbalancer.balance.http_cookie import parse_keys
from mailbalancer.balance.http_routes import Routes, Rule
from mailbalancer.balance.persist import Table, select
from mailbalancer.balance.pool import Choice, Refusal
from mailbalancer.balance.source_limits import SourceLimits
from mailbalancer.ipc.board import Availability, Count
from mailbalancer.ipc.messages import ChannelBroke, Up
from mailbalancer.model import HeaderEdits, MemberKey
from mailbalancer.wire.forwarded import Trusted
from mailbalancer.wire.http_answer import answer
from mailbalancer.wire.http_head import Limits, RequestReader, ResponseReader
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.http_judged import Answers, Requests
from mailbalancer.worker.http_polls import Channels
from mailbalancer.worker.http_route import Returning, Route
from mailbalancer.worker.service import CHOICES, Seeker, Service, ServicePool, Target
from mailbalancer.worker.stream import RECORD_BYTES

if TYPE_CHECKING:
    from mailbalancer.worker.http_server import ServerLink

#: Idle connections kept for each real server, and for how long: shorter than servers keep theirs (IIS: 120 s).
IDLE_KEPT: Final = 64
IDLE_S: Final = 30.0
#: Read at once of an answer that comes faster than this fills: each read costs an acknowledgement, too.
BULK_BYTES: Final = 256 * 1024
_READY: Final = int(Availability.READY)
_RETURNING: Final = int(Availability.RETURNING)


class HttpService(Service):
    """The runtime of one `http` service in one worker."""

    def __init__(self, engine: Engine, tell: Callable[[Up], None]) -> None:
        super().__init__(engine, tell)
        self.retired = False
        self._requests_cell = 0
        self.asked = 0  # requests that the board does not know of yet
        self.sources = SourceLimits(0, 0)
        self.channels = Channels(self._tell_of_break)
        self._idle: dict[Target, list[ServerLink]] = {}

    def configure(
        self, config: model.Service, slot: int, slots: Mapping[MemberKey, int], tables: Mapping[str, Table]
    ) -> None:
        """Follow this configuration from now on; connections stay.

        Raises:
            OSError, ValueError: a key file cannot be read.
        """
        http = config.http
        assert http is not None
        secrets = {
            p.persist.key_file: _secrets(p.persist.key_file, self._engine.board.secret)
            for p in config.pools()
            if p.persist
        }
        super().configure(config, slot, slots, tables)
        engine = self._engine
        self.http = http
        self.buffer = engine.buffer[: max(RECORD_BYTES, min(config.buffer_bytes, len(engine.buffer)))]
        self.bulk = engine.buffer[: max(BULK_BYTES, len(self.buffer))]
        self.trusted = Trusted(http.trust)
        self.trusts = bool(http.trust)
        self.shared = http.shared
        self.logs = http.access_log and engine.log.sessions
        self.unguarded = not (http.limits.requests_per_source_s or self.trusts)  # no request is refused for its client
        self.settle()
        self._requests_cell = engine.cell(slot, Count.REQUESTS)
        engine.relays.add(self)
        self.long_polls_cell = engine.cell(slot, Count.LONG_POLLS)
        self.pinned_cell = engine.cell(slot, Count.PINNED)
        self._reused_cell = engine.cell(slot, Count.REUSED)
        self._pinned_reused_cell = engine.cell(slot, Count.PINNED_REUSED)
        own = Route(config, None, self._pools[""], secrets)
        made = [(route, Route(config, route, self._pools[route.name], secrets)) for route in config.routes]
        self._read_as(config, http, Routes([Rule(route.hosts, route.paths, runtime) for route, runtime in made], own))
        self.sorry = http.sorry
        self.drop_all_idle()  # they may have been made under other rules
        self.sources.configure(http.limits.connections_per_source, http.limits.requests_per_source_s)

    def _read_as(self, config: model.Service, http: model.Http, routes: Routes[Route]) -> None:
        """The readers pick what routes and persistence look at."""
        limits = Limits(http.limits.head_bytes, http.limits.target_bytes)
        request: set[str] = (
            {"x-requesttype", "user-agent", "client-request-id"} if http.access_log else {"x-requesttype"}
        )
        response: set[str] = {"strict-transport-security"} if http.hsts_s else set()
        edits = [(http.request_headers, http.response_headers)]
        edits += [(r.http.request_headers, r.http.response_headers) for r in config.routes if r.http]
        for asked, answered in edits:
            request |= _edited(asked)
            response |= _edited(answered)
        for pool in config.pools():
            if pool.persist is not None:
                request |= set(http_keys.needed_fields(pool.persist.kinds, pool.persist.field))
                if {"server_cookie", "cookie_prefix"} & set(pool.persist.kinds):
                    response.add("set-cookie")
        self.requests = Requests(RequestReader(sorted(request), limits), routes)
        self.answers = Answers(ResponseReader(sorted(response), limits))

    def retire(self) -> None:
        """This service is gone: requests under way are answered, then their connections end."""
        super().retire()
        self.retired = True
        self.unguarded = False
        self.settle()
        self._engine.relays.discard(self)
        self.drop_all_idle()
        self._engine.let_idle_ones_leave(self)

    def _tell_of_break(self, cookie: bytes) -> None:
        if self._engine.board.workers > 1:
            self._tell(ChannelBroke(self.name, cookie.hex()))

    def settle(self) -> None:
        """Tell the board how many requests came."""
        if self.asked:
            self._engine.ints[self._requests_cell] += self.asked
            self.asked = 0

    # ------------------------------------------------------------ admission

    def full(self) -> str:
        """Why no more connections are served; empty when they are."""
        limit = self.config.max_sessions
        return self._refused("service_full") if limit and self._engine.view.sessions(self.slot) > limit else ""

    def admits(self, address: str) -> bool:
        """Whether the lists let this client in; for those whom a trusted proxy names, which is known per request."""
        return not self._restricted or self._lists.admits(address)

    def count_refused(self) -> None:
        self._engine.ints[self._refused_cell] += 1

    def sorry_page(self, *, close: bool, without_body: bool) -> bytes:
        """What a client is told when no server is left."""
        page = self.sorry
        if page is None:
            return answer(503, close=close, without_body=without_body)
        return answer(page.status, page.body, page.content_type, close=close, without_body=without_body)

    # ------------------------------------------------------------ choice

    def keeps(self, route: Route, link: ServerLink, returning: Returning, source: str) -> bool:
        """Whether a client's own connection to a server is the right one for its next request, too.

        It is when it leads to where persistence wants the client, or persistence has no wish, and that server may be
        given this: whoever draws keeps the clients it has.
        """
        target = link.target
        assert target is not None
        if link.way is route:
            here = target
        else:
            found = route.pool.targets.get(target.name)
            if found is None or found.endpoint != target.endpoint:
                return False
            here = found
        if link.address != source and (self.config.proxy_protocol.send or self.classes is not None):
            return False  # the server was told of another client, or reached from another one's address
        view, now = self._engine.view, self._engine.reactor.now
        availability = view.availability(here.slot)
        if availability < _RETURNING:
            return False
        wanted, key, _ = returning
        if key:
            table = route.pool.table
            assert table is not None
            wanted = table.lookup(key, now) or ""
            if not wanted and link.address != source:
                return False  # a proxy's connection, and another client of it: the one before says nothing about it
            if wanted in ("", target.name):
                table.bind(key, target.name, now)
                self._report(route.pool, table, key, target.name, now)
                wanted = target.name
        if wanted == target.name:
            return True
        if wanted and route.pool.pool.takes_back(view, wanted) is not None:
            return False
        return availability == _READY or here.slot == link.slot

    def _choose(self, session: Seeker) -> Target | Refusal:
        """A server for this request, counted on the board from this moment."""
        link = cast("ServerLink", session)
        route = link.way
        assert route is not None
        for _ in range(CHOICES):
            chosen = self._chosen(route.pool, link)
            if isinstance(chosen, Refusal):
                return self._refusal_counted(chosen)
            if self._occupy(chosen.member):
                link.why = chosen.why
                return route.pool.targets[chosen.member.name]
        return Refusal.ALL_FULL

    def _chosen(self, pool: ServicePool, link: ServerLink) -> Choice | Refusal:
        engine = self._engine
        view, now = engine.view, engine.reactor.now
        wanted, key, _ = link.returning
        if wanted:
            if pool.pool.takes_back(view, wanted, link.tried) is not None:
                member = pool.pool.returning(view, wanted, link.tried)
                return Refusal.ALL_FULL if member is None else Choice(member, "persistence")
        elif key:
            return self._by_table(pool, key, link)
        elif link.preferred and not link.tried:
            member = pool.pool.returning(view, link.preferred)
            if member is not None and view.availability(member.slot) == _READY:
                return Choice(member, "same_client")
        chosen = pool.pool.pick(view, now, link.address.encode(), link.tried)
        if wanted and isinstance(chosen, Choice):
            engine.ints[engine.cell(chosen.member.slot, Count.MOVED)] += 1
        return chosen

    def _by_table(self, pool: ServicePool, key: str, link: ServerLink) -> Choice | Refusal:
        engine, table = self._engine, pool.table
        assert table is not None
        view, now = engine.view, engine.reactor.now
        chosen, moved = select(pool.pool, table, key, key.encode(), view, now, link.tried, pool.shared)
        if isinstance(chosen, Refusal):
            return chosen
        if moved:
            engine.ints[engine.cell(chosen.member.slot, Count.MOVED)] += 1
        if not self.shared:
            self._hold(pool, table, link, key)
        self._report(pool, table, key, chosen.member.name, now)
        return chosen

    def learn_cookie(self, route: Route, value: bytes, server: str) -> None:
        """The server has set its cookie: whoever shows that value comes back to it."""
        table = route.pool.table
        key = http_keys.cookie_key(value)
        if table is None or not key:
            return
        now = self._engine.reactor.now
        table.bind(key, server, now)
        self._report(route.pool, table, key, server, now)

    def _bound_to(self, session: Seeker) -> str | None:
        link = cast("ServerLink", session)
        wanted, key, _ = link.returning
        table = link.way.pool.table if link.way else None
        if wanted or table is None or not key:
            return wanted or None
        return table.lookup(key, self._engine.reactor.now)

    # ------------------------------------------------------------ idle connections to servers

    def put_idle(self, link: ServerLink) -> bool:
        """Keep a connection for whoever comes next. False: there are enough. Never one that belongs to a client."""
        assert not link.tied
        target = link.target
        assert target is not None
        kept = self._idle.setdefault(target, [])
        if len(kept) >= IDLE_KEPT:
            return False
        kept.append(link)
        self._engine.idle_links += 1
        return True

    def take_idle(self, target: Target, client: int) -> ServerLink | None:
        """The connection to this server that was used last."""
        kept = self._idle.get(target)
        if not kept:
            return None
        link = kept.pop()
        self._engine.idle_links -= 1
        ints = self._engine.ints
        if link.owner != client:
            ints[self._reused_cell] += 1
            if link.tied:
                ints[self._pinned_reused_cell] += 1
        return link

    def drop_all_idle(self) -> None:
        """Close every connection that waits for a client."""
        for link in [link for kept in self._idle.values() for link in kept]:
            self.drop_idle(link)
            link.close()

    def drop_idle(self, link: ServerLink) -> None:
        """The server has closed it, or it was idle for too long."""
        target = link.target
        kept = self._idle.get(target) if target is not None else None
        if kept is not None and link in kept:
            kept.remove(link)
            self._engine.idle_links -= 1


def _edited(edits: HeaderEdits) -> set[str]:
    return {name.lower() for name in (*edits.remove, *(name for name, _ in edits.set))}


def _secrets(key_file: str, secret: bytes) -> list[bytes]:
    return parse_keys(Path(key_file).read_text("ascii")) if key_file else [secret]
