"""Reads the machine's interfaces, routes and neighbours.

Decides: what of `ip -json` counts: the main table, and neighbours that have been seen.
Refuses to know: what the facts are for.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import socket
from collections.abc import Iterator
from typing import Any

from mailbalancer.host.commands import Commands
from mailbalancer.network import Interface, IPInterface, Neighbour, Network, Route

_DEFAULT = {4: ipaddress.ip_network("0.0.0.0/0"), 6: ipaddress.ip_network("::/0")}


def read_network(commands: Commands) -> Network:
    """The network as it is now.

    Raises:
        HostError: `ip` is missing or refuses.
    """
    interfaces = tuple(_interface(entry) for entry in _listed(commands, "address", "show"))
    routes = tuple(_routes(commands, 4)) + tuple(_routes(commands, 6))
    neighbours = tuple(
        Neighbour(ipaddress.ip_address(n["dst"]), n["dev"], n.get("lladdr", ""), " ".join(n.get("state", ())).lower())
        for n in _listed(commands, "neighbour", "show")
    )
    return Network(interfaces, routes, neighbours)


def can_listen_on(address: str) -> bool:
    """Whether the kernel lets a program have this address: it is here, or every address is let (`ip_nonlocal_bind`)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


def _listed(commands: Commands, *arguments: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = json.loads(commands.run(["ip", "-json", *arguments]) or "[]")
    return [entry for entry in answer if entry]


def _interface(entry: dict[str, Any]) -> Interface:
    mac = entry.get("address", "") if entry.get("link_type") == "ether" else ""
    return Interface(
        entry["ifname"],
        entry["ifindex"],
        mac,
        entry.get("mtu", 0),
        "UP" in entry.get("flags", ()),
        tuple(_addresses(entry)),
    )


def _addresses(entry: dict[str, Any]) -> Iterator[IPInterface]:
    for info in entry.get("addr_info", ()):
        if "local" in info:
            yield ipaddress.ip_interface(f"{info['local']}/{info['prefixlen']}")


def _routes(commands: Commands, version: int) -> Iterator[Route]:
    for entry in _listed(commands, f"-{version}", "route", "show"):
        if entry.get("type", "unicast") != "unicast" or "dev" not in entry:
            continue
        network = _DEFAULT[version] if entry["dst"] == "default" else ipaddress.ip_network(entry["dst"])
        via = ipaddress.ip_address(entry["gateway"]) if "gateway" in entry else None
        yield Route(network, entry["dev"], via, entry.get("metric", 0))
