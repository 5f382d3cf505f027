"""Addresses of services that we have added: everybody on the segment is told that they are here.

Decides: how often it is said (a frame can be lost), and on which interface.
Refuses to know: which addresses are wanted (`host_plan`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mailbalancer.control.events import Events
from mailbalancer.host.arp import announce
from mailbalancer.host.commands import HostError
from mailbalancer.host.steps import Address, Step
from mailbalancer.network import Network

#: After an address is added it is announced at once and again after these seconds.
AGAIN_S = (1.0, 3.0, 10.0)


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
