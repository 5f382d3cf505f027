"""`mailbalancer doctor`: everything that is wrong or will be, the worst first, each with its remedy.

Decides: what is examined (the way of every kind of client to every real server, the balancer, its certificates, this
machine), and how bad each finding is.
Refuses to know: how facts are read (`host.condition`) and what follows for one client (`l4.paths`).

Without a running balancer it judges from the file and the machine alone.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from mailbalancer.control.client_networks import Clients, kinds_of_clients
from mailbalancer.control.explaining import known_of, members_of
from mailbalancer.control.host_plan import needed_capabilities, needs_host
from mailbalancer.host.commands import RealCommands
from mailbalancer.host.condition import Condition, examine
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.l4.paths import Outcome, Path, Takes, explain
from mailbalancer.l4.way_back import Verdict
from mailbalancer.model import Certificate, Config, Forward, Service
from mailbalancer.network import Network
from mailbalancer.tls.material import CertificateError, Material, read_material

#: Of a certificate: from so many days on it is a risk, from so many on it is worth a word.
RISK_DAYS, NOTE_DAYS = 14, 30
#: Of a table or limit: this share is a risk, and this share is as good as full.
HIGH, FULL = 0.7, 0.95
#: A worker whose last beat is older does not serve.
BEAT_S = 5.0
#: Kerberos refuses tickets when clocks differ by more than five minutes; logs of two machines are hard to compare long
#: before that.
MOST_WRONG_S = 1.0
LEAST_BACKLOG = 1024
LEAST_PORTS = 16_000
_CAPABILITIES = {10: "CAP_NET_BIND_SERVICE", 12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


class Severity(IntEnum):
    """Worst first."""

    BROKEN = 0  # somebody is not served now
    RISK = 1  # somebody will not be, or is served otherwise than configured
    NOTE = 2  # worth knowing


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, with whom, and what to do about it."""

    severity: Severity
    about: str
    text: str
    remedy: str


def visit(config: Config, status: Mapping[str, Any] | None) -> list[Finding]:
    """Look at this machine now, and judge.

    Args:
        status: what the running balancer says; None: it does not run.

    Raises:
        HostError: the kernel does not tell its routes.
    """
    network = network_now()
    pids = [status["pid"], *(worker["pid"] for worker in status["workers"])] if status else []
    condition = examine(RealCommands(), [interface.name for interface in network.interfaces], pids)
    return examined(config, network, condition, status, datetime.now(UTC))


def text(findings: Sequence[Finding]) -> str:
    """For a terminal."""
    if not findings:
        return "nothing is wrong"
    lines = []
    for one in findings:
        lines += [f"{one.severity.name.lower():<8}{one.about}: {one.text}", f"{'':<8}-> {one.remedy}"]
    counts = [(severity, sum(one.severity is severity for one in findings)) for severity in Severity]
    said = ", ".join(f"{number} {severity.name.lower()}" for severity, number in counts if number)
    return "\n".join([*lines, said])


def examined(
    config: Config, network: Network, condition: Condition, status: Mapping[str, Any] | None, now: datetime
) -> list[Finding]:
    """Every finding, the worst first, each once."""
    found: list[Finding] = []
    for service in config.services:
        found += _ways(service, network, status)
        found += _reverse_paths(service, network, condition)
    found += _running(config, status)
    found += _processes(config, condition, status)
    found += _certificates(config, now)
    found += _machine(config, network, condition, status)
    return sorted(dict.fromkeys(found), key=lambda finding: finding.severity)


# ---------------------------------------------------------------- the ways of clients


