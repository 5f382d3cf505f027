"""What must not end: handshakes while certificates change, requests that wait for mail, and the two endless channels of
Outlook Anywhere. And what must: clients that are slow on purpose, or too many."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.wire.rpc_channel import session
from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer, Refused
from tests.support.real_servers import Nginx
from tests.support.servers import Connection
from tests.support.waiting import eventually
from tests.support.web import Asked, Message, Web, Wire, reply

pytestmark = pytest.mark.live

NAME = "mail.example.com"
#: The promise is 1 GiB, what Outlook announces: `MAILBALANCER_CHANNEL_MIB=1024`.
CHANNEL_BYTES = int(os.environ.get("MAILBALANCER_CHANNEL_MIB", "256")) * 1024 * 1024
TIMEOUT_S = 20.0


def config(port: int, servers: dict[str, int], **service: Any) -> dict[str, Any]:
    made = {"mode": "http", "listen": f"127.0.0.1:{port}", "persist": "none", "check": "none", "real_servers": servers}
    return {"real_servers": dict.fromkeys(servers, "127.0.0.1"), "services": {"web": made | service}}


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def ask(sock: socket.socket, target: str = "/", *fields: str, method: str = "GET") -> Message:
    lines = "".join(f"{field}\r\n" for field in fields)
    sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {NAME}\r\n{lines}\r\n".encode())
    return Wire(sock).answer()


# ------------------------------------------------------------ certificates


def test_no_handshake_fails_while_certificates_change(authority: Authority, web1: Nginx, tmp_path: Path) -> None:
    port, live = free_port(), tmp_path / "live.pem"
    pairs = [authority.issue(NAME) for _ in range(3)]
    shutil.copyfile(pairs[0].pem, live)
    made = config(port, {"web1": web1.http_port}, client_tls={"certificate": "mail"})
    made["certificates"] = {"mail": str(live)}
    context = authority.client_context()
    seen: list[int] = []
    failed: list[str] = []
    done = threading.Event()

    def shake() -> None:
        while not done.is_set():
            try:
                with context.wrap_socket(connect(port), server_hostname=NAME) as tls:
                    seen.append(int(str(tls.getpeercert()["serialNumber"]), 16))  # type: ignore[index]
            except OSError as error:
                failed.append(repr(error))

    def is_shown(issued: Issued) -> bool:
        return seen[-20:].count(issued.certificate.serial_number) == 20

    with Balancer(made, tmp_path) as balancer:
        clients = [threading.Thread(target=shake) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            for number in range(1, 8):
                issued = pairs[number % 3]
                shutil.copyfile(issued.pem, live)
                balancer.reload()
                eventually(lambda shown=issued: is_shown(shown), what="the new certificate is shown")
            live.write_bytes(pairs[0].key.read_bytes() + pairs[2].chain.read_bytes())
            with pytest.raises(Refused, match="mail"):
                balancer.reload()
            now = len(seen)
            eventually(lambda: len(seen) > now + 40, what="handshakes go on")
            assert is_shown(pairs[7 % 3]), "the old pair stays"
        finally:
            done.set()
            for client in clients:
                client.join(TIMEOUT_S)
    assert failed == []


# ------------------------------------------------------------ long polls


def test_a_heartbeat_lasts_as_long_as_its_route_allows(tmp_path: Path) -> None:
    """59 minutes on a clock that runs a thousand times faster: silent for longer than the service allows."""
    port = free_port()
    quiet = threading.Event()

    def answer(asked: Asked) -> bytes:
        quiet.wait(3.5)
        return reply("news")

    routes = {"activesync": {"path": "/Microsoft-Server-ActiveSync", "idle_timeout_s": 10}}
    with (
        Web("ex1", answer) as ex1,
        Balancer(config(port, {"ex1": ex1.port}, idle_timeout_s=1, routes=routes), tmp_path),
    ):
        with connect(port) as phone, connect(port) as browser:
            phone.sendall(
                b"POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n"
            )
            assert ask(browser, "/owa/").status == 504
            assert Wire(phone).answer("POST").body == b"news"
        quiet.set()


def test_a_drained_server_finishes_its_long_polls(tmp_path: Path) -> None:
    port = free_port()
    news = threading.Event()

    def answer(asked: Asked) -> bytes:
        news.wait(TIMEOUT_S)
        return reply("news")

    with Web("ex1", answer) as ex1, Web("ex2") as ex2:
        made = config(port, {"ex1": ex1.port, "ex2": {"port": ex2.port, "state": "disabled"}})
        with Balancer(made, tmp_path) as balancer, connect(port) as phone:
            phone.sendall(
                b"POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: m\r\nContent-Length: 0\r\n\r\n"
            )
            eventually(lambda: balancer.real_server("web", "ex1")["long_polls"] == 1, what="it waits")
            made["services"]["web"]["real_servers"]["ex2"]["state"] = "enabled"
            balancer.reload(made)
            assert balancer.cli("drain", "web", "ex1").returncode == 0
            page = " ".join(balancer.cli("status").stdout.split())
            assert "ex1: draining, 1 session, 1 long poll, the last ends in 10:5" in page
            assert "at the latest" in page
            with connect(port) as other:
                assert ask(other).body.startswith(b"ex2")
            news.set()
            last = Wire(phone).answer("POST")
            assert (last.body, last.value("Connection")) == (b"news", "close")
            assert phone.recv(1) == b""
            eventually(lambda: balancer.real_server("web", "ex1")["sessions"] == 0, what="nobody is there any more")


# ------------------------------------------------------------ Outlook Anywhere


def beginning(cookie: bytes) -> bytes:
    """The first packet of a channel, padded to the 76 bytes of a first OUT request."""
    packet = b"\x05\x00\x14\x03\x10\x00\x00\x00" + bytes(12) + struct.pack("<III", 6, 1, 3) + cookie
    return packet.ljust(76, b"\0")


class Proxy(Web):
    """Takes an IN channel to its end, and sends an OUT channel's whole length at once."""

    def __init__(self) -> None:
        super().__init__("ex1")
        self.taken = 0
        self.sessions: set[bytes] = set()

    def serve(self, connection: Connection) -> None:
        wire = Wire(connection.socket)
        head = wire.head()
        if head is None:
            return
        first = wire.exactly(76)
        self.sessions.add(session(first))
        if head.method == "RPC_IN_DATA":
            self.taken = len(wire.waiting)  # read together with the beginning
            left = int(head.value("Content-Length")) - len(first) - self.taken
            while left and (data := connection.socket.recv(min(left, 1 << 20))):
                left -= len(data)
                self.taken += len(data)
            connection.socket.sendall(reply("done"))
            return
        connection.socket.sendall(f"HTTP/1.1 200 Success\r\nContent-Length: {CHANNEL_BYTES}\r\n\r\n".encode())
        block = bytes(1 << 20)
        for _ in range(CHANNEL_BYTES // len(block)):
            connection.socket.sendall(block)


def test_both_channels_at_once_in_bounded_memory(tmp_path: Path) -> None:
    port = free_port()
    with Proxy() as ex1, Balancer(config(port, {"ex1": ex1.port}), tmp_path) as balancer:
        before = resident_kib(balancer)
        with connect(port) as channel_in, connect(port) as channel_out:
            for channel, method, length in (
                (channel_in, "RPC_IN_DATA", CHANNEL_BYTES),
                (channel_out, "RPC_OUT_DATA", 76),
            ):
                head = f"{method} /rpc/rpcproxy.dll?ex1:6001 HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n"
                channel.sendall(head.encode() + beginning(b"c" * 16))
            thread = threading.Thread(target=send_zeros, args=(channel_in, CHANNEL_BYTES - 76))
            thread.start()
            out = Wire(channel_out)
            head_out = out.head()
            assert head_out is not None
            assert head_out.status == 200
            left = CHANNEL_BYTES
            while left:
                left -= len(out.exactly(min(left, 1 << 20)))
            thread.join(TIMEOUT_S)
            assert Wire(channel_in).answer("POST").body == b"done"
        assert ex1.taken == CHANNEL_BYTES - 76
        assert ex1.sessions == {b"c" * 16}
        after = resident_kib(balancer)
        print(f"{CHANNEL_BYTES >> 20} MiB each way: the fattest worker had {before} KiB before and {after} KiB at most")
        assert after - before < 16 * 1024


def send_zeros(sock: socket.socket, size: int) -> None:
    block = bytes(1 << 20)
    for at in range(0, size, len(block)):
        sock.sendall(block[: size - at])


def resident_kib(balancer: Balancer) -> int:
    """The most memory that a worker ever had."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in balancer.worker_pids]
    return max(int(text.partition("VmHWM:")[2].split()[0]) for text in texts)


# ------------------------------------------------------------ slow, many, and liars


@contextmanager
def limited(folder: Path, **options: Any) -> Iterator[tuple[int, Web]]:
    port = free_port()
    with Web("ex1", lambda asked: reply(asked.request.value("X-Forwarded-For"))) as ex1:
        made = config(port, {"ex1": ex1.port}, **options) | {"workers": 1}
        with Balancer(made, folder):
            yield port, ex1


def test_a_head_that_drips_is_cut(tmp_path: Path) -> None:
    with limited(tmp_path, limits={"head_timeout_s": 1}) as (port, ex1), connect(port) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: m\r\n")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.2):
                try:
                    slow.sendall(b"X")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert Wire(slow).answer().status == 408
        stop.set()
        thread.join(TIMEOUT_S)
        assert ex1.requests == []


def test_too_many_requests_of_one_source(tmp_path: Path) -> None:
    with limited(tmp_path, limits={"requests_per_source_s": 5}) as (port, _):
        answers = []
        for _ in range(20):
            with connect(port) as client:
                answers.append(ask(client).status)
        assert set(answers) == {200, 429}


def test_only_a_trusted_proxy_is_believed(tmp_path: Path) -> None:
    forged = "X-Forwarded-For: 192.0.2.1, 198.51.100.7"
    with limited(tmp_path) as (port, _), connect(port) as client:
        assert ask(client, "/", forged).body == b"127.0.0.1"
    (tmp_path / "trusting").mkdir()
    with limited(tmp_path / "trusting", forwarded={"trust": "127.0.0.0/8"}) as (port, _), connect(port) as client:
        assert ask(client, "/", forged).body == b"198.51.100.7, 127.0.0.1"  # the first one could be anybody's


# ------------------------------------------------------------ cookies


@pytest.mark.parametrize("kept", [True, False], ids=["with a key file", "without"])
def test_a_cookie_holds_over_a_restart_where_its_key_is_kept(tmp_path: Path, kept: bool) -> None:
    port = free_port()
    persist = {"by": "cookie"} | ({"key_file": str(tmp_path / "keys")} if kept else {})
    with Web("ex1") as ex1, Web("ex2") as ex2:
        made = config(port, {"ex1": ex1.port, "ex2": ex2.port}, persist=persist)
        with Balancer(made, tmp_path) as balancer:
            with connect(port) as browser:
                first = ask(browser)
            cookie = first.value("Set-Cookie").split(";")[0]
            balancer.stop()
            balancer.start()
            answers = []
            for _ in range(10):
                with connect(port) as browser:
                    answers.append(ask(browser, "/", f"Cookie: {cookie}"))
    if kept:
        assert {answer.body for answer in answers} == {first.body}
        assert (tmp_path / "keys").stat().st_mode & 0o077 == 0, "nobody else may read it"
    assert [bool(answer.values("Set-Cookie")) for answer in answers] == [not kept] * 10
