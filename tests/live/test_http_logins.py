"""Nobody is answered as somebody else: pairs of users over every configuration that is accepted, all at once.

One balancer has a service for each way to know a client, with connections to servers of the client's own or shared, in
clear, with TLS that ends at the balancer, and with TLS that begins anew behind it. Users log in as with NTLM and
Kerberos. Meanwhile servers break connections, are switched off and on again, one is never there (each connect to it is
retried elsewhere), workers are killed and the configuration is reloaded. `MAILBALANCER_PAIRS=10000` is the promise.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import ssl
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority, Issued
from tests.support.logins import HOWS, Tally, User, logging_in, take_turns
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually
from tests.support.web import SecureWeb, Web

pytestmark = pytest.mark.live

PAIRS = int(os.environ.get("MAILBALANCER_PAIRS", "330"))
THREADS = 4
TIMEOUT_S = 60.0
PAIRS_PER_TROUBLE = 20
NAME = "mail.example.com"
KINDS: dict[str, dict[str, str] | None] = {
    "none": None,
    **{by: {"by": by} for by in ("source", "cookie", "super_http", "url", "host", "exchange")},
    **{by: {"by": by, "cookie": "sid"} for by in ("cookie_prefix", "server_cookie")},
    "header": {"by": "header", "header": "X-User"},
    "query": {"by": "query", "parameter": "user"},
}
CONNECTIONS = ("per_client", "shared")
WAYS = ("clear", "offload", "reencrypt")


class Site:
    """The real servers, each in clear and with TLS, and what the balancer's configuration says about them."""

    def __init__(self, stack: ExitStack, authority: Authority, issued: Issued) -> None:
        self.clear = [
            stack.enter_context(Web(name, logging_in(name, random.Random(seed), cookie=True)))
            for seed, name in enumerate(("ex1", "ex2"))
        ]
        self.secure = [stack.enter_context(SecureWeb(web.name, issued, web.handler)) for web in self.clear]
        self.ports: dict[str, tuple[int, bool]] = {}
        verify = {"ca": str(authority.file), "name": NAME}
        gone = free_port()
        services: dict[str, Any] = {}
        for kind, connections, way in itertools.product(KINDS, CONNECTIONS, WAYS):
            port = free_port()
            servers = self.secure if way == "reencrypt" else self.clear
            services[f"{kind}-{connections}-{way}"] = service = {
                "mode": "http",
                "listen": f"127.0.0.1:{port}",
                "persist": KINDS[kind] or "none",
                "server_connections": connections,
                "check": "none",
                "access_log": False,
                "real_servers": {web.name: web.port for web in servers} | {"gone": gone},
            }
            if way != "clear":
                service["client_tls"] = {"certificate": "mail"}
            if way == "reencrypt":
                service["server_tls"] = {"verify": verify}
            self.ports[f"{kind}-{connections}-{way}"] = port, way != "clear"
        self.config = {
            "certificates": {"mail": str(issued.pem)},
            "real_servers": dict.fromkeys(("ex1", "ex2", "gone"), "127.0.0.1"),
            "services": services,
        }


class Crowd:
    """Pairs of users, each pair at one service, the services in turn."""

    def __init__(self, site: Site, context: ssl.SSLContext) -> None:
        self._ports = list(site.ports.values())
        self._context = context
        self.tally = Tally()
        self.pairs = 0
        self._lock = threading.Lock()

    def pair_up(self, numbers: range) -> None:
        """Let the pairs with these numbers act, one after the other."""
        for number in numbers:
            rng = random.Random(number)
            port, tls = self._ports[number % len(self._ports)]
            met = take_turns([self._user(f"u{number}-{side}", port, tls, rng) for side in range(2)], rng)
            with self._lock:
                self.tally.add(met)
                self.pairs += 1

    def _user(self, name: str, port: int, tls: bool, rng: random.Random) -> User:
        fields = [f"User-Agent: {name}", f"X-User: {name}", f"X-AnchorMailbox: {name}"]
        return User(lambda: self._connect(port, tls), name, rng.choice(HOWS), f"/{name}?user={name}", fields)

    def _connect(self, port: int, tls: bool) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        return self._context.wrap_socket(sock, server_hostname=NAME) if tls else sock


class Trouble:
    """What befalls a site: each call is the next kind of it, and returns when it has happened."""

    def __init__(self, site: Site, balancer: Balancer) -> None:
        self._site, self._balancer = site, balancer
        self._kinds = itertools.cycle((self._switch_off, self._reload, self._kill_a_worker))
        self._turn = 0
        self.happened = 0

    def next(self) -> None:
        next(self._kinds)()
        self.happened += 1

    def _switch_off(self) -> None:
        self._turn += 1
        for web in (self._site.clear[self._turn % 2], self._site.secure[self._turn % 2]):
            web.stop()
            web.start()

    def _reload(self) -> None:
        for service in self._site.config["services"].values():
            service["connect_timeout_s"] = 3 + self._turn % 2
        self._balancer.reload(self._site.config)

    def _kill_a_worker(self) -> None:
        workers = self._balancer.worker_pids
        victim = workers[self._turn % len(workers)]
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(set(self._balancer.worker_pids) - {victim}) == 2, what="another worker in its place")


def test_nobody_is_answered_as_somebody_else(authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    with ExitStack() as stack:
        site = Site(stack, authority, certificate)
        balancer = stack.enter_context(Balancer(site.config, tmp_path))
        crowd = Crowd(site, authority.client_context())
        shares = [range(start, PAIRS, THREADS) for start in range(THREADS)]
        threads = [threading.Thread(target=crowd.pair_up, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        trouble = Trouble(site, balancer)
        for pairs in range(PAIRS_PER_TROUBLE, PAIRS, PAIRS_PER_TROUBLE):
            eventually(lambda least=pairs: crowd.pairs >= least, TIMEOUT_S, "users go on")
            trouble.next()
        for thread in threads:
            thread.join()
        tally = crowd.tally
        assert tally.wrong == []
        assert tally.right > PAIRS
        print(f"{PAIRS} pairs, {trouble.happened} troubles: {tally.right} right, {tally.other}")
        totals = eventually(lambda: settled(balancer), what="every login has ended")
        assert totals["pinned_reused"] == 0
        assert totals["reused"] > 0


def settled(balancer: Balancer) -> dict[str, int] | None:
    """Counts over all services, when no login is held any more."""
    services = balancer.status()["services"]
    totals = {key: sum(service[key] for service in services) for key in ("pinned", "reused", "pinned_reused")}
    return None if totals["pinned"] or sum(service["sessions"] for service in services) else totals
