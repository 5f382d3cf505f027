"""Dialogues that are meant to make server and balancer disagree, or to be somebody else, or to be too much.

Where `test_http_corpus` has one damaged message at a time, here a good one is misused: what it says is hop-by-hop, what
it upgrades to, what it announces and does not send, whom it claims to be, which server it claims to have. What counts
is what the servers received.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import random
import socket
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.model import Http, Mode, Persist, Service
from tests.support.lone_worker import Door, LoneWorker, receive_all, service
from tests.support.web import Asked, Message, Web, Wire, reply

HOST = "Host: mail.example.com\r\n"
PROBE = f"GET /probe HTTP/1.1\r\n{HOST}\r\n"


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


@pytest.fixture
def behind() -> Iterator[Web]:
    with Web("behind", lambda asked: reply(asked.request.target)) as server:
        yield server


def web(*servers: Web | Door, http: Http | None = None, **options: object) -> Service:
    return service("web", *servers, mode=Mode.HTTP, http=http or Http(), **options)  # type: ignore[arg-type]


def get(target: str = "/", *fields: str, method: str = "GET") -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return f"{method} {target} HTTP/1.1\r\n{HOST}{lines}\r\n".encode("latin-1")


def answers(worker: LoneWorker, data: bytes) -> list[int]:
    """The statuses of everything that is answered to these bytes, until the connection ends."""
    with worker.connect("web") as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(OSError):
            said = receive_all(client)
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]]


def one(worker: LoneWorker, behind: Web, *fields: str, method: str = "GET") -> Message:
    """What the server received of one request with these fields."""
    before = len(behind.requests)
    assert answers(worker, get("/", *fields, method=method)) == [200]
    (request,) = behind.requests[before:]
    return request


# ------------------------------------------------------------ hop by hop


@pytest.mark.parametrize(
    "name",
    [
        *("Authorization", "Cookie", "Origin", "Referer", "User-Agent", "X-AnchorMailbox", "Content-Type", "Range"),
        *("Proxy-Authorization", "Cache-Control", "X-Real-IP", "Via"),
    ],
)
@pytest.mark.parametrize("named", ["{}", "close, {}", "{},{}", "x,\t{} ,y", "keep-alive\r\nConnection: {}"])
def test_what_servers_rely_on_cannot_be_named_away(worker: LoneWorker, behind: Web, name: str, named: str) -> None:
    worker.configure(web(behind))
    for written in (name, name.lower(), name.upper()):
        assert (
            one(worker, behind, f"Connection: {named.format(written, written)}", f"{name}: mine").value(name) == "mine"
        )


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Transfer-Encoding", "Expect"])
def test_framing_cannot_be_named_away(worker: LoneWorker, behind: Web, name: str) -> None:
    worker.configure(web(behind))
    inner = PROBE.encode()
    length = get("/", f"Connection: {name}", f"Content-Length: {len(inner)}", method="POST") + inner
    chunks = get("/", f"Connection: {name}", "Transfer-Encoding: chunked", method="POST")
    chunks += b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    for data in (length, chunks):
        assert answers(worker, data) == [200]
    assert [(request.target, request.body) for request in behind.requests] == [("/", inner)] * 2
    assert {request.value("Host") for request in behind.requests} == {"mail.example.com"}


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded"]
)
def test_what_we_say_of_a_client_cannot_be_named_away(worker: LoneWorker, behind: Web, name: str) -> None:
    worker.configure(web(behind, http=Http(forwarded="both")))
    plain = one(worker, behind).value(name)
    assert plain
    assert one(worker, behind, f"Connection: close, {name}", f"{name}: forged").value(name) == plain


def test_what_is_for_one_hop_goes_no_further(worker: LoneWorker, behind: Web) -> None:
    worker.configure(web(behind))
    request = one(
        worker,
        behind,
        *("Connection: X-Mine, keep-alive", "X-Mine: 1", "Keep-Alive: timeout=1", "Proxy-Connection: close"),
        *("TE: trailers", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    )
    names = {name.lower() for name, _ in request.fields}
    assert not names & {"x-mine", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings", "connection"}


def test_a_connection_field_of_ten_thousand_names(worker: LoneWorker, behind: Web) -> None:
    worker.configure(web(behind))
    names = ", ".join(f"x{number}" for number in range(10_000))
    assert one(worker, behind, f"Connection: {names}", "x9999: gone", "kept: yes").value("kept") == "yes"
    assert behind.requests[-1].value("x9999") == ""


# ------------------------------------------------------------ upgrades that are none


@pytest.mark.parametrize(
    "protocol", ["h2c", "TLS/1.0", "HTTP/2.0", "websocket, h2c", "h2c, websocket", "websocket/13", ""]
)
def test_no_other_protocol_is_passed_on(worker: LoneWorker, behind: Web, protocol: str) -> None:
    """What follows is read as requests, as if nothing had been asked for."""
    worker.configure(web(behind))
    asked = get("/", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert answers(worker, asked + PROBE.encode()) == [200, 200]
    assert [request.target for request in behind.requests] == ["/", "/probe"]
    assert not behind.requests[0].values("Upgrade")
    assert answers(worker, asked + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == [200, 400]


def test_what_follows_a_refused_websocket_is_requests(worker: LoneWorker, behind: Web) -> None:
    """A wrong Sec-WebSocket-Version makes servers refuse what a careless proxy believes to be a tunnel by now."""
    worker.configure(web(behind, http=Http()))
    asked = get("/chat", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 777")
    smuggled = get("/admin", "X-Forwarded-For: 192.0.2.1", "Connection: close, Cookie", "Cookie: a=b")
    assert answers(worker, asked + smuggled) == [200, 200]
    assert [request.target for request in behind.requests] == ["/chat", "/admin"]
    assert behind.requests[1].value("X-Forwarded-For") == "127.0.0.1"
    assert behind.requests[1].value("Cookie") == "a=b"


def test_a_websocket_with_a_body_has_a_body(worker: LoneWorker, behind: Web) -> None:
    worker.configure(web(behind))
    inner = PROBE.encode()
    upgrade = ("Connection: Upgrade", "Upgrade: websocket")
    assert answers(worker, get("/chat", *upgrade, f"Content-Length: {len(inner)}") + inner) == [200]
    chunked = get("/chat", *upgrade, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    assert answers(worker, chunked + PROBE.encode()) == [200, 200]
    assert [request.body for request in behind.requests] == [inner, inner, b""]


# ------------------------------------------------------------ announced and not sent


def test_an_expectation_that_was_refused_does_not_make_a_body_a_request(worker: LoneWorker) -> None:
    """The server answers 401 and waits for no body; whatever the client sends then, it has announced as its body."""
    inner = PROBE.encode()
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/", f"Content-Length: {len(inner)}", "Expect: 100-continue", method="POST"))
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                server.sendall(reply("no", "401 Unauthorized"))
                assert Wire(client).answer().status == 401
                with contextlib.suppress(OSError):
                    client.sendall(inner)
                    client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while wire.more():
                        pass
                assert bytes(wire.waiting) in (inner, b""), "as a body, or not at all"
            with contextlib.suppress(OSError):
                assert not receive_all(client), "and it is answered by nobody"


def test_a_server_that_does_not_wait_for_a_body_is_asked_by_nobody_else_there(worker: LoneWorker) -> None:
    """It answers at once, and takes the body that follows for a request, whose answer would be the next client's."""
    inner = PROBE.encode()
    with Door("ex1") as door:
        worker.configure(web(door, http=Http(shared=True)))
        with worker.connect("web") as attacker, worker.connect("web") as victim:
            attacker.sendall(get("/", f"Content-Length: {len(inner)}", method="POST"))
            with door.accept() as server:
                wire = Wire(server)
                assert wire.head() is not None
                server.sendall(reply("early"))
                assert Wire(attacker).answer().body == b"early"
                attacker.sendall(inner)
                with contextlib.suppress(OSError):
                    while wire.more():
                        assert b"/probe" in wire.waiting
                        break
                victim.sendall(get("/mine"))
                with door.accept() as other:
                    second = Wire(other).head()
                    assert second is not None
                    assert second.target == "/mine"
                    with contextlib.suppress(OSError):
                        server.sendall(reply("poison"))
                    other.sendall(reply("yours"))
                    assert Wire(victim).answer().body == b"yours"


