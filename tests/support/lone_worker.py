"""One real worker process without a supervisor: forked, given a board, a channel and listeners that the test opened.

Decides: what a supervisor would have decided (slots, listener numbers, availability), as simply as possible, and that
nothing stays behind whatever the test does. Refuses to know: what is tested.

    with Echo("ex1") as ex1, LoneWorker() as worker:
        worker.configure(service("imap", ex1))
        client = worker.connect("imap")

Listening addresses are written with port 0 and found free by the kernel; `address` says what they became.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from mailbalancer.ipc.board import Availability, Beat, Board, Count, Slot
from mailbalancer.ipc.channel import Channel, ChannelClosed
from mailbalancer.ipc.messages import (
    Binding,
    Configure,
    Configured,
    Down,
    Front,
    Listening,
    ListSessions,
    SessionList,
    Stop,
    Up,
    pack_down,
    unpack_up,
)
from mailbalancer.log import Log
from mailbalancer.model import (
    Certificate,
    Config,
    Endpoint,
    Logging,
    Member,
    MemberKey,
    Mode,
    Pool,
    RealServer,
    Route,
    Service,
    SourceKey,
)
from mailbalancer.tls.context_pool import NOWHERE
from mailbalancer.tls.material import read_material
from mailbalancer.tls.offer import owner_name
from mailbalancer.worker.main import run
from tests.support.certs import Issued
from tests.support.servers import Server
from tests.support.waiting import eventually

T = TypeVar("T")

LOG = Logging(format="json", level="debug")
TIMEOUT_S = 20.0


class Door:
    """A listening socket whose connections the test itself accepts, to hold both ends of a session."""

    def __init__(self, name: str, host: str = "127.0.0.1", backlog: int = 128) -> None:
        self.name = name
        self.host = host
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.bind((host, 0))
        self.socket.listen(backlog)
        self.port = int(self.socket.getsockname()[1])

    def accept(self) -> socket.socket:
        """The next connection."""
        connection, _ = self.socket.accept()
        connection.settimeout(TIMEOUT_S)
        return connection

    def close(self) -> None:
        """Refuse connections from now on."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Place = Server | Door | tuple[str, str, int]


def member(server: Place, **options: Any) -> Member:
    """A test server, or (name, host, port), as a member of a pool."""
    name, host, port = server if isinstance(server, tuple) else (server.name, server.host, server.port)
    return Member(name, Endpoint(host, port), **options)


def service(
    name: str,
    *servers: Place | Member,
    mode: Mode = Mode.TCP,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    routes: tuple[Route, ...] = (),
    pool: dict[str, Any] | None = None,
    **options: Any,
) -> Service:
    """A service on a free port of each of `hosts`; `pool` has the options of its own pool."""
    members = tuple(s if isinstance(s, Member) else member(s) for s in servers)
    listen = tuple(Endpoint(host, 0) for host in hosts)
    return Service(name, mode, listen, Pool(name, "", members, **(pool or {})), routes, **options)


def route(service_name: str, name: str, hosts: tuple[str, ...], *servers: Place, **options: Any) -> Route:
    """A route of a `tls` service with a pool of its own."""
    return Route(name, hosts, Pool(service_name, name, tuple(member(s) for s in servers), **options))


def front(service_name: str, issued: Issued) -> Front:
    """What a service shows its clients: this certificate."""
    listed = Certificate("mail", str(issued.chain), str(issued.key))
    return Front(owner_name(service_name), NOWHERE, (read_material(listed),))


