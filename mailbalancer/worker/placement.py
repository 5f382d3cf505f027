"""A session's place at a real server: chosen, connected to, given up, sought again at the next one.

Decides: what follows when a server cannot be connected to (the next ready one, while the client waits), when all are
full (the queue), and when none is left.
Refuses to know: why a server was chosen (`service`, `balance`), and what is said to it or to the client (the modes).

A server is counted on the board from the moment it is chosen until the place is given up, so that two sessions that
begin at once do not both take the last place.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from mailbalancer.balance.persist import Table
from mailbalancer.balance.pool import Refusal
from mailbalancer.ipc.board import Count, Phase
from mailbalancer.model import Endpoint
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.reactor import FAILED, WRITE, PlainSocket
from mailbalancer.worker.service import Service, Target

#: connect(2) failed for want of something on this machine: the server is not to blame.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM)


#: ip(7); Python has no name for it.
_IP_BIND_ADDRESS_NO_PORT = 24
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
# Looking a member of an enum up costs more than what is done with it here.
_SESSIONS: Final = int(Count.SESSIONS)
_CONNECT_OK: Final = int(Count.CONNECT_OK)
_CONNECT: Final = int(Phase.CONNECT)
_TOTAL: Final = int(Phase.TOTAL)


class Placement:
    """Base of everything that needs a real server. Subclasses say what follows in `placed` and `unplaced`.

    Attributes:
        address, port: the client, as the PROXY header or the connection names it.
        route: whose pool is asked; empty for the service's own.
        target: the server chosen last; None before the first choice.
        server: the connection to it, from the moment of connecting; it is the subclass's from `placed` on.
        tried: names of the servers that failed for this session.
        bind_address: of ours, that connections to servers leave from; empty: the kernel chooses.
        source_slot: where this session is counted for that address; -1: nowhere.
        why: what decided for `target`, in a word.
        last_failure: why the last server was not taken, in words.
        queued_at, connect_at, connected_at: when it began to wait, its server was chosen, and could be spoken to.
    """

    __slots__ = (
        "_deadline_at",
        "_engine",
        "_set_for",
        "_wheel_key",
        "address",
        "bind_address",
        "connect_at",
        "connected_at",
        "connecting",
        "held_key",
        "held_table",
        "last_failure",
        "port",
        "queued_at",
        "route",
        "server",
        "service",
        "slot",
        "source_slot",
        "target",
        "tls_session",
        "tried",
        "waiting",
        "why",
    )

    def __init__(self, engine: Engine, service: Service, address: str, port: int) -> None:
        self._engine = engine
        self._wheel_key = -1
        self._deadline_at = self._set_for = 0.0
        self.service = service
        self.address = address
        self.port = port
        self.route = ""
        self.target: Target | None = None
        self.slot = -1
        self.bind_address = ""
        self.source_slot = -1
        self.server: socket.socket | None = None
        self.connecting = False
        self.waiting = False
        self.queued_at = self.connect_at = self.connected_at = 0.0
        self.tried: tuple[str, ...] = ()
        self.why = ""
        self.last_failure = ""
        self.tls_session = ""  # the TLS session the client asks to resume, in hexadecimal
        self.held_table: Table | None = None  # with its key: the binding that does not expire while this session lives
        self.held_key = ""

    # ------------------------------------------------------------ for subclasses

    def placed(self, events: int) -> None:
        """`server` is connected to `target`; `events` may say already that it has spoken."""
        raise NotImplementedError

    def unplaced(self, reason: str) -> None:
        """No server: `no_server`, `servers_full`, `queue_timeout`, `local_failure`."""
        raise NotImplementedError

    def reached(self) -> Endpoint:
        """The address of ours that the client connected to, for the PROXY header to the server."""
        raise NotImplementedError

    def end(self, reason: str, *, reset: bool = False) -> None:
        """Close everything that belongs to this session."""
        raise NotImplementedError

    # ------------------------------------------------------------ seeking

    def seek(self) -> None:
        """Take a server and begin to connect, or wait for one."""
        choice = self.service.choose(self)
        if choice is Refusal.ALL_FULL:
            if self.service.wait(self):
                self.waiting = True
                self.queued_at = self._engine.reactor.now
            else:
                self.unplaced("servers_full")
        else:
            self._take(choice)

    def leave_queue(self, choice: Target | Refusal) -> None:
        """From the queue."""
        self.waiting = False
        self._waited()
        self._take(choice)

    def _waited(self) -> None:
        engine = self._engine
        engine.timings.took(self.service.slot, Phase.QUEUE, engine.reactor.now - self.queued_at)

    def seek_next(self, failure: str, *, blame: bool) -> None:
        """The server is connected but will not do (a greeting with 421, a failed handshake): try the others.

        Args:
            failure: why, for the log line.
            blame: whether it counts as a failed connect against the server's health.
        """
        target = self.target
        assert target is not None
        self.give_up()
        self.last_failure = f"{target.name}: {failure}"
        engine = self._engine
        if blame:
            self.service.remark(target, "failure", failure, self.route)  # before it is counted: the words belong to it
            engine.ints[engine.cell(target.slot, Count.CONNECT_FAILED)] += 1
        self.tried += (target.name,)
        self.seek()
        if self.slot >= 0 or self.waiting:  # another server has it now, or will: nobody was turned away
            engine.ints[engine.cell(target.slot, Count.RETRIED)] += 1

    def give_up(self) -> None:
        """This session is not on its server any more."""
        engine = self._engine
        self.connecting = False
        if self.server is not None:
            engine.reactor.close(self.server)
            self.server = None
        if self.slot >= 0:
            engine.ints[engine.cell(self.slot, _SESSIONS)] -= 1
            self.slot = -1
        if self.source_slot >= 0:
            engine.ints[engine.cell(self.source_slot, _SESSIONS)] -= 1
            self.source_slot = -1

    def seek_due(self, now: float) -> bool:
        """A deadline came. True when it was that of connecting or queueing, and has been dealt with."""
        if self.connecting:
            self._connect_failed(errno.ETIMEDOUT, f"no answer in {self.service.config.connect_timeout_s:g} s")
        elif self.waiting:
            self.waiting = False
            self._waited()
            self.service.release(self, waiting=True)
            self.unplaced("queue_timeout")
        else:
            return False
        return True

    def lasted(self, since: float) -> None:
        """The session is over: how long it took, for its server; for the service where it has none."""
        engine, slot = self._engine, self.slot if self.slot >= 0 else self.service.slot
        engine.timings.took(slot, _TOTAL, engine.reactor.now - since)

    # ------------------------------------------------------------ deadlines

    def wait_until(self, deadline_at: float) -> None:
        """This deadline, instead of any that was set. A later one leaves the wheel alone: when what is set there comes,
        `due` puts the other in."""
        self._deadline_at = deadline_at
        if self._wheel_key >= 0:
            if deadline_at >= self._set_for:
                return
            self._engine.wheel.remove(self, self._wheel_key)
        self._set_for = deadline_at
        self._wheel_key = self._engine.wheel.add(self, deadline_at)

    def no_deadline(self) -> None:
        if self._wheel_key >= 0:
            self._engine.wheel.remove(self, self._wheel_key)
            self._wheel_key = -1

    def due(self, now: float) -> None:
        """From the wheel: a deadline has come, or has been put off meanwhile."""
        self._wheel_key = -1
        if now < self._deadline_at:
            self.wait_until(self._deadline_at)
        else:
            self.expired(now)

    def expired(self, now: float) -> None:
        """The deadline has come."""
        self.seek_due(now)

    # ------------------------------------------------------------ connecting

    def _take(self, choice: Target | Refusal) -> None:
        if isinstance(choice, Refusal):
            self.unplaced("no_server")
            return
        self.target = choice
        self.slot = choice.slot
        self.connect_at = self._engine.reactor.now
        self._connect(choice)

    def connected(self) -> None:
        """The server can be spoken to."""
        now = self.connected_at = self._engine.reactor.now
        self._engine.timings.took(self.slot, _CONNECT, now - self.connect_at)

    def _connect(self, target: Target) -> None:
        engine = self._engine
        try:
            server = PlainSocket(target.family, _STREAM)
        except OSError as error:
            self._connect_failed(error.errno or errno.EMFILE)
            return
        self.server = server
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.bind_address:
            try:
                # the port is chosen by connect(2), so that one address has a port for each server and not one for all
                server.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                server.bind((self.bind_address, 0))
            except OSError as error:
                self._connect_failed(
                    error.errno or errno.EADDRNOTAVAIL, f"{self.bind_address} is not an address of ours"
                )
                return
        elif self.service.source.borrows:
            try:
                self.service.source.prepare(server, target.slot, self.address)
            except OSError as error:
                self._connect_failed(error.errno or errno.EPERM, f"{self.address} cannot be used to connect from")
                return
        code = server.connect_ex(target.sockaddr)
        if code in (0, errno.EINPROGRESS):
            self.connecting = True
            self.wait_until(engine.reactor.now + self.service.config.connect_timeout_s)
            engine.reactor.watch(server, self._on_connect)
        else:
            self._connect_failed(code)

    def _on_connect(self, events: int) -> None:
        server, target = self.server, self.target
        assert server is not None
        assert target is not None
        if events & FAILED:
            self._connect_failed(server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif events & WRITE:
            self.connecting = False
            self._engine.ints[self._engine.cell(target.slot, _CONNECT_OK)] += 1
            self.placed(events)

    def _connect_failed(self, code: int, why: str = "") -> None:
        """The next ready server, while the client waits."""
        target = self.target
        assert target is not None
        words = why or os.strerror(code).lower()
        if code in _OURS:
            self.give_up()
            self.last_failure = f"{target.name}: {words}"
            self._engine.log.error(f"cannot connect to a server: {words}", service=self.service.name)
            self.unplaced("local_failure")
        else:
            self.seek_next(words, blame=True)


def left_from(server: socket.socket | None) -> str:
    """Our address and port on a connection to a server, for `mailbalancer sessions`; empty: there is none."""
    try:
        return str(Endpoint(*server.getsockname()[:2])) if server is not None else ""
    except OSError:  # just closed
        return ""
