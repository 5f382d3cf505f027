"""Which address real servers see: from what the operator wrote under `source` to the model.

Decides: which combinations cannot work, and which classes would make an open relay of a server that grants relay by
address.
Refuses to know: everything else of a service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.problems import Path
from mailbalancer.config.report import Report

#: A class of clients with networks as wide as this, or wider, is not a few printers.
_WIDE = {4: 8, 6: 20}
_REMOVE = "remove it"
_EVERYBODY = frozenset((ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))


def build_source(report: Report, path: Path, service: schema.Balanced, members: Sequence[model.Member]) -> model.Source:
    """Which address the real servers see; `path` is the service's, `members` are of all its pools."""
    written = service.source
    path = (*path, "source")
    in_kernel = isinstance(service, schema.L4Service)
    if in_kernel:
        for key in sorted(written.model_fields_set & {"classes", "per_source_limit", "when_full"}):
            report.problem((*path, key), f"'{key}' is not available in mode l4: the kernel forwards there")
    elif getattr(service, "server_connections", "") == "shared":
        _refuse_shared(report, path, written)
    limit = written.per_source_limit
    return model.Source(
        use=written.use,
        balancer_for=tuple(values.network(text) for text in written.balancer_for),
        probe_failed=_probe_failed(report, path, service),
        probe_addresses=_probe_addresses(report, path, service),
        classes=() if in_kernel else _classes(report, path, service, members),
        per_source_limit=limit.count,
        per_source_percent=limit.percent,
        server_connections=limit.connections,
        when_full=written.when_full,
    )


def _probe_failed(report: Report, path: Path, service: schema.Balanced) -> str:
    """What becomes of a real server that is known not to answer clients."""
    written, path = service.source.probe_failed, (*path, "probe_failed")
    past_us = _forward(service) in ("dsr", "tunnel")
    if written and not past_us and not _answers_through_us(service):
        report.problem(path, f"real servers see an address of ours, so nothing is probed; {_REMOVE}")
    elif past_us and written == "fall_back_to_balancer_address":
        report.problem(path, "with forward: dsr or tunnel there is no such address; write take_out_of_service")
    elif not past_us and written == "keep_in_service":
        report.problem(path, "clients would wait in vain; write take_out_of_service, or leave it out")
    return written or ("keep_in_service" if past_us else "fall_back_to_balancer_address")


def _probe_addresses(report: Report, path: Path, service: schema.Balanced) -> tuple[str, ...]:
    path = (*path, "probe_address")
    found = tuple(values.address(text) for text in service.source.probe_address)
    if found and not _answers_through_us(service):
        report.problem(path, f"is for real servers that see clients' addresses and answer through us; {_REMOVE}")
    if len({":" in address for address in found}) < len(found):
        report.problem(path, "names two addresses of one IP version; one is enough")
    return found


def _forward(service: schema.Balanced) -> str:
    return service.forward if isinstance(service, schema.L4Service) else ""


def _answers_through_us(service: schema.Balanced) -> bool:
    """Whether real servers see clients' addresses, and their answers have to come back through us."""
    return _forward(service) == "transparent" or service.source.use == "client"


def _refuse_shared(report: Report, path: Path, written: schema.Source) -> None:
    reason = (
        "a connection that leaves with one client's address cannot serve another; remove server_connections: shared"
    )
    if written.use == "client":
        report.problem(path, reason)
    if written.classes:
        report.problem((*path, "classes"), reason.replace("one client's address", "the address of one class"))