class LoneWorker:
    """A worker process and everything its supervisor would hold.

    Args:
        max_files: the process's limit of descriptors; 0: as it is.
        workers: columns of the board; this worker is the first, a test may write the others.
        prepare: called in the worker before it starts, to break what never breaks by itself.
    """

    def __init__(self, max_files: int = 0, workers: int = 1, prepare: Callable[[], None] | None = None) -> None:
        self.board = Board(workers, 64)
        self.messages: list[Up] = []
        self.slots: dict[MemberKey, int] = {}
        self.service_slots: dict[str, int] = {}
        self.source_slots: dict[SourceKey, int] = {}
        self.version = 0
        self._listeners: dict[tuple[str, Endpoint], tuple[int, socket.socket]] = {}
        self._next_number = 1
        self._asked = 0
        self._max_files = max_files
        self._prepare = prepare
        self._log_file = tempfile.TemporaryFile(mode="ab+", buffering=0)  # noqa: SIM115 - closed in __exit__
        self._channel, self._theirs = Channel.pair()
        self._pid = 0
        self.exit_code: int | None = None
        self.may_fault = False  # a test that provokes an internal error says so; everywhere else one fails the test

    # ------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self._pid = os.fork()
        if not self._pid:
            self._be_the_worker()
        self._theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.exit_code is None:
                with contextlib.suppress(ChannelClosed):
                    self.send(Stop(0.0))
                self._wait_or_kill()
            faults = [line for line in self.raw_log().splitlines() if "Traceback" in line or "internal" in line]
            if kind is None:
                assert self.exit_code == 0, f"the worker ended with {self.exit_code}: {self.raw_log()[-3000:]}"
                assert self.may_fault or not faults, self.raw_log()[-5000:]
        finally:
            self._channel.close()
            self._log_file.close()
            for _, sock in self._listeners.values():
                sock.close()

    @property
    def pid(self) -> int:
        return self._pid

    def _be_the_worker(self) -> None:
        """In the child. Sockets of the test are closed, or ends that the test closes would stay open here."""
        code = 1
        try:
            gc.freeze()  # nothing that belongs to the parent may be finalised here: descriptor numbers are used again
            os.dup2(self._log_file.fileno(), 2)
            keep = {0, 1, 2, self._theirs.fileno()}
            for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
                if fd not in keep:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if self._max_files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self._max_files, self._max_files))
            if self._prepare is not None:
                self._prepare()
            code = run(0, self._theirs, self.board, Log(LOG))
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}\n".encode())
        finally:
            os._exit(code)

    def stop(self, sessions_may_last_s: float = 0.0) -> None:
        """Tell the worker to stop; does not wait."""
        self.send(Stop(time.monotonic() + sessions_may_last_s))

    def hang_up(self) -> None:
        """Close the channel, as a supervisor that died does."""
        self._channel.close()

    def ended(self) -> bool:
        """Whether the process is over; `exit_code` then says how."""
        if self.exit_code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is not None

    def _wait_or_kill(self) -> None:
        try:
            eventually(self.ended, timeout_s=5, what="the worker ends")
        except AssertionError:
            os.kill(self._pid, signal.SIGKILL)
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    # ------------------------------------------------------------ configuration

    def configure(
        self,
        *services: Service,
        real_servers: tuple[RealServer, ...] = (),
        bindings: tuple[Binding, ...] = (),
        fronts: dict[str, Front] | None = None,
    ) -> None:
        """Apply these services and wait until the worker says that it runs them.

        Args:
            fronts: what services that speak TLS show, by service; see `front`.
        """
        self.send_configuration(*services, real_servers=real_servers, bindings=bindings, fronts=fronts)
        version = self.version
        answer = self.message(Configured, lambda m: m.version == version)
        assert not answer.error, answer.error

    def send_configuration(
        self,
        *services: Service,
        real_servers: tuple[RealServer, ...] = (),
        bindings: tuple[Binding, ...] = (),
        fronts: dict[str, Front] | None = None,
    ) -> None:
        """Apply these services; does not wait."""
        self.version += 1
        config = Config("test", services, real_servers, self.board.workers, "", "", "", log=LOG)
        self._give_slots(config)
        listening, passed, fds = self._listen(config)
        message = Configure(
            self.version,
            config,
            dict(self.slots),
            dict(self.service_slots),
            listening,
            passed,
            bindings,
            fronts or {},
            dict(self.source_slots),
        )
        self.send(message, fds)

    def _give_slots(self, config: Config) -> None:
        for service in config.services:
            self.service_slots.setdefault(service.name, self._next_slot())
            for source in service.source_keys():
                self.source_slots.setdefault(source, self._next_slot())
            for pool in service.pools():
                for member in pool.members:
                    key = pool.key(member)
                    if key not in self.slots:
                        self.slots[key] = self._next_slot()
                        self.make_available(self.slots[key], Availability.READY)
                    self.board.floats[self.board.slot(self.slots[key], Slot.WEIGHT)] = member.weight

    def _next_slot(self) -> int:
        return len(self.slots) + len(self.service_slots) + len(self.source_slots)

    def _listen(self, config: Config) -> tuple[dict[int, Listening], tuple[int, ...], list[int]]:
        wanted = {(s.name, endpoint) for s in config.services for endpoint in s.listen}
        for gone in set(self._listeners) - wanted:
            self._listeners.pop(gone)[1].close()
        passed, fds = [], []
        for key in sorted(wanted - set(self._listeners), key=str):
            sock = _listener(key[1])
            self._listeners[key] = (self._next_number, sock)
            passed.append(self._next_number)
            fds.append(sock.fileno())
            self._next_number += 1
        listening = {
            number: Listening(name, Endpoint(endpoint.host, sock.getsockname()[1]))
            for (name, endpoint), (number, sock) in self._listeners.items()
        }
        return listening, tuple(passed), fds

    # ------------------------------------------------------------ talking to it

    def send(self, message: Down, fds: list[int] | None = None) -> None:
        self._channel.send(pack_down(message), fds)
        eventually(self._flushed, what="the worker reads its channel")

    def _flushed(self) -> bool:
        self._channel.flush()
        return not self._channel.wants_write

    def receive(self) -> list[Up]:
        """Everything the worker has said so far."""
        with contextlib.suppress(ChannelClosed):
            self.messages += [unpack_up(payload) for payload, _ in self._channel.receive()]
        return self.messages

    def message(self, kind: type[T], where: Callable[[T], bool] = lambda _: True) -> T:
        """The first message of this kind for which `where` holds; waits for it."""

        def found() -> list[T]:
            assert not self.ended(), self.raw_log()[-3000:]
            return self.said(kind, where)

        return eventually(found, TIMEOUT_S, f"a {kind.__name__} message")[0]

    def message_at_end(self, kind: type[T]) -> T:
        """The first message of this kind; the worker may have ended since it said so."""
        return eventually(lambda: self.said(kind), TIMEOUT_S, f"a {kind.__name__} message")[0]

    def said(self, kind: type[T], where: Callable[[T], bool] = lambda _: True) -> list[T]:
        """All messages of this kind so far for which `where` holds."""
        return [m for m in self.receive() if isinstance(m, kind) and where(m)]

    def list_sessions(self, service: str = "", limit: int = 1000) -> SessionList:
        self._asked += 1
        ask = self._asked
        self.send(ListSessions(ask, service, limit))
        return self.message(SessionList, lambda m: m.ask == ask)

    # ------------------------------------------------------------ clients

    def address(self, service: str, host: str = "127.0.0.1") -> tuple[str, int]:
        """Where a client reaches this service."""
        number, sock = next(
            found
            for (name, e), found in self._listeners.items()
            if name == service and e.host in (host, "0.0.0.0", "::")
        )
        assert number
        return host, int(sock.getsockname()[1])

    def listening_socket(self, service: str) -> socket.socket:
        """The test's copy of a service's first listening socket."""
        return next(sock for (name, _), (_, sock) in self._listeners.items() if name == service)

    def connect(self, service: str, host: str = "127.0.0.1", source: str = "") -> socket.socket:
        """A connected client, from the address `source` if given."""
        return socket.create_connection(self.address(service, host), TIMEOUT_S, (source, 0) if source else None)

    def refuses(self, service: str, source: str = "") -> bool:
        """Whether a client that says nothing is reset before it gets a byte."""
        try:
            with self.connect(service, source=source) as client:
                assert not receive_all(client)
        except ConnectionResetError:
            return True
        return False

    # ------------------------------------------------------------ the board

    def slot(self, service: str, real_server: str, route: str = "") -> int:
        return self.slots[MemberKey(service, route, real_server)]

    def make_available(self, slot: int, availability: Availability) -> None:
        self.board.ints[self.board.slot(slot, Slot.AVAILABILITY)] = availability

    def count(self, cell: Count, service: str, real_server: str = "", route: str = "") -> int:
        """A cell of the member, or of the service itself when no real server is named."""
        slot = self.slot(service, real_server, route) if real_server else self.service_slots[service]
        return self.board.total(slot, cell)

    def eventually_counts(self, expected: int, cell: Count, service: str, real_server: str = "") -> None:
        eventually(
            lambda: self.count(cell, service, real_server) == expected,
            TIMEOUT_S,
            f"{cell.name} of {service} {real_server} is {expected}",
        )

    def beat(self, cell: Beat) -> int:
        return self.board.ints[self.board.beat(0, cell)]

    def after_beats(self, beats: int) -> None:
        """Return when the event loop has turned over this many heartbeats: whatever was due has happened."""
        at = self.board.beat(0, Beat.AT)
        for _ in range(beats):
            eventually(partial(self._beaten_since, self.board.floats[at]), TIMEOUT_S, "a heartbeat")

    def _beaten_since(self, at: float) -> bool:
        return self.board.floats[self.board.beat(0, Beat.AT)] != at

    # ------------------------------------------------------------ what it says and holds

    def raw_log(self) -> str:
        fd = self._log_file.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()

    def log_lines(self) -> list[dict[str, Any]]:
        """Every line of the log so far. One that is no JSON object fails the test."""
        return [json.loads(line) for line in self.raw_log().split("\n")[:-1]]

    def session_lines(self, expected: int = 1) -> list[dict[str, Any]]:
        """The lines of finished sessions, when there are `expected` of them."""

        def lines() -> list[dict[str, Any]] | None:
            found = [line for line in self.log_lines() if line["message"] == "session"]
            assert len(found) <= expected, found
            return found if len(found) == expected else None

        return eventually(lines, TIMEOUT_S, f"{expected} session lines in the log")

    def files(self) -> int:
        """Descriptors the process has open."""
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def cpu_ticks(self) -> int:
        """Processor time used so far, user and system, in clock ticks (proc(5) `stat`)."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[11]) + int(fields[12])


def _listener(endpoint: Endpoint) -> socket.socket:
    """As the supervisor opens it, on a free port."""
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if endpoint.is_ipv6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((endpoint.host, endpoint.port))
    sock.listen(4096)
    return sock


def reset(sock: socket.socket) -> None:
    """End a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the other side's orderly end; a reset raises ConnectionResetError."""
    data = bytearray()
    while piece := sock.recv(262144):
        data += piece
    return bytes(data)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes, or fewer when the other side ends before."""
    data = bytearray()
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return bytes(data)
