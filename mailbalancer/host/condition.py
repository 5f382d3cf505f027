"""How this machine is: settings of the kernel, limits, clock, programs and firewalls that decide whether mail flows.

Decides: where each fact is read, and that one which cannot be read is None and not a guess.
Refuses to know: which of them are bad (`control.doctor`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailbalancer.host.commands import Commands, HostError
from mailbalancer.host.nft import TABLE

_PROC = Path("/proc")
_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNSYNCHRONISED = 0x40  # STA_UNSYNC, adjtimex(2)
_libc = ctypes.CDLL(None, use_errno=True)


class _Timex(ctypes.Structure):
    """The beginning of `struct timex`, and room for its rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


@dataclass(frozen=True, slots=True)
class Clock:
    """Whether a time service keeps the clock, and how wrong it may be at most."""

    synchronised: bool
    most_wrong_s: float


@dataclass(frozen=True, slots=True)
class Process:
    """Of the balancer: how many files it may open, and its capabilities as a number (capabilities(7))."""

    files: int
    capabilities: int


@dataclass(frozen=True, slots=True)
class Condition:
    """The machine now; None: it is not told.

    Attributes:
        settings: values under /proc/sys, by name with dots (a dot in an interface's name is a slash).
        programs: which of the programs that are needed are there.
        processes: by process id.
        dropping: chains of others that drop forwarded packets which no rule accepts.
        tables: families of our own nftables tables; None: only root is told.
    """

    settings: Mapping[str, int] = field(default_factory=dict)
    port_range: tuple[int, int] | None = None
    clock: Clock | None = None
    programs: frozenset[str] = frozenset()
    processes: Mapping[int, Process] = field(default_factory=dict)
    dropping: tuple[str, ...] = ()
    tables: frozenset[str] | None = None


def examine(commands: Commands, devices: Iterable[str], pids: Iterable[int]) -> Condition:
    """Look at everything; nothing is changed."""
    dropping, tables = _firewalls(commands)
    return Condition(
        settings=_settings(devices),
        port_range=_port_range(),
        clock=_clock(),
        programs=frozenset(name for name in ("nft", "ip", "tcpdump") if shutil.which(name, path=_FOLDERS)),
        processes={pid: found for pid in pids if (found := _process(pid)) is not None},
        dropping=dropping,
        tables=tables,
    )


def _settings(devices: Iterable[str]) -> dict[str, int]:
    names = ["net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max", "net.core.somaxconn"]
    names += ["net.ipv4.conf.all.rp_filter", "net.ipv6.conf.all.forwarding"]
    for device in devices:
        key = device.replace(".", "/")
        names += [f"net.ipv4.conf.{key}.rp_filter", f"net.ipv4.conf.{key}.forwarding"]
    found = {name: _number(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _number(name: str) -> int | None:
    path = _PROC.joinpath("sys", *(part.replace("/", ".") for part in name.split(".")))
    with contextlib.suppress(OSError):
        text = path.read_text().strip()
        return int(text) if text.isascii() and text.isdigit() else None
    return None


def _port_range() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        first, last = (_PROC / "sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(first), int(last)
    return None


def _clock() -> Clock | None:
    """As the kernel knows it: a time service tells it how good the time is."""
    timex = _Timex()
    if _libc.adjtimex(ctypes.byref(timex)) < 0:
        return None
    return Clock(not timex.status & _UNSYNCHRONISED, timex.maxerror / 1e6)


def _process(pid: int) -> Process | None:
    with contextlib.suppress(OSError):
        limits, status = ((_PROC / str(pid) / name).read_text() for name in ("limits", "status"))
        files = re.search(r"^Max open files +([0-9]+)", limits, re.M)
        capabilities = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.M)
        if files and capabilities:
            return Process(int(files.group(1)), int(capabilities.group(1), 16))
    return None


def _firewalls(commands: Commands) -> tuple[tuple[str, ...], frozenset[str] | None]:
    try:
        listed = json.loads(commands.run(["nft", "-j", "list", "chains"]) or '{"nftables": []}')["nftables"]
        tables = json.loads(commands.run(["nft", "-j", "list", "tables"]) or '{"nftables": []}')["nftables"]
    except (HostError, ValueError, KeyError):
        return (), None
    chains = [entry["chain"] for entry in listed if "chain" in entry]
    ours = frozenset(entry["table"]["family"] for entry in tables if entry.get("table", {}).get("name") == TABLE)
    return tuple(_named(chain) for chain in chains if _drops(chain)), ours


def _drops(chain: Mapping[str, Any]) -> bool:
    return chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["table"] != TABLE


def _named(chain: Mapping[str, Any]) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"
