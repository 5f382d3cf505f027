"""Listening sockets: real ones, on loopback."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from mailbalancer.control import listeners as module
from mailbalancer.control.listeners import Listeners, explain, program, worker_of
from mailbalancer.errors import ListenError
from mailbalancer.model import Endpoint
from tests.control.configurations import config, persist, service
from tests.support.ports import free_port

WORKERS = 4
has_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    opened = Listeners(WORKERS)
    yield opened
    opened.close([entry.endpoint for entry in opened])


def here(host: str = "127.0.0.1") -> Endpoint:
    return Endpoint(host, free_port(host))


def accepted_by(sockets: tuple[socket.socket, ...]) -> list[int]:
    """Which socket each waiting connection is on."""
    numbers = []
    for number, sock in enumerate(sockets):
        while True:
            try:
                connection, _ = sock.accept()
            except BlockingIOError:
                break
            connection.close()
            numbers.append(number)
    return numbers


def landed_on(source: str, endpoint: Endpoint, sockets: tuple[socket.socket, ...]) -> int:
    family = socket.AF_INET6 if endpoint.is_ipv6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.bind((source, 0))
        client.connect((endpoint.host, endpoint.port))
        (number,) = accepted_by(sockets)
    return number


def test_one_socket_per_worker_with_the_right_options(listeners: Listeners) -> None:
    endpoint = here()
    (entry,) = listeners.open_missing(config(service(listen=[endpoint])))
    assert len(entry.sockets) == WORKERS
    for sock in entry.sockets:
        assert sock.getsockname() == (endpoint.host, endpoint.port)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not sock.getblocking()


@has_ipv6
def test_ipv6_sockets_leave_ipv4_alone(listeners: Listeners) -> None:
    endpoint = here("::1")
    (entry,) = listeners.open_missing(config(service(listen=[endpoint])))
    assert all(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in entry.sockets)
    everywhere = Endpoint("::", free_port("::"))
    listeners.open_missing(config(service(listen=[everywhere, Endpoint("0.0.0.0", everywhere.port)])))


def test_an_address_keeps_its_sockets_when_the_service_is_renamed(listeners: Listeners) -> None:
    endpoint, fresh = here(), here()
    (before,) = listeners.open_missing(config(service("old", [endpoint])))
    renamed = config(service("new", [endpoint, fresh]))
    assert [entry.endpoint for entry in listeners.open_missing(renamed)] == [fresh]
    assert listeners[endpoint] is before
    assert listeners.unwanted(config(service("new", [fresh]))) == [endpoint]


def test_a_closed_address_gets_a_new_id(listeners: Listeners) -> None:
    endpoint = here()
    (first,) = listeners.open_missing(config(service(listen=[endpoint])))
    listeners.close([endpoint])
    (second,) = listeners.open_missing(config(service(listen=[endpoint])))
    assert first.id != second.id


def test_a_port_of_another_program_is_not_shared(listeners: Listeners) -> None:
    endpoint = here()
    with socket.socket() as other:  # a program that would share: a second mailbalancer
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((endpoint.host, endpoint.port))
        other.listen()
        with pytest.raises(ListenError) as refused:
            listeners.open_missing(config(service(listen=[endpoint])))
    assert refused.value.message == f"{endpoint} is already in use by another program"
    assert f"ss -ltnp 'sport = :{endpoint.port}'" in refused.value.remedy


def test_old_connections_do_not_make_a_port_taken(listeners: Listeners) -> None:
    endpoint = here()
    with socket.socket() as earlier:
        earlier.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        earlier.bind((endpoint.host, endpoint.port))
        earlier.listen()
        client = socket.create_connection((endpoint.host, endpoint.port))
        server, _ = earlier.accept()
    server.close()  # this side closes first and waits in TIME_WAIT
    client.close()
    assert listeners.open_missing(config(service(listen=[endpoint])))


def test_all_addresses_or_none(listeners: Listeners) -> None:
    good, bad = here(), here()
    with socket.create_server((bad.host, bad.port)):
        with pytest.raises(ListenError):
            listeners.open_missing(config(service(listen=[good, bad])))
        assert list(listeners) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((good.host, good.port))


def test_a_wildcard_of_our_own_is_no_other_program(listeners: Listeners) -> None:
    port = free_port("0.0.0.0")
    everywhere, one = Endpoint("0.0.0.0", port), Endpoint("127.0.0.1", port)
    listeners.open_missing(config(service(listen=[everywhere])))
    listeners.open_missing(config(service(listen=[everywhere, one])))
    with socket.create_connection((one.host, port)):
        assert accepted_by(listeners[one].sockets)


def test_an_address_of_another_machine(listeners: Listeners) -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1 is not an address of this machine.*ip address"):
        listeners.open_missing(config(service(listen=[Endpoint("192.0.2.1", 2525)])))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what an ordinary user may not")
def test_a_low_port_of_an_ordinary_user() -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        try:
            Listeners(1).open_missing(config(service(listen=[Endpoint("127.0.0.1", 1)])))
        except ListenError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as said:
        text = said.read()
    assert "ports below 1024 are not permitted" in text
    assert "CAP_NET_BIND_SERVICE" in text


@pytest.mark.parametrize(
    ("number", "port", "words"),
    [
        (errno.EADDRINUSE, 25, "postfix?"),
        (errno.EADDRINUSE, 993, "dovecot?"),
        (errno.EAFNOSUPPORT, 25, "IPv6 switched off"),
        (errno.EMFILE, 25, "LimitNOFILE"),
        (errno.ENOBUFS, 25, os.strerror(errno.ENOBUFS)),
    ],
)
def test_every_refusal_is_one_line_with_a_remedy(number: int, port: int, words: str) -> None:
    text = str(explain(Endpoint("10.0.1.100", port), OSError(number, os.strerror(number))))
    assert text.startswith(f"10.0.1.100:{port} ")
    assert words in text
    assert "\n" not in text


# ---------------------------------------------------------------- one client address, one worker

SOURCES = [f"127.0.{third}.{fourth}" for third in range(1, 5) for fourth in range(1, 51)]


def test_each_of_200_addresses_stays_with_one_worker_everywhere(listeners: Listeners) -> None:
    smtp, imap = here(), here()
    listeners.open_missing(
        config(service("smtp", [smtp], persist=persist()), service("imap", [imap], persist=persist()))
    )
    first = {source: landed_on(source, smtp, listeners[smtp].sockets) for source in SOURCES}
    for endpoint in (smtp, imap):
        again = {source: landed_on(source, endpoint, listeners[endpoint].sockets) for source in SOURCES}
        assert again == first
    assert {source: worker_of(source, WORKERS) for source in SOURCES} == first
    share = Counter(first.values())
    assert set(share) == set(range(WORKERS))
    assert max(share.values()) < 2 * len(SOURCES) / WORKERS


@has_ipv6
def test_an_ipv6_address_stays_with_one_worker(listeners: Listeners) -> None:
    endpoint = here("::1")
    (entry,) = listeners.open_missing(config(service(listen=[endpoint], persist=persist())))
    assert len({landed_on("::1", endpoint, entry.sockets) for _ in range(12)}) == 1


def test_a_reload_pins_and_unpins(listeners: Listeners) -> None:
    endpoint = here()
    spread, pinned = config(service(listen=[endpoint])), config(service(listen=[endpoint], persist=persist()))
    (entry,) = listeners.open_missing(spread)
    listeners.pin_as(pinned)
    assert len({landed_on("127.0.3.7", endpoint, entry.sockets) for _ in range(30)}) == 1
    listeners.pin_as(spread)
    assert len({landed_on("127.0.3.7", endpoint, entry.sockets) for _ in range(30)}) > 1


def test_a_stop_in_the_middle_of_a_reload_closes_what_the_reload_would_pin(listeners: Listeners) -> None:
    endpoint = here()
    pinned = config(service(listen=[endpoint], persist=persist()))
    listeners.open_missing(pinned)
    listeners.close([endpoint])
    listeners.pin_as(pinned)
    assert listeners.unwanted(config()) == []


@pytest.mark.parametrize("workers", [2, 3, 8, 64])
@pytest.mark.parametrize("ipv6", [False, True])
def test_the_program_as_an_interpreter_runs_it(ipv6: bool, workers: int) -> None:
    """The same arithmetic in Python: all workers get a fair part of a /22 of clients."""
    steps = program(ipv6, workers)
    share = Counter(_interpret(steps, _header(ipv6, number)) for number in range(1024))
    assert set(share) == set(range(workers))
    assert max(share.values()) < 2 * 1024 / workers


@pytest.mark.parametrize("ipv6", [False, True])
def test_where_an_address_lands_is_known_beforehand(ipv6: bool) -> None:
    steps = program(ipv6, 7)
    for number in range(200):
        header = _header(ipv6, number)
        address = ip_address(header[8:24] if ipv6 else header[12:16])
        assert worker_of(str(address), 7) == _interpret(steps, header)


def test_what_is_no_address_lands_nowhere() -> None:
    assert worker_of("0a1b2c", 4) is None


def _header(ipv6: bool, number: int) -> bytes:
    if ipv6:
        return bytes(8) + bytes.fromhex("20010db8") + bytes(8) + number.to_bytes(4) + bytes(16)
    return bytes(12) + (0x0A000000 + number).to_bytes(4) + bytes(4)


def _interpret(steps: list[tuple[int, int]], header: bytes) -> int:
    a = x = 0
    for code, k in steps:
        if code == module._LD_W_ABS:
            at = k - (module._SKF_NET_OFF & 0xFFFFFFFF)
            a = int.from_bytes(header[at : at + 4])
        elif code == module._XOR_X:
            a ^= x
        elif code == module._TAX:
            x = a
        elif code == module._MUL_K:
            a = a * k & 0xFFFFFFFF
        elif code == module._RSH_K:
            a >>= k
        elif code == module._MOD_K:
            a %= k
        else:
            assert (code, k) == (module._RET_A, 0)
            return a
    raise AssertionError("the program does not return")