def test_a_request_within_a_body_that_never_ends(worker: LoneWorker, behind: Web) -> None:
    worker.configure(web(behind))
    for announced in (len(PROBE) + 1, 10**18 - 1):
        assert answers(worker, get("/", f"Content-Length: {announced}", method="POST") + PROBE.encode()) == []
    assert behind.requests == []


@pytest.mark.parametrize("status", ["200 OK", "304 Not Modified"])
def test_a_body_nobody_asked_for_is_nobody_s_answer(worker: LoneWorker, status: str) -> None:
    """The server answers HEAD with a body, in which there is an answer for whoever asks next."""
    poison = reply("poison", "200 OK")

    def answer(asked: Asked) -> bytes:
        if asked.request.method == "HEAD":
            return f"HTTP/1.1 {status}\r\nContent-Length: {len(poison)}\r\n\r\n".encode() + poison
        return reply("good")

    with Web("ex1", answer) as ex1:
        worker.configure(web(ex1, http=Http(shared=True)))
        with worker.connect("web") as client:
            wire = Wire(client)
            for _ in range(3):
                client.sendall(get("/", method="HEAD"))
                assert wire.answer("HEAD").status == int(status[:3])
                client.sendall(get("/"))
                assert wire.answer().body == b"good"


# ------------------------------------------------------------ trailers


