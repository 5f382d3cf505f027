"""The whole configuration: from a checked document to `model.Config`.

Decides: what settings mean to each other: listeners that collide, loops, groups that do not agree, files that cannot be
read, machines that nobody uses.
Refuses to know: YAML and profiles; they are gone by now.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.build_alarms import build_alarms
from mailbalancer.config.build_check import unreadable
from mailbalancer.config.build_l4 import overlap
from mailbalancer.config.build_maintenance import build_windows
from mailbalancer.config.build_service import Available, Known, build_l4_service, build_service, unavailable
from mailbalancer.config.build_source import warn_of_shared_relay
from mailbalancer.config.problems import Path, formatted, hint
from mailbalancer.config.report import Report
from mailbalancer.config.validate import Checked
from mailbalancer.tls.material import CertificateError, read_material

MAX_WORKERS = 64
SOCKET_PATH_BYTES = 107


def build(report: Report, checked: Checked, profiles: Mapping[str, str]) -> model.Config:
    """The configuration; it may be used only when the report has no problem.

    Args:
        profiles: the profile that each service came from.
    """
    document = checked.document
    machines = _real_servers(document)
    known = Known(machines, frozenset(checked.dropped), frozenset(document.certificates))
    services = tuple(
        _service(report, name, written, profiles.get(name, ""), known)
        for name, written in document.services.items()
        if isinstance(written, Available | schema.L4Service) and not unavailable(written.mode)
    )
    _refuse_unavailable_modes(report, document)
    _refuse_long_socket(report, document)
    _refuse_nothing_to_do(report, checked)
    admin = _admin(report, document.admin, document.certificates)
    _refuse_shared_listeners(report, services, admin)
    _refuse_shared_forwarding(report, services)
    _refuse_loops(report, services)
    warn_of_shared_relay(report, services)
    _refuse_unequal_groups(report, services)
    certificates = _certificates(report, document)
    _warn_of_unused(report, document)
    config = model.Config(
        path=report.root.place.file,
        services=services,
        real_servers=tuple(
            model.RealServer(m.name, m.address, m.weight, m.max_sessions, report.line(("real_servers", m.name)))
            for m in machines.values()
        ),
        workers=document.workers or available_cores(),
        control_socket=report.file(document.control_socket),
        state_file=report.file(document.state_file) if document.state_file else "",
        user=document.user,
        log=model.Logging(**document.log.model_dump()),
        admin=admin,
        alarms=build_alarms(report, document.alarms),
        windows=build_windows(report, document.maintenance, machines),
        certificates=certificates,
        certificates_dir=report.file(document.certificates_dir),
        stop_timeout_s=document.stop_timeout_s,
        warnings=tuple(formatted(report.warnings)),
    )
    _refuse_too_many(report, config)
    return config


def _service(
    report: Report, name: str, written: Available | schema.L4Service, profile: str, known: Known
) -> model.Service:
    if isinstance(written, schema.L4Service):
        return build_l4_service(report, name, written, profile, known)
    return build_service(report, name, written, profile, known)


def available_cores() -> int:
    """Cores that this process may use: what `workers: auto` means."""
    return min(len(os.sched_getaffinity(0)), MAX_WORKERS)


def _real_servers(document: schema.Document) -> dict[str, model.RealServer]:
    return {
        name: model.RealServer(name, values.real_server_address(written.address), written.weight, written.max_sessions)
        for name, written in document.real_servers.items()
    }


def _every_member(document: schema.Document) -> set[str]:
    named: set[str] = set()
    for service in document.services.values():
        named.update(service.real_servers or {})
        for route in getattr(service, "routes", ()):
            named.update(route.real_servers or {})
    return named


def _refuse_unavailable_modes(report: Report, document: schema.Document) -> None:
    for name, service in document.services.items():
        reason = unavailable(service.mode) if not isinstance(service, schema.ProfileService) else ""
        if reason:
            report.problem(("services", name, "mode"), reason)


def _refuse_nothing_to_do(report: Report, checked: Checked) -> None:
    told = any(path[0] in ("services", "profiles") for path in checked.dropped)
    if not checked.document.services and not told:
        report.problem(("services",), "there is no service; name at least one under services:")


def _admin(report: Report, written: schema.Admin, certificates: Collection[str]) -> model.Admin:
    listen = values.endpoint(written.listen) if written.listen else None
    if listen and not written.certificate and not ipaddress.ip_address(listen.host).is_loopback:
        text = "tokens cross the network readable; name a certificate, or listen on 127.0.0.1"
        report.warning(("admin", "listen"), text)
    if written.certificate and written.certificate not in certificates:
        text = f"there is no certificate '{written.certificate}'{hint(written.certificate, certificates)}"
        report.problem(("admin", "certificate"), text)
    if written.client_ca and not written.certificate:
        report.problem(("admin", "client_ca"), "certificates of visitors need TLS; name a certificate too")
    elif written.client_ca and (reason := unreadable(report.file(written.client_ca), "CERTIFICATE")):
        report.problem(("admin", "client_ca"), reason)
    return model.Admin(
        listen=listen,
        tokens_file=report.file(written.tokens_file) if written.tokens_file else "",
        certificate=written.certificate or "",
        client_ca_file=report.file(written.client_ca) if written.client_ca else "",
        hosts=tuple(written.hosts),
    )


def _refuse_shared_listeners(report: Report, services: Sequence[model.Service], admin: model.Admin) -> None:
    """An address:port belongs to one service. A wildcard beside a specific address is fine: the kernel prefers that."""
    owners: dict[model.Endpoint, tuple[str, Path]] = {}
    if admin.listen:
        owners[admin.listen] = ("admin.listen", ("admin", "listen"))
    for service in services:
        path: Path = ("services", service.name, "listen")
        for endpoint in service.listen:
            owner, where = owners.setdefault(endpoint, (f"service {service.name}", path))
            if where != path:
                report.problem(path, f"{endpoint} already belongs to {owner} ({report.spot(where)})")


def _refuse_shared_forwarding(report: Report, services: Sequence[model.Service]) -> None:
    """What the kernel forwards never reaches a listener of ours, and nobody else's rules."""
    taken = [(service, port, service.l4.protocol) for service in services if service.l4 for port in service.l4.listen]
    taken += [
        (service, model.PortRange(endpoint.host, endpoint.port, endpoint.port), "tcp")
        for service in services
        for endpoint in service.listen
    ]
    for service in services:
        for at, port in enumerate(service.l4.listen if service.l4 else ()):
            for other, theirs, protocol in taken:
                if other is not service and service.l4 and protocol == service.l4.protocol and overlap(port, theirs):
                    where = ("services", service.name, "listen", at)
                    report.problem(where, f"{port} already belongs to service {other.name} ({theirs})")


