"""The worker processes: started here, watched here, replaced here.

Decides: when a process is started, that a dead or hung one is replaced at once, and how often a failing one is tried
again.
Refuses to know: what the messages say (they go to the owner), what a worker does, and what "hung" means (`pulse`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from mailbalancer.control.events import Events
from mailbalancer.control.fork import fork_worker
from mailbalancer.control.pulse import BEAT_CHECK_S, DELAYED_S, Pulse
from mailbalancer.host.privileges import drop_everything
from mailbalancer.ipc.board import BEAT, Beat, Board
from mailbalancer.ipc.channel import Channel, ChannelClosed
from mailbalancer.ipc.messages import Configure, Configured, Down, Up, pack_down, unpack_up
from mailbalancer.log import Log

#: Runs in the child until Stop or a closed channel; returns the exit code.
WorkerMain = Callable[[int, Channel, Board, Log], int]

#: So many ends of one worker within the window are replaced at once; after that each start waits longer.
FREE_RESTARTS = 10
RESTART_WINDOW_S = 10.0
BACK_OFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
#: A worker that closed its channel has this long to end by itself.
LAST_BREATH_S = 0.5


@dataclass(slots=True, eq=False)
class Life:
    """One process, from fork to reaping."""

    pid: int
    pidfd: int
    channel: Channel
    pulse: Pulse
    unanswered: int = 0  # Configure messages sent and not yet answered
    configured: bool = False  # it has run a configuration
    error: str = ""  # why it does not run the last one
    hears: bool = True  # its end of the channel is open
    passed: set[int] = field(default_factory=set)  # listener ids it has


class Worker:
    """One place for a worker: index, sockets and column stay, processes come and go."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.starts = 0
        self.life: Life | None = None
        self._ends: deque[float] = deque(maxlen=FREE_RESTARTS + len(BACK_OFF_S))
        self._stillborn = 0  # ends in a row before any configuration ran

    @property
    def settled(self) -> bool:
        """Whether it runs what it was sent last (or has said why not)."""
        return self.life is not None and self.life.unanswered == 0 and (self.life.configured or bool(self.life.error))

    def ended(self, life: Life, now: float) -> None:
        self.life = None
        self._ends.append(now)
        self._stillborn = 0 if life.configured else self._stillborn + 1

    def wait_s(self, now: float) -> float:
        """How long to wait before the next process: nothing, unless this place keeps failing."""
        recent = sum(1 for at in self._ends if now - at < RESTART_WINDOW_S)
        step = max(self._stillborn, recent - FREE_RESTARTS)
        return BACK_OFF_S[min(step, len(BACK_OFF_S)) - 1] if step > 0 else 0.0


