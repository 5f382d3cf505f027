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
_VALUE = re.compile(r"[0-9]{1,10}\Z")
PROC_SYS = Path("/proc/sys")


@dataclass(frozen=True, slots=True)
class Sysctl:
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
class Forwarding6:
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
class Address:
    """An address of a service on an interface."""

    kind: ClassVar[str] = "address"
    address: str  # with its prefix length
    device: str

    def __post_init__(self) -> None:
        ipaddress.ip_interface(self.address)
        _require(_DEVICE, self.device)

    def do(self, commands: Commands) -> None:
        # the machine's own connections must not leave from it: a real server that has it on `lo` would answer itself
        extra = ["nodad", "preferred_lft", "0"] if ":" in self.address else []
        commands.run(["ip", "address", "replace", self.address, "dev", self.device, *extra])

    def undo(self, commands: Commands) -> None:
        _unless_gone(commands, ["ip", "address", "del", self.address, "dev", self.device])

    def __str__(self) -> str:
        return f"address {self.address} on {self.device}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule: packets with a mark are looked up in a table of ours."""

    kind: ClassVar[str] = "rule"
    version: int
    priority: int
    mark: int
    table: int

    def do(self, commands: Commands) -> None:
        self.undo(commands)  # `ip rule add` would make it twice
        commands.run(self._words("add"))

    def undo(self, commands: Commands) -> None:
        _unless_gone(commands, self._words("del"))

    def _words(self, verb: str) -> list[str]:
        numbers = ["pref", str(int(self.priority)), "fwmark", hex(self.mark), "lookup", str(int(self.table))]
        return ["ip", f"-{int(self.version)}", "rule", verb, *numbers]

    def __str__(self) -> str:
        return (
            f"rule IPv{self.version}: packets marked {self.mark:#x} use table {self.table} (priority {self.priority})"
        )


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """In a table of ours: every address is this machine's."""

    kind: ClassVar[str] = "local route"
    version: int
    table: int

    def do(self, commands: Commands) -> None:
        commands.run(self._words("replace"))

    def undo(self, commands: Commands) -> None:
        _unless_gone(commands, self._words("del"))

    def _words(self, verb: str) -> list[str]:
        network = "0.0.0.0/0" if self.version == 4 else "::/0"
        return [
            "ip",
            f"-{int(self.version)}",
            "route",
            verb,
            "local",
            network,
            "dev",
            "lo",
            "table",
            str(int(self.table)),
        ]

    def __str__(self) -> str:
        return f"route IPv{self.version} in table {self.table}: every address is local"


@dataclass(frozen=True, slots=True)
class Vxlan:
    """The device through which frames go to real servers in other networks (RFC 7348)."""

    kind: ClassVar[str] = "vxlan"
    device: str
    number: int
    port: int
    local: str
    mtu: int

    def __post_init__(self) -> None:
        _require(_DEVICE, self.device)
        ipaddress.ip_address(self.local)

    def do(self, commands: Commands) -> None:
        self.undo(commands)
        numbers = ["id", str(int(self.number)), "dstport", str(int(self.port)), "local", self.local, "nolearning"]
        commands.run(["ip", "link", "add", self.device, "mtu", str(int(self.mtu)), "type", "vxlan", *numbers])
        commands.run(["ip", "link", "set", self.device, "up"])

    def undo(self, commands: Commands) -> None:
        _unless_gone(commands, ["ip", "link", "del", self.device])

    def __str__(self) -> str:
        return f"device {self.device}: vxlan {self.number} from {self.local}, UDP port {self.port}, MTU {self.mtu}"


@dataclass(frozen=True, slots=True)
class TunnelEnd:
    """A real server at the far end of the vxlan device: its frames, and where they go."""

    kind: ClassVar[str] = "tunnel end"
    device: str
    address: str
    mac: str

    def __post_init__(self) -> None:
        _require(_DEVICE, self.device)
        ipaddress.ip_address(self.address)
        _require(_MAC, self.mac)

    def do(self, commands: Commands) -> None:
        commands.run(
            ["bridge", "fdb", "replace", self.mac, "dev", self.device, "dst", self.address, "self", "permanent"]
        )
        words = ["lladdr", self.mac, "dev", self.device, "nud", "permanent"]
        commands.run(["ip", "neighbour", "replace", self.address, *words])

    def undo(self, commands: Commands) -> None:
        _unless_gone(commands, ["ip", "neighbour", "del", self.address, "dev", self.device])
        _unless_gone(commands, ["bridge", "fdb", "del", self.mac, "dev", self.device, "dst", self.address, "self"])

    def __str__(self) -> str:
        return f"tunnel to {self.address} through {self.device}, hardware address {self.mac} there"


Step = Sysctl | Forwarding6 | Address | Rule | LocalRoute | Vxlan | TunnelEnd
_KINDS: dict[str, type[Step]] = {
    kind.kind: kind for kind in (Sysctl, Forwarding6, Address, Rule, LocalRoute, Vxlan, TunnelEnd)
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
    """What is not there any more need not be removed: the interface may be gone, and everything on it."""
    try:
        commands.run(arguments)
    except HostError as error:
        gone = ("No such", "Cannot find", "Cannot assign", "does not exist", "not found")
        if not any(words in error.message for words in gone):
            raise


def _require(pattern: re.Pattern[str], text: str) -> None:
    if not isinstance(text, str) or not pattern.match(text):
        raise ValueError(f"{text!r} cannot be part of a change to this machine")