def _refuse_loops(report: Report, services: Sequence[model.Service]) -> None:
    """A real server that is a listener of ours, directly or through other services, would never end."""
    arrives = _Arrivals(services)
    leads_to = {s.name: {name for e in _endpoints(s) for name in arrives.at(e)} for s in services}
    for service in services:
        if service.name in _reachable(leads_to, service.name):
            through = sorted(leads_to[service.name])
            way = "itself" if through == [service.name] else f"itself (through {', '.join(through)})"
            path: Path = ("services", service.name, "real_servers")
            report.problem(path, f"a loop: connections of {service.name} would come back to {way}")


def _endpoints(service: model.Service) -> set[model.Endpoint]:
    return {member.endpoint for pool in service.pools() for member in pool.members}


def _refuse_long_socket(report: Report, document: schema.Document) -> None:
    """Linux takes 107 bytes as the path of a Unix socket (unix(7)); told here, not at the next start."""
    path = report.file(document.control_socket)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        text = (
            f"{path} is longer than the {SOCKET_PATH_BYTES} bytes that Linux allows for a socket; choose a shorter path"
        )
        report.problem(("control_socket",), text)


class _Arrivals:
    """Which services a connection to an address arrives at, as far as the file alone can tell."""

    def __init__(self, services: Sequence[model.Service]) -> None:
        self._listeners: dict[model.Endpoint, list[str]] = {}
        self._forwarded: dict[str, list[str]] = {}  # layer 4, by address
        for service in services:
            for endpoint in service.listen:
                self._listeners.setdefault(endpoint, []).append(service.name)
            for port in service.l4.listen if service.l4 else ():
                self._forwarded.setdefault(port.address, []).append(service.name)

    def at(self, endpoint: model.Endpoint) -> Iterator[str]:
        yield from self._listeners.get(endpoint, ())
        yield from self._forwarded.get(endpoint.host, ())
        if ipaddress.ip_address(endpoint.host).is_loopback:  # another address of ours cannot be told from a server's
            wildcard = model.Endpoint("::" if endpoint.is_ipv6 else "0.0.0.0", endpoint.port)
            yield from self._listeners.get(wildcard, ())


