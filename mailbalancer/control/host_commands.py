"""`mailbalancer host plan | show | clean`: what would be changed on this machine, what is, and everything as it was.

Decides: that `clean` works without the program, and refuses while it runs.
Refuses to know: how it is printed.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mailbalancer.control.host_plan import absent_addresses, needs_host, plan
from mailbalancer.control.l4_engine import ledger_path
from mailbalancer.control.l4_rules import examined_script
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.commands import RealCommands
from mailbalancer.host.ledger import Ledger
from mailbalancer.host.network import read_network
from mailbalancer.host.nft import Nft
from mailbalancer.host.steps import lacks_device_type, sysctl_now
from mailbalancer.model import Config


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Changes in words, in the order in which they are made; the nftables script; what to know of them."""

    steps: tuple[str, ...]
    rules: str
    warnings: tuple[str, ...] = ()


def planned(config: Config) -> HostFacts:
    """What this configuration would change, looked at from now; nothing is changed.

    Raises:
        MailbalancerError: it cannot work on this machine.
    """
    if not needs_host(config) and not absent_addresses(config):
        return HostFacts((), "")
    commands = RealCommands()
    network = read_network(commands)
    made = Ledger(ledger_path(config), commands).steps
    found = plan(config, network, sysctl_now, made, partial(lacks_device_type, commands))
    return HostFacts(tuple(map(str, found.steps)), examined_script(config, network), tuple(found.warnings))


def shown(config: Config) -> HostFacts:
    """What is changed now."""
    commands = RealCommands()
    nft = Nft(commands)
    rules = "".join(commands.run(["nft", "list", "table", family, "mailbalancer"]) for family in nft.tables())
    return HostFacts(tuple(map(str, Ledger(ledger_path(config), commands).steps)), rules)


def clean(config: Config) -> list[str]:
    """Undo everything that a program which is gone has left; returns what was undone, in words.

    Raises:
        MailbalancerError: it still runs, or something cannot be undone.
    """
    if _runs(Path(config.control_socket)):
        raise MailbalancerError(
            f"mailbalancer runs (it answers on {config.control_socket}) and needs what it has changed",
            "stop it first; it then undoes everything itself",
        )
    commands = RealCommands()
    undone = [f"nftables table {family} mailbalancer" for family in Nft(commands).remove()]
    return undone + [str(step) for step in Ledger(ledger_path(config), commands).undo_all()]


def _runs(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.settimeout(2.0)
        try:
            door.connect(str(path))
        except OSError:
            return False
    return True
