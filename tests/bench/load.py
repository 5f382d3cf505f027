"""The load: nginx as the server behind, and wrk as the clients. HTTP goes through a TCP proxy like any other bytes.

Decides: what is sent, for how long, and that wrong answers are shown and never counted as speed.
Refuses to know: which proxy is between.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import running
from tests.bench.proxies import listens, nginx_command, nginx_frame
from tests.support.ports import free_port
from tests.support.tools import find
from tests.support.waiting import eventually

SMALL_BYTES, LARGE_BYTES = 1024, 10 * 1024 * 1024

#: Run by wrk at its end: the exact figures instead of the rounded ones it prints for people.
REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('JSON{"requests":%d,"bytes":%d,"duration_us":%d,"p99_us":%d,"errors":%d,"detail":"%s"}',
    summary.requests, summary.bytes, summary.duration, latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout,
    string.format("connect %d, read %d, write %d, status %d, timeout %d",
      e.connect, e.read, e.write, e.status, e.timeout)))
end
"""

#: For wrk: no head comes twice. A browser's fields, and a target and a cookie of each request's own.
VARYING = """
local threads, n = 0, 0
setup = function(thread)
  threads = threads + 1
  thread:set("me", threads .. "x")
end
request = function()
  n = n + 1
  return "GET /small?item=" .. me .. n .. " HTTP/1.1\\r\\nHost: bench.example.com\\r\\n" ..
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\\r\\n" ..
    "Accept: text/html,application/xhtml+xml,*/*;q=0.8\\r\\nAccept-Language: en\\r\\n" ..
    "Referer: https://bench.example.com/" .. n .. "\\r\\nCookie: sid=" .. me .. n .. "; theme=dark\\r\\n\\r\\n"
end
"""

#: For wrk: requests come at random, a thread's next one a mean of so many milliseconds after its last.
PACED = """
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment; int clock_gettime(int clock, moment *now);")
local moment, due = ffi.new("moment"), 0
delay = function()
  ffi.C.clock_gettime(1, moment)
  local now = tonumber(moment.s) * 1000 + tonumber(moment.ns) / 1e6
  if due < now - 50 then due = now end
  due = due - %f * math.log(1 - math.random())
  return math.max(0, math.floor(due - now + 0.5))
end
"""
#: Threads of wrk, where there are cores for them.
THREADS = 2


@dataclass(frozen=True, slots=True)
class Burst:
    """What one run of wrk measured."""

    requests_per_s: float
    bytes_per_s: float
    p99_ms: float
    seconds: float
    errors: str  # empty: none


@contextlib.contextmanager
def web_server(cores: Sequence[int], folder: Path) -> Iterator[int]:
    """The server behind the proxies: `/small` is 1 KiB, `/large` 10 MiB. Its port."""
    port = free_port()
    home = folder / f"backend-{port}"
    home.mkdir()
    web_files(home)
    body = web_body(home, f"127.0.0.1:{port}")
    command = nginx_command(home, nginx_frame(home, max(1, len(cores) - 1), body))
    with running(command, cores, home / "log"):
        eventually(lambda: listens(port), what="the backend listens")
        yield port


def web_files(home: Path) -> None:
    """What is asked for: `/small` is 1 KiB, `/large` 10 MiB; `/quick`, as small, is no file."""
    (home / "small").write_bytes(b"x" * SMALL_BYTES)
    with (home / "large").open("wb") as large:
        large.truncate(LARGE_BYTES)


def web_body(home: Path, listen: str) -> str:
    """The part of an nginx configuration that serves them."""
    temporary = "".join(f"{kind}_temp_path {home}/t;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"""http {{
    access_log off;
    {temporary}
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10 inactive=600s;
    open_file_cache_valid 600s;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    server {{
        listen {listen} backlog=4096; root {home};
        location = /quick {{ return 200 {"x" * SMALL_BYTES}; }}
    }}
}}"""


def burst(
    port: int,
    path: str,
    connections: int,
    cores: Sequence[int],
    folder: Path,
    duration_s: float,
    close: bool = False,
    scheme: str = "http",
    host: str = "127.0.0.1",
    under: Sequence[str] = (),
    script: str = "",
) -> Burst:
    """Ask for `path` over and over for `duration_s`.

    Args:
        close: each request on a connection of its own.
        under: a command that runs the load in its own place.
        script: more for wrk to do: VARYING, or what `paced` makes.
    """
    lua = folder / "load.lua"
    lua.write_text(script + REPORT)
    threads = min(THREADS, len(cores), connections)
    command = [
        *under,
        *("taskset", "-c", ",".join(map(str, cores))),
        *(find("wrk") or "wrk", "-t", str(threads), "-c", str(connections), "-d", f"{max(1, round(duration_s))}s"),
        *("--latency", "--timeout", "5s", "-s", str(lua)),
        *(("-H", "Connection: close") if close else ()),
        f"{scheme}://{host}:{port}{path}",
    ]
    said = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 20, check=False)
    if "JSON" not in said.stdout:
        raise RuntimeError(f"wrk failed: {said.stdout[-500:]}{said.stderr[-500:]}")
    figures = json.loads(said.stdout.partition("JSON")[2])
    seconds = figures["duration_us"] / 1e6
    return Burst(
        requests_per_s=figures["requests"] / seconds,
        bytes_per_s=figures["bytes"] / seconds,
        p99_ms=figures["p99_us"] / 1000,
        seconds=seconds,
        errors=figures["detail"] if figures["errors"] else "",
    )


def paced(requests_per_s: float, cores: Sequence[int]) -> str:
    """A script with which `burst` on these cores asks so often, at random moments, whatever the answers take."""
    return PACED % (1000 * min(THREADS, len(cores)) / requests_per_s)
