"""The worker process: applies configurations inside itself, beats, and stops when told or when left alone.

Decides: what a configuration changes here (services, pools, tables, listeners), never a running session.
Refuses to know: the configuration file, checks, and other workers.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import time

import uvloop

from mailbalancer.balance.persist import Table
from mailbalancer.ipc.board import Beat, Board
from mailbalancer.ipc.channel import Channel, ChannelClosed
from mailbalancer.ipc.messages import (
    Bind,
    Bound,
    Configure,
    Configured,
    Down,
    DropSessions,
    EndChannels,
    ListSessions,
    Offers,
    SessionList,
    Stop,
    Stopped,
    Unbind,
    Up,
    pack_up,
    unpack_down,
)
from mailbalancer.log import Log
from mailbalancer.model import Config, MemberKey
from mailbalancer.tls.context_pool import ContextPool
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.fronts import Fronts
from mailbalancer.worker.http_service import HttpService
from mailbalancer.worker.listener import Listener
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.modes import runtime_of
from mailbalancer.worker.service import Service

#: How often the loop shows that it turns. The supervisor misses several before it acts.
BEAT_S = 0.05
#: What needs no hurry: imbalance, expired persistence, busy bindings to be told of again.
SLOW_S = 1.0
#: Sessions may finish for this long when the supervisor is gone and cannot say.
ORPHAN_S = 30.0


class Worker:
    """One worker. `run` returns when it is over."""

    def __init__(self, index: int, channel: Channel, board: Board, log: Log, contexts: ContextPool) -> None:
        self._loop = uvloop.new_event_loop()
        self._index = index
        self._channel = channel
        self._board = board
        self._log = log
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._engine = Engine(index, board, log, self._loop, soft)
        self._config: Config | None = None
        self._services: dict[str, Service] = {}
        self._tables: dict[str, Table] = {}
        self._fronts = Fronts(contexts)
        self._listeners: dict[int, Listener] = {}
        self._slow_at = 0.0
        self._stop_at: float | None = None
        self._writing = False

    def run(self) -> int:
        """Serve until `Stop`, or until the supervisor is gone."""
        asyncio.set_event_loop(self._loop)
        # Ctrl-C in a terminal reaches every process of the group: stopping is the supervisor's decision.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._board.ints[self._board.beat(self._index, Beat.PID)] = os.getpid()
        self._beat()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        try:
            self._loop.run_forever()
        finally:
            self._log.flush()
        return 0

    # ------------------------------------------------------------ heartbeat and housekeeping

    def _beat(self) -> None:
        """Every BEAT_S: show that the loop turns, and do what has become due."""
        engine = self._engine
        now = engine.reactor.now = time.monotonic()
        self._board.floats[self._board.beat(self._index, Beat.AT)] = now
        try:
            self._do_what_is_due(now)
        except Exception as error:  # a worker without a heartbeat is replaced, and every session with it
            engine.session_fault(None, error)
        self._log.flush()
        if self._stop_at is not None and (not engine.sessions or now >= self._stop_at):
            self._end()
        else:
            self._loop.call_later(BEAT_S, self._beat)

    def _do_what_is_due(self, now: float) -> None:
        engine = self._engine
        for session in engine.wheel.due(now):
            try:
                session.due(now)
            except Exception as error:
                engine.session_fault(session, error)
        for service in self._services.values():
            service.serve_queue()
        if now >= self._slow_at:
            self._slow_at = now + SLOW_S
            self._housekeeping(now)
        self._resume_listeners()
        engine.note_open_files()

    def _housekeeping(self, now: float) -> None:
        for service in self._services.values():
            service.watch_balance()
        for group, table in self._tables.items():
            table.sweep(now)
            for entry in table.overdue(now):
                self._tell(Bound(group, entry.key, entry.name, entry.expires_at))
        for relay in self._engine.relays:
            relay.settle()
        paused = any(listener.paused for listener in self._listeners.values())
        if paused:
            self._log.error(
                f"no descriptors left ({self._engine.open_files} of {self._engine.max_files}): not accepting; "
                "raise LimitNOFILE or `ulimit -n`",
                worker=self._index,
            )

    def _resume_listeners(self) -> None:
        paused = 0
        for listener in self._listeners.values():
            listener.resume()
            paused |= listener.paused
        self._board.ints[self._board.beat(self._index, Beat.PAUSED)] = paused
        self._board.ints[self._board.beat(self._index, Beat.LOG_DROPPED)] = self._log.dropped

    # ------------------------------------------------------------ channel

    def _receive(self) -> None:
        try:
            frames = self._channel.receive()
        except ChannelClosed:
            self._orphaned()
            return
        for payload, fds in frames:
            try:
                self._obey(unpack_down(payload), fds)
            except Exception as error:
                self._engine.session_fault(None, error)

    def _tell(self, message: Up) -> None:
        try:
            self._channel.send(pack_up(message))
        except ChannelClosed:
            return  # the reader finds out, and stops this worker
        if self._channel.wants_write and not self._writing:
            self._writing = True
            self._loop.add_writer(self._channel.fileno(), self._write)

    def _write(self) -> None:
        closed = False
        try:
            self._channel.flush()
        except ChannelClosed:
            closed = True  # it would be writable for ever; that it is closed is the reader's to find
        if closed or not self._channel.wants_write:
            self._writing = False
            self._loop.remove_writer(self._channel.fileno())

    def _obey(self, message: Down, fds: list[int]) -> None:
        match message:
            case Configure():
                try:
                    self._configure(message, fds)
                except Exception as error:
                    self._tell(Configured(message.version, error=f"{type(error).__name__}: {error}"))
                    raise
            case Bind(binding):
                table = self._tables.get(binding.group)
                if table is not None:
                    table.learn(binding.key, binding.real_server, binding.expires_at)
            case Unbind(group, key):
                for name, table in self._tables.items():
                    if group in ("", name):
                        table.forget(key)
            case Offers(name, lines):
                service = self._services.get(name)
                if isinstance(service, MailService):
                    service.hear_of(lines)
            case EndChannels(name, cookie):
                web = self._services.get(name)
                if isinstance(web, HttpService):
                    web.channels.end(cookie)
            case DropSessions(slot, reason):
                for session in [s for s in self._engine.sessions if s.slot == slot]:
                    session.end(reason, reset=True)
            case ListSessions(ask, service, limit):
                found = [s for s in self._engine.sessions if service in ("", s.service.name)]
                facts = [s.facts() for s in found[:limit]]
                self._tell(SessionList(ask, facts, len(found) - len(facts)))
            case Stop(deadline_at):
                self._stop(deadline_at)

    def _orphaned(self) -> None:
        """The supervisor is gone: nobody checks servers or applies changes any more, so let sessions finish and end."""
        self._loop.remove_reader(self._channel.fileno())
        if self._stop_at is None:
            self._log.error("the supervisor is gone: this worker lets its sessions finish and ends", worker=self._index)
            self._stop(time.monotonic() + ORPHAN_S)

    # ------------------------------------------------------------ configuration

    def _configure(self, message: Configure, fds: list[int]) -> None:
        """Become this configuration. The file was validated and every listener opened before it was sent."""
        config = message.config
        if self._config is None or config.log != self._config.log:
            self._log.configure(config.log)
        self._config = config
        self._configure_tables(message)
        self._configure_services(message)
        self._configure_listeners(message, fds)
        self._board.ints[self._board.beat(self._index, Beat.CONFIG_VERSION)] = message.version
        self._tell(Configured(message.version))

    def _configure_tables(self, message: Configure) -> None:
        wanted = {p.persist.group: p.persist for p in message.config.pools() if p.persist is not None}
        for group in [g for g in self._tables if g not in wanted]:
            del self._tables[group]
        for group, persist in wanted.items():
            if group in self._tables:
                self._tables[group].configure(persist.timeout_s, persist.max_entries)
            else:
                self._tables[group] = Table(persist.timeout_s, persist.max_entries)
        for binding in message.bindings:
            if binding.group in self._tables:
                self._tables[binding.group].learn(binding.key, binding.real_server, binding.expires_at)

    def _configure_services(self, message: Configure) -> None:
        config = message.config
        self._engine.view.set_limits(_limits(config, message.slots))
        for name in [n for n in self._services if config.service(n) is None]:
            self._services.pop(name).retire()  # its sessions hold it for as long as they last
        offers = self._fronts.follow(config, message.fronts)
        for service in config.services:
            runtime = self._services.get(service.name)
            if type(runtime) is not runtime_of(service.mode):
                if runtime is not None:
                    runtime.retire()
                runtime = self._services[service.name] = runtime_of(service.mode)(self._engine, self._tell)
            runtime.source_slots = message.source_slots
            runtime.configure(service, message.service_slots[service.name], message.slots, self._tables)
            runtime.offer = offers.get(service.name)

    def _configure_listeners(self, message: Configure, fds: list[int]) -> None:
        for number in [n for n in self._listeners if n not in message.listeners]:
            self._listeners.pop(number).close()
        passed = dict(zip(message.passed, fds, strict=True))
        for number, listening in message.listeners.items():
            service = self._services[listening.service]
            known = self._listeners.get(number)
            if known is not None:
                known.service = service
            if number not in passed:
                continue
            sock = socket.socket(fileno=passed[number])
            if known is not None or self._stop_at is not None:
                sock.close()
            else:
                self._listeners[number] = Listener(self._engine, sock, listening.endpoint, service)

    # ------------------------------------------------------------ the end

    def _stop(self, deadline_at: float) -> None:
        """No new connections; sessions may finish until the deadline. A second Stop only brings it nearer."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        self._engine.stopping = True
        self._engine.let_idle_ones_leave()
        self._stop_at = deadline_at if self._stop_at is None else min(deadline_at, self._stop_at)

    def _end(self) -> None:
        left = len(self._engine.sessions)
        for session in list(self._engine.sessions):
            session.end("stopped", reset=True)
        self._tell(Stopped(left))
        self._loop.stop()


def _limits(config: Config, slots: dict[MemberKey, int]) -> dict[int, tuple[int, tuple[int, ...]]]:
    """For every slot of a real server that has a limit over all services: the limit and all slots that count."""
    limits = {}
    for server in config.real_servers:
        if server.max_sessions:
            together = tuple(slot for key, slot in slots.items() if key.real_server == server.name)
            limits.update(dict.fromkeys(together, (server.max_sessions, together)))
    return limits


def run(index: int, channel: Channel, board: Board, log: Log, contexts: ContextPool | None = None) -> int:
    """Be worker `index` in this (forked) process; returns the exit code.

    Args:
        contexts: made before the fork, so that every worker resumes the TLS sessions of every other.
    """
    return Worker(index, channel, board, log, contexts or ContextPool(0)).run()
