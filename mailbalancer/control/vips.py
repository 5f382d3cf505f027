"""Addresses of services that we have added: everybody on the segment is told that they are here.

Decides: that nobody else has them already, how often it is said (a frame can be lost), and on which interface.
Refuses to know: which addresses are wanted (`host_plan`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mailbalancer.control.events import Events
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.arp import announce
from mailbalancer.host.commands import HostError
from mailbalancer.host.segment import claimed
from mailbalancer.host.steps import Address, Step
from mailbalancer.model import Config, Forward
from mailbalancer.network import Network

#: After an address is added it is announced at once and again after these seconds.
AGAIN_S = (1.0, 3.0, 10.0)
#: How long others on the segment may take to say that they have an address.
ASK_S = 0.3


@dataclass(slots=True)
class _Announcement:
    address: str
    device: str
    mac: str
    due_at: list[float]


class Vips:
    """Announces addresses."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._waiting: list[_Announcement] = []

    def refuse_taken(self, network: Network, steps: Iterable[Step], config: Config) -> None:
        """Two machines with one address harm everybody on the segment, so the segment is asked before one is added.

        Real servers of a service with forward: dsr have its address by design. One that says so in public is found by
        the watch, and is no reason to stay away.

        Raises:
            MailbalancerError: another machine answers for an address; with its hardware address.
        """
        shared = {
            port.address
            for service in config.services
            if service.l4 is not None and service.l4.forward is Forward.DSR
            for port in service.l4.listen
        }
        for device, addresses in _by_device(steps).items():
            interface = network.interface(device)
            asked = [address for address in addresses if address not in shared]
            if interface is None or not interface.mac or not interface.up or not asked:
                continue
            for address, mac in claimed(device, interface.mac, asked, ASK_S).items():
                raise MailbalancerError(
                    f"{address} is in use: {mac} on {device} answers for it",
                    "stop the machine that has it, or correct `listen`",
                )

    def added(self, network: Network, steps: Iterable[Step], now: float) -> None:
        """These steps were taken just now; those that are addresses are announced."""
        for step in steps:
            if not isinstance(step, Address):
                continue
            interface = network.interface(step.device)
            if interface is None or not interface.mac:
                continue
            address = str(ipaddress.ip_interface(step.address).ip)
            self._events.info(f"{address} is on {step.device} now")
            due_at = [now, *(now + pause for pause in AGAIN_S)]
            self._waiting.append(_Announcement(address, step.device, interface.mac, due_at))
        self.tick(now)

    def tick(self, now: float) -> None:
        """Say what is due."""
        for entry in self._waiting:
            while entry.due_at and entry.due_at[0] <= now:
                entry.due_at.pop(0)
                self._say(entry)
        self._waiting = [entry for entry in self._waiting if entry.due_at]

    def _say(self, entry: _Announcement) -> None:
        try:
            announce(entry.address, entry.device, entry.mac)
        except HostError as error:
            entry.due_at.clear()
            self._events.warning(str(error))


def _by_device(steps: Iterable[Step]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for step in steps:
        if isinstance(step, Address):
            found.setdefault(step.device, []).append(str(ipaddress.ip_interface(step.address).ip))
    return found
