"""`make bench`: mailbalancer, HAProxy and nginx, one after another in the same run, on this machine, in one table.

Decides: the order (rounds, each beginning with another proxy, so that a slow minute hits all), and the deadline.
Nothing is stored: files lie in a temporary folder, everything listens on loopback, and all of it is gone at the end,
also after Ctrl-C and after a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from tests.bench import door, mail, network, secure, table
from tests.bench.idle import CONNECTIONS, allow_files, idle_cost
from tests.bench.load import VARYING, burst, paced, web_server
from tests.bench.machine import Cores, Plan, cpu_seconds, describe, plan_cores
from tests.bench.proxies import HAPROXY, MAILBALANCER, NGINX, Order, Running, available, missing, proxy
from tests.bench.ramp import HELD, NEW_PER_S, NamedServer, Ramp, watch_return
from tests.bench.table import Row

DEADLINE_S = 290
RAMP_S = 20
KEEPALIVE_CONNECTIONS = 64
SCALING_CONNECTIONS = 256  # the kernel spreads them by hash: with few, one worker gets visibly more
BULK_CONNECTIONS = 8
CALM_SHARE = 0.7
CALM_S = 1.0
CALM_TLS_S = 3.0  # long enough that the handshakes at the beginning are less than one request in a hundred
WARM_S = 1.0
SCALING_S = 1.0
SCALING_ROUNDS = 2
FULL_CORES = 1.8  # two workers that kept fewer cores busy waited for the load
WEB_S = 2.0
VARIED_S = 1.0
MAIL_S = 2.0
WEB_ROUNDS = 1
SCALED = (MAILBALANCER, HAPROXY)
NETWORK_ROUNDS = 1
HANDSHAKES_S = 2


BUSY = ("keep-alive", "new connections", "bulk")


#: Two proxies, with the cores of each.
Pair = tuple[tuple[Running, Plan], tuple[Running, Plan]]


class OutOfTime(Exception):
    """The whole run has taken as long as it may."""


class Measured(NamedTuple):
    """One burst through one proxy."""

    requests_per_s: float
    bytes_per_s: float
    p99_ms: float
    busy: float  # cores, on average; clearly below the number of workers means that the load was the limit


class Scaling:
    """What two workers do over what one does, under one kind of load."""

    def __init__(self, load: str) -> None:
        self.times = Row(f"2 workers over 1, {load}", table.times)
        self.by_cpu = Row("the same by CPU time", table.times)
        self.busy = Row(f"2 workers, {load}", table.cores)


class Rows:
    """What is measured, in the order of the table."""

    def __init__(self) -> None:
        self.keepalive = Row("TCP keep-alive, 1 KiB: requests", table.per_second)
        self.p99 = Row("the same, p99", table.milliseconds)
        self.closing = Row("TCP new connections, 1 KiB each", table.per_second)
        self.bulk = Row("bulk, 10 MiB × 8 connections", table.gigabytes_per_second)
        self.spliced = Row("bulk, HAProxy with `option splice-auto`", table.gigabytes_per_second)
        self.scaling = Scaling("keep-alive")
        self.scaling_new = Scaling("new connections")
        self.scaling_http = Scaling("HTTP, no head twice")
        self.pss = Row(f"memory per idle connection, of {CONNECTIONS:,} (PSS)", table.kilobytes)
        self.rss = Row("the same (RSS)", table.kilobytes)
        self.excess = Row("ramp: worst second above the line", table.points)
        self.shares = Row(f"ramp: % of new sessions in seconds 1 to {RAMP_S}", str)
        self.http = Row("HTTP keep-alive, 1 KiB, cookie and X-Forwarded-For: requests", table.per_second)
        self.https = Row("the same over TLS: requests", table.per_second)
        self.varying = Row("HTTP as before, no head twice: requests", table.per_second)
        self.varying_tls = Row("the same over TLS: requests", table.per_second)
        self.calm = Row("HTTP p99 at 70 % of the proxy's own most", table.milliseconds)
        self.calm_tls = Row("the same over TLS", table.milliseconds)
        self.full = Row("new TLS connections, full handshake", table.per_second)
        self.resumed = Row("new TLS connections, resumed", table.per_second)
        self.offloaded = Row("bulk over TLS, plain to the server", table.gigabytes_per_second)
        self.reencrypted = Row("bulk over TLS, TLS to the server", table.gigabytes_per_second)
        self.tls_pss = Row(f"memory per idle TLS connection, of {secure.IDLE:,} (PSS)", table.kilobytes)
        self.posted = Row("SMTP: messages of 4 KiB, one on a connection", table.per_second)
        self.posted_together = Row("the same, ten on a connection", table.per_second)
        self.large_mail = Row("SMTP: messages of 10 MiB × 4 connections", table.gigabytes_per_second)
        self.secured_mail = Row("SMTP with STARTTLS ¹: messages of 4 KiB, one on a connection", table.per_second)
        self.secured_together = Row("the same, ten on a connection", table.per_second)
        self.busy = [Row(name, table.cores) for name in BUSY]
        self.busy += [scaling.busy for scaling in self.scalings()]

    def scalings(self) -> tuple[Scaling, ...]:
        return self.scaling, self.scaling_new, self.scaling_http

    def all(self) -> list[Row]:
        """Every row, the cores that were busy in one."""
        busy = Row(f"cores busy: {', '.join(row.title for row in self.busy)}", str)
        busy.words = {name: " / ".join(row.cell(name) for row in self.busy) for name in self.keepalive.figures}
        return [
            *(self.keepalive, self.p99, self.closing, self.bulk, self.spliced),
            *(row for scaling in self.scalings() for row in (scaling.times, scaling.by_cpu)),
            *(busy, self.pss, self.rss, self.excess, self.shares),
            *(
                self.http,
                self.https,
                self.varying,
                self.varying_tls,
                self.calm,
                self.calm_tls,
                self.full,
                self.resumed,
                self.offloaded,
                self.reencrypted,
                self.tls_pss,
            ),
            *(self.posted, self.posted_together, self.large_mail, self.secured_mail, self.secured_together),
        ]


@dataclass(slots=True)
class Bench:
    """One run: what was asked for, what is there, and the rows as they fill."""

    versions: dict[str, str]
    cores: Cores
    folder: Path
    rounds: int
    seconds: float
    rows: Rows = field(default_factory=Rows)
    ways: dict[str, network.Way] = field(default_factory=dict)
    no_network: str = "it was not its turn yet"
    looked: door.Looked | None = None

    def run(self) -> None:
        """Everything; each proxy has its turn in every round."""
        with (
            web_server(self.cores.alone.load, self.folder) as backend,
            web_server(self.cores.scaling_one.load, self.folder) as scaling_backend,
        ):
            for number in range(self.rounds):
                for name in _rotated(list(self.versions), number):
                    say(f"round {number + 1} of {self.rounds}: {name}")
                    self._one_worker(name, backend)
            for name in filter(self.versions.__contains__, SCALED):
                say(f"one worker and two: {name}")
                self._scaling(name, scaling_backend)
            with self._ramp():
                for name in self.versions:
                    say(f"{CONNECTIONS:,} idle connections: {name}")
                    self._idle(name, backend)
            self._web(backend)
            self.looked = door.look(self.cores, self.folder, backend, say)
        self._mail()
        self._network()

    def _one_worker(self, name: str, backend: int) -> None:
        plan, rows = self.cores.alone, self.rows
        with proxy(name, Order((backend,)), plan.proxy, self.folder) as running:
            self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=WARM_S)
            answered = self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS)
            closed = self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, close=True)
            bulk = self._burst(running, plan, "/large", BULK_CONNECTIONS)
        rows.keepalive.add(name, answered.requests_per_s)
        rows.p99.add(name, answered.p99_ms)
        rows.closing.add(name, closed.requests_per_s)
        rows.bulk.add(name, bulk.bytes_per_s)
        for row, measured in zip(rows.busy, (answered, closed, bulk), strict=False):
            row.add(name, measured.busy)
        if name == HAPROXY:
            with proxy(name, Order((backend,), splice=True), plan.proxy, self.folder) as running:
                bulk = self._burst(running, plan, "/large", BULK_CONNECTIONS)
        if name != NGINX:  # the other one's figure again, so that the row has its ratio
            rows.spliced.add(name, bulk.bytes_per_s)

    def _scaling(self, name: str, backend: int) -> None:
        """One worker and two side by side, in turn under the same load."""
        rows, papers = self.rows, secure.papers(self.folder)

        def tcp(workers: int, plan: Plan) -> AbstractContextManager[Running]:
            return proxy(name, Order((backend,), workers=workers), plan.proxy, self.folder)

        def http(workers: int, plan: Plan) -> AbstractContextManager[Running]:
            order = secure.Secured(backend, papers, tls=False, workers=workers)
            return secure.http_proxy(name, order, plan.proxy, self.folder)

        with self._one_and_two(tcp) as pair:
            self._compare(name, pair, rows.scaling)
            self._compare(name, pair, rows.scaling_new, close=True)
        with self._one_and_two(http) as pair:
            self._compare(name, pair, rows.scaling_http, script=VARYING)

    @contextlib.contextmanager
    def _one_and_two(self, start: Callable[[int, Plan], AbstractContextManager[Running]]) -> Iterator[Pair]:
        one, two = self.cores.scaling_one, self.cores.scaling_two
        with start(1, one) as alone, start(2, two) as together:
            yield (alone, one), (together, two)

    def _compare(self, name: str, pair: Pair, rows: Scaling, close: bool = False, script: str = "") -> None:
        for _ in range(SCALING_ROUNDS):
            one, two = (
                self._burst(running, plan, "/quick", SCALING_CONNECTIONS, seconds=SCALING_S, close=close, script=script)
                for running, plan in pair
            )
            rows.times.add(name, two.requests_per_s / one.requests_per_s)
            rows.by_cpu.add(name, 2 * (two.requests_per_s / two.busy) / (one.requests_per_s / one.busy))
            rows.busy.add(name, two.busy)

    def limits(self) -> str:
        """What held two workers back, for those whose load was not enough for two cores."""
        idle = {
            f"{name} ({row.title})": row.median(name) or 0.0
            for row in (scaling.busy for scaling in self.rows.scalings())
            for name in self.versions
            if (row.median(name) or 2.0) < FULL_CORES
        }
        return ", ".join(f"{what}: {busy:.2f} of 2 cores busy" for what, busy in idle.items())

    def _idle(self, name: str, backend: int) -> None:
        with proxy(name, Order((backend,)), self.cores.alone.proxy, self.folder) as running:
            cost = idle_cost(running)
        self.rows.pss.add(name, cost.pss)
        self.rows.rss.add(name, cost.rss)

    def _web(self, backend: int) -> None:
        """HTTP and HTTPS, each proxy once or twice."""
        papers, plan = secure.papers(self.folder), self.cores.alone
        with secure.tls_server(papers, plan.load, self.folder) as encrypted:
            for number in range(min(self.rounds, WEB_ROUNDS)):
                for name in _rotated(list(self.versions), number):
                    say(f"HTTP and HTTPS, round {number + 1}: {name}")
                    self._plain_http(name, secure.Secured(backend, papers, tls=False))
                    self._https(name, secure.Secured(backend, papers, tls=True))
                    self._reencrypted(name, secure.Secured(encrypted, papers, tls=True, reencrypts=True))

    def _plain_http(self, name: str, order: secure.Secured) -> None:
        plan = self.cores.alone
        with secure.http_proxy(name, order, plan.proxy, self.folder) as running:
            self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=WARM_S)
            answered = self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=WEB_S)
            varied = self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=VARIED_S, script=VARYING)
            calm = self._calm(running, answered.requests_per_s, "http")
        self.rows.http.add(name, answered.requests_per_s)
        self.rows.varying.add(name, varied.requests_per_s)
        self.rows.calm.add(name, calm.p99_ms)

    def _https(self, name: str, order: secure.Secured) -> None:
        plan, rows = self.cores.alone, self.rows
        with secure.http_proxy(name, order, plan.proxy, self.folder) as running:
            self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=WARM_S, scheme="https")
            answered = self._burst(running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=WEB_S, scheme="https")
            varied = self._burst(
                running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=VARIED_S, scheme="https", script=VARYING
            )
            calm = self._calm(running, answered.requests_per_s, "https")
            bulk = self._burst(running, plan, "/large", BULK_CONNECTIONS, seconds=WEB_S, scheme="https")
            rows.full.add(name, secure.handshakes(running.port, plan.load, HANDSHAKES_S, resumed=False))
            rows.resumed.add(name, secure.handshakes(running.port, plan.load, HANDSHAKES_S, resumed=True))
        rows.https.add(name, answered.requests_per_s)
        rows.varying_tls.add(name, varied.requests_per_s)
        rows.calm_tls.add(name, calm.p99_ms)
        rows.offloaded.add(name, bulk.bytes_per_s)
        with secure.http_proxy(name, order, plan.proxy, self.folder) as running:  # a fresh one
            rows.tls_pss.add(name, secure.idle_tls_cost(running, order.papers).pss)

    def _calm(self, running: Running, most: float, scheme: str) -> Measured:
        """What a proxy is like that has room: asked for a part of what it can."""
        plan = self.cores.alone
        script = paced(CALM_SHARE * most, plan.load)
        seconds = CALM_TLS_S if scheme == "https" else CALM_S
        calm = self._burst(
            running, plan, "/small", KEEPALIVE_CONNECTIONS, seconds=seconds, scheme=scheme, script=script
        )
        say(f"  {running.name}, {scheme}: {calm.requests_per_s / most:.0%} of its most for the p99 beside it")
        return calm

    def _reencrypted(self, name: str, order: secure.Secured) -> None:
        plan = self.cores.alone
        with secure.http_proxy(name, order, plan.proxy, self.folder) as running:
            bulk = self._burst(running, plan, "/large", BULK_CONNECTIONS, seconds=WEB_S, scheme="https")
        self.rows.reencrypted.add(name, bulk.bytes_per_s)

    def _mail(self) -> None:
        """SMTP, in clear and with STARTTLS."""
        papers, plan = secure.papers(self.folder), self.cores.alone
        with (
            mail.sink(plan.load, self.folder) as port,
            mail.secured_sinks(papers, plan.load, self.folder) as secured,
        ):
            for name in filter(mail.can_run, self.versions):
                say(f"mail: {name}")
                self._plain_mail(name, mail.Posting((port,)))
                self._secured_mail(name, mail.Posting(secured, papers), papers)

    def _plain_mail(self, name: str, order: mail.Posting) -> None:
        plan, rows = self.cores.alone, self.rows
        with mail.mail_proxy(name, order, plan.proxy, self.folder) as running:
            mail.messages_per_s(running.port, plan.load, WARM_S, together=False)
            rows.posted.add(name, mail.messages_per_s(running.port, plan.load, MAIL_S, together=False))
            rows.posted_together.add(name, mail.messages_per_s(running.port, plan.load, MAIL_S, together=True))
            rows.large_mail.add(name, mail.bytes_per_s(running.port, plan.load, MAIL_S))

    def _secured_mail(self, name: str, order: mail.Posting, papers: secure.Papers) -> None:
        plan = self.cores.alone
        with mail.mail_proxy(name, order, plan.proxy, self.folder) as running:
            for row, together in ((self.rows.secured_mail, False), (self.rows.secured_together, True)):
                found = mail.secured_messages_per_s(running.port, papers, plan.load, MAIL_S, together=together)
                row.add(name, found)

    def _burst(
        self,
        running: Running,
        plan: Plan,
        path: str,
        connections: int,
        seconds: float = 0.0,
        close: bool = False,
        scheme: str = "http",
        script: str = "",
    ) -> Measured:
        """One burst of load, and how many cores the proxy kept busy meanwhile; its errors are said at once."""
        before = cpu_seconds(running.pid)
        result = burst(
            running.port,
            path,
            connections,
            plan.load,
            self.folder,
            seconds or self.seconds,
            close,
            scheme,
            script=script,
        )
        used = cpu_seconds(running.pid) - before
        if result.errors:
            say(f"  {running.name}, {path}{', a connection each' if close else ''}: errors: {result.errors}")
        return Measured(result.requests_per_s, result.bytes_per_s, result.p99_ms, max(used / result.seconds, 0.01))

    def _network(self) -> None:
        """Layer 4, where this machine lets us build a network."""
        self.no_network = network.why_not()
        say(f"layer 4: {self.no_network or 'four forwardings, plain routing, HAProxy'}")
        if not self.no_network:
            self.ways = network.measure(self.cores.alone, self.folder, NETWORK_ROUNDS)
            for name, way in self.ways.items():
                for errors in way.errors:
                    say(f"  {name}: errors: {errors}")

    @contextlib.contextmanager
    def _ramp(self) -> Iterator[None]:
        """mailbalancer and HAProxy side by side, and beside what is done meanwhile: at 25 sessions a second none of
        them is busy."""
        say(f"ramp: {RAMP_S} s, {HELD} held sessions, {NEW_PER_S} new ones a second; meanwhile:")
        names = [name for name in (MAILBALANCER, HAPROXY) if name in self.versions]
        with contextlib.ExitStack() as proxies, ThreadPoolExecutor(1) as beside:
            watched = [self._ready_to_ramp(name, proxies) for name in names]
            shares = beside.submit(lambda: asyncio.run(_watch(watched)))
            yield
            results = shares.result()
        for name, result in zip(names, results, strict=True):
            if isinstance(result, Ramp):
                self.rows.excess.add(name, result.worst_excess)
                self.rows.shares.words[name] = result.words()
            else:
                say(f"  {name}: no ramp: {result}")
        if NGINX in self.versions:
            self.rows.excess.words[NGINX] = self.rows.shares.words[NGINX] = "only in nginx Plus"

    def _ready_to_ramp(self, name: str, proxies: contextlib.ExitStack) -> tuple[int, NamedServer, NamedServer]:
        """A proxy with two servers of which one is away."""
        stays, returns = NamedServer(b"A"), NamedServer(b"B")
        stays.listen()
        order = Order((stays.port, returns.port), ramp_s=RAMP_S)
        running = proxies.enter_context(proxy(name, order, self.cores.alone.proxy, self.folder))
        return running.port, stays, returns


async def _watch(proxies: Sequence[tuple[int, NamedServer, NamedServer]]) -> list[Ramp | BaseException]:
    """All ramps at the same time; what went wrong with one of them is its result."""
    watches = (watch_return(port, stays, returns, RAMP_S) for port, stays, returns in proxies)
    return await asyncio.gather(*watches, return_exceptions=True)


def main() -> int:
    """Measure, print the table, return the exit code."""
    arguments = _arguments()
    lacking = missing()
    if lacking:
        say(f"not installed: {', '.join(lacking)} (as root: apt-get install {' '.join(lacking)})")
    if {"wrk", "nginx"} & set(lacking):
        say("without wrk and nginx there is no load and no server: nothing was measured")
        return 1
    allow_files(20000)
    cores, machine = plan_cores(), describe()
    started_at = time.monotonic()
    with _deadline(), tempfile.TemporaryDirectory(prefix="mailbalancer-bench-") as folder:
        bench = Bench(available(), cores, Path(folder), arguments.rounds, arguments.seconds)
        try:
            bench.run()
        except OutOfTime:
            say(f"not finished after {DEADLINE_S} s: the table has what was measured until then")
        versions = bench.versions
    print(f"{machine}. Cores: {cores.words()}. Medians of {arguments.rounds} rounds; {time.strftime('%Y-%m-%d')}\n")
    print(
        "Busy cores clearly below the number of workers mean that the load was the limit, and not the proxy. "
        "The scaling by CPU time is what two full cores would give. "
        f"Two workers waited for the load: {bench.limits() or 'nowhere'}.\n"
    )
    print(table.render(bench.rows.all(), versions, HAPROXY))
    print(f"\n{network.report(bench.ways) if bench.ways else f'Layer 4 was not measured: {bench.no_network}.'}")
    if bench.looked is not None:
        print(f"\n{bench.looked.words()}")
    print(f"\n¹ {mail.UNLIKE}")
    say(f"took {time.monotonic() - started_at:.0f} s")
    return 0


def say(text: str) -> None:
    """Progress, beside the report."""
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description="measure against HAProxy and nginx")
    parser.add_argument("--rounds", type=int, default=2, help="times each proxy has its turn (default 2)")
    parser.add_argument("--seconds", type=float, default=2, help="length of one burst of load (default 2)")
    return parser.parse_args()


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """The whole run ends in time, and SIGTERM ends it as Ctrl-C does: by unwinding, so that everything is removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime if number == signal.SIGALRM else SystemExit(143)

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.alarm(DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"make bench: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
