"""Layer 4 services: from health, ramps and counts to rules in the kernel, renewed at most twice a second.

Decides: when the rules change, what every member's share of new flows is, and what to do when somebody else has removed
our tables. One owner of everything that the configuration changes on this machine: it prepares, applies and undoes.
Refuses to know: how rules look (`l4.render`), what the machine needs beside them (`host_plan`).

A configuration is examined in full, and everything beside its rules is done, before any worker hears of it (`prepare`);
its rules follow when they run it (`apply`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mailbalancer.balance.candidate import READY
from mailbalancer.control.arp_watch import ArpWatch
from mailbalancer.control.events import Events
from mailbalancer.control.gateway_probe import GatewayProbe
from mailbalancer.control.host_plan import HostPlan, absent_addresses, needs_host, plan, tunnel_devices
from mailbalancer.control.kernel_clients import KernelClients
from mailbalancer.control.l4_rules import (
    RulesetBuilder,
    examined_script,
    guards_of,
    is_transparent,
    names,
    near_places,
    passes_us,
    with_neighbours,
)
from mailbalancer.control.members import Members, Record
from mailbalancer.control.own_addresses import OwnAddresses
from mailbalancer.control.vip_probe import VipProbe
from mailbalancer.control.vips import Vips
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.commands import Commands, HostError
from mailbalancer.host.conntrack import count_flows, forget_flows
from mailbalancer.host.ledger import Ledger
from mailbalancer.host.network import read_network
from mailbalancer.host.nft import Counter, Nft
from mailbalancer.host.privileges import CAP_NET_ADMIN, CAP_NET_RAW, have
from mailbalancer.host.rtnetlink import network_now
from mailbalancer.host.steps import IpTunnel, Step, Vxlan, lacks_device_type, sysctl_now
from mailbalancer.l4.numbers import Numbers
from mailbalancer.l4.render import ENDING_S, tables
from mailbalancer.l4.ruleset import (
    MEMBER_MARK,
)
from mailbalancer.l4.shares import Runner, by_sessions, by_weight, staying
from mailbalancer.l4.tables import Table, script
from mailbalancer.model import Config, Forward, MemberKey, Schedule, Service
from mailbalancer.network import Network

#: Rules change at most this often.
RENEW_S = 0.5
#: Flows are counted this often where a choice depends on it, and this often where only people look.
COUNT_S = 0.5
LOOK_S = 2.0
#: Counting may take one part in so many of our time.
COUNT_SHARE = 20
#: Whether our tables are still there.
WATCH_S = 5.0
#: What went wrong is tried again, and said again, after so long.
RETRY_S = 5.0
ALARM_S = 60.0

#: What the guards of each interface count.
_LOOPS = {
    "own_mac": "came in with our own hardware address as sender: there is a loop in the network",
    "own_address": "came in with an address of our services as sender: a real server answers through us",
}
_BY_SESSIONS = (Schedule.LEAST_CONNECTIONS, Schedule.WEIGHTED_LEAST_CONNECTIONS)


@dataclass(slots=True)
class _Count:
    """The newest numbers, and when they were taken."""

    at: float = 0.0
    next_at: float = 0.0
    flows: dict[int, int] = field(default_factory=dict)  # by member number
    unanswered: dict[int, int] = field(default_factory=dict)
    inet: dict[str, Counter] = field(default_factory=dict)
    netdev: dict[str, Counter] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)  # new flows per second, by service number

    def counter(self, name: str) -> Counter:
        return self.inet.get(name) or self.netdev.get(name) or Counter(0, 0)


class L4Engine:
    """What this program changes on the machine, while it runs.

    Args:
        commands: how programs are started.
        ledger: where it is written down what has been changed.
    """

    def __init__(self, members: Members, events: Events, commands: Commands, ledger: Path) -> None:
        self._members = members
        self._events = events
        self._commands = commands
        self._ledger_path = ledger
        self._ledger: Ledger | None = None  # None: this machine has never been changed
        self._before: tuple[Step, ...] = ()  # what was in force before a configuration was prepared
        self._wanted = HostPlan()
        self._has_rules = False  # whether there can be tables of ours
        self._nft = Nft(commands)
        self._numbers = Numbers()
        self._vips = Vips(events)
        self._config: Config | None = None
        self._network = Network()
        self._running: tuple[Table, ...] | None = None  # None: not known
        self._count = _Count()
        self._forwarded: frozenset[str] = frozenset()  # names of the services
        self._seen: list[int] = []
        self._renewed_at = 0.0
        self._watched_at = 0.0
        self._failed_at = -RETRY_S
        self._alarms: dict[str, tuple[int, float]] = {}
        self._down: set[MemberKey] = set()
        self.probe = GatewayProbe(events, self._answering_us, self._look, self._judged, self._nft, self._named)
        self.through = VipProbe(events, self._answering_clients, self._look, self._judged, self._service)
        self.watch = ArpWatch(events)
        self.own_addresses = OwnAddresses(events)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What has been changed beside the rules."""
        return self._ledger.steps if self._ledger else ()

    @property
    def network(self) -> Network:
        """As it was when it was last looked at."""
        return self._network

    # ------------------------------------------------------------ configurations

    def prepare(self, config: Config) -> None:
        """Everything beside the rules, and whether the kernel would take those: before anybody hears of it.

        What ran before runs on; what it needs is still there.

        Raises:
            MailbalancerError: this configuration cannot work on this machine; with the service and the remedy. Nothing
                is changed.
        """
        before = self._ledger.steps if self._ledger else ()
        self._before, self._wanted = before, HostPlan()
        if not changes_host(config):
            return
        ledger = self._open_ledger()
        self._before = before = ledger.steps
        self._has_rules |= needs_host(config) or bool(before)
        network = read_network(self._commands)
        self._wanted = plan(config, network, sysctl_now, before, partial(lacks_device_type, self._commands))
        try:
            self._vips.refuse_taken(network, [step for step in self._wanted.steps if step not in before], config)
            ledger.begin(self._wanted.steps)
            self._examine(config)
        except MailbalancerError:
            self.take_back()
            raise

    def _examine(self, config: Config) -> None:
        text = examined_script(config, read_network(self._commands))
        if not text:
            return
        try:
            self._nft.check(text)
        except HostError as error:
            services = ", ".join(s.name for s in config.services if s.l4 or s.source.use == "client")
            raise MailbalancerError(f"{error.message} (needed by: {services})", error.remedy) from error

    def take_back(self) -> None:
        """The configuration that was prepared is not going to run."""
        if self._config is not None:
            self.own_addresses.follow(self._config)
        if self._ledger is None:
            return
        try:
            self._ledger.follow(self._before)
        except HostError as error:
            self._events.error(f"not everything could be taken back: {error}")

    def completed(self, config: Config) -> Config:
        """The configuration with what only the network tells: clients that real servers would answer directly.

        Raises:
            HostError: the network cannot be read.
        """
        done = config
        if any(is_transparent(service) for service in config.services):
            network = read_network(self._commands)
            done = replace(config, services=tuple(with_neighbours(service, network) for service in config.services))
        self.own_addresses.follow(done)
        return done

    def apply(self, config: Config, now: float) -> None:
        """The rules of the configuration that was prepared, and is complete. The members of it are committed.

        Raises:
            MailbalancerError: they could not be written. Those that were there still are; the caller puts back the
                members of the configuration before, and calls `take_back`.
        """
        before = self._config
        self._follow(config)
        if self._ledger is None:
            return
        self._network = read_network(self._commands)
        try:
            self._renew(now)
        except MailbalancerError:
            if before is not None:
                self._follow(before)
            raise
        self._ledger.finish(self._wanted.steps)
        for warning in self._wanted.warnings:
            self._events.warning(warning)
        self._vips.added(self._network, [step for step in self._wanted.steps if step not in self._before], now)
        for key in [*self.probe.standings, *self.through.standings]:
            self._judged(key)

    def _follow(self, config: Config) -> None:
        self._config = config
        self._forwarded = frozenset(service.name for service in config.services if service.l4 is not None)
        self._numbers.follow(names(config))

    def stop(self) -> None:
        """Everything as it was before us. A tick that comes later changes nothing any more."""
        self._config = None
        if self._ledger is None:
            return
        for undo in (self._nft.remove if self._has_rules else tuple, self._ledger.undo_all):
            try:
                undo()
            except HostError as error:
                self._events.error(f"not everything could be undone: {error}; `mailbalancer host clean` tries again")
        self._running = None

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger(self._ledger_path, self._commands)
        return self._ledger

    # ------------------------------------------------------------ while it runs

    def tick(self, now: float) -> None:
        """Time has passed: count, and let the rules follow."""
        if self._config is None or self._ledger is None:
            return
        self._vips.tick(now)
        self.probe.tick(now)
        self.through.tick(now)
        self.watch.tick(now, self._config, self._network)
        if now - self._failed_at < RETRY_S:
            return
        try:
            self._work(now)
        except HostError as error:
            self._write_anew(error, now)

    def _work(self, now: float) -> None:
        self._watch(now)
        if self._running and now >= self._count.next_at:
            self._recount(now)
        if now - self._renewed_at >= RENEW_S or self._seen != self._availabilities():
            self._renew(now)

    def _write_anew(self, reason: HostError, now: float) -> None:
        """Something is not as we left it (a firewall that is reloaded flushes everybody's tables): all of it again."""
        self._running = None
        try:
            self._renew(now)
        except HostError as error:
            self._failed_at = now
            self._events.error(f"the rules of layer 4 services could not be renewed: {error}")
        else:
            self._events.warning(f"our nftables rules were not there any more and have been written anew ({reason})")

    async def stop_probes(self) -> None:
        """No probe is under way any more."""
        await self.probe.stop()
        await self.through.stop()
        self.watch.stop()

    def _service(self, name: str) -> Service | None:
        return self._config.service(name) if self._config else None

    def _answering_us(self) -> list[Record]:
        """Members whose answers to clients must come back through us."""
        return [r for r in self._members if (service := self._service(r.key.service)) and is_transparent(service)]

    def _answering_clients(self) -> list[Record]:
        """Members that answer clients themselves, with the service's address."""
        return [r for r in self._members if (service := self._service(r.key.service)) and passes_us(service)]

    def _strays(self, key: MemberKey) -> bool:
        return bool(self.probe.bad(key))

    def _named(self, key: MemberKey) -> tuple[str, ...]:
        service = self._service(key.service)
        return service.source.probe_addresses if service else ()

    def _look(self) -> Network:
        """At the network, anew: the probe asks who is who on the segment."""
        with contextlib.suppress(HostError):
            self._network = replace(self._network, neighbours=network_now().neighbours)
        return self._network

    def _judged(self, key: MemberKey) -> None:
        """Workers read from the board whether this server is shown our address; our own rules follow at once."""
        service = self._service(key.service)
        if service is None or key not in self._members:
            return
        no_way_back = self.probe.bad(key)
        out = service.source.probe_failed == "take_out_of_service"
        self._members.bar(key, (no_way_back or self.through.bad(key)) if out else "", time.monotonic())
        self._members.show_own_address(key, bool(no_way_back) and not out)
        self._renewed_at = -RENEW_S

    def probed(self, key: MemberKey) -> dict[str, Any]:
        """What the probes know of this member, for `status`."""
        return {"way_back": self.probe.facts(key), "through_vip": self.through.facts(key)}

    def noticed(self, service: Service) -> dict[str, Any]:
        """What the rules of a service have counted beside its traffic, for `status`; nothing where there are none."""
        number = self._numbers.get(service.name)
        if service.l4 is None or number is None:
            return {}
        facts: dict[str, Any] = {
            "forward": str(service.l4.forward),
            "strays": self._count.counter(f"stray_{number}").packets,
            "too_big": self._count.counter(f"too_big_{number}").packets,
        }
        if service.l4.forward is Forward.TUNNEL:
            own = tunnel_devices(service)
            facts["tunnel"] = [
                {"device": step.device, "mtu": step.mtu, "mss": step.mss}
                for step in self.steps
                if isinstance(step, Vxlan | IpTunnel) and step.device in own
            ]
        return facts

    def clients(self) -> KernelClients:
        """Returning clients that the kernel remembers."""
        return KernelClients(self._nft, self._running or (), self._numbers.names())

    def network_facts(self) -> dict[str, Any]:
        """What goes wrong on the segments, for `status`."""
        guards = [
            {"device": guard.device} | {word: self._count.counter(f"{word}_{at}").packets for word in _LOOPS}
            for at, guard in enumerate(guards_of(self._network))
        ]
        tunnel = {word: self._count.counter(f"tunnel_{word}").packets for word in ("strangers", "too_big")}
        return {"guards": guards if self._running else [], "claims": self.watch.listed(), "tunnel": tunnel}

    def own_address(self, service: Service) -> dict[str, Any]:
        """Who was given our address in a service that shows clients' own, for `status`; in layer 7 without the sum."""
        sessions = 0
        if service.l4 is not None:
            counters = [f"near_{self._numbers.get(place)}" for place in near_places(service)]
            counters.append(f"own_{self._numbers.get(service.name)}")
            sessions = sum(self._count.counter(name).packets for name in counters)
        return {"sessions": sessions, "networks": self.own_addresses.listed(service.name)}

    def traffic(self, key: MemberKey) -> Mapping[str, int]:
        """What the kernel has counted for this member, in the words of `status`; nothing where it does not forward."""
        number = self._numbers.get(str(key))
        if number is None:
            return {}
        new, inward, outward = (self._count.counter(f"{word}_{number}") for word in ("new", "in", "out"))
        sessions = self._count.flows.get(number, 0)
        unanswered = self._count.unanswered.get(number, 0)
        counted = {"sessions": sessions, "unanswered": unanswered, "total": new.packets}
        return {**counted, "bytes_in": inward.bytes, "bytes_out": outward.bytes}

    def _watch(self, now: float) -> None:
        """Whether all our tables are still there.

        Raises:
            HostError: one is not.
        """
        if not self._running or now - self._watched_at < WATCH_S:
            return
        self._watched_at = now
        missing = {table.family for table in self._running} - set(self._nft.tables())
        if missing:
            raise HostError(f"table {', '.join(sorted(missing))} mailbalancer is gone")

    def _renew(self, now: float) -> None:
        assert self._config is not None
        self._seen = self._availabilities()
        builder = RulesetBuilder(
            self._config, self._network, self._numbers, self._shares(now), self._strays, self._members
        )
        wanted = tables(builder.ruleset())
        if wanted == self._running or (not wanted and not self._running):
            return
        self._nft.apply(script(wanted, self._running))
        self._running = wanted
        self._renewed_at = now
        self._forget_dead(self._config)

    def _availabilities(self) -> list[int]:
        """Who may be given what. A change of it does not wait."""
        return [record.availability for record in self._members if record.pool.service in self._forwarded]

    def _shares(self, now: float) -> Callable[[Service, list[Record]], list[int]]:
        def shares(service: Service, records: list[Record]) -> list[int]:
            ready = [record for record in records if record.availability == READY]
            if service.pool.schedule is Schedule.PRIORITY and ready:
                first = min(record.member.priority for record in ready)
                ready = [record for record in ready if record.member.priority == first]
            runners = [self._runner(record, now) for record in ready]
            if service.pool.schedule in _BY_SESSIONS:
                rate = self._count.rates.get(self._numbers[service.name], 0.0)
                expected = staying(sum(runner.sessions for runner in runners), rate, RENEW_S)
                given = by_sessions(runners, max(len(runners), expected))
            else:
                given = by_weight(runners)
            of = {id(record): share for record, share in zip(ready, given, strict=True)}
            return [of.get(id(record), 0) for record in records]

        return shares

    def _runner(self, record: Record, now: float) -> Runner:
        sessions = self._count.flows.get(self._numbers[str(record.key)], 0)
        weighted = record.pool.schedule not in (Schedule.ROUND_ROBIN, Schedule.LEAST_CONNECTIONS)
        weight = (record.member.weight if weighted else 1.0) * record.state.weight_factor
        full = 0 < record.member.max_sessions <= sessions or record.key.real_server in self._full_machines()
        return Runner(weight, sessions, record.ramped(now), full)

    def _full_machines(self) -> set[str]:
        """Real servers with as many sessions as they may have over all services, of the kernel's and of ours."""
        limits = {server.name: server.max_sessions for server in self._config.real_servers} if self._config else {}
        return {name for name, limit in limits.items() if limit and self._members.sessions_at(name) >= limit}

    def _forget_dead(self, config: Config) -> None:
        """UDP has no end: a client that keeps its port would stay with a dead server for ever."""
        down = {record.key for record in self._members if record.state.health.up is False}
        udp = {service.name for service in config.services if service.l4 and service.l4.protocol == "udp"}
        for key in down - self._down:
            if key.service in udp:
                forget_flows(MEMBER_MARK | self._numbers[str(key)])
        self._down = down

    # ------------------------------------------------------------ counting

    def _recount(self, now: float) -> None:
        assert self._config is not None
        began = time.monotonic()
        before, count = self._count, _Count(at=now)
        services = [service for service in self._config.services if service.l4 is not None]
        families = {table.family for table in self._running or ()}
        if "inet" in families:
            count.inet = self._nft.counters("inet")
            for mark, flows in count_flows(MEMBER_MARK, 0xFFFF0000).items():
                count.flows[mark & 0xFFFF], count.unanswered[mark & 0xFFFF] = flows.live, flows.unanswered
        if "netdev" in families:
            count.netdev = self._nft.counters("netdev")
            self._count_remembered(count)
        self._alarm(count, services, now)
        for service in services:
            count.rates[self._numbers[service.name]] = self._rate(service, before, count)
        exact = any(server.max_sessions for server in self._config.real_servers) or any(
            s.pool.schedule in _BY_SESSIONS or any(m.max_sessions for m in s.pool.members) for s in services
        )
        took = time.monotonic() - began
        count.next_at = now + max(COUNT_S if exact else LOOK_S, COUNT_SHARE * took)
        self._count = count
        for service in services:
            for member in service.pool.members:
                key = service.pool.key(member)
                self._members.forwards(key, count.flows.get(self._numbers[str(key)], 0))
            self._tell_near(service)

    def _tell_near(self, service: Service) -> None:
        """Clients that have met a rule for their network since it was there."""
        for place, network in near_places(service).items():
            packets = self._count.counter(f"near_{self._numbers[place]}").packets
            if packets:
                self.own_addresses.take(service.name, str(network), packets)

    def _rate(self, service: Service, before: _Count, after: _Count) -> float:
        numbers = [self._numbers[str(service.pool.key(member))] for member in service.pool.members]
        new = sum(after.counter(f"new_{n}").packets - before.counter(f"new_{n}").packets for n in numbers)
        return max(0, new) / max(after.at - before.at, 0.1)

    def _count_remembered(self, count: _Count) -> None:
        """Flows of dsr and tunnel, which have no connection tracking."""
        for table in self._running or ():
            for name in table.memory:
                if table.family == "netdev" and name.startswith("flows_"):
                    for key, mark in self._nft.elements("netdev", name, "map"):
                        if key["elem"].get("timeout") != ENDING_S:
                            number = int(mark) & 0xFFFF
                            count.flows[number] = count.flows.get(number, 0) + 1

    def _alarm(self, count: _Count, services: Iterable[Service], now: float) -> None:
        """Frames that go round, and packets that should not pass here."""
        for at, guard in enumerate(guards_of(self._network)):
            for word, meaning in _LOOPS.items():
                self._alarm_once(f"{guard.device}: frames {meaning}", count.netdev.get(f"{word}_{at}"), now)
        for service in services:
            text = f"service {service.name}: a real server answers clients that came to it past the balancer"
            self._alarm_once(text, count.inet.get(f"stray_{self._numbers[service.name]}"), now)
        text = "the way to a tunnel's end lets only smaller packets through; give its real server a smaller advmss"
        self._alarm_once(text, count.inet.get("tunnel_too_big"), now)

    def _alarm_once(self, text: str, counter: Counter | None, now: float) -> None:
        packets = counter.packets if counter else 0
        told, at = self._alarms.get(text, (0, -ALARM_S))
        if packets > told and now - at >= ALARM_S:
            self._alarms[text] = (packets, now)
            self._events.error(f"{text} ({packets - told} packets)")


def changes_host(config: Config) -> bool:
    """Whether this configuration changes this machine, or finds it changed by us.

    An address of layer 7 that is not here is added only by a program that may; else opening its listener says so.
    """
    if needs_host(config) or ledger_path(config).exists():
        return True
    return have(CAP_NET_ADMIN) and have(CAP_NET_RAW) and bool(absent_addresses(config))


def ledger_path(config: Config) -> Path:
    """Beside the control socket: what it speaks of is gone after a reboot, as that folder is."""
    return Path(config.control_socket).with_suffix(".host.json")
