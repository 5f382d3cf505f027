"""What all sessions of one worker share: reactor, wheel, board, pipes, the log, the set of live sessions.

Decides: whether there are descriptors left for another session.
Refuses to know: protocols and services.
"""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Protocol, runtime_checkable

from mailbalancer.ipc.board import COUNT, Beat, Board, Count
from mailbalancer.log import Log
from mailbalancer.tls.sessions import Sessions
from mailbalancer.worker.pipes import PipePool
from mailbalancer.worker.reactor import Reactor
from mailbalancer.worker.timings import Timings
from mailbalancer.worker.view import BoardView
from mailbalancer.worker.wheel import Wheel

#: Descriptors kept for everything that is not a session: epoll, channel, log, listeners are counted on top.
RESERVE = 64
#: A session needs two sockets.
PER_SESSION = 2
#: The largest piece read at once; a service's `buffer_bytes` takes a part of it.
BUFFER_BYTES = 1024 * 1024


class Timed(Protocol):
    """Whatever has a deadline on the wheel."""

    def due(self, now: float) -> None:
        """The deadline has come, or came a while ago and something has happened since."""

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close everything that belongs to it."""


class Counted(Protocol):
    """What keeps numbers of its own that the board is told now and then."""

    def settle(self) -> None:
        """Tell the board."""


class Named(Protocol):
    """The service, as far as an engine must know it."""

    @property
    def name(self) -> str: ...


class Live(Timed, Protocol):
    """A connection of a client, from accept to its log line, in whichever mode.

    Attributes:
        slot: the board's slot of its real server; -1: none.
    """

    @property
    def slot(self) -> int: ...

    @property
    def service(self) -> Named: ...

    def facts(self) -> dict[str, str | int | float]:
        """For `mailbalancer sessions`."""

    def owns(self, fd: int) -> bool:
        """Whether this descriptor is one of its sockets."""


@runtime_checkable
class Idling(Protocol):
    """A connection that may live on for long while nothing is asked of it."""

    def leave_if_idle(self) -> None:
        """No more is served here: whoever waits for nothing may go at once."""


class Engine:
    """One per worker."""

    def __init__(self, index: int, board: Board, log: Log, loop: asyncio.AbstractEventLoop, max_files: int) -> None:
        self.index = index
        self.board = board
        self.ints = board.ints
        self.log = log
        self.loop = loop
        self.reactor = Reactor(loop, self.fault)
        self.wheel: Wheel[Timed] = Wheel(self.reactor.now)
        self.view = BoardView(board, index)
        self.timings = Timings(board, index)
        self.max_files = max_files
        self.listeners_open = 0
        self.idle_links = 0  # connections to servers that wait for a client
        self.stopping = False  # no new connections are accepted any more
        self.sessions: set[Live] = set()
        self.relays: set[Counted] = set()
        self.pipes = PipePool(limit=max(0, max_files // 16), workers=board.workers)
        self.tls_sessions = Sessions()  # with real servers
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self.column = board.count(index, 0, Count.SESSIONS)
        self._open_files_cell = board.beat(index, Beat.OPEN_FILES)

    def cell(self, slot: int, count: int) -> int:
        """Index of a cell of this worker's own column; `count` as in `ipc.board.Count`."""
        return self.column + slot * COUNT + count

    @property
    def open_files(self) -> int:
        """Descriptors in use, from our own books: sessions that have no server yet are counted as if they had."""
        return RESERVE + self.listeners_open + self.idle_links + PER_SESSION * (len(self.sessions) + self.pipes.open)

    def room(self) -> int:
        """How many more sessions fit under the process's limit of descriptors."""
        return max(0, self.max_files - self.open_files) // PER_SESSION

    def let_idle_ones_leave(self, service: Named | None = None) -> None:
        """Of a service that is gone, or of all when this worker stops."""
        for session in list(self.sessions):
            if isinstance(session, Idling) and (service is None or session.service is service):
                session.leave_if_idle()

    def fault(self, fd: int, error: Exception) -> None:
        """A handler of this descriptor raised: a mistake of ours. Its session ends, no other one notices."""
        self.session_fault(next((s for s in self.sessions if s.owns(fd)), None), error)

    def session_fault(self, session: Timed | None, error: Exception) -> None:
        """Say where it happened, and end the session if it is known which."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.log.error(
            "internal error, please report it",
            error=f"{type(error).__name__}: {error}",
            at=f"{Path(where.filename).name}:{where.lineno} {where.name}",
            worker=self.index,
        )
        if session is not None:
            session.end("internal_error", reset=True)

    def note_open_files(self) -> None:
        self.ints[self._open_files_cell] = self.open_files
