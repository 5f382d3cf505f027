"""A real server for tests in namespaces: says its name and whom it sees, in a process of its own.

Decides: the protocol. TCP: the server speaks first (`220 NAME ADDRESS PORT`), then answers each line: `echo TEXT` with
`NAME TEXT`, `send N` with N bytes, `take N` (it reads N bytes) with their SHA-256; `quit` ends it. UDP: a datagram is
answered with `NAME ADDRESS PORT ` and the datagram.
Refuses to know: where it runs.

    python -m tests.support.netserver NAME LOG PORT [ADDRESS …]

Each session and each datagram is one line in LOG: `tcp ADDRESS PORT LOCAL_ADDRESS`.
"""

from __future__ import annotations

import hashlib
import select
import socket
import sys
import threading
from pathlib import Path

_CHUNK = 65536


def main(name: str, log: Path, port: int, addresses: list[str]) -> None:
    """Serve until killed."""
    threads = []
    for address in addresses or ["0.0.0.0", "::"]:
        threads.append(threading.Thread(target=_tcp, args=(name, log, address, port)))
        threads.append(threading.Thread(target=_udp, args=(name, log, address, port)))
    for thread in threads:
        thread.start()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(_family(address), kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    return sock


def _tcp(name: str, log: Path, address: str, port: int) -> None:
    listener = _open(address, port, socket.SOCK_STREAM)
    listener.listen(512)
    while True:
        client, peer = listener.accept()
        threading.Thread(target=_serve, args=(name, log, client, peer[0], peer[1]), daemon=True).start()


def _serve(name: str, log: Path, client: socket.socket, address: str, port: int) -> None:
    _note(log, f"tcp {address} {port} {client.getsockname()[0]}")
    try:
        with client, client.makefile("rb") as lines:
            client.sendall(f"220 {name} {address} {port}\r\n".encode())
            for line in lines:
                word, _, rest = line.decode().strip().partition(" ")
                if word == "quit":
                    return
                if word == "send":
                    _send(client, int(rest))
                elif word == "take":
                    client.sendall(f"{hashlib.sha256(lines.read(int(rest))).hexdigest()}\r\n".encode())
                else:
                    client.sendall(f"{name} {rest}\r\n".encode())
    except OSError:
        return


def _send(client: socket.socket, left: int) -> None:
    chunk = bytes(range(256)) * (_CHUNK // 256)
    while left:
        left -= client.send(chunk[: min(left, _CHUNK)])


def _udp(name: str, log: Path, address: str, port: int) -> None:
    sock = _open(address, port, socket.SOCK_DGRAM)
    # the answer must leave from the address that was asked, also when that is one of several
    level, option, kind = (
        (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, socket.IPV6_PKTINFO)
        if sock.family == socket.AF_INET6
        else (socket.IPPROTO_IP, 8, 8)  # IP_PKTINFO, ip(7)
    )
    sock.setsockopt(level, option, 1)
    while True:
        select.select([sock], [], [])
        data, controls, _, peer = sock.recvmsg(65535, 256)
        _note(log, f"udp {peer[0]} {peer[1]} -")
        same = [(level, kind, _anywhere(value)) for one, two, value in controls if (one, two) == (level, kind)]
        sock.sendmsg([f"{name} {peer[0]} {peer[1]} ".encode() + data], same, 0, peer)


def _anywhere(info: bytes) -> bytes:
    """The address that was asked, without the interface: the answer may leave by another one."""
    return info[:16] + bytes(4) if len(info) == 20 else bytes(4) + info[4:]


def _note(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
