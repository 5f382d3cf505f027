"""Small workers for tests: real processes that speak the channel and do one thing each."""

from __future__ import annotations

import os
import select
import socket
import time

from mailbalancer.ipc.board import Beat, Board
from mailbalancer.ipc.channel import Channel, ChannelClosed
from mailbalancer.ipc.messages import (
    Configure,
    Configured,
    Down,
    ListSessions,
    SessionList,
    Stop,
    Stopped,
    Up,
    pack_up,
    unpack_down,
)
from mailbalancer.log import Log

POLL_S = 0.02


class Stub:
    """A worker that beats, accepts, and answers every connection with its index and pid.

    Subclasses change one thing.
    """

    def __init__(self, index: int, channel: Channel, board: Board, log: Log) -> None:
        self.index = index
        self.channel = channel
        self.board = board
        self.log = log
        self.listeners: dict[int, socket.socket] = {}
        self.stopped = False

    @classmethod
    def run(cls, index: int, channel: Channel, board: Board, log: Log) -> int:
        """The entry point, as the supervisor takes it."""
        return cls(index, channel, board, log).serve()

    def serve(self) -> int:
        while not self.stopped:
            self.beat()
            listeners = list(self.listeners.values())
            readable, _, _ = select.select([self.channel.sock, *listeners], [], [], POLL_S)
            for listener in listeners:
                if listener in readable:
                    self.greet(listener)
            try:
                for payload, fds in self.channel.receive():
                    self.obey(unpack_down(payload), fds)
            except ChannelClosed:
                return 3
        return 0

    def beat(self) -> None:
        self.board.ints[self.board.beat(self.index, Beat.PID)] = os.getpid()
        self.board.floats[self.board.beat(self.index, Beat.AT)] = time.monotonic()

    def greet(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.sendall(b"%d %d\n" % (self.index, os.getpid()))
        connection.close()

    def obey(self, message: Down, fds: list[int]) -> None:
        match message:
            case Configure():
                self.configure(message, fds)
            case ListSessions(ask, service, limit):
                sessions = [{"service": service or "smtp", "client": f"10.0.0.{n}"} for n in range(3)]
                self.tell(SessionList(ask, sessions[:limit], max(0, 3 - limit)))
            case Stop():
                self.stopped = True
                self.tell(Stopped(0))

    def configure(self, message: Configure, fds: list[int]) -> None:
        for number in [n for n in self.listeners if n not in message.listeners]:
            self.listeners.pop(number).close()
        for number, fd in zip(message.passed, fds, strict=True):
            self.listeners[number] = socket.socket(fileno=fd)
        assert set(self.listeners) == set(message.listeners)
        self.board.ints[self.board.beat(self.index, Beat.CONFIG_VERSION)] = message.version
        self.tell(Configured(message.version))

    def tell(self, message: Up) -> None:
        self.channel.send(pack_up(message))


class Refusing(Stub):
    """Worker 1 refuses every configuration that has a service named `bad`."""

    def configure(self, message: Configure, fds: list[int]) -> None:
        if self.index == 1 and message.config.service("bad") is not None:
            for fd in fds:
                os.close(fd)
            self.tell(Configured(message.version, "cannot do that"))
        else:
            super().configure(message, fds)


class Keeping(Stub):
    """Tells which bindings came with a configuration, if any did."""

    def configure(self, message: Configure, fds: list[int]) -> None:
        super().configure(message, fds)
        if message.bindings:
            self.tell(SessionList(0, [{"key": binding.key} for binding in message.bindings]))


class Dying(Stub):
    """Ends before it runs anything."""

    def configure(self, message: Configure, fds: list[int]) -> None:
        os._exit(9)


class Spinning(Stub):
    """Worker 0 stops beating and burns the processor once it has a configuration, in its first life."""

    def configure(self, message: Configure, fds: list[int]) -> None:
        super().configure(message, fds)
        first_life = self.board.ints[self.board.beat(self.index, Beat.SPARE_7)] == 0
        if self.index == 0 and first_life:
            while True:
                pass
