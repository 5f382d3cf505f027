"""Sessions are resumed on whichever worker the client lands: real forks, `openssl s_client` as the client.

The workers here are children of the test that hold the pool as the supervisor's children do.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailbalancer.model import ClientTls
from mailbalancer.tls.context_pool import NOWHERE, ContextPool
from mailbalancer.tls.material import Material
from mailbalancer.tls.offer import Offer
from tests.support.certs import Authority
from tests.support.tools import require
from tests.tls.handshake import material

TLS = ClientTls(("mail",))
VERSIONS = pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])


class Worker:
    """A forked child that serves one offer, and shows other certificates when it is told to."""

    def __init__(self, pool: ContextPool, place: int, generations: list[list[Material]]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._told, tell = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._told.close()
                signal.alarm(60)
                _serve(listener, tell, Offer(pool.take(place)), generations)
            finally:
                os._exit(1)
        listener.close()
        tell.close()

    def reload(self) -> None:
        """Returns when the next generation is shown."""
        self._told.settimeout(10)
        self._told.sendall(b"r")
        assert self._told.recv(1) == b"d"

    def end(self) -> None:
        self._told.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _serve(listener: socket.socket, told: socket.socket, offer: Offer, generations: list[list[Material]]) -> None:
    waiting = iter(generations)
    offer.show(TLS, next(waiting))
    while True:
        ready, _, _ = select.select([listener, told], [], [])
        if told in ready:
            if not told.recv(1):
                return
            offer.show(TLS, next(waiting))
            told.sendall(b"d")
        if listener in ready:
            sock, _ = listener.accept()
            sock.settimeout(10)
            try:
                with offer.context.wrap_socket(sock, server_side=True) as connection:
                    connection.recv(16)
                    connection.sendall(b"x")
            except OSError:
                sock.close()


@pytest.fixture
def workers() -> Iterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def fork(pool: ContextPool, place: int, *generations: list[Material]) -> Worker:
        made.append(Worker(pool, place, list(generations)))
        return made[-1]

    yield fork
    for worker in made:
        worker.end()


def connect(worker: Worker, version: str, name: str, *, save: Path | None = None, resume: Path | None = None) -> str:
    """Whether the session was "New" or "Reused", as the client saw it."""
    command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{worker.port}", "-servername", name, version]
    command += ["-ign_eof"]
    command += ["-sess_out", str(save)] if save else []
    command += ["-sess_in", str(resume)] if resume else []
    done = subprocess.run(command, input="hello\n", capture_output=True, text=True, timeout=20, check=False)
    return next(line.split(",")[0] for line in done.stdout.splitlines() if line.startswith(("New,", "Reused,")))


@pytest.fixture(scope="module")
def mail(authority: Authority) -> Material:
    return material(authority.issue("mail.example.com"), "mail")


@pytest.fixture(scope="module")
def owa(authority: Authority) -> Material:
    return material(authority.issue("owa.example.com"), "owa")


@pytest.fixture(scope="module")
def renewed(authority: Authority) -> list[Material]:
    """New certificates for both names, with another kind of key."""
    return [material(authority.issue(f"{name}.example.com", rsa_bits=2048), name) for name in ("mail", "owa")]


@VERSIONS
@pytest.mark.parametrize("name", ["mail.example.com", "owa.example.com"])
def test_resumed_on_another_worker_and_after_a_reload(
    workers: Callable[..., Worker],
    tmp_path: Path,
    mail: Material,
    owa: Material,
    renewed: list[Material],
    version: str,
    name: str,
) -> None:
    pool = ContextPool(2)
    place = pool.place(["owa"])["owa"]
    one, two = (workers(pool, place, [mail, owa], renewed) for _ in range(2))
    session = tmp_path / "session"
    assert connect(one, version, name, save=session) == "New"
    assert [connect(worker, version, name, resume=session) for worker in (one, two)] == ["Reused", "Reused"]
    two.reload()
    assert connect(two, version, name, resume=session) == "Reused"
    after = tmp_path / "after"
    assert connect(two, version, name, save=after) == "New"
    assert connect(one, version, name, resume=after) == "Reused"  # which has not reloaded yet
    later = workers(pool, place, renewed)
    assert connect(later, version, name, resume=session) == "Reused"


@VERSIONS
def test_a_service_added_after_the_fork(
    workers: Callable[..., Worker], tmp_path: Path, mail: Material, version: str
) -> None:
    """Each worker takes the place, blank until then, for itself."""
    pool = ContextPool(2)
    before = pool.place(["owa"])
    one, two = (workers(pool, 1 - before["owa"], [mail]) for _ in range(2))
    assert pool.place(["owa", "added"]) == {**before, "added": 1 - before["owa"]}
    session = tmp_path / "session"
    assert connect(one, version, "mail.example.com", save=session) == "New"
    assert connect(two, version, "mail.example.com", resume=session) == "Reused"


@VERSIONS
def test_never_by_another_service(workers: Callable[..., Worker], tmp_path: Path, mail: Material, version: str) -> None:
    pool = ContextPool(2)
    one, other = workers(pool, 0, [mail]), workers(pool, 1, [mail])
    session = tmp_path / "session"
    connect(one, version, "mail.example.com", save=session)
    assert connect(other, version, "mail.example.com", resume=session) == "New"


@VERSIONS
def test_without_a_place_only_by_the_worker_itself(
    workers: Callable[..., Worker], tmp_path: Path, mail: Material, version: str
) -> None:
    pool = ContextPool(1)
    one, two = (workers(pool, NOWHERE, [mail]) for _ in range(2))
    session = tmp_path / "session"
    connect(one, version, "mail.example.com", save=session)
    assert connect(one, version, "mail.example.com", resume=session) == "Reused"
    assert connect(two, version, "mail.example.com", resume=session) == "New"


# ------------------------------------------------------------ places


def test_places_are_stable_and_different() -> None:
    pool = ContextPool(4)
    first = pool.place(["a", "b"])
    assert len({*first.values()}) == 2
    assert pool.place(["b", "c", "a"]) | first == pool.place(["a", "b", "c"])
    assert pool.take(first["a"]) is pool.take(first["a"])
    assert pool.take(first["a"]) is not pool.take(first["b"])


def test_fresh_places_first_then_the_longest_unused() -> None:
    pool = ContextPool(3)
    old = pool.place(["a", "b"])
    pool.place(["b"])
    pool.place([])  # a is unused the longest, then b
    third = pool.place(["c"])["c"]
    assert third not in old.values()
    assert pool.place(["c", "d"])["d"] == old["a"]
    assert pool.place(["c", "d", "e"])["e"] == old["b"]


def test_one_that_comes_back_has_its_place_again() -> None:
    pool = ContextPool(2)
    place = pool.place(["a"])["a"]
    pool.place(["b"])
    assert pool.place(["a", "b"])["a"] == place


def test_more_owners_than_places() -> None:
    pool = ContextPool(1)
    places = pool.place(["a", "b"])
    assert places == {"a": 0, "b": NOWHERE}
    assert isinstance(pool.take(NOWHERE), ssl.SSLContext)
    assert pool.take(NOWHERE) is not pool.take(0)
    assert pool.place(["b"]) == {"b": 0}


def test_an_owner_named_twice_has_one_place() -> None:
    assert ContextPool(2).place(["a", "a", "b"]).keys() == {"a", "b"}
