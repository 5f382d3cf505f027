"""The price of looking: a scrape of a large configuration, the page with viewers, and what mail notices of both.

Decides: how large the large configuration is, how many look, and that it is measured against the same load unwatched,
in turns. There is nothing to compare with: the figures are ours alone.
Refuses to know: what the page shows.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.load import Burst, burst
from tests.bench.machine import Cores
from tests.bench.proxies import Running, serving
from tests.support.ports import free_port

SERVICES, REAL_SERVERS, WORKERS = 50, 20, 4
#: Enough that every real server of every service has been used, and has histograms of its own.
SESSIONS_EACH = 2 * REAL_SERVERS
SCRAPES = 5
VIEWERS = 3
CONNECTIONS = 32
BURST_S = 1
PAGE_S = 1.5
WARM_S = 0.5
TURNS = 3


@dataclass(frozen=True, slots=True)
class Looked:
    """What looking costs.

    Attributes:
        scrape_ms, scrape_bytes: `/metrics` of the large configuration, the median.
        scrape_cpu_ms: CPU time of the supervisor for one, which does not depend on what else the machine does.
        page_core: share of one core that `VIEWERS` of the same configuration's page take.
        p99_ms: of requests while nobody looks, and while `VIEWERS` and a scrape each second do.
        core: share of one core that the supervisor takes, in the same two cases.
    """

    scrape_ms: float
    scrape_bytes: int
    scrape_cpu_ms: float
    page_core: float
    p99_ms: tuple[float, float]
    core: tuple[float, float]

    def words(self) -> str:
        """For the report."""
        alone, watched = (f"{p99:.2f} ms" for p99 in self.p99_ms)
        idle, busy = (f"{share * 100:.1f} %" for share in self.core)
        return (
            f"Scrape of /metrics, {SERVICES} services × {REAL_SERVERS} real servers × {WORKERS} workers: "
            f"{self.scrape_ms:.0f} ms ({self.scrape_cpu_ms:.0f} ms of CPU), {self.scrape_bytes / 1e6:.1f} MB; "
            f"{VIEWERS} viewers of its page take "
            f"{self.page_core * 100:.1f} % of a core.\n"
            f"One service, {VIEWERS} viewers and a scrape each second: p99 {watched}, without them {alone}; "
            f"supervisor {busy} of a core, without them {idle}."
        )


def look(cores: Cores, folder: Path, backend: int, say: Callable[[str], None]) -> Looked:
    """Measure all of it, in about 15 s.

    Args:
        backend: port of the web server behind.
    """
    say(f"scrape of {SERVICES} services with {REAL_SERVERS} real servers each")
    scrapes, scrape_cpu_s, page_core = _scrapes(cores, folder)
    say(f"{VIEWERS} viewers and scrapes beside load")
    alone, watched = _with_and_without(cores, folder, backend)
    return Looked(
        statistics.median(took_ms for took_ms, _ in scrapes),
        scrapes[-1][1],
        scrape_cpu_s * 1000,
        page_core,
        (statistics.median(b.p99_ms for b, _ in alone), statistics.median(b.p99_ms for b, _ in watched)),
        (statistics.median(share for _, share in alone), statistics.median(share for _, share in watched)),
    )


# ---------------------------------------------------------------- a scrape


def _scrapes(cores: Cores, folder: Path) -> tuple[list[tuple[float, int]], float, float]:
    """Milliseconds and bytes of each, CPU seconds of one, and the share of a core that the page takes."""
    door = free_port()
    ports = [free_port() for _ in range(SERVICES)]
    with _greeter() as behind:
        members = {f"ex{number}": behind for number in range(REAL_SERVERS)}
        machines = {f"ex{number}": f"127.0.0.{number + 1}" for number in range(REAL_SERVERS)}
        config = _config(door, machines, {f"service{at}": _service(port, members) for at, port in enumerate(ports)})
        with _running(config, ports[-1], WORKERS, cores.scaling_two.proxy, folder) as running:
            for port in ports:
                for _ in range(SESSIONS_EACH):
                    with socket.create_connection(("127.0.0.1", port), 5) as client:
                        client.recv(100)
            before = _cpu_s(running.pid)
            scrapes = [_scrape(door) for _ in range(SCRAPES)]
            cpu_s = (_cpu_s(running.pid) - before) / SCRAPES
            return scrapes, cpu_s, _page_core(door, running.pid)


def _page_core(door: int, pid: int) -> float:
    """What the page's viewers cost, beyond what the supervisor takes without them."""
    shares = []
    for viewers in (0, VIEWERS):
        with _viewers(door, "service0", viewers):
            time.sleep(WARM_S)
            before, began = _cpu_s(pid), time.monotonic()
            time.sleep(PAGE_S)
            shares.append((_cpu_s(pid) - before) / (time.monotonic() - began))
    return max(0.0, shares[1] - shares[0])


