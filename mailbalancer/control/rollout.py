"""A configuration goes to all workers, or to none.

Decides: the order. New listeners first, then places on the board, then every worker, and only when all of them run it
do old listeners close. Whatever fails on the way leaves the running configuration as it was.
Refuses to know: where a configuration comes from, and what a worker does with it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from heapq import nlargest

from mailbalancer.control.certificates import Certificates
from mailbalancer.control.cookie_keys import make_missing
from mailbalancer.control.listeners import Listeners, ListenerSet, wanted, worker_of
from mailbalancer.control.members import Members
from mailbalancer.control.persistence import Bindings
from mailbalancer.control.slots import Allocation, Slots
from mailbalancer.control.workers import Worker, Workers
from mailbalancer.errors import MailbalancerError
from mailbalancer.ipc.channel import FDS_PER_FRAME
from mailbalancer.ipc.messages import Binding, Configure, Front, Listening
from mailbalancer.model import Config

#: All workers must run a new configuration within this time, or nobody does.
ROLLOUT_S = 10.0
#: A worker that starts empty is told at most so many bindings, those that live longest: it is to serve soon.
MOST_BINDINGS = 100_000


@dataclass(frozen=True, slots=True)
class Target:
    """What every worker should run."""

    version: int
    config: Config
    allocation: Allocation
    fronts: dict[str, Front]


class Rollout:
    """Brings configurations into the workers, one at a time (the caller sees to that)."""

    def __init__(
        self,
        listeners: Listeners,
        slots: Slots,
        workers: Workers,
        members: Members,
        bindings: Bindings,
        certificates: Certificates,
    ) -> None:
        self._certificates = certificates
        self._listeners = listeners
        self._slots = slots
        self._workers = workers
        self._members = members
        self._bindings = bindings
        self._changed = asyncio.Event()
        self._target: Target | None = None  # what a worker that starts now is sent
        self.running: Target | None = None  # what all of them run
        self._version = 0

    def worker_changed(self) -> None:
        """A worker settled, or ended."""
        self._changed.set()

    async def apply(self, config: Config) -> None:
        """Run this configuration everywhere.

        Raises:
            MailbalancerError: it cannot be run; what ran before still does.
        """
        materials = self._certificates.read(config)
        fronts = self._certificates.fronts(config, materials)
        make_missing(config)
        opened = self._listeners.open_missing(config)
        try:
            allocation = self._slots.plan(config)
            self._members.prepare(config, allocation, time.monotonic())
            self._bindings.prepare(config)
            await self._distribute(config, allocation, fronts)
        except BaseException:
            self._members.discard_prepared()
            if self.running is not None:
                self._bindings.follow(self.running.config)
            self._listeners.close(entry.endpoint for entry in opened)
            raise
        self._certificates.running = materials
        self._commit(config, allocation)

    def configure(self, worker: Worker) -> None:
        """Send a worker what it should run, with the listeners it does not have yet."""
        life, target = worker.life, self._target
        if life is None or target is None:
            return
        owners = {endpoint: service.name for service in target.config.services for endpoint in service.listen}
        sets = [self._listeners[endpoint] for endpoint in wanted(target.config)]
        life.passed &= {entry.id for entry in sets}
        fresh = [entry for entry in sets if entry.id not in life.passed]
        bindings = () if life.configured else self._bindings_for(worker)
        # more listeners than one frame carries: the same version several times, each with more of them
        for start in range(0, len(fresh) or 1, FDS_PER_FRAME):
            part = fresh[start : start + FDS_PER_FRAME]
            life.passed |= {entry.id for entry in part}
            known = {e.id: Listening(owners[e.endpoint], e.endpoint) for e in sets if e.id in life.passed}
            self._send(worker, target, known, part, bindings if start == 0 else ())

    def _bindings_for(self, worker: Worker) -> tuple[Binding, ...]:
        """What a worker that starts empty has to know: shared tables, and the clients that land on it."""
        workers = self._workers.count
        needed = (
            binding
            for binding in self._bindings.valid(time.monotonic())
            if self._bindings.is_shared(binding.group) or worker_of(binding.key, workers) in (worker.index, None)
        )
        return tuple(nlargest(MOST_BINDINGS, needed, key=lambda binding: binding.expires_at))

    def _send(
        self,
        worker: Worker,
        target: Target,
        known: dict[int, Listening],
        part: list[ListenerSet],
        bindings: tuple[Binding, ...],
    ) -> None:
        slots = target.allocation
        message = Configure(
            target.version,
            target.config,
            slots.members,
            slots.services,
            known,
            tuple(entry.id for entry in part),
            bindings,
            target.fronts,
            slots.sources,
        )
        self._workers.send(worker, message, [entry.sockets[worker.index].fileno() for entry in part])

    async def _distribute(self, config: Config, allocation: Allocation, fronts: dict[str, Front]) -> None:
        before = self._target
        self._version += 1
        self._target = Target(self._version, config, allocation, fronts)
        # a worker that cannot be kept alive under the running configuration has no say about the next one
        voters = [worker for worker in self._workers if before is None or worker.settled]
        try:
            self._configure_all()
            await self._all_settled(voters)
        except BaseException:
            self._take_back(before)
            raise

    async def _all_settled(self, voters: list[Worker]) -> None:
        try:
            async with asyncio.timeout(ROLLOUT_S):
                while not all(worker.settled for worker in voters):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            late = ", ".join(str(worker.index) for worker in voters if not worker.settled)
            raise MailbalancerError(
                f"worker {late} did not take the configuration within {ROLLOUT_S:.0f} s",
                "see the log for what it says, and report it with the configuration: this is a fault of mailbalancer",
            ) from None
        for worker in voters:
            if worker.life is not None and worker.life.error:
                raise MailbalancerError(f"worker {worker.index} cannot run the configuration: {worker.life.error}")

    def _configure_all(self) -> None:
        for worker in self._workers:
            self.configure(worker)

    def _take_back(self, before: Target | None) -> None:
        """Every worker goes back to what it ran. One that does not even read any more is replaced."""
        self._target = None
        if before is None:
            return
        self._version += 1
        self.running = self._target = Target(self._version, before.config, before.allocation, before.fronts)
        for worker in self._workers:
            if worker.life is not None and worker.life.channel.wants_write:
                self._workers.kill(worker)
            else:
                self.configure(worker)

    def _commit(self, config: Config, allocation: Allocation) -> None:
        self.running = self._target
        self._slots.commit(allocation)
        self._members.commit(config, allocation, time.monotonic())
        self._bindings.follow(config)
        self._listeners.pin_as(config)
        self._listeners.close(self._listeners.unwanted(config))