def _ways(service: Service, network: Network, status: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The way of each kind of clients to each real server; one finding for all kinds that share it."""
    shared: dict[tuple[Severity, str], tuple[list[str], str]] = {}
    for clients in kinds_of_clients(service, network):
        for member in members_of(service):
            path = explain(service, clients.address, member, network, known_of(service, member, status, network))
            judged = _judged(service, path, clients, status)
            if judged is not None:
                severity, text, remedy = judged
                shared.setdefault((severity, text), ([], remedy))[0].append(clients.words)
    for (severity, text), (words, remedy) in shared.items():
        yield Finding(severity, service.name, f"{', '.join(dict.fromkeys(words))}: {text}", remedy)


def _judged(
    service: Service, path: Path, clients: Clients, status: Mapping[str, Any] | None
) -> tuple[Severity, str, str] | None:
    """How bad this way is; None: it works as configured, or what ails it is said elsewhere, once for all clients."""
    cause, _, remedy = path.sentence.replace(clients.address, "the client").rpartition("; ")
    asks = f"`mailbalancer explain --client {clients.address} --service {service.name}` shows the way"
    text, remedy = (cause, remedy) if cause else (remedy, asks)
    if path.takes is not Takes.EVERYBODY:
        return None
    if path.outcome is Outcome.FAILS:
        return Severity.BROKEN, f"not served by {path.real_server}: {text}", remedy
    if path.outcome is Outcome.UNKNOWN:
        return (Severity.RISK if status else Severity.NOTE), f"not known whether they are served: {text}", remedy
    known = known_of(service, _member(service, path), status, Network())
    if known.way is not None and known.way.verdict is Verdict.BAD and path.notes:
        return Severity.RISK, f"served, but not with their address: {text}", remedy
    return None


def _member(service: Service, path: Path) -> Any:
    return next(m for m in members_of(service) if f"{m.real_server} {m.endpoint}" == path.server)


def _reverse_paths(service: Service, network: Network, condition: Condition) -> Iterator[Finding]:
    """Strict reverse path filtering drops packets of distant clients that come in where answers do not go out."""
    doors = {door.host for door in service.doors}
    homes = [interface.name for interface, own in network.addresses() if str(own.ip) in doors and own.version == 4]
    for clients in kinds_of_clients(service, network):
        client = ipaddress.ip_address(clients.address)
        route = network.route_to(client)
        if route is None or route.via is None or client.version != 4:
            continue
        for device in homes:
            if route.device != device and _effective(condition, device) == 1:
                yield Finding(
                    Severity.NOTE,
                    service.name,
                    f"{clients.words}: should their packets come in on {device}, they are dropped, because answers "
                    f"go out by {route.device} and rp_filter is 1",
                    f"sysctl -w net.ipv4.conf.{device}.rp_filter=2, or a route that fits",
                )


def _effective(condition: Condition, device: str) -> int:
    """The larger of both counts (linux/Documentation/networking/ip-sysctl)."""
    names = ("net.ipv4.conf.all.rp_filter", f"net.ipv4.conf.{device.replace('.', '/')}.rp_filter")
    return max(condition.settings.get(name, 0) for name in names)


# ---------------------------------------------------------------- the balancer


def _running(config: Config, status: Mapping[str, Any] | None) -> Iterator[Finding]:
    if status is None:
        yield Finding(
            Severity.NOTE,
            "balancer",
            f"no balancer answers on {config.control_socket}: this is judged from the file and the machine alone",
            "`systemctl status mailbalancer`, or -c with the file that it runs with",
        )
        return
    for warning in status["warnings"]:
        text, _, remedy = str(warning).partition("; ")
        yield Finding(Severity.NOTE, "balancer", text, remedy or "see the log")
    for worker in status["workers"]:
        yield from _worker(worker)
    for service in status["services"]:
        yield from _service(service)
    yield from _segments(status.get("network") or {})


def _segments(network: Mapping[str, Any]) -> Iterator[Finding]:
    """Who else claims our addresses, and frames that should not be there."""
    for claim in network.get("claims", ()):
        yield Finding(
            Severity.BROKEN,
            "network",
            f"{claim['who']} ({claim['mac']}) answers for {claim['address']}: some clients go there past the balancer",
            "it must keep quiet about it (`mailbalancer realserver` prints how), or give the address up",
        )
    for guard in network.get("guards", ()):
        if guard["own_mac"]:
            yield Finding(
                Severity.RISK,
                "network",
                f"{guard['own_mac']} frames of our own came back on {guard['device']}: there is a loop",
                "look for two cables or a bridge between the same networks",
            )
        if guard["own_address"]:
            yield Finding(
                Severity.RISK,
                "network",
                f"{guard['own_address']} frames with a service's address as sender came in on {guard['device']} and "
                "were dropped: a real server of dsr or tunnel answers through us",
                "`mailbalancer realserver SERVICE --verify` names the one whose gateway is the balancer",
            )
    tunnel = network.get("tunnel", {})
    if tunnel.get("strangers"):
        yield Finding(
            Severity.NOTE,
            "network",
            f"{tunnel['strangers']} packets of strangers into our tunnel were dropped",
            "let UDP port 4789 in from nobody",
        )
    if tunnel.get("too_big"):
        yield Finding(
            Severity.RISK,
            "network",
            f"{tunnel['too_big']} packets did not fit on the way to a tunnel's end",
            "a smaller `advmss` on its real server; `mailbalancer realserver SERVICE --verify` measures it",
        )


def _worker(worker: Mapping[str, Any]) -> Iterator[Finding]:
    about = f"worker {worker['index']}"
    if not worker["alive"] or (worker["beat_age_s"] or 0) > BEAT_S:
        yield Finding(Severity.BROKEN, about, "it does not run, or has not moved for seconds", "see the log")
    if worker["paused"]:
        yield Finding(
            Severity.BROKEN, about, "it accepts nobody: no file descriptor is left", "raise LimitNOFILE of the unit"
        )
    if worker["restarts"]:
        yield Finding(
            Severity.RISK,
            about,
            f"it has been replaced {worker['restarts']} times",
            "a fault of the program: see the log",
        )


def _service(service: Mapping[str, Any]) -> Iterator[Finding]:
    name, imbalance = service["name"], service.get("imbalance")
    if imbalance:
        yield Finding(
            Severity.RISK,
            name,
            f"{imbalance['source']} has {imbalance['sessions']} of {imbalance['total']} sessions, and persistence by "
            "source sends all of them to one server",
            "persist by something else, or in a proxy before it; see docs/balancing.md",
        )
    for pool in service["pools"]:
        servers = pool["real_servers"]
        if servers and not any(server["availability"] == "ready" for server in servers):
            where = f"{name}/{pool['route']}" if pool["route"] else name
            yield Finding(Severity.BROKEN, where, "no real server is ready: nobody new is served", "see below why")
        for server in servers:
            yield from _server(name, server)


def _server(service: str, server: Mapping[str, Any]) -> Iterator[Finding]:
    check = server.get("check") or {}
    name, reason = server["name"], str(check.get("reason", ""))
    days = (check.get("detail") or {}).get("cert_days")
    if server["admin"] != "enabled":
        yield Finding(
            Severity.NOTE,
            service,
            f"{name} is {server['admin']}",
            f"`mailbalancer enable {name}` when the work is done",
        )
    elif server["up"] is False:
        yield Finding(
            Severity.RISK, service, f"{name} is down: {reason}", f"`mailbalancer smoke {service}` shows both sides"
        )
    elif server["availability"] == "closed":
        why = str(server.get("availability_reason") or "its answers would not reach clients")
        yield Finding(Severity.RISK, service, f"{name} is given nobody: {why}", f"`mailbalancer realserver {service}`")
    if isinstance(days, int | float) and days <= RISK_DAYS:
        yield Finding(Severity.RISK, service, f"the certificate of {name} ends in {days:.0f} days", "renew it there")


def _processes(config: Config, condition: Condition, status: Mapping[str, Any] | None) -> Iterator[Finding]:
    if status is None:
        return
    for worker in status["workers"]:
        found = condition.processes.get(worker["pid"])
        if found is not None and found.files and worker["open_files"] > HIGH * found.files:
            yield Finding(
                Severity.RISK,
                f"worker {worker['index']}",
                f"{worker['open_files']} of {found.files} file descriptors are open",
                "raise LimitNOFILE of the unit; a session needs two, with splicing six",
            )
    supervisor = condition.processes.get(status["pid"])
    needed, _ = needed_capabilities(config, needs_host(config))
    missing = [number for number in sorted(needed) if supervisor and not supervisor.capabilities >> number & 1]
    if missing:
        names = " and ".join(_CAPABILITIES[number] for number in missing)
        yield Finding(
            Severity.BROKEN,
            "balancer",
            f"it lacks {names}, without which nothing is forwarded and no client's address is used",
            "see docs/layer-4.md, what it needs",
        )


# ---------------------------------------------------------------- certificates


def _certificates(config: Config, now: datetime) -> Iterator[Finding]:
    for one in config.certificates:
        used = [s.name for s in config.services if s.client_tls and one.name in s.client_tls.certificates]
        yield from _certificate(one, used, now)


def _certificate(one: Certificate, used: list[str], now: datetime) -> Iterator[Finding]:
    about, whose = f"certificate {one.name}", f" ({', '.join(used)})" if used else ""
    try:
        material: Material = read_material(one)
    except CertificateError as error:
        yield Finding(Severity.BROKEN if used else Severity.RISK, about, error.message + whose, error.remedy)
        return
    days = material.seen.days_left(now)
    if days < 0:
        yield Finding(
            Severity.BROKEN, about, f"it has ended {-days} days ago{whose}", "renew it, then `mailbalancer reload`"
        )
    elif days <= NOTE_DAYS:
        severity = Severity.RISK if days <= RISK_DAYS else Severity.NOTE
        yield Finding(severity, about, f"it ends in {days} days{whose}", "renew it, then `mailbalancer reload`")
    for warning in material.warnings:
        yield Finding(Severity.NOTE, about, warning + whose, "see docs/tls.md")


# ---------------------------------------------------------------- the machine


def _machine(
    config: Config, network: Network, condition: Condition, status: Mapping[str, Any] | None
) -> Iterator[Finding]:
    yield from _programs(config, condition)
    if needs_host(config):
        yield from _forwarding(config, network, condition, status)
    yield from _conntrack(condition)
    yield from _ports(condition, status)
    yield from _clock(condition)
    backlog = condition.settings.get("net.core.somaxconn")
    if backlog is not None and backlog < LEAST_BACKLOG:
        yield Finding(
            Severity.NOTE,
            "machine",
            f"net.core.somaxconn is {backlog}: when many clients come at once, some wait a second or more",
            f"sysctl -w net.core.somaxconn={4 * LEAST_BACKLOG}",
        )


def _programs(config: Config, condition: Condition) -> Iterator[Finding]:
    packages = {"nft": "nftables", "ip": "iproute2"}
    for name, package in packages.items():
        if needs_host(config) and name not in condition.programs:
            users = ", ".join(s.name for s in config.services if s.l4 or s.source.use == "client")
            yield Finding(
                Severity.BROKEN, "machine", f"{name} is missing, which {users} need", f"apt-get install {package}"
            )
    if "tcpdump" not in condition.programs:
        yield Finding(
            Severity.NOTE,
            "machine",
            "tcpdump is missing, which `mailbalancer capture` needs",
            "apt-get install tcpdump",
        )


def _forwarding(
    config: Config, network: Network, condition: Condition, status: Mapping[str, Any] | None
) -> Iterator[Finding]:
    """What somebody else has changed under a running balancer, or forbids."""
    through_us = [s for s in config.services if s.source.use == "client" or (s.l4 and not _past_us(s))]
    if status is not None:
        for device in sorted(_devices(through_us, network)):
            if condition.settings.get(f"net.ipv4.conf.{device.replace('.', '/')}.forwarding") == 0:
                yield Finding(
                    Severity.BROKEN,
                    "machine",
                    f"forwarding is off on {device}: somebody has switched it off since the start",
                    f"sysctl -w net.ipv4.conf.{device}.forwarding=1; look for who does it in /etc/sysctl.d",
                )
        if condition.tables is not None and not condition.tables:
            yield Finding(
                Severity.BROKEN,
                "machine",
                "our nftables rules are gone",
                "they come back within seconds; who flushes them?",
            )
    for chain in condition.dropping if through_us else ():
        yield Finding(
            Severity.NOTE,
            "machine",
            f"the firewall chain {chain} drops forwarded packets that no rule of it accepts",
            "let the packets of these services through: " + ", ".join(service.name for service in through_us),
        )
    if condition.tables is None:
        yield Finding(Severity.NOTE, "machine", "firewall rules are shown to root alone", "run it as root")


def _past_us(service: Service) -> bool:
    return service.l4 is not None and service.l4.forward in (Forward.DSR, Forward.TUNNEL)


def _devices(services: Iterable[Service], network: Network) -> set[str]:
    hosts = {m.endpoint.host for s in services for pool in s.pools() for m in pool.members}
    routes = (network.route_to(ipaddress.ip_address(host)) for host in hosts if ":" not in host)
    return {route.device for route in routes if route is not None}


def _conntrack(condition: Condition) -> Iterator[Finding]:
    used, most = (condition.settings.get(f"net.netfilter.nf_conntrack_{word}") for word in ("count", "max"))
    if used is None or not most or used < HIGH * most:
        return
    yield Finding(
        Severity.BROKEN if used >= FULL * most else Severity.RISK,
        "machine",
        f"the kernel tracks {used} of at most {most} connections; above that new ones are dropped",
        f"sysctl -w net.netfilter.nf_conntrack_max={4 * most}",
    )


def _ports(condition: Condition, status: Mapping[str, Any] | None) -> Iterator[Finding]:
    """A connection to one server from one address of ours needs a port of its own."""
    if condition.port_range is None:
        return
    first, last = condition.port_range
    ports, wider = last - first + 1, "sysctl -w net.ipv4.ip_local_port_range='10240 65535'"
    if ports < LEAST_PORTS:
        yield Finding(
            Severity.NOTE,
            "machine",
            f"{ports} ports are free for connections from one address to one real server",
            wider,
        )
    sessions: dict[str, int] = {}
    for service in status["services"] if status else ():
        for server in (server for pool in service["pools"] for server in pool["real_servers"]):
            if service["mode"] != "l4":
                sessions[server["endpoint"]] = sessions.get(server["endpoint"], 0) + server["sessions"]
    for endpoint, number in sessions.items():
        if number >= HIGH * ports:
            yield Finding(
                Severity.BROKEN if number >= FULL * ports else Severity.RISK,
                "machine",
                f"{number} of {ports} ports are in use for connections to {endpoint}",
                f"{wider}, or source addresses by class",
            )


def _clock(condition: Condition) -> Iterator[Finding]:
    clock = condition.clock
    if clock is None:
        return
    if not clock.synchronised:
        yield Finding(
            Severity.RISK,
            "machine",
            "no time service keeps the clock: certificates, Kerberos and the order of log lines depend on it",
            "apt-get install chrony (or systemd-timesyncd), and see `timedatectl`",
        )
    elif clock.most_wrong_s > MOST_WRONG_S:
        yield Finding(
            Severity.NOTE, "machine", f"the clock may be wrong by {clock.most_wrong_s:.1f} s", "see `chronyc tracking`"
        )
