"""Mail: messages a second and bytes a second through each proxy, in clear and with STARTTLS on both sides.

Decides: the three configurations and the load: Postfix's `smtp-source` against `smtp-sink` in clear; with STARTTLS,
which neither of them knows, clients and servers of `starttls`. mailbalancer speaks SMTP and TLS on both sides; HAProxy
passes bytes, so its clients and servers have one TLS session instead of two; nginx's mail proxy asks an HTTP service
where to go and passes bytes after MAIL, under TLS on the client's side only.
Refuses to know: the table.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench.machine import running
from tests.bench.proxies import HAPROXY, MAILBALANCER, NGINX, Running, listens, nginx_command, nginx_frame, serving
from tests.bench.secure import NAME, Papers
from tests.support.ports import free_port
from tests.support.tools import find
from tests.support.waiting import eventually

#: Below the table.
UNLIKE = (
    "Not the same work: mailbalancer has STARTTLS on both sides and verifies the server; HAProxy passes one TLS "
    "session through unseen; nginx has STARTTLS with clients and none with servers, and asks no other server when one "
    "refuses."
)
SMALL_BYTES, LARGE_BYTES = 4096, 10 * 1024 * 1024
SESSIONS = 20
PER_SESSION = 10
SENDERS = 4
MAIL_MODULE = Path("/usr/lib/nginx/modules/ngx_mail_module.so")  # Debian: libnginx-mod-mail


@dataclass(frozen=True, slots=True)
class Posting:
    """What a proxy is to do with mail: to which servers, and with which certificate where there is STARTTLS."""

    servers: tuple[int, ...]
    papers: Papers | None = None


def can_run(name: str) -> bool:
    """Whether this proxy and the load are installed."""
    return all(map(find, ("smtp-source", "smtp-sink"))) and (name != NGINX or MAIL_MODULE.exists())


@contextlib.contextmanager
def sink(cores: Sequence[int], folder: Path) -> Iterator[int]:
    """The server behind in clear. Its port."""
    port = free_port()
    user = ["-u", "postfix"] if _is_root() else []
    command = [find("smtp-sink") or "smtp-sink", *user, f"127.0.0.1:{port}", "1024"]
    with running(command, cores, folder / f"sink-{port}.log"):
        eventually(lambda: listens(port), what="smtp-sink listens")
        yield port


@contextlib.contextmanager
def secured_sinks(papers: Papers, cores: Sequence[int], folder: Path) -> Iterator[tuple[int, ...]]:
    """Two servers behind that offer STARTTLS, one process each. Their ports."""
    ports = free_port(), free_port()
    with contextlib.ExitStack() as processes:
        for port in ports:
            command = [sys.executable, "-m", "tests.bench.starttls", "serve", str(port), str(papers.pem)]
            processes.enter_context(running(command, cores, folder / f"sink-{port}.log"))
        eventually(lambda: all(listens(port) for port in ports), what="the servers with STARTTLS listen")
        yield ports


@contextlib.contextmanager
def mail_proxy(name: str, order: Posting, cores: Sequence[int], folder: Path) -> Iterator[Running]:
    """One proxy for mail, until the block ends."""
    with serving(name, lambda port, home: _COMMANDS[name](order, port, home), cores, folder) as proxy:
        yield proxy


def messages_per_s(port: int, cores: Sequence[int], seconds: float, *, together: bool) -> float:
    """Small messages a second; `together`: ten on each connection, else one."""
    sessions, count = (100, 100 * PER_SESSION) if together else (SESSIONS, 500)
    options = ["-d"] if together else []
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        _source(port, cores, [*options, "-s", str(sessions), "-m", str(count), "-l", str(SMALL_BYTES)])
        sent += count
    return sent / (time.monotonic() - began)


def bytes_per_s(port: int, cores: Sequence[int], seconds: float) -> float:
    """Large messages, four at once."""
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        _source(port, cores, ["-s", "4", "-m", "16", "-l", str(LARGE_BYTES)])
        sent += 16 * LARGE_BYTES
    return sent / (time.monotonic() - began)


def secured_messages_per_s(port: int, papers: Papers, cores: Sequence[int], seconds: float, *, together: bool) -> float:
    """The same with STARTTLS, from several processes."""
    each = str(PER_SESSION if together else 1)
    command = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "tests.bench.starttls", "send"]
    command += [str(port), str(papers.authority), str(seconds), each]
    senders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(SENDERS)]
    said = [sender.communicate(timeout=seconds + 20)[0] for sender in senders]
    if any(sender.returncode for sender in senders):
        raise RuntimeError(f"a sender with STARTTLS failed: {said}")
    return sum(map(float, said))


def _source(port: int, cores: Sequence[int], options: Sequence[str]) -> None:
    command = ["taskset", "-c", ",".join(map(str, cores)), find("smtp-source") or "smtp-source", *options]
    done = subprocess.run(
        [*command, "-t", "to@example.com", "-f", "from@example.com", f"127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"smtp-source failed: {done.stderr[-500:]}")


def _is_root() -> bool:
    return subprocess.run(["id", "-u"], capture_output=True, text=True, check=True).stdout.strip() == "0"


# ------------------------------------------------------------ the same thing in three languages


def _mailbalancer(order: Posting, port: int, home: Path) -> list[str]:
    names = {f"server{at}": server for at, server in enumerate(order.servers)}
    service: dict[str, object] = {
        "mode": "smtp",
        "hostname": NAME,
        "listen": f"127.0.0.1:{port}",
        "schedule": "least_connections",
        "check": "none",
        "real_servers": names,
    }
    certificates = {}
    if order.papers is not None:
        certificates = {"bench": str(order.papers.pem)}
        service["client_tls"] = {"certificate": "bench"}
        service["server_tls"] = {
            "starttls": "require",
            "verify": {"ca": str(order.papers.authority), "name": NAME},
        }
    config = {
        "version": 1,
        "workers": 1,
        "user": "",
        "control_socket": str(home / "control"),
        "state_file": str(home / "state.json"),
        "log": {"sessions": False, "level": "warning"},
        "certificates": certificates,
        "real_servers": dict.fromkeys(names, "127.0.0.1"),
        "services": {"bench": service},
    }
    file = home / "mailbalancer.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(file)]


def _haproxy(order: Posting, port: int, home: Path) -> list[str]:
    servers = "\n".join(f"    server s{at} 127.0.0.1:{server}" for at, server in enumerate(order.servers))
    file = home / "haproxy.cfg"
    file.write_text(f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 300s
    timeout server 300s
listen bench
    bind 127.0.0.1:{port}
    balance leastconn
{servers}
""")
    return [find("haproxy") or "haproxy", "-db", "-f", str(file)]


def _nginx(order: Posting, port: int, home: Path) -> list[str]:
    guide, pem = free_port(), order.papers.pem if order.papers is not None else None
    tls = f"ssl_certificate {pem}; ssl_certificate_key {pem}; starttls on;" if pem is not None else ""
    body = f"""mail {{
    server_name {NAME};
    auth_http 127.0.0.1:{guide}/;
    server {{ listen 127.0.0.1:{port}; protocol smtp; smtp_auth none; xclient off; {tls} }}
}}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{guide};
        location / {{
            add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port {order.servers[0]};
            return 200;
        }}
    }}
}}"""
    return nginx_command(home, nginx_frame(home, 1, body, f"load_module {MAIL_MODULE};"))


_COMMANDS = {MAILBALANCER: _mailbalancer, HAPROXY: _haproxy, NGINX: _nginx}
