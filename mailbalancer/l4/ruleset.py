"""What the kernel is to forward, as data: services, servers with their shares, persistence, whose address is seen.

Decides: the nouns, and that nothing in them can be anything but numbers, IP addresses, networks and interface names.
An object that holds something else cannot be made, so the renderer never meets text of the operator's.
Refuses to know: nft's words (`render`), health, ramps and counts (they have become shares by now), names.

Numbers stand for names: a service, a (service, real server) and a machine have one each, given by `numbers`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

from mailbalancer.model import Forward, IPNetwork

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Marks of ours on connections: the upper half says whose it is, the lower half is the number.
MEMBER_MARK = 0x6D620000
MACHINE_MARK = 0x6D630000
#: Packets of layer 7 sessions that use a client's address, on their way back to us.
TRANSPARENT_MARK = 0x6D64FFFF
HIGHEST_NUMBER = 0xFFFE
HIGHEST_SHARE = 1000
LONGEST_TIMEOUT_S = 31 * 86400
#: Into so many parts source addresses are hashed; each part belongs to one server.
BUCKETS = 1024

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")


class Protocol(StrEnum):
    """What is forwarded."""

    TCP = "tcp"
    UDP = "udp"


class Spread(StrEnum):
    """How new flows are spread over the shares."""

    RANDOM = "random"
    IN_TURN = "in_turn"
    SOURCE_HASH = "source_hash"


@dataclass(frozen=True, slots=True)
class PortRange:
    """One address of a service, and its ports from `first` to `last`."""

    address: IPAddress
    first: int
    last: int

    def __post_init__(self) -> None:
        _require_address(self.address)
        _require_number("port", self.first, 1, 65535)
        _require_number("port", self.last, self.first, 65535)


@dataclass(frozen=True, slots=True)
class Server:
    """A real server in a service.

    Attributes:
        number: of this server in this service: its mark, chain and counters.
        machine: number of the real server over all services: what persistence remembers.
        port: 0 leaves the port that the client asked for.
        share: of new flows, relative to the others; 0 gets none.
        returning: persistent clients may come back to it.
        down: it does not answer; what it had stays with it only if that can still mean something.
        own_address: it is given our address for every client, because its answers to others do not come back.
        device: dsr and tunnel: where its frames leave.
    """

    number: int
    machine: int
    address: IPAddress
    port: int = 0
    share: int = 1
    returning: bool = True
    down: bool = False
    own_address: bool = False
    device: str = ""

    def __post_init__(self) -> None:
        _require_number("server number", self.number, 1, HIGHEST_NUMBER)
        _require_number("machine number", self.machine, 1, HIGHEST_NUMBER)
        _require_address(self.address)
        _require_number("port", self.port, 0, 65535)
        _require_number("share", self.share, 0, HIGHEST_SHARE)
        if self.device:
            _require_interface(self.device)

    @property
    def mark(self) -> int:
        return MEMBER_MARK | self.number

    @property
    def machine_mark(self) -> int:
        return MACHINE_MARK | self.machine


@dataclass(frozen=True, slots=True)
class Persistence:
    """Returning clients, by source address; services with the same `group` share one table in the kernel."""

    group: int
    timeout_s: int
    size: int

    def __post_init__(self) -> None:
        _require_number("group", self.group, 1, HIGHEST_NUMBER)
        _require_number("timeout", self.timeout_s, 1, LONGEST_TIMEOUT_S)
        _require_number("size", self.size, 1, 10_000_000)


@dataclass(frozen=True, slots=True)
class Near:
    """A network of clients that servers would answer directly, past us; they are counted under this number."""

    number: int
    network: IPNetwork

    def __post_init__(self) -> None:
        _require_number("number of a network", self.number, 1, HIGHEST_NUMBER)
        _require_network(self.network)


@dataclass(frozen=True, slots=True)
class ForwardedService:
    """One service that the kernel forwards.

    Attributes:
        snat_address: forward snat: the address that servers see; None: that of the interface.
        near: forward transparent: clients given our address: the answer would not come back.
        devices: dsr and tunnel: where clients' frames come in.
        idle_s: dsr and tunnel: a flow is forgotten after so long without a packet from its client.
        max_flows: dsr and tunnel: flows remembered at once.
    """

    number: int
    protocol: Protocol
    listen: tuple[PortRange, ...]
    forward: Forward
    servers: tuple[Server, ...]
    spread: Spread = Spread.RANDOM
    persist: Persistence | None = None
    allow: tuple[IPNetwork, ...] = ()
    deny: tuple[IPNetwork, ...] = ()
    snat_address: IPAddress | None = None
    near: tuple[Near, ...] = ()
    devices: tuple[str, ...] = ()
    idle_s: int = 3600
    max_flows: int = 262_144

    def __post_init__(self) -> None:
        _require_number("service number", self.number, 1, HIGHEST_NUMBER)
        _require_number("idle time", self.idle_s, 1, LONGEST_TIMEOUT_S)
        _require_number("flows", self.max_flows, 1, 100_000_000)
        for network in (*self.allow, *self.deny):
            _require_network(network)
        for device in self.devices:
            _require_interface(device)
        if self.snat_address is not None:
            _require_address(self.snat_address)
        if self.keeps_address and self.snat_address is not None:
            raise ValueError(
                "dsr and tunnel cannot replace the source address: answers would come back to the balancer and be sent "
                "out again: a loop"
            )
        if self.keeps_address and any(server.port for server in self.servers):
            raise ValueError("dsr and tunnel cannot change the port: the server answers the client itself")

    @property
    def keeps_address(self) -> bool:
        """Whether the server answers the client itself, past us."""
        return self.forward in (Forward.DSR, Forward.TUNNEL)


@dataclass(frozen=True, slots=True)
class Outbound:
    """The servers' own connections to elsewhere leave with `address`; None: that of the interface."""

    servers: tuple[IPAddress, ...]
    near: tuple[IPNetwork, ...]  # networks to which they go with their own
    address: IPAddress | None = None

    def __post_init__(self) -> None:
        for address in (*self.servers, *([self.address] if self.address else [])):
            _require_address(address)
        for network in self.near:
            _require_network(network)


