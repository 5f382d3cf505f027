"""One user's connection to a server never serves another.

The servers here authenticate connections, as IIS does with NTLM and Kerberos: whoever has logged in on a connection is
the user of every request on it that says nothing else. Pairs of users come at the same time, some pre-authenticated
(one token, as Kerberos), some challenged (two legs, as NTLM), some not at all; servers die and connections break in
between. An answer to the name of anybody but the one who asked is the end of trust in a balancer.
"""

from __future__ import annotations

import os
import random
import socket
import threading

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.model import Http, Mode, Persist
from tests.support.lone_worker import LoneWorker, reset, service
from tests.support.web import Asked, Cut, Message, Web, Wire, reply

PAIRS = int(os.environ.get("MAILBALANCER_PAIRS", "300"))


def authenticating(name: str, breaks: random.Random | None = None) -> Web:
    """A server that authenticates connections; `breaks`: now and then it resets one instead of answering."""

    def answer(asked: Asked) -> bytes | None:
        scheme, _, token = asked.request.value("Authorization").partition(" ")
        if breaks is not None and breaks.random() < 0.03:
            reset(asked.wire.socket)
            return None
        if scheme == "NTLM" and token == "one":
            asked.notes["challenged"] = "yes"
            return reply("", "401 Unauthorized", "WWW-Authenticate: NTLM challenge")
        if scheme == "NTLM" and not asked.notes.get("challenged"):
            return reply("", "401 Unauthorized", "WWW-Authenticate: NTLM")  # its first leg went elsewhere
        if scheme in ("NTLM", "Negotiate"):
            asked.notes["user"] = token
        return reply(asked.notes.get("user", "nobody"), "200 OK", f"X-Server: {name}")

    return Web(name, answer)


class User:
    """One user with a connection that is renewed when it breaks, as mail programs do."""

    def __init__(self, worker: LoneWorker, name: str, how: str) -> None:
        self.worker = worker
        self.name = name
        self.how = how
        self.wire: Wire | None = None
        self.logged_in = False
        self.wrong: list[str] = []
        self.right = 0

    def act(self) -> None:
        """One request, with a login where there was none on this connection."""
        try:
            if self.wire is None:
                self.wire = Wire(self.worker.connect("web"))
                self.logged_in = False
            if self.how == "nobody":
                self._judge(self._ask(), "nobody")
            elif self.logged_in:
                self._judge(self._ask(), self.name)
            elif self.how == "Negotiate":
                self._judge(self._ask(f"Authorization: Negotiate {self.name}"), self.name)
            else:
                first = self._ask("Authorization: NTLM one")
                if first.status == 401 and not first.value("Connection"):
                    self._judge(self._ask(f"Authorization: NTLM {self.name}"), self.name)
        except (OSError, Cut, AssertionError):
            self.close()

    def _ask(self, *fields: str) -> Message:
        assert self.wire is not None
        lines = "".join(f"{line}\r\n" for line in fields)
        self.wire.socket.sendall(f"GET / HTTP/1.1\r\nHost: m\r\n{lines}\r\n".encode())
        answer = self.wire.answer()
        if answer.value("Connection") == "close":
            self.close()
        return answer

    def _judge(self, answer: Message, expected: str) -> None:
        if answer.status != 200:  # 401: the server-side connection was renewed, so the login is gone
            self.logged_in = False
            return
        said = answer.body.decode()
        if said == expected:
            self.right += 1
            self.logged_in = self.how != "nobody" and self.wire is not None
        elif said == "nobody":
            self.logged_in = False  # nobody's rights are nobody's mail
        else:
            self.wrong.append(f"{self.name} was answered as {said}")

    def close(self) -> None:
        if self.wire is not None:
            self.wire.socket.close()
            self.wire = None


def pair_up(worker: LoneWorker, seed: int, pairs: int) -> tuple[int, list[str]]:
    """Pairs of users who take turns at random; how many answers were right, and every wrong one."""
    rng = random.Random(seed)
    right, wrong = 0, []
    for number in range(pairs):
        hows = [rng.choice(("Negotiate", "NTLM", "nobody")) for _ in range(2)]
        users = [User(worker, f"u{seed}-{number}-{side}", how) for side, how in enumerate(hows)]
        for _ in range(8):
            rng.choice(users).act()
            if rng.random() < 0.1:
                rng.choice(users).close()
        for user in users:
            user.close()
            right += user.right
            wrong += user.wrong
    return right, wrong


