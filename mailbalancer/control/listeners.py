"""The listening sockets: one set of N per address, socket i for worker i, open here as long as anybody wants them.

Decides: how an address is opened, that it is ours alone, which worker a client address lands on, and what the
administrator reads when the kernel says no. The sockets stay open in the supervisor, so a worker that dies loses no
connection that waits in a queue.
Refuses to know: which service owns an address (a reload may rename it) and who accepts.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from mailbalancer.errors import ListenError
from mailbalancer.model import Config, Endpoint

#: Connections that may wait in one worker's queue; the kernel bounds it further by net.core.somaxconn.
BACKLOG = 4096

_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68

#: Who usually sits on a port that turns out to be taken.
_USUAL = {25: "postfix", 53: "systemd-resolved", 80: "nginx", 110: "dovecot", 143: "dovecot", 443: "nginx"}
_USUAL |= {465: "postfix", 587: "postfix", 993: "dovecot", 995: "dovecot", 4190: "dovecot"}


@dataclass(slots=True)
class ListenerSet:
    """The sockets of one address, in the order of the workers."""

    id: int
    endpoint: Endpoint
    sockets: tuple[socket.socket, ...]
    pinned: bool = False

    def pin(self, pinned: bool) -> None:
        """Give each client address its one worker, or spread connections as the kernel likes."""
        if pinned != self.pinned and len(self.sockets) > 1:
            if pinned:
                _attach(self.sockets[0], self.endpoint.is_ipv6, len(self.sockets))
            else:
                self.sockets[0].setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
        self.pinned = pinned

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class Listeners:
    """All listening sockets of this program, by address.

    An address keeps its id and its sockets through every reload that still wants it, whichever service it is for.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._sets: dict[Endpoint, ListenerSet] = {}
        self._next_id = 1

    def __iter__(self) -> Iterator[ListenerSet]:
        return iter(self._sets.values())

    def __getitem__(self, endpoint: Endpoint) -> ListenerSet:
        return self._sets[endpoint]

    def open_missing(self, config: Config) -> list[ListenerSet]:
        """Open every address of this configuration that is not open yet: all of them, or none.

        Raises:
            ListenError: one of them cannot be opened; those opened by this call are closed again.
        """
        opened: list[ListenerSet] = []
        try:
            for endpoint, pinned in wanted(config).items():
                if endpoint not in self._sets:
                    opened.append(self._open(endpoint, pinned))
        except ListenError:
            self.close(entry.endpoint for entry in opened)
            raise
        return opened

    def pin_as(self, config: Config) -> None:
        """Follow the persistence of this configuration on addresses that were open before.

        One that is not there was closed by a stop while the workers were being configured.
        """
        for endpoint, pinned in wanted(config).items():
            if endpoint in self._sets:
                self._sets[endpoint].pin(pinned)

    def unwanted(self, config: Config) -> list[Endpoint]:
        """Addresses that are open and that this configuration does not use."""
        keep = wanted(config)
        return [endpoint for endpoint in self._sets if endpoint not in keep]

    def close(self, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in list(endpoints):
            self._sets.pop(endpoint).close()

    def _open(self, endpoint: Endpoint, pinned: bool) -> ListenerSet:
        _refuse_if_taken(endpoint, self._sets)
        with ExitStack() as undo:
            sockets = tuple(undo.enter_context(_bound(endpoint)) for _ in range(self._workers))
            entry = ListenerSet(self._next_id, endpoint, sockets)
            entry.pin(pinned)  # before the first connection can come
            for sock in sockets:
                _listen(sock, endpoint)
            undo.pop_all()
        self._next_id += 1
        self._sets[endpoint] = entry
        return entry


def wanted(config: Config) -> dict[Endpoint, bool]:
    """The addresses of a configuration, and whether a client address must stay with one worker there."""
    return {endpoint: service.pinned_to_worker for service in config.services for endpoint in service.listen}


def _refuse_if_taken(endpoint: Endpoint, ours: Iterable[Endpoint]) -> None:
    """With SO_REUSEPORT a second balancer of the same user would silently share the port; without, the kernel tells.

    Addresses of our own that overlap (0.0.0.0:25 and 10.0.1.100:25) would look taken too, so those are not probed.
    """
    if any(_overlap(endpoint, other) for other in ours):
        return
    _bound(endpoint, shared=False).close()  # SO_REUSEADDR forgives old connections, not a program that listens


def _overlap(one: Endpoint, other: Endpoint) -> bool:
    same_place = one.port == other.port and one.is_ipv6 == other.is_ipv6
    return same_place and bool({one.host, other.host} & {"0.0.0.0", "::"})


def _bound(endpoint: Endpoint, *, shared: bool = True) -> socket.socket:
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise explain(endpoint, error) from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if endpoint.is_ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by every accepted connection
        numeric = socket.getaddrinfo(
            endpoint.host, endpoint.port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        sock.bind(numeric[0][4])
    except OSError as error:
        sock.close()
        raise explain(endpoint, error) from error
    return sock


def _listen(sock: socket.socket, endpoint: Endpoint) -> None:
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise explain(endpoint, error) from error


def explain(endpoint: Endpoint, error: OSError) -> ListenError:
    """The kernel's refusal in the words of somebody who has to get mail going again."""
    match error.errno:
        case errno.EADDRINUSE:
            who = f"{_USUAL[endpoint.port]}? " if endpoint.port in _USUAL else ""
            return ListenError(
                f"{endpoint} is already in use by another program",
                f"{who}see `ss -ltnp 'sport = :{endpoint.port}'`, then stop it or listen on another address",
            )
        case errno.EADDRNOTAVAIL:
            return ListenError(
                f"{endpoint} cannot be listened on: {endpoint.host} is not an address of this machine",
                f"correct `listen`, or add the address first (see `ip address`, `ip address add {endpoint.host} …`); "
                "with CAP_NET_ADMIN and CAP_NET_RAW an address in a network of this machine is added by itself",
            )
        case errno.EACCES | errno.EPERM:
            return ListenError(
                f"{endpoint} cannot be listened on: ports below 1024 are not permitted to this user",
                "start mailbalancer through its systemd unit, or as root, or with CAP_NET_BIND_SERVICE, "
                "or use a port above 1023",
            )
        case errno.EAFNOSUPPORT:
            return ListenError(
                f"{endpoint} cannot be listened on: this machine has IPv6 switched off",
                "switch it on (sysctl net.ipv6.conf.all.disable_ipv6) or remove the address",
            )
        case errno.EMFILE | errno.ENFILE:
            return ListenError(
                f"{endpoint} cannot be opened: no file descriptor is left",
                "raise LimitNOFILE of the unit (`ulimit -n`)",
            )
    return ListenError(f"{endpoint} cannot be listened on: {error.strerror or error}")


# ---------------------------------------------------------------- one client address, one worker

_SKF_NET_OFF = -0x100000  # offsets from here are into the IP header (linux/filter.h)
_LD_W_ABS, _MUL_K, _RSH_K, _MOD_K, _RET_A, _TAX, _XOR_X = 0x20, 0x24, 0x74, 0x94, 0x16, 0x07, 0xAC
#: Odd, and its high bits well mixed (2^32 divided by the golden ratio): neighbours in a subnet go to different workers.
_MULTIPLIER = 0x9E3779B1


class _SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def program(ipv6: bool, workers: int) -> list[tuple[int, int]]:
    """Classic BPF (code, k): the source address, multiplied, shifted, modulo the number of workers.

    It depends on nothing but these two, so one client address has the same worker on every service.
    """
    source, words = (8, 4) if ipv6 else (12, 1)  # RFC 8200 section 3, RFC 791 section 3.1
    steps: list[tuple[int, int]] = []
    for word in range(words):
        steps.append((_LD_W_ABS, (_SKF_NET_OFF + source + 4 * word) & 0xFFFFFFFF))
        if word > 0:
            steps.append((_XOR_X, 0))
        if word < words - 1:
            steps.append((_TAX, 0))
    return [*steps, (_MUL_K, _MULTIPLIER), (_RSH_K, 16), (_MOD_K, workers), (_RET_A, 0)]


def worker_of(address: str, workers: int) -> int | None:
    """The worker on which this client address lands: the same arithmetic as `program`. None: it is no address."""
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError:
        return None
    folded = 0
    for word in struct.unpack(f"!{len(packed) // 4}I", packed):
        folded ^= word
    return ((folded * _MULTIPLIER & 0xFFFFFFFF) >> 16) % workers


def _attach(sock: socket.socket, ipv6: bool, workers: int) -> None:
    steps = program(ipv6, workers)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", opcode, 0, 0, k) for opcode, k in steps))
    fprog = _SockFprog(len(steps), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, bytes(fprog))