@dataclass(frozen=True, slots=True)
class Guard:
    """An interface on which frames that claim to be from us are dropped and counted: they are going round."""

    device: str
    mac: str

    def __post_init__(self) -> None:
        _require_interface(self.device)
        if not re.match(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z", self.mac):
            raise ValueError(f"{self.mac!r} is not a hardware address")


@dataclass(frozen=True, slots=True)
class Ruleset:
    """Everything that is ours in the kernel's packet path.

    Attributes:
        transparent: layer 7 sessions use clients' addresses, so answers to those are for us.
        probes: addresses from which the gateway probe connects; how answers to them arrive is written down.
    """

    services: tuple[ForwardedService, ...] = ()
    outbound: tuple[Outbound, ...] = ()
    guards: tuple[Guard, ...] = ()
    transparent: bool = False
    probes: tuple[IPAddress, ...] = ()
    tunnel: int = 0  # number of our tunnels that carry frames; 0: none
    tunnel_ends: tuple[IPAddress, ...] = ()  # the far ends of our tunnels that carry IP in IP
    tunnel_peers: tuple[IPNetwork, ...] = ()  # who may send frames into them; nobody has to: they lead one way

    def __post_init__(self) -> None:
        _require_number("tunnel number", self.tunnel, 0, 0xFFFFFF)
        for network in self.tunnel_peers:
            _require_network(network)
        for address in (*self.probes, *self.tunnel_ends):
            _require_address(address)
        for service in self.services:
            missing = set(service.devices) - {guard.device for guard in self.guards}
            if service.keeps_address and missing:
                raise ValueError(f"no guard against loops on {', '.join(sorted(missing))}")


def is_interface_name(text: str) -> bool:
    """Whether this can be the name of an interface here: letters, digits, dot, underscore and dash, at most 15."""
    return _INTERFACE.match(text) is not None


def _require_number(what: str, value: int, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not a {what} ({least} to {most})")


def _require_address(value: IPAddress) -> None:
    # an IPv6Address may carry a zone, which is text
    if type(value) not in (ipaddress.IPv4Address, ipaddress.IPv6Address) or getattr(value, "scope_id", None):
        raise ValueError(f"{value!r} is not an IP address")


def _require_network(value: IPNetwork) -> None:
    if type(value) not in (ipaddress.IPv4Network, ipaddress.IPv6Network):
        raise ValueError(f"{value!r} is not a network")
    _require_address(value.network_address)


def _require_interface(name: str) -> None:
    if type(name) is not str or not is_interface_name(name):
        raise ValueError(f"{name!r} is not the name of an interface")
