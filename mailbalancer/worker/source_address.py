"""The address with which a session reaches its server: the client's own, where the service says so and it can work.

Decides: who is given the balancer's address all the same. Clients in the servers' own network are: their servers would
answer them directly, past us, and the connection would never come about. So is everybody at a server whose answers are
known not to come back through us (the gateway probe finds out).
Refuses to know: how that was found out, how the answer finds its way back (`host`, in the supervisor), and the words
for it: the supervisor is told of each network of clients once.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from mailbalancer.balance.admit import AddressLists
from mailbalancer.ipc.board import Count, Slot
from mailbalancer.ipc.messages import OwnAddress
from mailbalancer.model import Source
from mailbalancer.worker.engine import Engine

#: linux/in.h and linux/in6.h; Python has no names for them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24


class SourceAddress:
    """Of one service in one worker.

    Args:
        source: with the servers' own networks in it.
        tell: the supervisor.
    """

    def __init__(self, engine: Engine, service: str, source: Source, tell: Callable[[OwnAddress], None]) -> None:
        self._engine = engine
        self._service = service
        self._tell = tell
        self._networks = (*source.near, *source.balancer_for)
        self._near = AddressLists((), self._networks)
        self._told: set[str] = set()
        self.borrows = source.use == "client"

    def prepare(self, server: socket.socket, slot: int, address: str) -> None:
        """Before `server` connects to the real server on `slot`, for the client at `address`.

        Raises:
            OSError: the address cannot be borrowed (CAP_NET_RAW is missing).
        """
        if self._keeps_ours(slot, address, server.family):
            self._engine.ints[self._engine.cell(slot, Count.OWN_ADDRESS)] += 1
            return
        ipv6 = server.family == socket.AF_INET6
        level, option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if ipv6 else (socket.IPPROTO_IP, _IP_TRANSPARENT)
        server.setsockopt(level, option, 1)
        # the port is chosen at connect(2), so that one client may use the same one towards every server
        server.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        server.bind((address, 0))

    def _keeps_ours(self, slot: int, address: str, family: socket.AddressFamily) -> bool:
        if (":" in address) != (family == socket.AF_INET6):
            self._given("IPv6" if ":" in address else "IPv4")
            return True
        if not self._near.admits(address):
            self._given(next(str(n) for n in self._networks if ipaddress.ip_address(address) in n))
            return True
        return bool(self._engine.ints[self._engine.board.slot(slot, Slot.OWN_ADDRESS)])

    def _given(self, network: str) -> None:
        """Told once for each network of clients."""
        if network not in self._told:
            self._told.add(network)
            self._tell(OwnAddress(self._service, network))
