"""Clients that come back to their server, by whatever a request says about them."""

from __future__ import annotations

import base64
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.ipc.messages import Bound
from mailbalancer.model import Http, Mode, Persist, ProxyProtocol
from tests.support.lone_worker import Door, LoneWorker, receive_all, service
from tests.support.waiting import eventually
from tests.support.web import Asked, Message, Web, Wire, reply

NAMES = ("ex1", "ex2", "ex3")


@pytest.fixture
def servers() -> Iterator[list[Web]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Web(name)) for name in NAMES]


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def configure(worker: LoneWorker, servers: list[Web], by: str, *, http: Http | None = None, **options: object) -> None:
    persist = Persist(by, group="web", **options)  # type: ignore[arg-type]
    worker.configure(service("web", *servers, mode=Mode.HTTP, http=http or Http(), pool={"persist": persist}))


def ask(worker: LoneWorker, *fields: str, target: str = "/", host: str = "mail", method: str = "GET") -> Message:
    """One request on a connection of its own."""
    lines = "".join(f"{line}\r\n" for line in fields)
    with worker.connect("web") as client:
        client.sendall(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        return Wire(client).answer()


def server_of(answer: Message) -> str:
    assert answer.status == 200
    return answer.body.split()[0].decode()


def stays(worker: LoneWorker, *fields: str, target: str = "/", host: str = "mail") -> str:
    """The one server that such requests go to; fails when it is not one."""
    found = {server_of(ask(worker, *fields, target=target, host=host)) for _ in range(12)}
    assert len(found) == 1, found
    return found.pop()


def spreads(worker: LoneWorker, *fields: str, target: str = "/") -> None:
    assert len({server_of(ask(worker, *fields, target=target)) for _ in range(40)}) == len(NAMES)


# ------------------------------------------------------------ cookies of ours


def test_cookie(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "cookie", cookie="mbs")
    spreads(worker)
    seen = set()
    for _ in range(10):
        first = ask(worker)
        setting = first.value("Set-Cookie")
        pair, *attributes = setting.split("; ")
        assert attributes == ["Path=/", "HttpOnly", "SameSite=Lax"]
        assert len(pair) == len("mbs=") + 59
        assert pair not in seen
        seen.add(pair)
        answers = [ask(worker, f"Cookie: a=b; {pair}; c=d") for _ in range(6)]
        assert {server_of(answer) for answer in answers} == {server_of(first)}
        assert not any(answer.value("Set-Cookie") for answer in answers)


def test_a_forged_cookie_counts_for_nothing(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "cookie", cookie="mbs")
    value = ask(worker).value("Set-Cookie").split(";")[0].removeprefix("mbs=")
    for at in range(0, len(value), 7):
        forged = value[:at] + ("A" if value[at] != "A" else "B") + value[at + 1 :]
        assert ask(worker, f"Cookie: mbs={forged}").value("Set-Cookie")
    assert ask(worker, "Cookie: mbs=ex1").value("Set-Cookie")


def test_the_cookie_of_a_draining_and_of_a_dead_server(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "cookie", cookie="mbs")
    first = ask(worker)
    name, pair = server_of(first), first.value("Set-Cookie").split(";")[0]
    slot = worker.slot("web", name)
    worker.make_available(slot, Availability.RETURNING)
    assert stays(worker, f"Cookie: {pair}") == name
    worker.make_available(slot, Availability.CLOSED)
    moved = ask(worker, f"Cookie: {pair}")
    assert server_of(moved) != name
    assert moved.value("Set-Cookie")
    assert worker.count(Count.MOVED, "web", server_of(moved)) == 1


def test_a_cookie_with_a_fallback(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "cookie", cookie="mbs", fallback=("source",))
    name = stays(worker)
    answer = ask(worker)
    assert answer.value("Set-Cookie")
    assert stays(worker, f"Cookie: {answer.value('Set-Cookie').split(';')[0]}") == name


def test_cookie_prefix(worker: LoneWorker) -> None:
    def answers(name: str) -> Web:
        return Web(
            name,
            lambda asked: reply(f"{name} {asked.request.value('Cookie')}", "200 OK", "Set-Cookie: sid=s~1; Path=/x"),
        )

    with answers("ex1") as ex1, answers("ex2") as ex2:
        configure(worker, [ex1, ex2], "cookie_prefix", cookie="sid")
        for _ in range(8):
            first = ask(worker)
            setting = first.value("Set-Cookie")
            assert setting.endswith("~s~1; Path=/x")
            pair = setting.split(";")[0]
            for _ in range(4):
                again = ask(worker, f"Cookie: q=1; {pair}")
                assert again.body == server_of(first).encode() + b" q=1; sid=s~1"


def test_server_cookie(worker: LoneWorker) -> None:
    def answers(name: str) -> Web:
        def answer(asked: Asked) -> bytes:
            number = f"{name}{asked.request.connection}"
            return reply(name, "200 OK", f"Set-Cookie: sid={number}; HttpOnly")

        return Web(name, answer)

    with answers("ex1") as ex1, answers("ex2") as ex2:
        configure(worker, [ex1, ex2], "server_cookie", cookie="sid")
        for _ in range(8):
            first = ask(worker)
            pair = first.value("Set-Cookie").split(";")[0]
            assert stays(worker, f"Cookie: {pair}") == server_of(first)
    assert not any("sid" in str(bound) or "ex10" in bound.key for bound in worker.said(Bound))


# ------------------------------------------------------------ what stands in the request


@pytest.mark.parametrize(
    ("by", "options", "one", "target"),
    [
        ("header", {"field": "X-Session"}, "X-Session: {}", "/"),
        ("query", {"parameter": "sid"}, "", "/a?x=1&SID={}"),
        ("url", {}, "", "/path/{}?q"),
        ("super_http", {}, "Authorization: Basic {}", "/"),
        ("exchange", {}, "X-AnchorMailbox: user{}@example.com", "/ews/"),
        ("exchange", {}, "", "/Microsoft-Server-ActiveSync?Cmd=Ping&User=u&DeviceId=dev{}&DeviceType=t"),
        ("exchange", {}, "", "/mapi/emsmdb/?MailboxId={}@example.com"),
    ],
)
def test_by_what_a_request_says(
    worker: LoneWorker, servers: list[Web], by: str, options: dict[str, str], one: str, target: str
) -> None:
    configure(worker, servers, by, **options)
    fields = ("User-Agent: program", one) if one else ()
    used = Counter(stays(worker, *(field.format(n) for field in fields), target=target.format(n)) for n in range(24))
    assert len(used) == len(NAMES)


def test_by_host(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "host")
    assert len({stays(worker, host=f"mail{n}.example.com") for n in range(24)}) == len(NAMES)


def test_the_base64_form_of_an_activesync_query(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "exchange")
    used = set()
    for number in range(24):
        names = set()
        for command in (0, 18, 9):
            device = f"DEVICE{number:02}".encode()
            query = bytes((141, command, 4, 9, len(device))) + device + bytes((4, 0, 0, 0, 1, 2)) + b"SP"
            target = f"/Microsoft-Server-ActiveSync?{base64.b64encode(query).decode()}"
            names.add(server_of(ask(worker, target=target, method="POST")))
        assert len(names) == 1
        used |= names
    assert len(used) == len(NAMES)


def test_source(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "source")
    assert stays(worker) in NAMES


def test_draining_and_dead_servers_of_a_table(worker: LoneWorker, servers: list[Web]) -> None:
    configure(worker, servers, "header", field="X-S")
    name = stays(worker, "X-S: me")
    worker.make_available(worker.slot("web", name), Availability.RETURNING)
    assert stays(worker, "X-S: me") == name
    worker.make_available(worker.slot("web", name), Availability.CLOSED)
    other = stays(worker, "X-S: me")
    assert other != name
    worker.make_available(worker.slot("web", name), Availability.READY)
    assert stays(worker, "X-S: me") == other


def test_one_connection_of_a_proxy_serves_many_clients(worker: LoneWorker, servers: list[Web]) -> None:
    """Each request goes where its own client belongs, on whatever connection it comes."""
    trust = (ipaddress.ip_network("127.0.0.0/8"),)
    configure(worker, servers, "source", http=Http(trust=trust))
    where: dict[int, set[str]] = {}
    with worker.connect("web") as client:
        wire = Wire(client)
        for number in [*range(20), *range(20), *range(19, -1, -1)]:
            client.sendall(f"GET / HTTP/1.1\r\nHost: m\r\nX-Forwarded-For: 10.0.0.{number}\r\n\r\n".encode())
            where.setdefault(number, set()).add(server_of(wire.answer()))
    assert all(len(names) == 1 for names in where.values())
    assert len(set.union(*where.values())) == len(NAMES)


# ------------------------------------------------------------ who the client is


def test_a_spoofed_address_is_dropped(worker: LoneWorker, servers: list[Web]) -> None:
    worker.configure(service("web", servers[0], mode=Mode.HTTP, http=Http()))
    ask(
        worker,
        "X-Forwarded-For: 6.6.6.6",
        "X_Forwarded_For: 6.6.6.7",
        "Forwarded: for=6.6.6.8",
        "X-Forwarded-Proto: https",
    )
    (request,) = servers[0].requests
    assert request.value("X-Forwarded-For") == "127.0.0.1"
    assert request.value("X-Forwarded-Proto") == "http"
    assert "6.6.6" not in str(request.fields)


def test_a_trusted_proxy_is_believed(worker: LoneWorker, servers: list[Web]) -> None:
    http = Http(trust=(ipaddress.ip_network("127.0.0.1/32"),), forwarded="both")
    worker.configure(service("web", servers[0], mode=Mode.HTTP, http=http, deny=(ipaddress.ip_network("10.6.0.0/16"),)))
    ask(worker, "X-Forwarded-For: 6.6.6.6, 10.1.2.3", "X-Forwarded-Proto: https", "X-Forwarded-Port: 443")
    (request,) = servers[0].requests
    assert request.value("X-Forwarded-For") == "10.1.2.3, 127.0.0.1"
    assert request.value("X-Forwarded-Proto") == "https"
    assert request.value("Forwarded").startswith("for=10.1.2.3;")
    assert ask(worker, "X-Forwarded-For: 10.6.0.1").status == 403
    lines = eventually(
        lambda: [line for line in worker.log_lines() if line["message"] == "request"], what="a line in the log"
    )
    assert lines[0]["client"].startswith("10.1.2.3:")
    assert lines[0]["peer"] == "127.0.0.1"


def test_the_proxy_header_names_the_client(worker: LoneWorker, servers: list[Web]) -> None:
    accepts = ProxyProtocol((ipaddress.ip_network("127.0.0.1/32"),))
    worker.configure(service("web", servers[0], mode=Mode.HTTP, http=Http(), proxy_protocol=accepts))
    with worker.connect("web") as client:
        for piece in (b"PROXY TCP4 10.9.8.7 10.0.0.1", b" 4711 80\r\nGET / HT", b"TP/1.1\r\nHost: m\r\n\r\n"):
            client.sendall(piece)
            worker.after_beats(1)
        assert Wire(client).answer().status == 200
    assert servers[0].requests[0].value("X-Forwarded-For") == "10.9.8.7"
    with worker.connect("web") as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            receive_all(client)
    worker.eventually_counts(0, Count.SESSIONS, "web")
    assert worker.count(Count.TOTAL, "web") == 1


def test_the_servers_are_sent_a_proxy_header(worker: LoneWorker) -> None:
    with Door("ex1") as door:
        worker.configure(service("web", door, mode=Mode.HTTP, http=Http(), proxy_protocol=ProxyProtocol(send="v1")))
        with worker.connect("web") as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n")
            with door.accept() as server:
                wire = Wire(server)
                host, port = client.getsockname()
                listening = worker.address("web")[1]
                assert wire.until(b"\r\n") == f"PROXY TCP4 {host} 127.0.0.1 {port} {listening}\r\n".encode()
                assert wire.head() is not None
                client.shutdown(socket.SHUT_WR)