def _reachable(leads_to: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(leads_to[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(leads_to[name])
    return seen


def _refuse_unequal_groups(report: Report, services: Sequence[model.Service]) -> None:
    """A group shares one table, so its pools must mean the same clients, real servers and times."""
    first: dict[str, model.Pool] = {}
    kernels = {service.name: service.l4 is not None for service in services}
    for pool in (pool for service in services for pool in service.pools()):
        if pool.persist is None:
            continue
        leader = first.setdefault(pool.persist.group, pool)
        if report.has_problem(("services", pool.service)) or report.has_problem(("services", leader.service)):
            continue
        difference = _group_difference(leader, pool, kernels)
        if difference:
            text = f"group '{pool.persist.group}' is shared with service {leader.service}, but {difference}"
            report.problem(("services", pool.service, "persist"), text)


def _group_difference(leader: model.Pool, pool: model.Pool, kernels: Mapping[str, bool]) -> str:
    assert leader.persist is not None
    assert pool.persist is not None
    if kernels[leader.service] != kernels[pool.service]:
        return "one of them is in mode l4: its clients are remembered by the kernel"
    here = {member.real_server for member in pool.members}
    there = {member.real_server for member in leader.members}
    if here != there:
        return f"their real servers differ ({', '.join(sorted(here ^ there))})"
    for key in ("by", "fallback", "timeout_s", "max_entries", "cookie", "key_file", "field", "parameter"):
        mine, theirs = getattr(pool.persist, key), getattr(leader.persist, key)
        if mine != theirs:
            return f"{key} is {_plain(mine)} here and {_plain(theirs)} there"
    return ""


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def _certificates(report: Report, document: schema.Document) -> tuple[model.Certificate, ...]:
    """The files of every certificate, each looked into: a listed one is meant to be used."""
    built: list[model.Certificate] = []
    for name, written in document.certificates.items():
        certificate = model.Certificate(
            name,
            report.file(written.chain),
            report.file(written.key) if written.key else "",
            report.file(written.ocsp) if written.ocsp else "",
        )
        _look_into(report, certificate)
        built.append(certificate)
    return tuple(built)


def _look_into(report: Report, certificate: model.Certificate) -> None:
    """A certificate must be usable now, not when the first client comes."""
    place = ("certificates", certificate.name)
    kinds = ("CERTIFICATE",) if certificate.key_file else ("CERTIFICATE", "PRIVATE KEY")
    reasons = [
        unreadable(certificate.chain_file, *kinds),
        unreadable(certificate.key_file, "PRIVATE KEY") if certificate.key_file else "",
        unreadable(certificate.ocsp_file) if certificate.ocsp_file else "",
    ]
    for reason in filter(None, reasons):
        report.problem(place, reason)
    if any(reasons):
        return
    try:
        material = read_material(certificate)
    except CertificateError as error:
        report.problem(place, str(error))
        return
    for warning in material.warnings:
        report.warning(place, warning)


def _refuse_too_many(report: Report, config: model.Config) -> None:
    """Every service and every member of a pool has a slot on the board."""
    slots = len(config.services) + sum(len(pool.members) for pool in config.pools())
    slots += len({key for service in config.services for key in service.source_keys()})
    if slots > config.board_slots:
        text = (
            f"{slots} services and real servers in services are more than this program counts "
            f"({config.board_slots}); use fewer"
        )
        report.problem(("services",), text)


def _warn_of_unused(report: Report, document: schema.Document) -> None:
    used = _every_member(document)
    for name in document.real_servers:
        if name not in used:
            report.warning(("real_servers", name), f"real server '{name}' is in no service")
