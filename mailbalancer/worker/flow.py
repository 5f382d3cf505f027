"""Bytes from one socket to another: back-pressure, half-close, and splice(2) for bulk.

Decides: how much waits in the balancer (one buffer a direction, never more), when a flow is bulk and leaves Python, and
when it is over.
Refuses to know: why these two sockets belong together. The owner is told of the end and of failures.

Every socket is registered edge-triggered, so a flow reads until the source is empty: a read that did not fill the
buffer has emptied it (epoll(7)), unless the peer has hung up, in which case the end of file is still to be read.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

from mailbalancer.worker.engine import Engine

#: Reads of one flow in one turn before the others get theirs.
BURST = 16
#: Reads in a row that filled the buffer: this is bulk, and from here splice is cheaper than copying through Python.
BULK_AFTER = 2
#: Asked of one splice call; what the pipe holds is the real bound.
SPLICE_BYTES = 1024 * 1024

_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Owner(Protocol):
    """Whom a flow tells of its end."""

    def flow_ended(self, flow: Flow) -> None:
        """The source has closed, and everything has been handed on but the end: `pass_end_on`, or close the sink."""

    def flow_broke(self, flow: Flow, at_source: bool, error: OSError) -> None:
        """One of the sockets failed."""


class _Nobody:
    """Owner of the flows of a session that is over."""

    def flow_ended(self, flow: Flow) -> None: ...

    def flow_broke(self, flow: Flow, at_source: bool, error: OSError) -> None: ...


_NOBODY: Final = _Nobody()


class Flow:
    """One direction of a session.

    Attributes:
        blocked: the sink takes no more; call `pump` when it does again.
        hangup: the source's peer has closed: read to the end.
        over: nothing moves any more.
        bytes: handed on or waiting here.
    """

    __slots__ = (
        "_buffer",
        "_cell",
        "_engine",
        "_owner",
        "_pending",
        "_pipe",
        "_piped",
        "_recv_into",
        "_send",
        "_settled",
        "_sink",
        "_size",
        "_source",
        "blocked",
        "bytes",
        "hangup",
        "over",
    )

    def __init__(
        self, engine: Engine, owner: Owner, source: socket.socket, sink: socket.socket, buffer: memoryview, cell: int
    ) -> None:
        self._engine = engine
        self._owner = owner
        self._source = source
        self._sink = sink
        self._recv_into: Callable[[memoryview], int] = source.recv_into
        self._send: Callable[[memoryview | bytes], int] = sink.send
        self._buffer = buffer
        self._size = len(buffer)
        self._cell = cell  # the board's byte counter of this direction
        self._pending: bytes | None = None
        self._pipe: tuple[int, int] | None = None
        self._piped = 0
        self._settled = 0
        self.blocked = False
        self.hangup = False
        self.over = False
        self.bytes = 0

    def push(self, data: bytes, header: bytes = b"") -> None:
        """Send what was read from the source elsewhere, because it had to be looked at first; nothing more is read.

        Args:
            header: goes before it and is no byte of the source: a PROXY header.
        """
        size = len(data)
        self.bytes += size
        data = header + data
        self._pending = data if self._pending is None else self._pending + data
        self.blocked = not self._flush()

    def pump(self) -> None:
        """Move what can be moved now."""
        if self.over:
            return
        if self._pipe is not None:
            self._pump_pipe()
            return
        if self._pending is not None:
            if not self._flush():
                return
            self.blocked = False
        # One request or one answer: read once, write once, and the source is empty. Everything else is in `_pump_on`.
        buffer = self._buffer
        try:
            n = self._recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._owner.flow_broke(self, True, error)
            return
        if not n:
            self._end()
            return
        self.bytes += n
        try:
            sent = self._send(buffer[:n])
        except OSError as error:
            self._not_sent(error, n)
            return
        if sent < n:
            self._keep(sent, n)
        elif self.hangup or n == self._size:
            self._pump_on(n)

    def _hand_on(self, n: int) -> bool:
        """Send the `n` bytes in the buffer, as `pump` does. False: nothing more can be moved now, or it is over."""
        if not n:
            self._end()
            return False
        self.bytes += n
        try:
            sent = self._send(self._buffer[:n])
        except OSError as error:
            self._not_sent(error, n)
            return False
        if sent < n:
            self._keep(sent, n)
        return sent == n

    def _not_sent(self, error: OSError, n: int) -> None:
        if isinstance(error, BlockingIOError):
            self._keep(0, n)
        else:
            self._owner.flow_broke(self, False, error)

    def _keep(self, sent: int, n: int) -> None:
        """The sink takes no more: of the `n` bytes in the buffer only `sent` went."""
        self._pending = bytes(self._buffer[sent:n])
        self.blocked = True

    def _pump_on(self, n: int) -> None:
        """There is more: the buffer was filled by the first read, or the end is still to be read."""
        full_reads = 0
        for _ in range(BURST):
            full_reads = full_reads + 1 if n == self._size else 0
            if full_reads >= BULK_AFTER:
                self._pipe = self._engine.pipes.take()
                if self._pipe is not None:
                    self._pump_pipe()
                    return
            try:
                n = self._recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self._owner.flow_broke(self, True, error)
                return
            if not self._hand_on(n) or (n < self._size and not self.hangup):
                return
        self._engine.reactor.again(self._source.fileno(), self.pump)

    def settle(self) -> None:
        """Bring the board's counter up to what has been moved: now and then, because each event would cost more."""
        moved = self.bytes - self._settled
        if moved:
            self._engine.ints[self._cell] += moved
            self._settled = self.bytes

    def rest(self) -> None:
        """Nothing has moved for a while: give an empty pipe back."""
        if self._pipe is not None and not self._piped:
            self._engine.pipes.give_back(self._pipe, empty=True)
            self._pipe = None

    def close(self) -> None:
        """The session is over. Without its owner the flow is no cycle that the garbage collector must find."""
        self.settle()
        self.over = True
        self._owner = _NOBODY
        self._pending = None
        if self._pipe is not None:
            self._engine.pipes.give_back(self._pipe, empty=not self._piped)
            self._pipe = None

    def _flush(self) -> bool:
        """Send what waits. False: the sink is still full, or broke."""
        assert self._pending is not None
        try:
            sent = self._send(self._pending)
        except BlockingIOError:
            return False
        except OSError as error:
            self._owner.flow_broke(self, False, error)
            return False
        if sent < len(self._pending):
            self._pending = self._pending[sent:]
            return False
        self._pending = None
        return True

    def _pump_pipe(self) -> None:
        """The same through a pipe: the kernel moves pages, Python only numbers."""
        assert self._pipe is not None
        reading, writing = self._pipe
        source, sink = self._source.fileno(), self._sink.fileno()
        for _ in range(BURST):
            if not self._piped:
                # Only an empty pipe is filled, so "would block" can only mean that the source is empty.
                try:
                    n = os.splice(source, writing, SPLICE_BYTES, flags=_SPLICE)
                except BlockingIOError:
                    self.blocked = False
                    return
                except OSError as error:
                    self._owner.flow_broke(self, True, error)
                    return
                if not n:
                    self._end()
                    return
                self._piped = n
                self.bytes += n
            try:
                while self._piped:
                    self._piped -= os.splice(reading, sink, self._piped, flags=_SPLICE)
            except BlockingIOError:
                self.blocked = True
                return
            except OSError as error:
                self._owner.flow_broke(self, False, error)
                return
        self.blocked = False
        self._engine.reactor.again(self._source.fileno(), self.pump)

    def _end(self) -> None:
        """End of file at the source, everything handed on."""
        self.over = True
        self.rest()
        self._owner.flow_ended(self)

    def pass_end_on(self) -> bool:
        """Half-close the sink, which may still speak. False: it broke."""
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._owner.flow_broke(self, False, error)
            return False
        return True
