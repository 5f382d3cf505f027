"""Single changes to the machine outside of nftables: a sysctl, an address, a rule, a route, a tunnel device.

Decides: how each is made and unmade, that making it twice or unmaking it twice does no harm, and what it is called in
`host plan`. What was there before us is never taken away.
Refuses to know: why (the planner) and what has been made so far (`ledger`).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from mailbalancer.host.commands import Commands, HostError

_KEY = re.compile(r"net(?:\.[A-Za-z0-9_@:-]+(?:/[A-Za-z0-9_@:-]+)*){2,5}\Z")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z")
#: An address, with or without a prefix length: no zone, no space.
_WORD = re.compile(r"[0-9a-fA-F.:]+(?:/[0-9]{1,3})?\Z")
_VALUE = re.compile(r"[0-9]{1,10}\Z")
PROC_SYS = Path("/proc/sys")


class _Change:
    """What every step has in common: a step that is told to somebody else's place would not be ours to undo."""

    __slots__ = ()

    @property
    def place(self) -> str:
        """What of the machine is changed. Two steps of one place cannot be in force together."""
        return str(self)

    @property
    def inside(self) -> str:
        """The place of the step that this one goes away with; empty: none."""
        return ""


class _ByIp(_Change):
    """Made by one `ip` command and unmade by its counterpart."""

    __slots__ = ()
    makes: ClassVar[str] = "replace"

    def words(self, verb: str) -> str:
        """The command. No word of it can have a space: each was checked, or is a number."""
        raise NotImplementedError

    def do(self, commands: Commands) -> None:
        if self.makes == "add":  # it would be made twice
            self.undo(commands)
        commands.run(self.words(self.makes).split())

    def undo(self, commands: Commands) -> None:
        """What is not there any more need not be removed: the interface may be gone, and everything on it."""
        _unless_gone(commands, self.words("del").split())


@dataclass(frozen=True, slots=True)
class Sysctl(_Change):
    """A kernel setting, written with a dot between its parts; dots inside an interface's name are slashes there."""

    kind: ClassVar[str] = "sysctl"
    key: str
    value: str
    before: str

    def __post_init__(self) -> None:
        _require(_KEY, self.key)
        _require(_VALUE, self.value)
        _require(_VALUE, self.before)

    @property
    def path(self) -> Path:
        return PROC_SYS.joinpath(*(part.replace("/", ".") for part in self.key.split(".")))

    def do(self, commands: Commands) -> None:
        _write(self.path, self.value)

    def undo(self, commands: Commands) -> None:
        """Only what still has our value: somebody may have decided otherwise since."""
        if self.path.exists() and self.path.read_text().strip() == self.value:
            _write(self.path, self.before)

    def __str__(self) -> str:
        return f"sysctl {self.key} = {self.value} (was {self.before})"


@dataclass(frozen=True, slots=True)
class Forwarding6(_Change):
    """IPv6 forwarding. The kernel has one switch for all interfaces; each one's own value is kept for the way back."""

    kind: ClassVar[str] = "ipv6 forwarding"
    before: str  # `eth0=0 eth1=1 …`

    def __post_init__(self) -> None:
        for device, value in self._values():
            _require(_DEVICE, device)
            _require(_VALUE, value)

    @classmethod
    def as_now(cls) -> Forwarding6:
        """With the values of this moment."""
        folder = PROC_SYS / "net/ipv6/conf"
        values = {path.name: (path / "forwarding").read_text().strip() for path in folder.iterdir()}
        return cls(" ".join(f"{name}={value}" for name, value in sorted(values.items()) if name != "all"))

    def do(self, commands: Commands) -> None:
        _write(_forwarding6("all"), "1")

    def undo(self, commands: Commands) -> None:
        if _forwarding6("all").read_text().strip() == "1":
            _write(_forwarding6("all"), "0")
            for device, value in self._values():
                path = _forwarding6(device)
                if path.exists() and path.read_text().strip() != value:
                    _write(path, value)

    def _values(self) -> list[tuple[str, str]]:
        pairs = [pair.partition("=") for pair in self.before.split()]
        return [(device, value) for device, _, value in pairs]

    def __str__(self) -> str:
        return "sysctl net.ipv6.conf.all.forwarding = 1 (was 0; every interface forwards)"


