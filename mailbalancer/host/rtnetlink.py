"""Reads the machine's interfaces, routes and neighbours from the kernel itself (rtnetlink(7)).

Decides: the same as `network`, which asks `ip`. Here no program is started, so a loop that serves others may ask too:
it takes a millisecond.
Refuses to know: what the facts are for.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from mailbalancer.host.commands import HostError
from mailbalancer.model import IPNetwork
from mailbalancer.network import Interface, IPAddress, IPInterface, Neighbour, Network, Route

# linux/rtnetlink.h, linux/netlink.h
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR = 18, 22, 26, 30
_REQUEST_DUMP = 0x301
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x3FFF
# the fixed part of each message: linux/if_link.h, if_addr.h, rtnetlink.h, neighbour.h
_LINK, _ADDRESS = struct.Struct("=BxHiII"), struct.Struct("=BBBBI")
_ROUTE, _NEIGHBOUR = struct.Struct("=BBBBBBBBI"), struct.Struct("=BxxxiHBB")
_NEXT_HOP = struct.Struct("=HBBi")
_ETHERNET, _UP, _CLONED = 1, 1, 0x200
_MAIN, _UNICAST = 254, 1
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STATES = {1: "incomplete", 2: "reachable", 4: "stale", 8: "delay", 16: "probe", 32: "failed", 128: "permanent"}


class _Link(NamedTuple):
    """Attributes of linux/if_link.h that are used."""

    address: int = 1
    name: int = 3
    mtu: int = 4


_IFLA = _Link()
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_NDA_DST, _NDA_LLADDR = 1, 2


def network_now() -> Network:
    """The network as it is now.

    Raises:
        HostError: the kernel does not tell.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.settimeout(2.0)
            return _read(kernel)
    except OSError as error:
        raise HostError(
            f"the kernel does not tell its routes: {error.strerror or error}",
            "a service of systemd needs RestrictAddressFamilies=AF_NETLINK",
        ) from error


def _read(kernel: socket.socket) -> Network:
    addresses: dict[int, list[IPInterface]] = {}
    for body in _dump(kernel, _GET_ADDRESS, socket.AF_UNSPEC):
        family, length, _, _, index = _ADDRESS.unpack_from(body)
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        if family in _FAMILIES and packed:
            addresses.setdefault(index, []).append(ipaddress.ip_interface(f"{_address(packed)}/{length}"))
    interfaces = tuple(_interface(body, addresses) for body in _dump(kernel, _GET_LINK, socket.AF_UNSPEC))
    names = {interface.index: interface.name for interface in interfaces}
    routes = tuple(r for family in _FAMILIES for body in _dump(kernel, _GET_ROUTE, family) for r in _route(body, names))
    found = (_neighbour(body, names) for body in _dump(kernel, _GET_NEIGHBOUR, socket.AF_UNSPEC))
    return Network(interfaces, routes, tuple(neighbour for neighbour in found if neighbour is not None))


def _interface(body: bytes, addresses: dict[int, list[IPInterface]]) -> Interface:
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    attributes = dict(_attributes(body[_LINK.size :]))
    mac = attributes.get(_IFLA.address, b"").hex(":") if kind == _ETHERNET else ""
    name = attributes[_IFLA.name].rstrip(b"\0").decode(errors="replace")
    mtu = int.from_bytes(attributes.get(_IFLA.mtu, b""), sys.byteorder)
    return Interface(name, index, mac, mtu, bool(flags & _UP), tuple(addresses.get(index, ())))


def _route(body: bytes, names: dict[int, str]) -> Iterator[Route]:
    """A unicast route of the main table; of several next hops the first."""
    family, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
    attributes = dict(_attributes(body[_ROUTE.size :]))
    table = int.from_bytes(attributes[_RTA_TABLE], sys.byteorder) if _RTA_TABLE in attributes else table
    if table != _MAIN or kind != _UNICAST or flags & _CLONED or family not in _FAMILIES:
        return
    metric = int.from_bytes(attributes.get(_RTA_PRIORITY, b""), sys.byteorder)
    if _RTA_MULTIPATH in attributes:
        first = attributes[_RTA_MULTIPATH]
        size, _, _, index = _NEXT_HOP.unpack_from(first)
        attributes |= dict(_attributes(first[_NEXT_HOP.size : size]))
    else:
        index = int.from_bytes(attributes.get(_RTA_OIF, b""), sys.byteorder)
    via = _address(attributes[_RTA_GATEWAY]) if _RTA_GATEWAY in attributes else None
    packed = attributes.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    network: IPNetwork = ipaddress.ip_network(f"{_address(packed)}/{length}")
    if index in names:
        yield Route(network, names[index], via, metric)


def _neighbour(body: bytes, names: dict[int, str]) -> Neighbour | None:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    attributes = dict(_attributes(body[_NEIGHBOUR.size :]))
    if family not in _FAMILIES or state not in _STATES or _NDA_DST not in attributes:
        return None
    mac = attributes.get(_NDA_LLADDR, b"").hex(":")
    return Neighbour(_address(attributes[_NDA_DST]), names.get(index, ""), mac, _STATES[state])


def _dump(kernel: socket.socket, what: int, family: int) -> Iterator[bytes]:
    """Every message of one kind, without its netlink header."""
    body = struct.pack("=B15x", family)  # long enough for the fixed part of each kind (linux 4.20 wants all of it)
    if what in (_GET_ROUTE, _GET_NEIGHBOUR):
        body = body[:12]
    elif what == _GET_ADDRESS:
        body = body[:8]
    kernel.send(_HEADER.pack(_HEADER.size + len(body), what, _REQUEST_DUMP, 1, 0) + body)
    while True:
        data = kernel.recv(1 << 18)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                (code,) = struct.unpack_from("=i", data, at + _HEADER.size)
                raise OSError(-code, os.strerror(-code))
            yield data[at + _HEADER.size : at + length]
            at += length + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & _NESTED, data[at + 4 : at + length]
        at += length + 3 & ~3


def _address(packed: bytes) -> IPAddress:
    return ipaddress.ip_address(packed)
