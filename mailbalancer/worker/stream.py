"""One side of a connection whose bytes are looked at: plain, or under TLS, or first the one and then the other.

Decides: when the socket is watched for reading and for writing, and what waits to be written. The owner bounds that: it
stops reading the other side while `blocked`.
Refuses to know: protocols, and which side of the balancer this is.

Level-triggered, unlike `flow`: here a read is followed by thinking, often by waiting for the other side, and a socket
that is not read for a while must not lose its edge. In a keep-alive exchange the interest never changes, so this costs
no system call either. TLS is OpenSSL on the socket itself: measured beside a memory BIO, the same CPU time per 1 KiB
request (7 to 9 µs) and per 10 MiB, with two buffers fewer for every idle connection. OpenSSL does not read ahead: that
makes five times fewer reads of bulk and no measurable difference in CPU time, for records that epoll does not see.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import sys
import termios
from collections.abc import Callable
from functools import partial
from typing import Protocol

from mailbalancer.worker.engine import Engine
from mailbalancer.worker.reactor import BROKEN, EDGES, FAILED, READ, WRITE, reset_on_close

_INPUT = select.EPOLLIN
_READING = _INPUT | select.EPOLLRDHUP
#: Raised in place of "not now".
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: What FIONREAD and TIOCOUTQ (ioctl_tty(2), tcp(7)) say when nothing is there.
_NO_BYTES = bytes(4)
#: `receive`: nothing is there now.
NOTHING = -1
#: Smallest buffer for `receive`: a whole TLS record, so that nothing stays behind inside OpenSSL unseen by epoll.
RECORD_BYTES = 16384
#: From here on it is worth two system calls that TCP waits for the last record.
GATHERED_BYTES = 3 * RECORD_BYTES


class Owner(Protocol):
    """Whom a stream tells what happens. Any of these may close the stream."""

    def readable(self, stream: Stream) -> None:
        """`receive` will say something new."""

    def writable(self, stream: Stream) -> None:
        """Everything that waited has been written."""

    def broken(self, stream: Stream, error: OSError) -> None:
        """A write failed later than the call that gave the bytes, the handshake failed (`ssl.SSLError`), or the
        connection was reset while reading is paused; what had come before can still be read after `resume`."""

    def secured(self, stream: Stream) -> None:
        """The TLS handshake is complete."""


class _Nobody:
    """Owner of a stream that is closed."""

    def readable(self, stream: Stream) -> None: ...

    def writable(self, stream: Stream) -> None: ...

    def broken(self, stream: Stream, error: OSError) -> None: ...

    def secured(self, stream: Stream) -> None: ...


_NOBODY = _Nobody()


class Stream:
    """A connected, non-blocking socket. Owns it.

    Attributes:
        averted: input is not looked at: the handshake is under way, or reading is paused.
        blocked: bytes wait to be written.
        read: up to so many bytes, at least RECORD_BYTES; empty at an orderly end. For what it raises see `read_into`.
        read_into: reads into a buffer of at least RECORD_BYTES; how many bytes, 0 at an orderly end. What it raises
            instead is for `not_read` to judge. `receive` is both in one, and costs a call more.
        truncated: the peer ended TLS without saying so (no close_notify): what came last may not be all.
        closed: the socket is no longer ours.
    """

    __slots__ = (
        "_engine",
        "_found_end",
        "_gathers",
        "_mask",
        "_out",
        "_send_to",
        "_shaking",
        "_tls",
        "_watched",
        "averted",
        "blocked",
        "closed",
        "owner",
        "read",
        "read_into",
        "sock",
        "truncated",
    )

    def __init__(self, engine: Engine, sock: socket.socket, owner: Owner, *, watched: bool = False) -> None:
        """`watched`: the reactor knows this socket already (it was watched while it connected)."""
        self._engine = engine
        self.owner: Owner = owner
        self.sock = sock
        self.read: Callable[[int], bytes] = sock.recv
        self.read_into: Callable[[memoryview], int] = sock.recv_into
        self._send_to: Callable[[bytes | bytearray | memoryview], int] = sock.send
        self._tls: ssl.SSLSocket | None = None
        self._shaking = False
        self._out = bytearray()
        self.blocked = False
        self.truncated = False
        self.closed = False
        self._mask = _READING
        self.averted = self._found_end = self._gathers = False
        self._watched = True
        if watched:
            engine.reactor.rewatch(sock, self._on_event, _READING)
        else:
            engine.reactor.watch_level(sock, self._on_event, _READING)

    # ------------------------------------------------------------ TLS

    def secure(
        self,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Begin TLS here and now: nothing that was read before may be left anywhere (RFC 3207 section 4.2).

        `secured` or `broken` follows, in this call or later.

        Args:
            session: to resume with a server, if it still wants to.
        """
        sock = self.sock
        watched_as = sock.fileno()
        try:
            sock.getpeername()  # a peer that is gone: wrap_socket would close the descriptor in the middle of a turn
            tls = context.wrap_socket(
                sock,
                server_side=server_side,
                server_hostname=name,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
                session=session,
            )
        except OSError as error:
            if sock.fileno() < 0:  # it did, because the peer has gone between the two
                self._engine.reactor.forget(watched_as)
                self.closed = True
            self.owner.broken(self, error)
            return
        # wrap_socket has taken the descriptor over: the same number, so epoll and the reactor need not be told
        assert tls.fileno() == watched_as
        self.sock = self._tls = tls
        self.read, self.read_into, self._send_to = _methods(tls)
        self._shaking = self.averted = True
        self._shake()

    @property
    def shaking(self) -> bool:
        """Whether the handshake is still under way."""
        return self._shaking

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """For version, cipher, certificate, ALPN and SNI once `secured`."""
        return self._tls

    def _shake(self) -> None:
        tls = self._tls
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(_READING)
            return
        except ssl.SSLWantWriteError:
            self._watch(_READING | WRITE)
            return
        except OSError as error:
            self.owner.broken(self, error)
            return
        self._shaking = self.averted = False
        self._watch(_READING)
        self.owner.secured(self)

    # ------------------------------------------------------------ reading

    def receive(self, buffer: memoryview) -> int:
        """Read into `buffer` (at least RECORD_BYTES): how many bytes, 0 at the end, NOTHING when none are there.

        Raises:
            OSError: the connection broke.
        """
        try:
            return self.read_into(buffer)
        except OSError as error:
            return self.not_read(error)

    def not_read(self, error: OSError) -> int:
        """What it means that `read_into` raised: NOTHING, or 0 for an end.

        Raises:
            OSError: the connection broke.
        """
        if isinstance(error, _LATER):
            return NOTHING
        if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
            self.truncated = isinstance(error, ssl.SSLEOFError)
            return 0
        raise error

    def fill(self, buffer: memoryview, filled: int) -> int:
        """There is more of this than one `read_into` gave, which under TLS is one record: read on while it fits.

        Args:
            filled: what `read_into` gave.
        """
        if self._tls is None or filled != RECORD_BYTES:
            return filled
        size = len(buffer)
        try:
            while filled + RECORD_BYTES <= size:
                n = self.read_into(buffer[filled:])
                filled += n
                if n < RECORD_BYTES:
                    if not n:
                        self._ends_with(0)
                    break
        except _LATER:
            pass
        except OSError as error:
            self._ends_with(error)
        return filled

    def _ends_with(self, end: OSError | int) -> None:
        """Found behind bytes that are to be looked at first: said at the next `read_into`, which follows soon."""

        def read_into(_buffer: memoryview) -> int:
            if isinstance(end, OSError):
                raise end
            return end

        self.read_into = read_into
        self._found_end = True
        self._tell_of_end()

    def _tell_of_end(self) -> None:
        """OpenSSL has taken the end in, so that epoll may have nothing more to say."""
        self._engine.reactor.again(self.sock.fileno(), lambda: None if self.closed else self._on_event(_INPUT))

    def pause(self) -> None:
        """Leave what comes in the kernel: the client or server is slowed down, not forgotten."""
        if self._mask & _READING:
            self._watch(self._mask & ~_READING)

    def resume(self) -> None:
        """Say `readable` again when there is something."""
        if not self._mask & _READING:
            self._watch(self._mask | _READING)
            if self._found_end:
                self._tell_of_end()

    # ------------------------------------------------------------ writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and keep what does not fit.

        Raises:
            OSError: the connection broke.
        """
        if self._out:
            self._out += data
            return
        size = len(data)
        if size <= RECORD_BYTES or self._tls is None:
            send = self._send_to  # an attribute that is called where it is read is looked for as a method first
            try:
                sent = send(data)
            except _LATER:
                sent = 0
        else:
            sent = self._send_records(data)
        if sent < size:
            self._out += memoryview(data)[sent:]
            self.blocked = True
            self._watch(self._mask | WRITE)

    @property
    def waiting_bytes(self) -> int:
        """How much could not be written yet."""
        return len(self._out)

    def _send_records(self, data: bytes | bytearray | memoryview) -> int:
        """As much as goes now. OpenSSL writes one record a call; TCP is told to wait for the last of them."""
        send, view = self._send_to, memoryview(data)
        sent, size = 0, len(data)
        alone = not self._gathers and size >= GATHERED_BYTES
        if alone:
            self.gather()
        try:
            while sent < size:
                sent += send(view[sent : sent + RECORD_BYTES])
        except _LATER:
            pass
        finally:
            if alone:
                self.release()
        return sent

    def room(self) -> int:
        """How many bytes the kernel is sure to take at once: half of what its buffer has, for packets cost it more than
        their bytes, less what is on its way. None while some wait here."""
        if self._out:
            return 0
        under_way = int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, _NO_BYTES), sys.byteorder)
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - under_way

    def gather(self) -> None:
        """More is written in this turn: only full segments go out until `release`. A record is a quarter of what one
        may hold, and each costs the kernel as much as a full one: a fifth of the CPU time of bulk (tcp(7), TCP_CORK).
        What is not under TLS is written in large pieces anyway."""
        if self._tls is not None and not self._gathers:
            self._gathers = True
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def release(self) -> None:
        """The rest may go."""
        if self._gathers:
            self._gathers = False
            if not self.closed:
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def _flush(self) -> None:
        try:
            # a copy: an error keeps what was sent alive, and `_out` could not be emptied
            data = bytes(self._out)
            sent = self._send_records(data) if self._tls is not None else self._send_to(data)
        except _LATER:
            return
        except OSError as error:
            self.owner.broken(self, error)
            return
        del self._out[:sent]
        if not self._out:
            self.blocked = False
            self._watch(self._mask & ~WRITE)
            self.owner.writable(self)

    def hand_over(self, handler: Callable[[int], None]) -> bytes:
        """From now on `handler` has the plain socket's edges, and what is read and written is its business; `close` is
        still ours. Returns what could not be written yet."""
        assert self._tls is None
        waiting = bytes(self._out)
        self._out.clear()
        if self._watched:
            self._engine.reactor.rewatch(self.sock, handler, EDGES)
        else:
            self._engine.reactor.watch(self.sock, handler)
        return waiting

    # ------------------------------------------------------------ the end

    def forget_unsent(self) -> None:
        """The peer takes nothing any more; what waits for it never goes."""
        self._out.clear()
        self.blocked = False
        self._watch(self._mask & ~WRITE)

    def is_quiet(self) -> bool:
        """Whether the peer has said nothing, closing included, since the last `receive` that found NOTHING.

        Under TLS what is there counts as quiet when it is no end: a new session ticket is nothing said.
        """
        try:
            if self._tls is not None:
                return not self._tls.pending() and self._tls.recv(1) is None
            return self.sock.recv(1, socket.MSG_PEEK) is None
        except _LATER:
            return True
        except OSError:
            return False

    def has_input(self) -> bool:
        """Whether the peer has said something that was not read. That it has closed is nothing said."""
        if self._tls is not None:
            return not self.is_quiet()
        return fcntl.ioctl(self.sock, termios.FIONREAD, _NO_BYTES) != _NO_BYTES

    def finish(self) -> None:
        """No more bytes from us; the other direction goes on. Under TLS this says close_notify."""
        with contextlib.suppress(OSError):
            if self._tls is not None:
                self._tls.setblocking(False)
                with contextlib.suppress(ssl.SSLError):
                    self._tls.unwrap()
            self.sock.shutdown(socket.SHUT_WR)

    def close(self, *, reset: bool = False) -> None:
        """Give the socket back. `reset`: with RST, so that nothing looks complete that is not."""
        if self.closed:
            return
        self.closed = True
        self.owner = _NOBODY  # who has us too: a cycle that the garbage collector would have to find
        self._out.clear()
        if reset:
            with contextlib.suppress(OSError):
                reset_on_close(self.sock)
        elif self._tls is not None and not self._shaking:
            with contextlib.suppress(OSError, ValueError):
                self._tls.unwrap()
        self._engine.reactor.close(self.sock)

    # ------------------------------------------------------------ events

    def _on_event(self, events: int) -> None:
        if events == _INPUT and not self.averted:
            self.owner.readable(self)
            return
        if self._shaking:
            self._shake()
            return
        if events & WRITE and self.blocked:
            self._flush()
        if events & READ and not self.closed:
            if self._mask & _READING:
                self.owner.readable(self)
            elif events & FAILED:  # reported whatever the mask: look away until somebody wants to read or write
                self._engine.reactor.unwatch(self.sock)
                self._watched = False
                if events & BROKEN:
                    self.owner.broken(self, ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))

    def _watch(self, mask: int) -> None:
        if mask == self._mask or self.closed:
            return
        self._mask = mask
        self.averted = self._shaking or not mask & _INPUT
        if self._watched:
            self._engine.reactor.change(self.sock, mask)
        else:
            self._watched = True
            self._engine.reactor.watch_level(self.sock, self._on_event, mask)


def _methods(
    tls: ssl.SSLSocket,
) -> tuple[Callable[[int], bytes], Callable[[memoryview], int], Callable[[bytes | bytearray | memoryview], int]]:
    """How to read and write. CPython's own object behind the socket spares two Python frames in each direction, 1 µs of
    the 20 of a request; where it is not to be had, the socket does the same."""
    inner = getattr(tls, "_sslobj", None)
    if inner is None:
        return tls.recv, tls.recv_into, tls.send
    return inner.read, partial(inner.read, 0), inner.write  # 0: as much as the buffer holds