@dataclass(frozen=True, slots=True)
class Address(_ByIp):
    """An address of a service on an interface."""

    kind: ClassVar[str] = "address"
    address: str  # with its prefix length
    device: str

    def __post_init__(self) -> None:
        ipaddress.ip_interface(self.address)
        _require(_WORD, self.address)
        _require(_DEVICE, self.device)

    def words(self, verb: str) -> str:
        # the machine's own connections must not leave from it: a real server that has it on `lo` would answer itself
        extra = " nodad preferred_lft 0" if ":" in self.address and verb != "del" else ""
        return f"ip address {verb} {self.address} dev {self.device}{extra}"

    def __str__(self) -> str:
        return f"address {self.address} on {self.device}"


@dataclass(frozen=True, slots=True)
class Rule(_ByIp):
    """A policy rule: packets with a mark are looked up in a table of ours."""

    kind: ClassVar[str] = "rule"
    makes: ClassVar[str] = "add"
    version: int
    priority: int
    mark: int
    table: int

    def __post_init__(self) -> None:
        _require_numbers(self.version, self.priority, self.mark, self.table)

    def words(self, verb: str) -> str:
        return f"ip -{self.version:d} rule {verb} pref {self.priority:d} fwmark {self.mark:#x} lookup {self.table:d}"

    def __str__(self) -> str:
        return (
            f"rule IPv{self.version}: packets marked {self.mark:#x} use table {self.table} (priority {self.priority})"
        )


@dataclass(frozen=True, slots=True)
class LocalRoute(_ByIp):
    """In a table of ours: every address is this machine's."""

    kind: ClassVar[str] = "local route"
    version: int
    table: int

    def __post_init__(self) -> None:
        _require_numbers(self.version, self.table)

    def words(self, verb: str) -> str:
        network = "0.0.0.0/0" if self.version == 4 else "::/0"
        return f"ip -{self.version:d} route {verb} local {network} dev lo table {self.table:d}"

    def __str__(self) -> str:
        return f"route IPv{self.version} in table {self.table}: every address is local"


@dataclass(frozen=True, slots=True)
class Vxlan(_ByIp):
    """The device through which frames go to real servers in other networks (RFC 7348)."""

    kind: ClassVar[str] = "vxlan"
    makes: ClassVar[str] = "add"
    device: str
    number: int
    port: int
    local: str
    mtu: int

    def __post_init__(self) -> None:
        _require(_DEVICE, self.device)
        _require(_WORD, self.local)
        _require_numbers(self.number, self.port, self.mtu)
        ipaddress.ip_address(self.local)

    @property
    def place(self) -> str:
        return self.device

    @property
    def mss(self) -> int:
        """The largest TCP segment that goes through in one packet: without the inner headers of IP and TCP."""
        return self.mtu - (60 if ":" in self.local else 40)

    def words(self, verb: str) -> str:
        if verb == "del":
            return f"ip link del {self.device}"
        identity = f"id {self.number:d} dstport {self.port:d} local {self.local} nolearning"
        return f"ip link {verb} {self.device} mtu {self.mtu:d} type vxlan {identity}"

    def do(self, commands: Commands) -> None:
        _ByIp.do(self, commands)
        commands.run(["ip", "link", "set", self.device, "up"])

    def __str__(self) -> str:
        room = f"MTU {self.mtu} (advmss {self.mss})"
        return f"device {self.device}: vxlan {self.number} from {self.local}, UDP port {self.port}, {room}"


@dataclass(frozen=True, slots=True)
class IpTunnel(_ByIp):
    """The device through which packets go to one real server in another network, IP in IP (RFC 2003, RFC 2473)."""

    kind: ClassVar[str] = "ip tunnel"
    makes: ClassVar[str] = "add"
    device: str
    local: str
    remote: str
    mtu: int

    def __post_init__(self) -> None:
        _require(_DEVICE, self.device)
        for address in (self.local, self.remote):
            _require(_WORD, address)
            ipaddress.ip_address(address)
        _require_numbers(self.mtu)

    @property
    def place(self) -> str:
        return self.device

    @property
    def mss(self) -> int:
        """See `Vxlan.mss`."""
        return self.mtu - (60 if ":" in self.local else 40)

    def words(self, verb: str) -> str:
        if verb == "del":
            return f"ip link del {self.device}"
        # without a limit of nested tunnels, which would cost 8 bytes more
        how = "ip6tnl mode ip6ip6 encaplimit none" if ":" in self.local else "ipip ttl 64"
        return f"ip link {verb} {self.device} mtu {self.mtu:d} type {how} local {self.local} remote {self.remote}"

    def do(self, commands: Commands) -> None:
        _ByIp.do(self, commands)
        commands.run(["ip", "link", "set", self.device, "up"])

    def __str__(self) -> str:
        name = "ip6ip6" if ":" in self.local else "ipip"
        return f"device {self.device}: {name} from {self.local} to {self.remote}, MTU {self.mtu} (advmss {self.mss})"


