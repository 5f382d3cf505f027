"""Layer 4: the four forwardings beside plain routing and HAProxy's TCP mode, in network namespaces.

Decides: the network (the same client and the same server for all ways), the load of each way, and what is said of it.
Refuses to know: the other benches, which need no network of their own.

    client 10.0.1.5 ── lan ─┬─ balancer 10.0.1.1 | 10.0.2.1 ─┬─ farm ── server 10.0.2.11
                            ├─ router   10.0.1.2 | 10.0.2.2 ─┘          server 10.0.2.12, through the router
                            └──────── server 10.0.1.11, for the answers of dsr and tunnel

Everybody is on one machine, so kernel work for forwarded packets is done by whoever sends them. The ways differ only in
that work (and in HAProxy, which has a core of its own), so their ratio is what counts.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
from tests.bench.load import Burst, burst, web_body, web_files
from tests.bench.machine import Plan, running
from tests.bench.proxies import nginx_command, nginx_frame
from tests.bench.table import gigabytes_per_second, milliseconds, per_second
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.tools import find
from tests.support.waiting import eventually

PORT = 80
ROUTED, HAPROXY = "direct, routed", "HAProxy, mode tcp"
FORWARDS = ("transparent", "snat", "dsr", "tunnel")
#: Not the address that HAProxy connects from: ports that its connections have just left are not free for others.
SNAT_ADDRESS = "10.0.2.3"
SERVER, BEHIND_ROUTER = "10.0.2.11", "10.0.2.12"
VIPS = {name: f"10.0.1.{100 + at}" for at, name in enumerate(FORWARDS)}
TARGETS = {ROUTED: BEHIND_ROUTER, HAPROXY: "10.0.1.1"} | VIPS
NEW_S, BULK_S, STEADY_S = 1, 1, 1
NEW_CONNECTIONS, BULK_CONNECTIONS, STEADY_CONNECTIONS = 64, 8, 32


def why_not() -> str:
    """Why there can be no namespaces here; empty: there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [program for program in ("ip", "nft") if find(program) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(slots=True)
class Way:
    """What was measured of one way, a figure for each round."""

    new: list[float] = field(default_factory=list)
    bulk: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    errors: set[str] = field(default_factory=set)


def measure(plan: Plan, folder: Path, rounds: int) -> dict[str, Way]:
    """Every way, one after another, in each round."""
    with _network(plan, folder) as (client, ways):
        found = {name: Way() for name in ways}
        for number in range(rounds):
            for name in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
                _measure(found[name], client, TARGETS[name], plan, folder)
    return found


def _measure(way: Way, client: Machine, target: str, plan: Plan, folder: Path) -> None:
    def load(path: str, connections: int, seconds: float, close: bool = False) -> Burst:
        one = burst(PORT, path, connections, plan.load, folder, seconds, close, host=target, under=client.inside())
        if one.errors:
            way.errors.add(one.errors)
        return one

    way.new.append(load("/small", NEW_CONNECTIONS, NEW_S, close=True).requests_per_s)
    way.bulk.append(load("/large", BULK_CONNECTIONS, BULK_S).bytes_per_s)
    way.p99.append(load("/small", STEADY_CONNECTIONS, STEADY_S).p99_ms)


def report(found: dict[str, Way]) -> str:
    """A table of its own: ways down, figures across, each with its ratio to HAProxy and to plain routing."""
    head = ["way", "new connections", "/ HAProxy", "/ direct", "bulk", "/ HAProxy", "/ direct", "p99 of 1 KiB"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name, way in found.items():
        cells = [name if name in (ROUTED, HAPROXY) else f"`forward: {name}`"]
        for figures, write in (("new", per_second), ("bulk", gigabytes_per_second)):
            own = _median(getattr(way, figures))
            others = [_median(getattr(found[base], figures)) if base in found else 0.0 for base in (HAPROXY, ROUTED)]
            cells += [write(own), *(f"{own / other:.2f}" if other else "-" for other in others)]
        lines.append([*cells, milliseconds(_median(way.p99))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median(figures: Sequence[float]) -> float:
    return statistics.median(figures) if figures else 0.0


# ---------------------------------------------------------------- the network


@contextlib.contextmanager
def _network(plan: Plan, folder: Path) -> Iterator[tuple[Machine, list[str]]]:
    """Everything runs: the client's machine, and the ways that can be measured from it."""
    with World() as world, contextlib.ExitStack() as started:
        client, balancer, server = _machines(world)
        home = Path(started.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        started.enter_context(_serve(server, plan, home))
        config = home / "balancer"
        config.mkdir()
        ours = Balancer(_services(), config, under=["taskset", "-c", _cores(plan.proxy), *balancer.inside()])
        started.enter_context(ours)
        ways = [ROUTED, *FORWARDS]
        if find("haproxy"):
            started.enter_context(_haproxy(balancer, plan, home))
            ways.insert(1, HAPROXY)
        for name in ways:
            target = TARGETS[name]
            eventually(lambda target=target: _answers(client, target), 15.0, f"{name} answers")  # type: ignore[misc]
        yield client, ways


def _machines(world: World) -> tuple[Machine, Machine, Machine]:
    lan, farm = world.switch("lan"), world.switch("farm")
    client, balancer, router, server = (world.machine(name) for name in ("client", "balancer", "router", "server"))
    client.plug(lan, "eth0", "10.0.1.5/24")
    for machine, host in ((balancer, "1"), (router, "2")):
        machine.plug(lan, "eth0", f"10.0.1.{host}/24")
        machine.plug(farm, "eth1", f"10.0.2.{host}/24")
        machine.forwards()
    balancer.address("eth1", f"{SNAT_ADDRESS}/24")
    server.plug(farm, "eth0", f"{SERVER}/24", f"{BEHIND_ROUTER}/24")
    server.plug(lan, "eth1")
    for place in ("all", "eth0", "eth1"):
        server.sysctl(f"net.ipv4.conf.{place}.rp_filter", "0")
        server.sysctl(f"net.ipv4.conf.{place}.arp_ignore", "1")
        server.sysctl(f"net.ipv4.conf.{place}.arp_announce", "2")
    client.route(BEHIND_ROUTER, "10.0.1.2")
    server.route("default", "10.0.2.1")
    server.run("ip", "rule", "add", "from", BEHIND_ROUTER, "lookup", "101")
    server.run("ip", "route", "add", "10.0.1.0/24", "via", "10.0.2.2", "table", "101")
    _answer_past_us(server)
    return client, balancer, server


def _answer_past_us(server: Machine) -> None:
    """What has a service's address as its source goes to the client by the lan; the rest through the balancer."""
    server.address("eth1", "10.0.1.11/32")
    for forward in ("dsr", "tunnel"):
        server.address("lo", f"{VIPS[forward]}/32")
        server.run("ip", "rule", "add", "from", VIPS[forward], "lookup", "100")
    server.run("ip", "route", "add", "10.0.1.0/24", "dev", "eth1", "src", "10.0.1.11", "table", "100")
    words = ["id", str(VXLAN_NUMBER), "dstport", str(VXLAN_PORT), "local", SERVER, "nolearning"]
    server.run("ip", "link", "add", "mbvxlan", "address", tunnel_mac(SERVER), "type", "vxlan", *words)
    server.run("ip", "link", "set", "mbvxlan", "up")
    server.sysctl("net.ipv4.conf.mbvxlan.rp_filter", "0")


def _services() -> dict[str, Any]:
    check = {"type": "tcp", "interval_s": 1, "timeout_s": 1, "rise": 1, "fall": 3}
    services = {
        name: {
            "mode": "l4",
            "forward": name,
            "listen": f"{VIPS[name]}:{PORT}",
            "real_servers": ["server"],
            "ramp_s": 0,
            "check": check,
        }
        for name in FORWARDS
    }
    services["snat"]["snat_address"] = SNAT_ADDRESS
    return {"workers": 1, "real_servers": {"server": SERVER}, "services": services}


@contextlib.contextmanager
def _serve(server: Machine, plan: Plan, home: Path) -> Iterator[None]:
    web_files(home)
    frame = nginx_frame(home, max(1, len(plan.load) - 1), web_body(home, f"0.0.0.0:{PORT}"))
    with running(server.inside(*nginx_command(home, frame)), plan.load, home / "log"):
        yield


@contextlib.contextmanager
def _haproxy(balancer: Machine, plan: Plan, home: Path) -> Iterator[None]:
    file = home / "haproxy.cfg"
    file.write_text(f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option splice-auto
listen bench
    bind {TARGETS[HAPROXY]}:{PORT}
    server s1 {SERVER}:{PORT}
""")
    program = find("haproxy") or "haproxy"
    with running(balancer.inside(program, "-db", "-f", str(file)), plan.proxy, home / "haproxy.log"):
        yield


def _answers(client: Machine, target: str) -> bool:
    """Whether a connection from the client comes about.

    Raises:
        OSError: it does not.
    """
    client.connect(target, PORT, 1.0).close()
    return True


def _cores(cores: Sequence[int]) -> str:
    return ",".join(map(str, cores))
