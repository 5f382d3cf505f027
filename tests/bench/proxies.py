"""The three proxies, each told the same thing in its own words: TCP from one port to some servers, nothing logged.

Decides: their configurations, and when a proxy counts as ready. What is not said in them is the default of each.
Refuses to know: what will be measured through them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench.machine import running
from tests.support.ports import free_port
from tests.support.tools import find
from tests.support.waiting import eventually

MAILBALANCER, HAPROXY, NGINX = "mailbalancer", "HAProxy", "nginx"
READY_TIMEOUT_S = 15.0
CHECK_INTERVAL_S = 0.5
STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # Debian: libnginx-mod-stream


@dataclass(frozen=True, slots=True)
class Order:
    """What a proxy is to do."""

    servers: tuple[int, ...]  # ports on 127.0.0.1
    workers: int = 1
    ramp_s: float = 0.0  # 0: no ramp
    splice: bool = False  # HAProxy only: `option splice-auto`, which it does not use by itself


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that serves."""

    name: str
    port: int
    pid: int


def available() -> dict[str, str]:
    """The proxies that can run here, with their versions."""
    found = {MAILBALANCER: _version([sys.executable, "-m", "mailbalancer.cli", "--version"])}
    if find("haproxy"):
        found[HAPROXY] = _version([_program("haproxy"), "-v"])
    if find("nginx") and STREAM_MODULE.exists():
        found[NGINX] = _version([_program("nginx"), "-v"])
    return found


def missing() -> list[str]:
    """Debian packages without which a column is left out, or nothing can be measured at all."""
    wanted = {"haproxy": find("haproxy"), "nginx": find("nginx"), "wrk": find("wrk")}
    absent = [package for package, path in wanted.items() if path is None]
    return absent + ([] if STREAM_MODULE.exists() else ["libnginx-mod-stream"])


@contextlib.contextmanager
def proxy(name: str, order: Order, cores: Sequence[int], folder: Path) -> Iterator[Running]:
    """One proxy, started on these cores, until the block ends."""
    with serving(name, lambda port, home: _COMMANDS[name](order, port, home), cores, folder) as proxy:
        yield proxy


@contextlib.contextmanager
def serving(
    name: str, write: Callable[[int, Path], list[str]], cores: Sequence[int], folder: Path, port: int = 0
) -> Iterator[Running]:
    """A program that listens on a port (0: a free one), with a folder of its own. `write` makes its configuration and
    its command."""
    home = folder / f"{name}-{free_port()}"  # a fresh name: every start gets a folder of its own
    home.mkdir()
    port = port or free_port()
    command = write(port, home)
    log = home / "log"
    with running(command, cores, log) as process:
        try:
            eventually(lambda: _answers(process, port), READY_TIMEOUT_S, f"{name} listens")
        except (AssertionError, RuntimeError) as error:
            raise RuntimeError(f"{name} did not start: {error}\n{log.read_text(errors='replace')[-4000:]}") from None
        yield Running(name, port, process.pid)
    shutil.rmtree(home, ignore_errors=True)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on this port.

    Raises:
        OSError: nobody does.
    """
    socket.create_connection(("127.0.0.1", port), 1).close()
    return True


def nginx_frame(home: Path, workers: int, body: str, modules: str = "") -> str:
    """What every nginx here has in common: its files in `home`, its own user, nothing logged."""
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""{modules}
{user}
daemon off;
pid {home}/pid;
error_log {home}/error.log error;
worker_processes {workers};
worker_rlimit_nofile 20000;
events {{ worker_connections 9000; }}
{body}
"""


def nginx_command(home: Path, config: str) -> list[str]:
    """nginx in the foreground, told to touch nothing outside `home`."""
    file = home / "nginx.conf"
    file.write_text(config)
    return [_program("nginx"), "-p", str(home), "-e", str(home / "error.log"), "-c", str(file)]


def _mailbalancer(order: Order, port: int, home: Path) -> list[str]:
    names = {f"server{index}": server for index, server in enumerate(order.servers)}
    config = {
        "version": 1,
        "workers": order.workers,
        "user": "",
        "control_socket": str(home / "control"),
        "state_file": str(home / "state.json"),
        "log": {"sessions": False, "level": "warning"},
        "real_servers": dict.fromkeys(names, "127.0.0.1"),
        "services": {
            "bench": {
                "mode": "tcp",
                "listen": f"127.0.0.1:{port}",
                "schedule": "least_connections",
                "ramp_s": order.ramp_s,
                "check": {"type": "tcp", "interval_s": CHECK_INTERVAL_S, "timeout_s": 2, "rise": 1, "fall": 1},
                "real_servers": names,
            }
        },
    }
    file = home / "mailbalancer.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(file)]


def _haproxy(order: Order, port: int, home: Path) -> list[str]:
    slow = f" slowstart {order.ramp_s:g}s" if order.ramp_s else ""
    check = f" check inter {CHECK_INTERVAL_S * 1000:g}ms rise 1 fall 1{slow}"
    servers = "\n".join(f"    server s{i} 127.0.0.1:{p}{check}" for i, p in enumerate(order.servers))
    splice = "option splice-auto" if order.splice else ""
    # its plain check ends half-open, unseen by the server, and the ramp is timed from the first check that was seen
    seen = r"option tcp-check; tcp-check send check\n; tcp-check expect string ok" if order.ramp_s else ""
    file = home / "haproxy.cfg"
    file.write_text(f"""
global
    nbthread {order.workers}
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    retries 3
    option redispatch 1
    {splice}
listen bench
    bind 127.0.0.1:{port}
    balance leastconn
    {seen.replace("; ", chr(10) + "    ")}
{servers}
""")
    return [_program("haproxy"), "-db", "-f", str(file)]


def _nginx(order: Order, port: int, home: Path) -> list[str]:
    servers = " ".join(f"server 127.0.0.1:{p};" for p in order.servers)
    reuse = " reuseport" if order.workers > 1 else ""
    body = f"""stream {{
    upstream servers {{ least_conn; {servers} }}
    server {{ listen 127.0.0.1:{port}{reuse}; proxy_pass servers; proxy_timeout 300s; }}
}}"""
    return nginx_command(home, nginx_frame(home, order.workers, body, f"load_module {STREAM_MODULE};"))


_COMMANDS: dict[str, Callable[[Order, int, Path], list[str]]] = {
    MAILBALANCER: _mailbalancer,
    HAPROXY: _haproxy,
    NGINX: _nginx,
}


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"ended with exit code {process.returncode}")
    return listens(port)


def _program(name: str) -> str:
    path = find(name)
    assert path is not None, f"{name} is not installed"
    return path


def _version(command: list[str]) -> str:
    """The first word with a digit and a dot in what a program says of its version."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    words = (said.stdout + said.stderr).replace("/", " ").split()
    return next((w.strip(",") for w in words if w[0].isdigit() and "." in w), "unknown version")