@dataclass(frozen=True, slots=True)
class TunnelEnd(_ByIp):
    """A real server at the far end of the vxlan device: its frames, and where they go."""

    kind: ClassVar[str] = "tunnel end"
    device: str
    address: str
    mac: str

    def __post_init__(self) -> None:
        _require(_DEVICE, self.device)
        _require(_WORD, self.address)
        ipaddress.ip_address(self.address)
        _require(_MAC, self.mac)

    @property
    def inside(self) -> str:
        return self.device

    def words(self, verb: str) -> str:
        settings = "" if verb == "del" else f" lladdr {self.mac} nud permanent"
        return f"ip neighbour {verb} {self.address} dev {self.device}{settings}"

    def do(self, commands: Commands) -> None:
        commands.run([*self._forwarding_entry("replace"), "permanent"])
        _ByIp.do(self, commands)

    def undo(self, commands: Commands) -> None:
        _ByIp.undo(self, commands)
        _unless_gone(commands, self._forwarding_entry("del"))

    def _forwarding_entry(self, verb: str) -> list[str]:
        return f"bridge fdb {verb} {self.mac} dev {self.device} dst {self.address} self".split()

    def __str__(self) -> str:
        return f"tunnel to {self.address} through {self.device}, hardware address {self.mac} there"


Step = Sysctl | Forwarding6 | Address | Rule | LocalRoute | Vxlan | IpTunnel | TunnelEnd
_KINDS: dict[str, type[Step]] = {
    kind.kind: kind for kind in (Sysctl, Forwarding6, Address, Rule, LocalRoute, Vxlan, IpTunnel, TunnelEnd)
}


def as_facts(step: Step) -> dict[str, Any]:
    """For the ledger's file."""
    return {"kind": step.kind, **asdict(step)}


def from_facts(facts: dict[str, Any]) -> Step:
    """From the ledger's file; checked like everything that comes from a file.

    Raises:
        ValueError, TypeError, KeyError: it is no step of ours.
    """
    fields = {key: value for key, value in facts.items() if key != "kind"}
    return _KINDS[facts["kind"]](**fields)


def sysctl_now(key: str) -> str:
    """The value of a kernel setting; empty when this kernel has none of that name."""
    path = Sysctl(key, "0", "0").path
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def lacks_device_type(commands: Commands, kind: str) -> bool:
    """Whether this kernel has no devices of a type (of `ip link`). Without CAP_NET_ADMIN it does not say: then False.

    It is asked for one with an impossible MTU: the type is looked up first (and its module loaded), and none is made.
    """
    try:
        commands.run(["ip", "link", "add", "mbtry", "mtu", "-1", "type", kind])
    except HostError as error:
        return any(words in error.message for words in ("Unknown device type", "Operation not supported"))
    _unless_gone(commands, ["ip", "link", "del", "mbtry"])
    return False


def _forwarding6(device: str) -> Path:
    return PROC_SYS / "net/ipv6/conf" / device / "forwarding"


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        raise HostError(
            f"{path} cannot be set to {value}: {error.strerror}",
            "CAP_NET_ADMIN is needed, and a writable /proc/sys/net",
        ) from error


def _unless_gone(commands: Commands, arguments: list[str]) -> None:
    """Run a command that removes something, which may be gone already."""
    try:
        commands.run(arguments)
    except HostError as error:
        gone = ("No such", "Cannot find", "Cannot assign", "does not exist", "not found")
        if not any(words in error.message for words in gone):
            raise


def _require(pattern: re.Pattern[str], text: str) -> None:
    if not isinstance(text, str) or not pattern.match(text):
        raise ValueError(f"{text!r} cannot be part of a change to this machine")


def _require_numbers(*values: int) -> None:
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} cannot be part of a change to this machine")
