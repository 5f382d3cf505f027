"""PROXY headers: believed from configured networks only, passed along a chain of two balancers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.model import Endpoint
from mailbalancer.wire import proxy_header
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Postfix
from tests.support.servers import Recorder
from tests.support.swaks import deliver
from tests.support.turned_away import is_turned_away
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

PROXY = "127.0.0.40"
STRANGER = "127.0.0.41"
CLIENT = Endpoint("203.0.113.9", 4711)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder("ex1") as server:
        yield server


def config(port: int, behind: int, name: str = "ex1", **more: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {name: behind},
        "check": "none",
        "proxy_protocol": {"accept_from": [f"{PROXY}/32"], "send": "v2"},
        **more,
    }
    return {"real_servers": {name: "127.0.0.1"}, "services": {"smtp": service}}


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10, (source, 0))


def header(port: int) -> bytes:
    return proxy_header.encode("v2", CLIENT, Endpoint("127.0.0.1", port))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_configured_proxy_is_believed(recorder: Recorder, tmp_path: Path, version: str) -> None:
    port = free_port()
    front = Endpoint("198.51.100.1", 25)
    with Balancer(config(port, recorder.port), tmp_path) as balancer:
        with connect(port, PROXY) as client:
            client.sendall(proxy_header.encode(version, CLIENT, front) + b"EHLO x\r\n")
            eventually(lambda: recorder.connections and b"EHLO" in recorder.connections[0].received)
            (session,) = balancer.command("sessions")["sessions"]
            assert session["client"] == "203.0.113.9:4711"
        received = bytes(recorder.connections[0].received)
        told = proxy_header.parse(received)
        assert told is not None
        assert (told.source, told.destination) == (CLIENT, front)
        assert received[told.length :] == b"EHLO x\r\n"
        eventually(lambda: "client=203.0.113.9:4711" in balancer.log_text(), what="the session's line")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_stranger_with_a_header_is_refused(recorder: Recorder, tmp_path: Path, version: str) -> None:
    port = free_port()
    with Balancer(config(port, recorder.port), tmp_path) as balancer:
        assert is_turned_away(port, proxy_header.encode(version, CLIENT, CLIENT) + b"EHLO x\r\n", STRANGER)
        eventually(lambda: "end=spoofed_proxy_header" in balancer.log_text(), what="the session's line")
        assert f"client={STRANGER}:" in balancer.log_text()
        assert b"203.0.113.9" not in b"".join(bytes(c.received) for c in recorder.connections)
        assert all(b"EHLO" not in c.received for c in recorder.connections)


def test_a_stranger_without_a_header_is_a_client_like_others(recorder: Recorder, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, recorder.port), tmp_path), connect(port, STRANGER) as client:
        client.sendall(b"EHLO x\r\n")
        eventually(lambda: recorder.connections and b"EHLO" in recorder.connections[0].received)
        told = proxy_header.parse(recorder.connections[0].received)
        assert told is not None
        assert told.source == Endpoint(*client.getsockname())


def test_a_configured_proxy_that_sends_none_is_ended(recorder: Recorder, tmp_path: Path) -> None:
    port = free_port()
    silent = config(port, recorder.port)
    silent["services"]["smtp"]["proxy_protocol"]["header_timeout_s"] = 0.2
    with Balancer(silent, tmp_path) as balancer:
        assert is_turned_away(port, source=PROXY)
        eventually(lambda: "end=no_proxy_header" in balancer.log_text())
        assert is_turned_away(port, b"EHLO x\r\n", PROXY)
        eventually(lambda: "end=bad_proxy_header" in balancer.log_text())
        assert recorder.connections == []


def test_the_client_behind_the_proxy_is_judged_by_the_lists(recorder: Recorder, tmp_path: Path) -> None:
    port = free_port()
    with Balancer(config(port, recorder.port, deny=["203.0.113.0/24"]), tmp_path) as balancer:
        assert is_turned_away(port, header(port), PROXY)
        eventually(lambda: "end=denied" in balancer.log_text())


def test_a_chain_of_two_balancers_in_front_of_postfix(mx1: Postfix, tmp_path: Path) -> None:
    """Postfix sees the address of the client of the first one."""
    first, second = free_ports(2)
    inner = config(second, mx1.proxied_port, "mx1", proxy_protocol={"accept_from": ["127.0.0.1/32"], "send": "v2"})
    check = {"type": "smtp", "interval_s": 1, "rise": 1, "fall": 1}
    outer = config(first, second, "inner", proxy_protocol={"send": "v2"}, check=check)
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer").mkdir()
    with ExitStack() as stack:
        behind = stack.enter_context(Balancer(inner, tmp_path / "inner"))
        front = stack.enter_context(Balancer(outer, tmp_path / "outer"))
        up = eventually(lambda: front.real_server("smtp", "inner")["check"], what="checked through the second one")
        assert up["verdict"] == "up", up
        before = len(mx1.clients())
        deliver(first, source="127.0.0.77")
        eventually(lambda: len(mx1.clients()) > before)
        assert mx1.clients()[before:] == ["127.0.0.77"]
        for balancer in (front, behind):
            eventually(lambda b=balancer: "client=127.0.0.77:" in b.log_text(), what="both name the client")
        shown = behind.cli("smoke", "smtp")
        assert shown.returncode == 0, shown.stdout + shown.stderr