@pytest.mark.parametrize("shared", [False, True], ids=["per_client", "shared"])
@pytest.mark.parametrize("persist", [None, Persist("cookie", group="web"), Persist("source", group="web")], ids=str)
def test_nobody_is_answered_as_another(shared: bool, persist: Persist | None) -> None:
    http = Http(shared=shared, access_log=False)
    with (
        authenticating("ex1", random.Random(1)) as ex1,
        authenticating("ex2", random.Random(2)) as ex2,
        LoneWorker() as worker,
    ):
        web = service("web", ex1, ex2, mode=Mode.HTTP, http=http, pool={"persist": persist})
        worker.configure(web)
        results: list[tuple[int, list[str]]] = []
        share = PAIRS // 4 + 1
        threads = [
            threading.Thread(target=lambda seed=seed: results.append(pair_up(worker, seed, share))) for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        turn = 0
        while any(thread.is_alive() for thread in threads):  # reloads and a server that comes and goes meanwhile
            worker.configure(web)
            worker.make_available(worker.slot("web", "ex1"), list(Availability)[turn % 3])
            turn += 1
            worker.after_beats(1)
        assert len(results) == 4
        assert [wrong for _, wrongs in results for wrong in wrongs] == []
        assert sum(right for right, _ in results) > PAIRS
        assert worker.count(Count.PINNED_REUSED, "web") == 0
        if shared:
            assert worker.count(Count.REUSED, "web") > 0
        else:
            assert worker.count(Count.REUSED, "web") == 0
        worker.eventually_counts(0, Count.PINNED, "web")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex2")


def test_shared_connections_are_shared_until_somebody_logs_in() -> None:
    with authenticating("ex1") as ex1, LoneWorker() as worker:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(shared=True)))
        users = [User(worker, f"n{number}", "nobody") for number in range(5)]
        for _ in range(3):
            for user in users:
                user.act()
        assert len(ex1.connections) == 1
        assert worker.count(Count.REUSED, "web") == 14
        kerberos = User(worker, "k", "Negotiate")
        kerberos.act()
        kerberos.act()
        assert kerberos.right == 2
        assert len(ex1.connections) == 2  # a fresh one, not the one that was shared
        worker.eventually_counts(1, Count.PINNED, "web")
        for user in users:
            user.act()
        assert len(ex1.connections) == 2
        kerberos.close()
        worker.eventually_counts(0, Count.PINNED, "web")
        assert [user.wrong for user in users] == [[]] * 5
        for user in users:
            user.close()


def test_a_server_that_only_offers_negotiate_pins_too() -> None:
    """The client may answer the offer without our seeing why: from the 401 on the connection is its own."""

    def offers(asked: Asked) -> bytes:
        if asked.request.target == "/in":
            return reply(str(asked.request.connection), "401 Unauthorized", "WWW-Authenticate: Negotiate")
        return reply(str(asked.request.connection))

    with Web("ex1", offers) as ex1, LoneWorker() as worker:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(shared=True)))
        one, two = User(worker, "1", "nobody"), User(worker, "2", "nobody")
        for user in (one, two):
            user.wire = Wire(worker.connect("web"))
        assert one.wire is not None
        one.wire.socket.sendall(b"GET /in HTTP/1.1\r\nHost: m\r\n\r\n")
        assert one.wire.answer().body == b"0"
        assert two._ask().body == b"1"
        assert one._ask().body == b"0"
        assert worker.count(Count.PINNED, "web") == 1
        one.close()
        two.close()


def test_a_login_ends_with_its_server_side_connection() -> None:
    """An idle client whose login is gone is told so at once, instead of being nobody without knowing."""
    with authenticating("ex1") as ex1, LoneWorker() as worker:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http()))
        user = User(worker, "k", "Negotiate")
        user.act()
        ex1.connections[0].socket.shutdown(socket.SHUT_RDWR)
        assert user.wire is not None
        assert not user.wire.more()
        user.close()
