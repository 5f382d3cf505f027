"""The demo's ports: distinct, its own servers can listen there, nobody else can take them."""

from __future__ import annotations

import errno
import socket

import pytest

from mailbalancer.demo.ports import Ports, reserved


def every(ports: Ports) -> list[int]:
    behind = [port for own in ports.rpc_servers.values() for port in own]
    behind += [port for own in ports.web_servers.values() for port in own]
    return [ports.smtp, ports.web, *ports.rpc.values(), *ports.mail_servers.values(), *behind]


def test_ports_are_distinct_between_demos_too() -> None:
    with reserved() as one, reserved() as other:
        both = every(one) + every(other)
        assert len(set(both)) == len(both) == 46


def test_a_server_can_listen_and_come_back_and_a_stranger_cannot() -> None:
    with reserved() as ports:
        with socket.socket() as stranger, pytest.raises(OSError) as refused:  # noqa: PT011  # errno is looked at below
            stranger.bind(("127.0.0.1", ports.smtp))
        assert refused.value.errno == errno.EADDRINUSE
        for _ in range(2):
            here = ("127.0.0.1", ports.smtp)
            with socket.create_server(here) as server, socket.create_connection(here, timeout=5) as client:
                accepted, peer = server.accept()
                assert peer == client.getsockname()
                accepted.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(here, timeout=5)


def test_two_workers_share_a_reserved_port() -> None:
    with reserved() as ports, socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", ports.smtp))
        for sock in (one, other):
            sock.listen()


def test_the_ports_are_free_afterwards() -> None:
    with reserved() as ports:
        pass
    for port in every(ports):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
