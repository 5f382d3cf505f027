"""The supervisor: the one process that knows the configuration file, the operator and the state of every real server.

Decides: the order of starting, reloading and stopping, and who hears what a worker says.
Refuses to know: connections. There is no thread and no executor here, because it forks.

A start: limits, directories, privileges; the control socket (a second balancer is noticed first); every listener;
then workers, and the configuration into them. Privileges go before listeners open, so that a reload meets the same
permissions as the start. A reload changes everything or nothing. A stop closes the listeners and lets sessions finish.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from heapq import nlargest
from pathlib import Path
from typing import Any

from mailbalancer.balance.health import Result
from mailbalancer.config.diff import diff
from mailbalancer.control.certificate_watch import LOOK_EVERY_S, CertificateWatch
from mailbalancer.control.certificates import Certificates
from mailbalancer.control.checks.scheduler import Scheduler
from mailbalancer.control.commands import Commands
from mailbalancer.control.door import Desk, Door
from mailbalancer.control.events import Events
from mailbalancer.control.explaining import explained
from mailbalancer.control.host_plan import needed_capabilities
from mailbalancer.control.imbalance import Imbalances
from mailbalancer.control.l4_engine import L4Engine, changes_host, ledger_path
from mailbalancer.control.limits import LimitWatch
from mailbalancer.control.listeners import Listeners
from mailbalancer.control.maintenance import Maintenance
from mailbalancer.control.members import Members, Record
from mailbalancer.control.notify import notify
from mailbalancer.control.offers import OfferedLists
from mailbalancer.control.persistence import Bindings
from mailbalancer.control.rollout import Rollout
from mailbalancer.control.server import ControlServer
from mailbalancer.control.slots import Slots
from mailbalancer.control.state import StateFile
from mailbalancer.control.status import Status
from mailbalancer.control.workers import Worker, WorkerMain, Workers
from mailbalancer.errors import ConfigError, ControlError, MailbalancerError, PrivilegeError
from mailbalancer.host.commands import RealCommands
from mailbalancer.host.limits import raise_open_files
from mailbalancer.host.privileges import DEFAULT_USER, become, own_directories, service_user
from mailbalancer.ipc.board import Board, Count
from mailbalancer.ipc.messages import (
    Bind,
    Bound,
    ChannelBroke,
    DropSessions,
    EndChannels,
    Imbalance,
    Offered,
    OwnAddress,
    Remark,
    SessionList,
    Stop,
    Up,
)
from mailbalancer.l4.paths import Path as Way
from mailbalancer.log import Log, one_line
from mailbalancer.model import Config, MemberKey
from mailbalancer.tls.context_pool import ContextPool

#: How often traffic's connects and drain deadlines are looked at.
TICK_S = 0.2
#: How often state is saved while it changes by itself (persistence).
SAVE_S = 60.0
#: Persistence entries that are saved: those that live longest.
SAVED_BINDINGS = 100_000
#: Commands that are also answered while sessions finish at a stop.
READ_ONLY = frozenset({"status", "events", "sessions", "persistence"})
#: Workers end a moment after the deadline they were given; then they are ended.
GRACE_S = 1.0


class Supervisor:
    """Runs until a signal ends it.

    Args:
        path: the configuration file, read again at each reload.
        config: what was read from it for the start.
        load: reads the file; raises ConfigError with every problem.
        contexts: made before the first fork, the same that `worker_main` has.
        door: the second way in, beside the control socket.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        board: Board,
        log: Log,
        worker_main: WorkerMain,
        load: Callable[[Path], Config],
        contexts: ContextPool,
        door: Door | None = None,
    ) -> None:
        self._path = path
        self._config = config
        self._load = load
        self._log = log
        self._events = events = Events(log)
        self._board = board
        self._door = door
        self._as_root = ""  # a warning that stands as long as we run
        self._warned: tuple[str, ...] = ()  # of the configuration, said already
        self._later: list[str] = []  # settings of the file that wait for a restart
        self._ready = False
        self._workers = Workers(board, log, events, worker_main)
        self._listeners = Listeners(board.workers)
        self._certificates = Certificates(contexts)
        self._bindings = Bindings()
        self._imbalances = Imbalances(events)
        self._offers = OfferedLists(events, self._workers.broadcast)
        self._state_file = StateFile(config.state_file, events)

    def run(self) -> int:
        """Start, serve, stop; returns the exit code.

        Raises:
            MailbalancerError: it cannot start; everything opened so far is closed again.
        """
        loop = asyncio.SelectorEventLoop()
        loop.set_exception_handler(self._fault)
        try:
            loop.run_until_complete(self._main())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            self._log.flush()
        return 0

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        self._impatient = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reload_task: asyncio.Task[None] | None = None
        self._reload_again = False
        loop = asyncio.get_running_loop()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would take the exit codes away
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._asked_to_reload)
        self._take_privileges()
        self._assemble()
        await self._server.start()
        try:
            if self._door is not None:
                await self._door.start(self._desk)
            await self._until_stopped(loop.create_task(self._start()))
        finally:
            self._ready = False
            await self._shut_down()
            if self._door is not None:
                await self._door.stop()
            await self._server.stop()

    # ------------------------------------------------------------ start

    def _take_privileges(self) -> None:
        config = self._config
        user = service_user(config.user)
        raise_open_files()
        own_directories([Path(config.control_socket).parent], user)
        if config.state_file:
            try:
                own_directories([Path(config.state_file).parent], user)
            except PrivilegeError as error:
                self._events.warning(str(error))
        ours, self._workers.keep = needed_capabilities(config, changes_host(config))
        if become(user, ours):
            self._log.info(f"running as user {user}")
        elif os.geteuid() == 0:
            remedy = (
                f"`adduser --system --group {DEFAULT_USER}` and a restart end that"
                if config.user == "auto"
                else "because the configuration says so (`user`); another user would need far less"
            )
            self._as_root = f"mailbalancer runs as root; {remedy}"
            self._events.warning(self._as_root)

    def _assemble(self) -> None:
        self._saved = saved = self._state_file.read()
        self._members = Members(self._board, self._events, self._drop, saved.wanted, saved.not_ready, saved.drains)
        self._maintenance = Maintenance(self._members, self._events, self._sessions_at, self._save)
        self._maintenance.restore(saved.maintenance)
        self._limits = LimitWatch(self._board, self._events)
        slots = Slots(self._board)
        self._l4 = L4Engine(self._members, self._events, RealCommands(), ledger_path(self._config))
        self._rollout = Rollout(
            self._listeners, slots, self._workers, self._members, self._bindings, self._certificates
        )
        self._watch = CertificateWatch(self._events)
        self._scheduler = Scheduler(self._checked)
        self._status = Status(self._board, self._workers, self._members, self._imbalances, self._events, self._watch)
        self._status.offers = self._offers.common
        self._status.maintenance = self._maintenance.facts
        self._status.kernel, self._status.probed = self._l4.traffic, self._l4.probed
        self._status.noticed, self._status.network = self._l4.noticed, self._l4.network_facts
        self._status.own_address = self._l4.own_address
        self._commands = Commands(
            self._members, self._workers, self._bindings, self._events, self._report, self.reload, self._save,
            self._maintenance, self._l4.clients,
        )  # fmt: skip
        self._server = ControlServer(self._config.control_socket, self._obey, self._log)
        self._desk = Desk(self._config, self._report, self._obey, self._events, self._explain, self._timings)
        self._workers.on_start = self._worker_started
        self._workers.on_message = self._heard
        self._workers.on_end = self._imbalances.forget_worker
        self._workers.on_change = self._rollout.worker_changed

    async def _start(self) -> None:
        config = self._config
        self._l4.prepare(config)
        self._listeners.open_missing(config)
        self._bindings.follow(config)
        self._bindings.restore(self._saved.bindings, time.monotonic())
        self._workers.start()
        complete = self._l4.completed(config)
        await self._rollout.apply(complete)
        self._l4.apply(complete, time.monotonic())
        await self._applied(config)
        self._tick()
        self._watch_certificates()
        self._save_now_and_then()
        self._ready = True
        notify("READY=1")
        self._say_ready(config)

    def _say_ready(self, config: Config) -> None:
        places = "; ".join(f"{s.name} on {', '.join(s.places)}" for s in config.services)
        workers = f"{self._board.workers} worker{'s' if self._board.workers > 1 else ''}"
        self._events.info(f"ready with {workers}: {places or 'no service is configured'}")

    async def _until_stopped(self, start: asyncio.Task[None]) -> None:
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([start, stop], return_when=asyncio.FIRST_COMPLETED)
        try:
            if start.done():
                start.result()
                await stop
        finally:
            start.cancel()
            stop.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    # ------------------------------------------------------------ reload

    async def reload(self) -> dict[str, Any]:
        """Read the file again and run what it says.

        Raises:
            MailbalancerError: it cannot be run; what ran before runs on unchanged.
        """
        async with self._reloading:
            try:
                self._refuse_unless_ready()
                return await self._reload_announced()
            except ConfigError as error:
                for problem in error.problems:
                    self._log.error(problem)
                count = len(error.problems)
                self._events.error(f"{self._path} was not applied: {count} problem{'s' if count > 1 else ''}")
                raise
            except MailbalancerError as error:
                self._events.error(f"{self._path} was not applied: {error}")
                raise

    async def _reload_announced(self) -> dict[str, Any]:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            return await self._reload()
        finally:
            notify("READY=1")

    async def _reload(self) -> dict[str, Any]:
        before = self._config
        fresh = self._load(self._path)
        changes = diff(before, fresh)
        later = [str(change) for change in changes if change.needs_restart]
        # what cannot change while we run stays as it was
        config = replace(
            fresh,
            workers=before.workers,
            board_slots=before.board_slots,
            control_socket=before.control_socket,
            state_file=before.state_file,
            user=before.user,
        )
        if not needed_capabilities(config, changes_host=True)[1] <= set(self._workers.keep):
            raise MailbalancerError(
                "source: client needs a capability that the workers gave up when they started",
                "restart mailbalancer to use it",
            )
        await self._change(before, config)
        await self._applied(config)
        self._later = later
        for warning in later:
            self._events.warning(warning)
        told = [str(change) for change in changes]
        self._events.info(f"{self._path} applied: {'; '.join(told) or 'nothing changed'}")
        running = self._rollout.running
        return {"version": running.version if running else 0, "changes": told, "warnings": later}

    async def _change(self, before: Config, config: Config) -> None:
        """To this configuration, in the workers and on the machine, or back to what ran before."""
        self._l4.prepare(config)
        try:
            complete = self._l4.completed(config)
            await self._rollout.apply(complete)
            try:
                self._l4.apply(complete, time.monotonic())
            except MailbalancerError:
                await self._rollout.apply(self._l4.completed(before))
                raise
        except BaseException:
            self._l4.take_back()
            raise

    async def _applied(self, config: Config) -> None:
        if config.log != self._config.log:
            self._log.configure(config.log)
        self._config = config
        for warning in config.warnings:
            if warning not in self._warned:  # those that stand already are no news
                self._events.warning(warning)
        self._warned = config.warnings
        self._imbalances.follow(config)
        self._maintenance.follow(config)
        if self._rollout.running is not None:
            self._limits.follow(config, self._rollout.running.allocation)
        self._offers.follow(config)
        self._watch.follow(config, self._certificates.running)
        self._scheduler.apply(self._members.checks())
        self._desk.config = config
        if self._door is not None:
            await self._door.follow(config)

    def _asked_to_reload(self) -> None:
        """SIGHUP. Any number of them that come while one is waiting are that one."""
        if self._reload_task is None or self._reload_task.done():
            self._reload_task = asyncio.get_running_loop().create_task(self._reload_quietly())
        else:
            self._reload_again = True

    async def _reload_quietly(self) -> None:
        """The log has said what was wrong."""
        again = True
        while again:
            self._reload_again = False
            with suppress(MailbalancerError):
                await self.reload()
            again = self._reload_again

    # ------------------------------------------------------------ while it runs

    def _worker_started(self, worker: Worker) -> None:
        self._rollout.configure(worker)
        for message in self._offers.messages():
            self._workers.send(worker, message)

    def _checked(self, key: MemberKey, result: Result) -> None:
        """A check has ended. One that failed for want of something on this machine says nothing about the server."""
        if result.detail.get("fault") == "balancer":
            self._log.error(f"{key}: not checked for want of something here, not there: {result.reason}")
            return
        self._members.observe(key, result)
        self._offers.checked(key, result)
        self._watch.observe(key, result)

    def _watch_certificates(self) -> None:
        self._watch.look()
        asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._watch_certificates)

    def _tick(self) -> None:
        now = time.monotonic()
        self._workers.hear()  # why connects failed that the board has counted
        self._members.poll_traffic(now)
        self._members.tick(now)
        self._l4.tick(now)
        self._maintenance.tick(now, time.time())
        self._limits.tick(now)
        self._log.flush()
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _save_now_and_then(self) -> None:
        self._bindings.expire(time.monotonic())
        self._save()
        asyncio.get_running_loop().call_later(SAVE_S, self._save_now_and_then)

    def _save(self) -> None:
        if self._rollout.running is None:  # stopped while starting: what was saved before is still true
            return
        now = time.monotonic()
        bindings = nlargest(SAVED_BINDINGS, self._bindings.valid(now), key=lambda binding: binding.expires_at)
        members, maintenance = self._members, self._maintenance.saved()
        self._state_file.write(members.wanted(), members.not_ready(now), bindings, members.drains(), maintenance)

    def _sessions_at(self, record: Record) -> int:
        return self._l4.traffic(record.key).get("sessions", self._board.total(record.slot, Count.SESSIONS))

    def _drop(self, slot: int, reason: str) -> None:
        self._workers.broadcast(DropSessions(slot, reason))

    def _heard(self, worker: Worker, message: Up) -> None:
        """What a worker says is believed only as far as it makes sense: it handles bytes from strangers."""
        try:
            match message:
                case Bound():
                    binding = self._bindings.learn(message, time.monotonic())
                    if self._bindings.is_shared(binding.group):
                        self._workers.broadcast(Bind(binding), but=worker)
                case ChannelBroke():
                    self._workers.broadcast(EndChannels(message.service, bytes.fromhex(message.cookie)), but=worker)
                case Imbalance():
                    self._imbalances.take(worker.index, message, self._config)
                case Remark():
                    key = MemberKey(message.service, message.route, message.real_server)
                    self._members.remarked(key, message.kind, one_line(message.reason[:300]), time.monotonic())
                case Offered():
                    self._offers.heard(message)
                case OwnAddress():
                    self._l4.own_addresses.take(message.service, message.network)
                case SessionList():
                    self._commands.listed(worker, message)
        except ValueError as error:
            self._log.warning(f"worker {worker.index} reported something that cannot be: {error}")

    def _explain(self, client: str, service: str, real_server: str) -> list[Way]:
        running = self._rollout.running
        known = self._status.of_service(service, running) if running is not None else None
        return explained(self._config, client, service, real_server, known)

    async def _obey(self, command: str, arguments: dict[str, Any]) -> Any:
        if command not in READ_ONLY or self._rollout.running is None:
            self._refuse_unless_ready()
        if self._door is not None and command in self._door.commands:
            return await self._door.obey(command, arguments)
        return await self._commands.run(command, arguments)

    def _report(self) -> dict[str, Any]:
        running = self._rollout.running
        if running is None:
            raise ControlError("mailbalancer is still starting", "ask again in a moment")
        warnings = [self._as_root] if self._as_root else []
        return self._status.report(running, [*warnings, *self._later, *self._config.warnings])

    def _timings(self, service: str) -> dict[str, Any]:
        running = self._rollout.running
        if running is None:
            raise ControlError("mailbalancer is still starting", "ask again in a moment")
        return self._status.timings(running, service)

    def _refuse_unless_ready(self) -> None:
        if self._stopping.is_set():
            raise ControlError(
                "mailbalancer is stopping", "sessions finish first; it can only be asked for its status any more"
            )
        if not self._ready:
            raise ControlError("mailbalancer is still starting", "ask again in a moment")

    def _fault(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault of ours in a callback: said in full, and the balancer goes on."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        self._log.error(f"fault in mailbalancer: {context.get('message', '')}: {error!r}", traceback=trace)

    # ------------------------------------------------------------ stop

    def _asked_to_stop(self) -> None:
        """SIGTERM or Ctrl-C; the second one does not wait for sessions any more."""
        if self._stopping.is_set():
            self._events.info("asked again to stop: sessions are ended now")
            self._impatient.set()
        self._stopping.set()

    async def _shut_down(self) -> None:
        notify("STOPPING=1")
        patience_s = self._config.stop_timeout_s if self._stopping.is_set() else 0.0
        self._workers.no_more_replacements()
        if self._workers.alive and patience_s:
            self._events.info(f"stopping: no new connections; sessions may finish for {patience_s:.0f} s")
        await self._scheduler.stop()
        await self._l4.stop_probes()
        self._workers.broadcast(Stop(time.monotonic() + patience_s))
        self._listeners.close([entry.endpoint for entry in self._listeners])
        await self._wait_for_workers(patience_s)
        self._l4.stop()
        if self._stopping.is_set():
            self._save()
            self._events.info("stopped")

    async def _wait_for_workers(self, patience_s: float) -> None:
        everybody = asyncio.ensure_future(self._workers.all_ended())
        impatient = asyncio.ensure_future(self._impatient.wait())
        await asyncio.wait([everybody, impatient], timeout=patience_s + GRACE_S, return_when=asyncio.FIRST_COMPLETED)
        impatient.cancel()
        if not everybody.done():
            self._workers.broadcast(Stop(time.monotonic()))
            await asyncio.wait([everybody], timeout=GRACE_S)
        for worker in self._workers:
            self._workers.kill(worker)
        await everybody
