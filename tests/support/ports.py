"""Free ports for listeners that another program will open.

Decides: where to look. Ports come from below the kernel's range for outgoing connections, because a test run makes
thousands of those, and one of them could sit on a port between the moment it was found free and the moment it is used.
Each process of a parallel run looks in a part of its own and never gives the same port twice.
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST = 10240
PARTS = 16


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which both TCP and UDP are free on `host`, and which this process has not been given before."""
    for port in _candidates:
        if _is_free(host, port):
            return port
    raise AssertionError("every port below the ephemeral range has been given out; is a listener leaking?")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different free ports."""
    return [free_port(host) for _ in range(count)]


def _part() -> range:
    """This process's share of the ports between LOWEST and the ephemeral range."""
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    highest = int(text.split()[0])
    if highest < LOWEST + PARTS * 100:  # somebody widened the range over ours: the upper end is as good as any
        lowest, highest = 61000, 65536
    else:
        lowest = LOWEST
    number = re.search(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", ""))
    part = (int(number.group()) if number else PARTS - 1) % PARTS
    size = (highest - lowest) // PARTS
    return range(lowest + part * size, lowest + (part + 1) * size)


def _shuffled(ports: range) -> Iterator[int]:
    """All of them in random order, so that two test runs on one machine rarely meet."""
    return iter(random.sample(ports, len(ports)))


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


_candidates = _shuffled(_part())
