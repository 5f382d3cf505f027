"""Flows as the kernel tracks them, by the mark that our rules have put on them (ctnetlink).

Decides: which of them count as sessions: what has not begun to end.
Refuses to know: whose mark is whose.

The kernel filters by mark, so a machine with many flows of others costs nothing here.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mailbalancer.host.commands import HostError

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8  # NFNL_SUBSYS_CTNETLINK, linux/netfilter/nfnetlink.h
_GET, _DELETE = 1, 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
# linux/netfilter/nfnetlink_conntrack.h
_STATUS, _PROTOINFO, _MARK, _MARK_MASK = 3, 4, 8, 21
_SEEN_REPLY = 1 << 1  # IPS_SEEN_REPLY, …_common.h
_NESTED = 0x3FFF
#: TCP states in which a flow carries a session: SYN sent, SYN received, established, one side closed (…_tcp.h).
_OPEN_STATES = frozenset({1, 2, 3, 4, 5})
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Flows:
    """Live flows with one mark; `unanswered`: those of them that nobody has answered yet."""

    live: int = 0
    unanswered: int = 0


def count_flows(mark: int, mask: int) -> dict[int, Flows]:
    """Live flows per mark, of all whose mark is `mark` under `mask`.

    Raises:
        HostError: the kernel does not tell (CAP_NET_ADMIN is needed).
    """
    live: Counter[int] = Counter()
    unanswered: Counter[int] = Counter()
    for message in _ask(_GET, _DUMP, mark, mask):
        entry = read_entry(message)
        if entry.is_open:
            live[entry.mark] += 1
            unanswered[entry.mark] += not entry.answered
    return {found: Flows(count, unanswered[found]) for found, count in live.items()}


def forget_flows(mark: int) -> None:
    """Flows with exactly this mark are tracked no more: their next packet is a new flow.

    Raises:
        HostError: the kernel refuses.
    """
    for _ in _ask(_DELETE, _ACK, mark, 0xFFFFFFFF):
        pass


def _ask(what: int, flags: int, mark: int, mask: int) -> Iterator[bytes]:
    wanted = _attribute(_MARK, struct.pack("!I", mark)) + _attribute(_MARK_MASK, struct.pack("!I", mask))
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, 0) + wanted
    request = _HEADER.pack(_HEADER.size + len(body), _CTNETLINK | what, _REQUEST | flags, 1, 0) + body
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as kernel:
            kernel.settimeout(5.0)
            kernel.send(request)
            yield from _messages(kernel)
    except OSError as error:
        raise HostError(f"the kernel does not tell its connections: {error.strerror or error}") from error


def _messages(kernel: socket.socket) -> Iterator[bytes]:
    while True:
        data = kernel.recv(_BUFFER)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, at + _HEADER.size)
                if code == 0:
                    return
                raise OSError(-code, os.strerror(-code))
            yield data[at + _HEADER.size + 4 : at + length]
            at += length + 3 & ~3


@dataclass(frozen=True, slots=True)
class Entry:
    """One tracked flow; `state` is None where the protocol has none."""

    mark: int = 0
    state: int | None = None
    answered: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it carries a session: it has not begun to end."""
        return self.state is None or self.state in _OPEN_STATES


def read_entry(message: bytes) -> Entry:
    """From the attributes of a message of the kernel's; what is missing or cut short counts as not there."""
    mark, state, answered = 0, None, False
    for kind, value in _attributes(message):
        if kind == _MARK:
            mark = int.from_bytes(value, "big")
        elif kind == _STATUS:
            answered = bool(int.from_bytes(value, "big") & _SEEN_REPLY)
        elif kind == _PROTOINFO:
            for _, tcp in _attributes(value):  # CTA_PROTOINFO_TCP, in it first CTA_PROTOINFO_TCP_STATE
                state = next((inner[0] for one, inner in _attributes(tcp) if one == 1 and inner), None)
    return Entry(mark, state, answered)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & _NESTED, data[at + 4 : at + length]
        at += length + 3 & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value