def _classes(
    report: Report, path: Path, service: schema.Balanced, members: Sequence[model.Member]
) -> tuple[model.SourceClass, ...]:
    """The classes of a service, in their order; `path` is that of `source`."""
    written = service.source
    classes = tuple(
        model.SourceClass(
            one.name,
            tuple(values.network(text) for text in one.clients),
            tuple(dict.fromkeys(values.address(text) for text in one.address)),
        )
        for one in written.classes or ()
    )
    if not classes:
        for key in sorted(written.model_fields_set & {"per_source_limit", "when_full"}):
            report.problem((*path, key), "it is about sessions by source address; it needs classes")
        return ()
    if written.use == "client":
        report.problem(
            (*path, "classes"), "with use: client every client leaves from its own address; keep one of both"
        )
    if written.when_full == "queue" and not getattr(service, "queue", schema.Queue()).size:
        report.problem((*path, "when_full"), "'queue' needs a queue; write queue: {size: 100} in the service")
    _refuse_uncovered(report, (*path, "classes"), classes)
    _refuse_other_family(report, (*path, "classes"), classes, members)
    _warn_of_open_relay(report, (*path, "classes"), classes)
    return classes


def _refuse_uncovered(report: Report, path: Path, classes: Sequence[model.SourceClass]) -> None:
    """Every client has a class, and every class can have clients."""
    names = [one.name for one in classes]
    for at, one in enumerate(classes):
        if one.name in names[:at]:
            report.problem((*path, at), f"two classes are called '{one.name}'")
        everybody = set(one.clients) >= _EVERYBODY
        if everybody and at < len(classes) - 1:
            report.problem(
                (*path, at), f"class '{one.name}' takes every client, so those behind it take none; put it last"
            )
        if not everybody and at == len(classes) - 1:
            reason = "clients that are in no class would leave from any address; end with a class for clients: any"
            report.problem((*path, at), reason)


def _refuse_other_family(
    report: Report, path: Path, classes: Sequence[model.SourceClass], members: Sequence[model.Member]
) -> None:
    """From an IPv4 address no IPv6 server can be reached, and the other way round."""
    for at, one in enumerate(classes):
        ours = {":" in address for address in one.addresses}
        beyond = next((member for member in members if member.endpoint.is_ipv6 not in ours), None)
        if beyond is not None:
            family = "IPv6" if beyond.endpoint.is_ipv6 else "IPv4"
            reason = f"class '{one.name}' has no {family} address, so its clients never reach {beyond.real_server}"
            report.problem((*path, at), reason)


def _warn_of_open_relay(report: Report, path: Path, classes: Sequence[model.SourceClass]) -> None:
    """A connector that relays for one class's address must not be reached from it by everybody."""
    default = classes[-1]
    for at, one in enumerate(classes[:-1]):
        shared = [address for address in one.addresses if address in default.addresses]
        if shared:
            report.warning(
                (*path, at),
                f"classes '{one.name}' and '{default.name}' both leave from {shared[0]}: a server that relays for this "
                "address is an open relay for everybody",
            )
        wide = [net for net in one.clients if net.prefixlen <= _WIDE[net.version] and not net.is_private]
        if wide:
            report.warning(
                (*path, at),
                f"class '{one.name}' has all of {wide[0]}: a server that relays for {one.addresses[0]} relays for all "
                "of these clients",
            )


def warn_of_shared_relay(report: Report, services: Sequence[model.Service]) -> None:
    """An address that is kept for a few clients of one service must not be everybody's in another: the server sees the
    address alone."""
    for service in services:
        for at, one in enumerate(service.source.classes[:-1]):
            for other in services:
                path: Path = ("services", service.name, "source", "classes", at)
                if other is not service and (shared := _everybodys(other).intersection(one.addresses)):
                    machines = _machines(service) & _machines(other)
                    if machines:
                        report.warning(
                            path,
                            f"class '{one.name}' leaves from {min(shared)}, and so does everybody in service "
                            f"{other.name}: {min(machines)}, if it relays for this address, is an open relay",
                        )


def _everybodys(service: model.Service) -> set[str]:
    """The addresses that any client of this service can leave from."""
    return set(service.source.classes[-1].addresses) if service.source.classes else set()


def _machines(service: model.Service) -> set[str]:
    return {member.endpoint.host for pool in service.pools() for member in pool.members}