class Workers:
    """All workers. The owner sets the three callbacks before `start`."""

    def __init__(self, board: Board, log: Log, events: Events, main: WorkerMain) -> None:
        self._board = board
        self._log = log
        self._events = events
        self._main = main
        self._places = [Worker(index) for index in range(board.workers)]
        self._stopping = False
        self._empty = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._watched_at = 0.0
        #: Capabilities that every worker needs for what is configured.
        self.keep: Collection[int] = ()
        self.on_start: Callable[[Worker], None]  # a process is there: configure it
        self.on_message: Callable[[Worker, Up], None]
        self.on_end: Callable[[int], None]  # the process at this index is no more
        self.on_change: Callable[[], None]  # somebody settled or ended

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._places)

    @property
    def count(self) -> int:
        return len(self._places)

    @property
    def alive(self) -> int:
        return sum(1 for worker in self._places if worker.life is not None)

    def start(self) -> None:
        """Fork all of them and watch them from now on."""
        self._loop = asyncio.get_running_loop()
        for worker in self._places:
            self._fork(worker)
        self._watched_at = time.monotonic()
        self._loop.call_later(BEAT_CHECK_S, self._watch)

    def send(self, worker: Worker, message: Down, fds: list[int] | None = None) -> None:
        """Send, now or as soon as the worker reads. A worker that is gone is not an error: its successor is told."""
        life = worker.life
        if life is None or not life.hears:
            return
        try:
            life.channel.send(pack_down(message), fds)
        except ChannelClosed:
            self._deaf(worker, life)
            return
        if isinstance(message, Configure):
            life.unanswered += 1
        if life.channel.wants_write:
            self._loop.add_writer(life.channel.fileno(), self._flush, worker, life)

    def broadcast(self, message: Down, but: Worker | None = None) -> None:
        for worker in self._places:
            if worker is not but:
                self.send(worker, message)

    def kill(self, worker: Worker) -> None:
        """End the process now; its successor follows unless we are stopping."""
        if worker.life is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(worker.life.pidfd, signal.SIGKILL)

    def no_more_replacements(self) -> None:
        """We are stopping: who ends from now on has ended."""
        self._stopping = True
        if not self.alive:
            self._empty.set()

    async def all_ended(self) -> None:
        """Wait until no process is left; after `no_more_replacements`."""
        await self._empty.wait()

    # one process

    def _fork(self, worker: Worker) -> None:
        if self._stopping:
            return
        for cell in range(BEAT):
            self._board.ints[self._board.beat(worker.index, Beat(cell))] = 0
        ours, theirs = Channel.pair()
        try:
            pid = fork_worker(f"worker {worker.index}", theirs, self._log, lambda: self._run(worker.index, theirs))
            pidfd = os.pidfd_open(pid)
        except OSError as error:  # no memory, processes or descriptors: the next try may succeed
            ours.close()
            theirs.close()
            self._events.error(f"worker {worker.index} cannot be started: {error.strerror}")
            self._loop.call_later(1.0, self._fork, worker)
            return
        theirs.close()
        worker.starts += 1
        worker.life = life = Life(pid, pidfd, ours, Pulse(pid, time.monotonic()))
        self._loop.add_reader(life.pidfd, self._reap, worker, life)
        self._loop.add_reader(ours.fileno(), self._receive, worker, life)
        self.on_start(worker)

    def _run(self, index: int, channel: Channel) -> int:
        drop_everything(self.keep)
        return self._main(index, channel, self._board, self._log)

    def _reap(self, worker: Worker, life: Life) -> None:
        pid, status = os.waitpid(life.pid, os.WNOHANG)
        if pid == 0:
            return
        if life.hears:
            self._receive(worker, life)  # its last words
        self._loop.remove_reader(life.pidfd)
        self._deaf(worker, life)
        os.close(life.pidfd)
        life.channel.close()
        now = time.monotonic()
        worker.ended(life, now)
        self._board.clear_gauges(worker.index)
        self.on_end(worker.index)
        if not self._stopping:
            self._replace(worker, life, os.waitstatus_to_exitcode(status), worker.wait_s(now))
        self.on_change()
        if self._stopping and not self.alive:
            self._empty.set()

    def _replace(self, worker: Worker, life: Life, code: int, wait_s: float) -> None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        when = f"a new one is started in {wait_s:.1f} s" if wait_s else "a new one takes its place"
        self._events.warning(f"worker {worker.index} (process {life.pid}) {how}; {when}")
        if wait_s:
            self._loop.call_later(wait_s, self._fork, worker)
        else:
            self._fork(worker)

    # its channel

    def hear(self) -> None:
        """Take what workers have said by now: it may explain what is seen on the board."""
        for worker in self._places:
            if worker.life is not None and worker.life.hears:
                self._receive(worker, worker.life)

    def _receive(self, worker: Worker, life: Life) -> None:
        try:
            frames = life.channel.receive()
        except ChannelClosed:
            self._deaf(worker, life)
            return
        except ValueError as error:
            self._events.error(f"worker {worker.index} talks nonsense ({error}): it is replaced")
            self._deaf(worker, life)
            self.kill(worker)
            return
        for payload, fds in frames:
            for fd in fds:  # workers have nothing to pass upwards
                os.close(fd)
            try:
                message = unpack_up(payload)
            except ValueError as error:
                self._events.warning(f"worker {worker.index}: {error}")
                continue
            self._take(worker, life, message)

    def _take(self, worker: Worker, life: Life, message: Up) -> None:
        if isinstance(message, Configured):
            life.unanswered = max(0, life.unanswered - 1)
            life.error = str(message.error)
            life.configured = life.configured or not life.error
            if life.error:
                self._events.error(f"worker {worker.index} cannot run the configuration: {life.error}")
            self.on_change()
        else:
            self.on_message(worker, message)

    def _flush(self, worker: Worker, life: Life) -> None:
        try:
            life.channel.flush()
        except ChannelClosed:
            self._deaf(worker, life)
            return
        if not life.channel.wants_write:
            self._loop.remove_writer(life.channel.fileno())

    def _deaf(self, worker: Worker, life: Life) -> None:
        """The channel is closed from the other side: the process ends by itself, or is ended."""
        if life.hears:
            life.hears = False
            self._loop.remove_reader(life.channel.fileno())
            self._loop.remove_writer(life.channel.fileno())
            self._loop.call_later(LAST_BREATH_S, self._kill_if_still, worker, life)

    def _kill_if_still(self, worker: Worker, life: Life) -> None:
        if worker.life is life:
            self.kill(worker)

    # its beats

    def _watch(self) -> None:
        now = time.monotonic()
        delayed = now - self._watched_at > BEAT_CHECK_S + DELAYED_S
        self._watched_at = now
        for worker in self._places:
            if worker.life is not None:
                self._feel(worker, worker.life, now, delayed)
        self._loop.call_later(BEAT_CHECK_S, self._watch)

    def _feel(self, worker: Worker, life: Life, now: float, delayed: bool) -> None:
        if delayed:
            life.pulse.excuse(now)
            return
        beat_at = self._board.floats[self._board.beat(worker.index, Beat.AT)]
        hung = life.pulse.silence(beat_at, now, patient=not worker.settled)
        if hung:
            self._events.error(f"worker {worker.index} (process {life.pid}) is hung: {hung}")
            self.kill(worker)
            life.pulse.excuse(now)