def _scrape(door: int) -> tuple[float, int]:
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", door, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"/metrics answers {answer.status}")
    return (time.perf_counter() - began) * 1000, len(content)


@contextlib.contextmanager
def _greeter() -> Iterator[int]:
    """A server on every loopback address that says one word and closes."""
    with socket.create_server(("0.0.0.0", 0), backlog=1024) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    with client, contextlib.suppress(OSError):
                        client.send(b"220 ready\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


# ---------------------------------------------------------------- viewers beside load


def _with_and_without(
    cores: Cores, folder: Path, backend: int
) -> tuple[list[tuple[Burst, float]], list[tuple[Burst, float]]]:
    """Bursts, each with the supervisor's share of a core: unwatched, and watched."""
    door, port = free_port(), free_port()
    service = {**_service(port, {"server": backend}), "check": {"type": "tcp", "interval_s": 5}}
    config = _config(door, {"server": "127.0.0.1"}, {"bench": service})
    alone, watched = [], []
    with _running(config, port, 1, cores.scaling_two.proxy, folder) as running:

        def once() -> tuple[Burst, float]:
            before, began = _cpu_s(running.pid), time.monotonic()
            result = burst(port, "/small", CONNECTIONS, cores.scaling_two.load, folder, BURST_S)
            return result, (_cpu_s(running.pid) - before) / (time.monotonic() - began)

        burst(port, "/small", CONNECTIONS, cores.scaling_two.load, folder, 1)
        for _ in range(TURNS):
            alone.append(once())
            with _viewers(door, "bench", VIEWERS, scrapes=True):
                watched.append(once())
    return alone, watched


@contextlib.contextmanager
def _viewers(door: int, service: str, viewers: int, *, scrapes: bool = False) -> Iterator[None]:
    """Some who look at a service on the page, and perhaps somebody who scrapes each second."""
    over = threading.Event()
    threads = [threading.Thread(target=_view, args=(door, service, over), daemon=True) for _ in range(viewers)]
    if scrapes:
        threads.append(threading.Thread(target=_scrape_on, args=(door, over), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


def _view(door: int, service: str, over: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", door), 5) as page:
        page.sendall(f"GET /api/v1/live?service={service} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if not page.recv(65536).startswith(b"HTTP/1.1 200 "):
            raise RuntimeError("the page's feed is not served")
        while not over.is_set():
            page.recv(65536)


def _scrape_on(door: int, over: threading.Event) -> None:
    while not over.wait(1.0):
        _scrape(door)


def _cpu_s(pid: int) -> float:
    """CPU time of one process, without its children (proc(5) `schedstat`, in nanoseconds)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


# ---------------------------------------------------------------- the balancer


def _service(port: int, members: dict[str, int]) -> dict[str, Any]:
    listen = f"127.0.0.1:{port}"
    return {"mode": "tcp", "listen": listen, "schedule": "round_robin", "check": "none", "real_servers": members}


def _config(door: int, machines: dict[str, str], services: dict[str, Any]) -> dict[str, Any]:
    log = {"sessions": False, "level": "warning"}
    admin = {"listen": f"127.0.0.1:{door}"}
    return {"version": 1, "user": "", "admin": admin, "log": log, "real_servers": machines, "services": services}


@contextlib.contextmanager
def _running(config: dict[str, Any], port: int, workers: int, cores: Sequence[int], folder: Path) -> Iterator[Running]:
    """The balancer with this configuration, ready when `port` answers."""

    def command(_: int, home: Path) -> list[str]:
        files = {"control_socket": str(home / "control"), "state_file": str(home / "state.json"), "workers": workers}
        file = home / "mailbalancer.yaml"
        file.write_text(yaml.safe_dump({**config, **files}, sort_keys=False))
        return [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(file)]

    with serving("mailbalancer", command, cores, folder, port) as running:
        yield running