@pytest.mark.parametrize(
    "name",
    [
        *("Content-Length", "Transfer-Encoding", "Host", "Authorization", "Cookie", "Set-Cookie", "Connection", "TE"),
        *("X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "Forwarded", "Expect", "Content-Type", "Trailer"),
        *("Proxy-Authorization", "WWW-Authenticate", "Upgrade", "Keep-Alive", "X-Forwarded-Proto", "Range", "Age"),
    ],
)
def test_forbidden_trailers_are_dropped(worker: LoneWorker, behind: Web, name: str) -> None:
    worker.configure(web(behind))
    data = get("/", "Transfer-Encoding: chunked", f"Trailer: {name}, X-Good", method="POST")
    assert answers(worker, data + f"5\r\nhello\r\n0\r\n{name}: 7\r\nX-Good: yes\r\n\r\n{PROBE}".encode()) == [200, 200]
    request, probe = behind.requests
    trailers = [(field, value) for field, value in request.fields if field.startswith("trailer:")]
    assert trailers == [("trailer:X-Good", "yes")]
    assert (request.body, probe.target) == (b"hello", "/probe")


# ------------------------------------------------------------ who the client claims to be

PROXIES = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.0.0.0/8"))
CHAINS = {
    "nobody": ([], "127.0.0.1"),
    "one": (["192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "forged by the client": (["127.0.0.1, 192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "forged as a proxy": (["203.0.113.1, 10.9.9.9, 192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "forged in a line of its own": (["203.0.113.1", "192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "through two proxies": (["192.0.2.7, 10.0.0.2"], "192.0.2.7, 10.0.0.2, 127.0.0.1"),
    "rubbish on the right": (["192.0.2.7, rubbish"], "127.0.0.1"),
    "rubbish on the left": (["' OR 1=1, 192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "an empty member": (["192.0.2.7, "], "127.0.0.1"),
    "IPv4 within IPv6": (["::ffff:192.0.2.7"], "192.0.2.7, 127.0.0.1"),
    "a proxy within IPv6": (["192.0.2.7, ::ffff:10.0.0.2"], "192.0.2.7, 10.0.0.2, 127.0.0.1"),
    "octal": (["0300.0.2.7"], "127.0.0.1"),
    "a number": (["3221225991"], "127.0.0.1"),
    "short": (["192.7"], "127.0.0.1"),
    "a line end": (["192.0.2.7\x85, 10.0.0.2"], "10.0.0.2, 127.0.0.1"),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_a_chain_is_believed_as_far_as_our_proxies_saw(worker: LoneWorker, behind: Web, kind: str) -> None:
    written, told = CHAINS[kind]
    worker.configure(web(behind, http=Http(trust=PROXIES)))
    request = one(worker, behind, *(f"X-Forwarded-For: {value}" for value in written))
    assert request.value("X-Forwarded-For") == told


@pytest.mark.parametrize("kind", CHAINS)
def test_a_stranger_s_chain_is_dropped(worker: LoneWorker, behind: Web, kind: str) -> None:
    worker.configure(web(behind, http=Http()))
    request = one(worker, behind, *(f"X-Forwarded-For: {value}" for value in CHAINS[kind][0]))
    assert request.value("X-Forwarded-For") == "127.0.0.1"


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "X-FORWARDED_FOR"])
def test_no_spelling_gets_past(worker: LoneWorker, behind: Web, name: str) -> None:
    """CGI and WSGI make one variable of `X-Forwarded-For` and `X_Forwarded_For`."""
    worker.configure(web(behind))
    request = one(worker, behind, f"{name}: 192.0.2.66", f"{name}: 192.0.2.67")
    assert [value for field, value in request.fields if "192.0.2.6" in value] == []
    assert request.value("X-Forwarded-For") == "127.0.0.1"


def test_a_chain_without_end(worker: LoneWorker, behind: Web) -> None:
    """Ten thousand proxies of ours: what is passed on, and so what each next hop must read, has a bound."""
    worker.configure(web(behind, http=Http(trust=PROXIES)))
    chain = ", ".join(["192.0.2.7"] + ["10.0.0.2"] * 8000)
    assert len(one(worker, behind, f"X-Forwarded-For: {chain}").value("X-Forwarded-For")) < 2000


# ------------------------------------------------------------ which server the client claims to have


def test_ten_thousand_forged_cookies_move_nobody(worker: LoneWorker) -> None:
    """Each is a true cookie of one server that was altered, cut, doubled, or is of another balancer. A cookie that
    counts is not set again: none of these may count."""
    rng = random.Random(7)
    persist = Persist("cookie", group="web", cookie="mbs")
    with Web("ex1") as ex1, Web("ex2") as ex2, LoneWorker() as stranger:
        for balancer in (worker, stranger):
            balancer.configure(web(ex1, ex2, pool={"persist": persist}))
        foreign = [cookie_of(stranger) for _ in range(20)]
        true = cookie_of(worker)
        with worker.connect("web") as client:
            wire = Wire(client)
            client.sendall(get("/", f"Cookie: mbs={true}"))
            assert not wire.answer().values("Set-Cookie"), "the true one counts"
        accepted: Counter[str] = Counter()
        for _ in range(100):
            with worker.connect("web") as client:
                wire = Wire(client)
                for _ in range(100):
                    how, value = rng.choice(FORGERIES)(rng, true, rng.choice(foreign))
                    client.sendall(get("/", f"Cookie: {value}"))
                    answer = wire.answer()
                    assert answer.status == 200
                    if not answer.values("Set-Cookie"):
                        accepted[how] += 1
        assert accepted == Counter()
        assert worker.count(Count.MOVED, "web", "ex1") + worker.count(Count.MOVED, "web", "ex2") == 0


def cookie_of(worker: LoneWorker) -> str:
    """A cookie as this balancer sets it."""
    with worker.connect("web") as client:
        client.sendall(get("/"))
        return Wire(client).answer().value("Set-Cookie").split(";")[0].removeprefix("mbs=")


def _altered(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    at = rng.randrange(len(true))
    other = rng.choice([c for c in string.ascii_letters + string.digits + "-_" if c != true[at]])
    return "altered", f"mbs={true[:at]}{other}{true[at + 1 :]}"


def _flipped(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    raw = bytearray(base64.urlsafe_b64decode(true + "="))
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return "one bit flipped", f"mbs={base64.urlsafe_b64encode(raw).decode().rstrip('=')}"


def _cut(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "cut", f"mbs={true[: rng.randrange(len(true))]}"


def _longer(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "longer", f"mbs={true}{rng.choice(('=', '==', 'A', '.', '%00', true))}"


def _foreign(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "another balancer's", f"mbs={foreign}"


def _spliced(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    at = rng.randrange(4, len(true) - 4)
    return "spliced", f"mbs={true[:at]}{foreign[at:]}"


def _random(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "random", f"mbs={base64.urlsafe_b64encode(rng.randbytes(44)).decode().rstrip('=')}"


def _named(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "a server's name", f"mbs={rng.choice(('ex1', 'ex2', '127.0.0.1', '0', '', '../ex1'))}"


def _other_name(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "under another name", f"{rng.choice(('MBS', 'mbs2', 'xmbs', 'mb', '__Host-mbs'))}={true}"


def _quoted(rng: random.Random, true: str, foreign: str) -> tuple[str, str]:
    return "in quotes", rng.choice((f'mbs="{true}"', f'x="; mbs={true[:-1]}A"', f"mbs ={true[:-1]}"))


FORGERIES = (_altered, _flipped, _cut, _longer, _foreign, _spliced, _random, _named, _other_name, _quoted)


def test_a_thousand_cookies_in_one_request(worker: LoneWorker, behind: Web) -> None:
    worker.configure(web(behind, pool={"persist": Persist("cookie", group="web", cookie="mbs")}))
    crowd = "; ".join(f"mbs={'A' * 59}" for _ in range(1000))
    assert one(worker, behind, f"Cookie: {crowd}").value("Cookie")


# ------------------------------------------------------------ too much of everything


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"A" * 1_000_000, 400),
        (b"GET /" + b"a" * 1_000_000, 414),
        (b"GET / HTTP/1.1\r\n" + b"a" * 1_000_000, 431),
        (b"GET / HTTP/1.1\r\nHost: m\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: m\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: " + b"m" * 300 + b"\r\n\r\n", 400),
        (get("/", "Content-Length: " + "9" * 5000, method="POST"), 400),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"0" * 1_000_000, 400),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"5;" + b"x" * 1_000_000, 400),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\n" + b"X: y\r\n" * 100_000, 400),
        (get("/", "Transfer-Encoding: chunked", method="POST") + b"0\r\nX: " + b"y" * 1_000_000, 400),
    ],
    ids=range(11),
)
def test_more_than_anybody_needs(worker: LoneWorker, behind: Web, data: bytes, status: int) -> None:
    worker.configure(web(behind))
    before = resident_kib(worker)
    assert answers(worker, data) in ([status], []), "refused, or reset while it is still being sent"
    assert behind.requests == []
    assert resident_kib(worker) - before < 8 * 1024
    assert answers(worker, get("/")) == [200], "and everybody else goes on"


def test_a_hundred_thousand_requests_without_waiting(worker: LoneWorker, behind: Web) -> None:
    """Pipelined by somebody who reads nothing: what waits here has a bound."""
    worker.configure(web(behind))
    before = resident_kib(worker)
    with worker.connect("web") as client:
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            client.sendall(get("/") * 100_000)
        assert resident_kib(worker) - before < 8 * 1024
    worker.eventually_counts(0, Count.SESSIONS, "web")


def test_interim_answers_without_end(worker: LoneWorker) -> None:
    """A client that does not read, and a server that says 102 for ever."""
    with Door("ex1") as door:
        worker.configure(web(door))
        with worker.connect("web") as client:
            client.sendall(get("/"))
            with door.accept() as server:
                assert Wire(server).head() is not None
                before = resident_kib(worker)
                server.settimeout(0.5)
                with contextlib.suppress(OSError):
                    for _ in range(2000):
                        server.sendall(b"HTTP/1.1 102 Processing\r\nX: " + b"y" * 10_000 + b"\r\n\r\n")
                assert resident_kib(worker) - before < 8 * 1024


def resident_kib(worker: LoneWorker) -> int:
    """The most memory that the worker ever had."""
    return int(Path(f"/proc/{worker.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
