"""HTTP and HTTPS: requests, handshakes, bulk through TLS, and what an idle TLS connection costs.

Decides: the three configurations, alike in what they do (a cookie for persistence, X-Forwarded-For, the same
certificate, servers verified where TLS begins anew), and how handshakes are counted: by several `openssl s_time`.
Refuses to know: the table.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.bench.idle import REQUEST, Cost
from tests.bench.load import LARGE_BYTES
from tests.bench.machine import memory, running
from tests.bench.proxies import HAPROXY, MAILBALANCER, NGINX, Running, listens, nginx_command, nginx_frame, serving
from tests.support.certs import Authority
from tests.support.ports import free_port
from tests.support.tools import find
from tests.support.waiting import eventually

NAME = "bench.example.com"
IDLE = 1000
AT_ONCE = 50
CLIENTS = 3


@dataclass(frozen=True, slots=True)
class Papers:
    """Certificate and authority, for both sides. `pem` holds key and chain."""

    pem: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class Secured:
    """What a proxy is to do with HTTP. `server` speaks TLS when `reencrypts`."""

    server: int
    papers: Papers
    tls: bool
    reencrypts: bool = False
    workers: int = 1


def papers(folder: Path) -> Papers:
    """A certificate for both sides; P-256, as most are today."""
    authority = Authority(folder)
    pem = authority.issue(NAME).pem
    pem.chmod(0o600)
    return Papers(pem, authority.file)


@contextlib.contextmanager
def tls_server(certificate: Papers, cores: Sequence[int], folder: Path) -> Iterator[int]:
    """The server behind where TLS begins anew. Its port."""
    port = free_port()
    home = folder / f"secure-{port}"
    home.mkdir()
    with (home / "large").open("wb") as large:
        large.truncate(LARGE_BYTES)
    body = f"""http {{
    access_log off;
    {_temporary(home)}
    keepalive_requests 100000000;
    server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {certificate.pem}; ssl_certificate_key {certificate.pem};
        root {home};
    }}
}}"""
    command = nginx_command(home, nginx_frame(home, max(1, len(cores) - 1), body))
    with running(command, cores, home / "log"):
        eventually(lambda: listens(port), what="the TLS server listens")
        yield port


@contextlib.contextmanager
def http_proxy(name: str, order: Secured, cores: Sequence[int], folder: Path) -> Iterator[Running]:
    """One proxy that speaks HTTP, until the block ends."""
    with serving(name, lambda port, home: _COMMANDS[name](order, port, home), cores, folder) as proxy:
        yield proxy


def handshakes(port: int, cores: Sequence[int], seconds: int, *, resumed: bool) -> float:
    """New TLS connections a second, full or resumed, from several clients at once."""
    command = [
        *("taskset", "-c", ",".join(map(str, cores)), find("openssl") or "openssl", "s_time"),
        *("-connect", f"127.0.0.1:{port}", "-reuse" if resumed else "-new", "-time", str(seconds), "-tls1_2"),
        *("-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"),
    ]
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(CLIENTS)
    ]
    said = [client.communicate(timeout=seconds + 20)[0] for client in clients]
    found = [re.search(r"([0-9]+) connections in ([0-9]+) real seconds", text) for text in said]
    if not all(found):
        raise RuntimeError(f"openssl s_time failed: {said}")
    return sum(int(one.group(1)) / max(1, int(one.group(2))) for one in found if one)


def idle_tls_cost(proxy: Running, certificate: Papers) -> Cost:
    """What an idle TLS connection costs that has had one answer."""
    context = ssl.create_default_context(cafile=str(certificate.authority))
    with contextlib.ExitStack() as clients:
        for _ in range(AT_ONCE):  # what is made once belongs to nobody
            clients.enter_context(_asked(context, proxy.port))
        before = memory(proxy.pid)
        for _ in range(IDLE):
            clients.enter_context(_asked(context, proxy.port))
        after = memory(proxy.pid)
    return Cost((after.pss - before.pss) / IDLE, (after.rss - before.rss) / IDLE)


def _asked(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname=NAME)
    tls.sendall(REQUEST)
    received = b""
    while not received.partition(b"\r\n\r\n")[2].endswith(b"x" * 1024):
        data = tls.recv(4096)
        if not data:
            raise RuntimeError("a connection was closed before it was answered")
        received += data
    return tls


# ------------------------------------------------------------ the same thing in three languages


def _mailbalancer(order: Secured, port: int, home: Path) -> list[str]:
    service: dict[str, object] = {
        "mode": "http",
        "listen": f"127.0.0.1:{port}",
        "persist": {"by": "cookie", "key_file": str(home / "keys")},
        "access_log": False,
        "check": "none",
        "real_servers": {"server": order.server},
    }
    if order.tls:
        service["client_tls"] = {"certificate": "bench"}
    if order.reencrypts:
        service["server_tls"] = {"verify": {"ca": str(order.papers.authority), "name": NAME}}
    config = {
        "version": 1,
        "workers": order.workers,
        "user": "",
        "control_socket": str(home / "control"),
        "state_file": str(home / "state.json"),
        "log": {"sessions": False, "level": "warning"},
        "certificates": {"bench": str(order.papers.pem)},
        "real_servers": {"server": "127.0.0.1"},
        "services": {"bench": service},
    }
    file = home / "mailbalancer.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(file)]


def _haproxy(order: Secured, port: int, home: Path) -> list[str]:
    bind = f" ssl crt {order.papers.pem} alpn http/1.1" if order.tls else ""
    server = f" ssl verify required ca-file {order.papers.authority} sni str({NAME})" if order.reencrypts else ""
    file = home / "haproxy.cfg"
    file.write_text(f"""
global
    nbthread {order.workers}
    maxconn 4000
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    option forwardfor
    cookie SRV insert indirect nocache
listen bench
    bind 127.0.0.1:{port}{bind}
    server s0 127.0.0.1:{order.server} cookie s0{server}
""")
    return [find("haproxy") or "haproxy", "-db", "-f", str(file)]


def _nginx(order: Secured, port: int, home: Path) -> list[str]:
    pem = order.papers.pem
    listen = f"listen 127.0.0.1:{port};"
    if order.tls:
        listen = f"""listen 127.0.0.1:{port} ssl;
        ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_session_cache shared:bench:10m;"""
    scheme, verified = "http", ""
    if order.reencrypts:
        scheme = "https"
        verified = f"""proxy_ssl_verify on; proxy_ssl_trusted_certificate {order.papers.authority};
            proxy_ssl_name {NAME}; proxy_ssl_server_name on;"""
    body = f"""http {{
    access_log off;
    {_temporary(home)}
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    proxy_max_temp_file_size 0;
    map $cookie_srv $fresh {{ "" "srv=s0; Path=/; HttpOnly"; default ""; }}
    upstream servers {{ server 127.0.0.1:{order.server}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        {listen}
        location / {{
            proxy_pass {scheme}://servers; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            add_header Set-Cookie $fresh;
            {verified}
        }}
    }}
}}"""
    return nginx_command(home, nginx_frame(home, 1, body))


_COMMANDS = {MAILBALANCER: _mailbalancer, HAPROXY: _haproxy, NGINX: _nginx}


def _temporary(home: Path) -> str:
    return "".join(f"{kind}_temp_path {home}/t;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
