"""One user's connection to a server never serves another, as one worker sees it.

The servers here authenticate connections, as IIS does with NTLM and Kerberos: whoever has logged in on a connection is
the user of every request on it that says nothing else. Pairs of users come at the same time, some pre-authenticated
(one token, as Kerberos), some challenged (two legs, as NTLM), some not at all; servers break connections in between. An
answer to the name of anybody but the one who asked is the end of trust in a balancer. The whole program, in every
configuration and with kills, is in `tests/live/test_http_logins.py`.
"""

from __future__ import annotations

import random
import socket
import threading

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.model import Http, Mode, Persist
from tests.support.logins import HOWS, Tally, User, logging_in, take_turns
from tests.support.lone_worker import LoneWorker, service
from tests.support.web import Asked, Web, Wire, reply

PAIRS = 300


def arrives(worker: LoneWorker, name: str, how: str) -> User:
    return User(lambda: worker.connect("web"), name, how)


def pair_up(worker: LoneWorker, seed: int, pairs: int) -> Tally:
    """Pairs of users who take turns at random."""
    rng = random.Random(seed)
    tally = Tally()
    for number in range(pairs):
        users = [arrives(worker, f"u{seed}-{number}-{side}", rng.choice(HOWS)) for side in range(2)]
        tally.add(take_turns(users, rng))
    return tally


@pytest.mark.parametrize("shared", [False, True], ids=["per_client", "shared"])
@pytest.mark.parametrize("persist", [None, Persist("cookie", group="web"), Persist("source", group="web")], ids=str)
def test_nobody_is_answered_as_another(shared: bool, persist: Persist | None) -> None:
    http = Http(shared=shared, access_log=False)
    with (
        Web("ex1", logging_in("ex1", random.Random(1))) as ex1,
        Web("ex2", logging_in("ex2", random.Random(2))) as ex2,
        LoneWorker() as worker,
    ):
        web = service("web", ex1, ex2, mode=Mode.HTTP, http=http, pool={"persist": persist})
        worker.configure(web)
        results: list[Tally] = []
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
        assert [wrong for tally in results for wrong in tally.wrong] == []
        assert sum(tally.right for tally in results) > PAIRS
        assert worker.count(Count.PINNED_REUSED, "web") == 0
        if shared:
            assert worker.count(Count.REUSED, "web") > 0
        else:
            assert worker.count(Count.REUSED, "web") == 0
        worker.eventually_counts(0, Count.PINNED, "web")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex1")
        worker.eventually_counts(0, Count.SESSIONS, "web", "ex2")


def test_shared_connections_are_shared_until_somebody_logs_in() -> None:
    with Web("ex1", logging_in("ex1")) as ex1, LoneWorker() as worker:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http(shared=True)))
        users = [arrives(worker, f"n{number}", "nobody") for number in range(5)]
        for _ in range(3):
            for user in users:
                user.act()
        assert len(ex1.connections) == 1
        assert worker.count(Count.REUSED, "web") == 14
        kerberos = arrives(worker, "k", "Negotiate")
        kerberos.act()
        kerberos.act()
        assert kerberos.tally.right == 2
        assert len(ex1.connections) == 2  # a fresh one, not the one that was shared
        worker.eventually_counts(1, Count.PINNED, "web")
        for user in users:
            user.act()
        assert len(ex1.connections) == 2
        kerberos.close()
        worker.eventually_counts(0, Count.PINNED, "web")
        assert [one.tally.wrong for one in users] == [[]] * 5
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
        one, two = arrives(worker, "1", "nobody"), arrives(worker, "2", "nobody")
        for user in (one, two):
            user.wire = Wire(worker.connect("web"))
        assert one.wire is not None
        one.wire.socket.sendall(b"GET /in HTTP/1.1\r\nHost: m\r\n\r\n")
        assert one.wire.answer().body == b"0"
        assert two.ask().body == b"1"
        assert one.ask().body == b"0"
        assert worker.count(Count.PINNED, "web") == 1
        one.close()
        two.close()


def test_a_login_ends_with_its_server_side_connection() -> None:
    """An idle client whose login is gone is told so at once, instead of being nobody without knowing."""
    with Web("ex1", logging_in("ex1")) as ex1, LoneWorker() as worker:
        worker.configure(service("web", ex1, mode=Mode.HTTP, http=Http()))
        user = arrives(worker, "k", "Negotiate")
        user.act()
        ex1.connections[0].socket.shutdown(socket.SHUT_RDWR)
        assert user.wire is not None
        assert not user.wire.more()
        user.close()
