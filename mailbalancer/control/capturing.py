"""`mailbalancer capture`: both sides of one client's connections, in one file and in words.

Decides: on which interfaces and for which addresses is looked, which connections to servers are the client's, and that
nothing is captured on other machines.
Refuses to know: how tcpdump is run (`host.tcpdump`), and what the packets mean (`l4.seen`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mailbalancer.control.explaining import members_of
from mailbalancer.control.host_plan import IP_TUNNELS, TUNNEL_DEVICES, tunnel_mac
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.host.tcpdump import HEADERS_BYTES, WHOLE_BYTES, Capture, Captures, capturing
from mailbalancer.l4.pcap import BadCapture, Record, packet, records, written
from mailbalancer.l4.seen import Case, sentences, sort
from mailbalancer.model import Forward, PortRange, Service
from mailbalancer.network import IPAddress, Network

#: Sessions are listed this often while the capture runs: a shorter one is not told from others'.
LIST_S = 0.3
MOST_SESSIONS = 10_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of it: sentences; frames of the client's; where they were looked for."""

    sentences: tuple[str, ...]
    packets: int
    devices: tuple[str, ...]
    seconds: float
    file: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be captured. `file` is empty when only the words are wanted; `whole`: with what the packets carry."""

    client: str
    seconds: float
    file: str = ""
    whole: bool = False


def capture(
    service: Service, wanted: Wanted, sessions: Callable[[], Sequence[dict[str, Any]]], told: Callable[[str], None]
) -> Seen:
    """Look for so long, or until Ctrl-C, and say what was seen.

    Args:
        sessions: the sessions of this service now; empty: none is listed.
        told: called with a line when the capture has begun.

    Raises:
        MailbalancerError: the client is no address, tcpdump is missing or may not capture, the file cannot be written,
            or servers cannot be told from each other.
    """
    client = _address(wanted.client)
    _refuse_ip_tunnels(service)
    network = network_now()
    case, devices = case_of(service, client, network), devices_of(service, client, network)
    file = _writable(wanted.file) if wanted.file else None
    with capturing(devices, expression(case), WHOLE_BYTES if wanted.whole else HEADERS_BYTES) as captures:
        told(f"capturing on {', '.join(devices)} for {wanted.seconds:g} s; Ctrl-C ends it")
        began = time.monotonic()
        case = replace(case, ports=_watch(captures, wanted, sessions, told))
        took_s = time.monotonic() - began
    found = [entry for one in captures.captures for entry in _packets(one)]
    found.sort(key=lambda entry: entry[0].at)
    sorted_ = sort(case, [entry[1] for entry in found])
    kept = [record for record, seen in found if sorted_.belongs(seen)]
    if file is not None:
        file.write_bytes(written(kept))
    dropped = sum(one.dropped for one in captures.captures)
    words = sentences(sorted_, took_s)
    if dropped:
        words.append(
            f"{dropped} packets came too fast and were not captured: what is said of their absence may be wrong"
        )
    return Seen(tuple(words), len(kept), tuple(devices), round(took_s, 1), wanted.file)


def _refuse_ip_tunnels(service: Service) -> None:
    """What passes there has no hardware addresses, by which real servers are told from each other."""
    if service.l4 is None or service.l4.forward is not Forward.TUNNEL:
        return
    encapsulation = service.l4.tunnel.encapsulation
    if encapsulation in IP_TUNNELS:
        raise MailbalancerError(
            f"service {service.name}: what goes into a tunnel of {encapsulation} cannot be told by server",
            "look with `tcpdump -i` at the device that `mailbalancer host show` names",
        )


def case_of(service: Service, client: IPAddress, network: Network) -> Case:
    """Whose packets are the client's."""
    members = members_of(service)
    tunnel = service.l4 is not None and service.l4.forward is Forward.TUNNEL
    past_us = service.l4 is not None and service.l4.forward in (Forward.DSR, Forward.TUNNEL)
    machines = {}
    for member in members:
        neighbour = network.neighbour(ipaddress.ip_address(member.endpoint.host))
        if tunnel:
            machines[tunnel_mac(member.endpoint.host)] = member.real_server
        elif neighbour is not None:
            machines[neighbour.mac] = member.real_server
    doors = service.l4.listen if service.l4 else tuple(PortRange(d.host, d.port, d.port) for d in service.listen)
    return Case(
        service.name,
        str(client),
        doors,
        {member.endpoint: member.real_server for member in members},
        machines,
        frozenset(str(own.ip) for _, own in network.addresses()),
        frozenset(interface.mac for interface in network.interfaces if interface.mac),
        past_us,
    )


def devices_of(service: Service, client: IPAddress, network: Network) -> list[str]:
    """The interfaces that the client's packets can pass."""
    doors = {door.host for door in service.doors}
    devices = [interface.name for interface, own in network.addresses() if str(own.ip) in doors]
    for address in (client, *(ipaddress.ip_address(member.endpoint.host) for member in members_of(service))):
        if address.is_loopback or network.is_ours(address):
            devices.append("lo")
        elif (route := network.route_to(address)) is not None:
            devices.append(route.device)
    if service.l4 is not None and service.l4.forward is Forward.TUNNEL:
        devices += [name for name in TUNNEL_DEVICES.values() if network.interface(name) is not None]
    if not devices:
        raise MailbalancerError(f"this machine has no route to {client}, nor to a real server of {service.name}")
    return list(dict.fromkeys(devices))


def expression(case: Case) -> str:
    """What tcpdump is to look for: addresses and ports, nothing else."""
    servers = [f"(host {endpoint.host} and port {endpoint.port})" for endpoint in case.servers]
    return " or ".join([f"host {case.client}", *servers, "icmp", "icmp6"])


def _watch(
    captures: Captures,
    wanted: Wanted,
    sessions: Callable[[], Sequence[dict[str, Any]]],
    told: Callable[[str], None],
) -> frozenset[int]:
    """Wait, and learn meanwhile from which ports of ours the client's sessions go on."""
    client, ports = str(_address(wanted.client)), set[int]()

    def list_sessions() -> None:
        for one in sessions():
            address, _, _ = str(one["client"]).rpartition(":")
            _, _, port = str(one.get("left_from", "")).rpartition(":")
            if address.strip("[]") == client and port and int(port) not in ports:
                ports.add(int(port))
                told(f"a session of {client} goes on to {one['server']} from port {port}")

    with contextlib.suppress(KeyboardInterrupt):  # enough was seen
        captures.run(wanted.seconds, list_sessions, LIST_S)
    return frozenset(ports)


def _packets(found: Capture) -> Iterator[tuple[Record, Any]]:
    try:
        for record in records(bytes(found.data)):
            seen = packet(record)
            if seen is not None:
                yield record, seen
    except BadCapture as error:
        raise MailbalancerError(f"what tcpdump captured on {found.device} cannot be read: {error}") from error


def _address(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise MailbalancerError(f"{text!r} is not an IP address", "name the client by its address") from None


def _writable(name: str) -> Path:
    """Before anything is captured: a capture that cannot be kept is annoying."""
    path = Path(name)
    try:
        path.write_bytes(written(()))
        path.chmod(0o600)  # it may hold what users send
    except OSError as error:
        raise MailbalancerError(f"{name} cannot be written: {error.strerror}", "name another file") from error
    return path
