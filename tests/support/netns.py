"""A small world of network namespaces: machines, cables and switches, made for one test and gone after it.

Decides: names (nobody else's namespaces are touched), and that everything ends with the test, also after a failure:
processes first, then namespaces, and with them whatever was inside.
Refuses to know: addresses and topology, which the test draws.

    with World() as world:
        lan = world.switch("lan")
        client = world.machine("client")
        client.plug(lan, "eth0", "10.0.1.5/24")
        client.run("ip", "route", "add", "default", "via", "10.0.1.1")

The switch is a namespace of its own with a bridge. Nothing is ever made in the machine's own network.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.support.tools import cannot_run, require, require_root

Answer = TypeVar("Answer")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_FOLDER = Path("/run/netns")


class World:
    """Everything that one test has built."""

    def __init__(self) -> None:
        require_root("network namespaces")
        self._ip = require("ip")
        require("nft")
        self._prefix = f"mbt-{secrets.token_hex(3)}"
        self._machines: dict[str, Machine] = {}
        self._cables = 0

    def machine(self, name: str) -> Machine:
        """A machine with nothing but `lo`."""
        full = f"{self._prefix}-{name}"
        done = subprocess.run([self._ip, "netns", "add", full], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            cannot_run(f"namespaces cannot be made here: {done.stderr.strip()}")
        machine = self._machines[name] = Machine(self, name, full)
        machine.run("ip", "link", "set", "lo", "up")
        # duplicate address detection would make every address wait a second
        machine.sysctl("net.ipv6.conf.all.accept_dad", "0")
        machine.sysctl("net.ipv6.conf.default.accept_dad", "0")
        return machine

    def switch(self, name: str) -> Machine:
        """A switch: machines that are plugged into it are on one segment."""
        machine = self.machine(name)
        machine.run("ip", "link", "add", "switch", "type", "bridge")
        machine.run("ip", "link", "set", "switch", "up")
        return machine

    def cable(self, one: Machine, one_name: str, other: Machine, other_name: str) -> None:
        """A cable between two machines (or a machine and a switch, whose end is named here too)."""
        peer = ["peer", "name", other_name, "netns", other.namespace]
        one.run("ip", "link", "add", one_name, "type", "veth", *peer)
        one.run("ip", "link", "set", one_name, "up")
        other.run("ip", "link", "set", other_name, "up")

    def next_port(self) -> str:
        """A name for one more port of a switch."""
        self._cables += 1
        return f"port{self._cables}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for machine in self._machines.values():
            machine.end()
        for machine in self._machines.values():
            subprocess.run([self._ip, "netns", "del", machine.namespace], capture_output=True, check=False)


class Machine:
    """One namespace."""

    def __init__(self, world: World, name: str, namespace: str) -> None:
        self._world = world
        self.name = name
        self.namespace = namespace
        self._processes: list[subprocess.Popen[bytes]] = []

    def plug(self, switch: Machine, device: str, *addresses: str) -> None:
        """Connect an interface to a switch and give it addresses."""
        port = self._world.next_port()
        self._world.cable(self, device, switch, port)
        switch.run("ip", "link", "set", port, "master", "switch")
        for address in addresses:
            self.address(device, address)

    def address(self, device: str, address: str) -> None:
        self.run("ip", "address", "add", address, "dev", device)

    def route(self, network: str, via: str) -> None:
        self.run("ip", "-6" if ":" in via else "-4", "route", "replace", network, "via", via)

    def sysctl(self, key: str, value: str) -> None:
        self.call(lambda: Path("/proc/sys", *key.split(".")).write_text(value))

    def forwards(self) -> None:
        """It is a router."""
        self.sysctl("net.ipv4.ip_forward", "1")
        self.sysctl("net.ipv6.conf.all.forwarding", "1")

    def mac(self, device: str) -> str:
        link: list[dict[str, str]] = json.loads(self.run("ip", "-json", "link", "show", device))
        return link[0]["address"]

    def run(self, *command: str, text: str = "", timeout_s: float = 30.0) -> str:
        """Run a command inside; what it printed.

        Raises:
            AssertionError: it failed; with what it said.
        """
        done = self.attempt(*command, text=text, timeout_s=timeout_s)
        assert done.returncode == 0, f"on {self.name}: {' '.join(command)}: {done.stderr.strip()}"
        return done.stdout

    def attempt(self, *command: str, text: str = "", timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside, whatever becomes of it."""
        return subprocess.run(
            self.inside(*command), input=text, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def start(self, *command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a program inside; it ends with the test at the latest."""
        with contextlib.ExitStack() as files:
            out = files.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            process = subprocess.Popen(
                self.inside(*command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._processes.append(process)
        return process

    def python(self, module: str, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a module of this project inside."""
        return self.start(sys.executable, "-m", module, *arguments, log=log)

    def inside(self, *command: str) -> list[str]:
        """The command line that runs this inside."""
        return [require("ip"), "netns", "exec", self.namespace, *command]

    def call(self, work: Callable[[], Answer]) -> Answer:
        """Do this in the machine's network, in this process: sockets made there stay there."""
        with _entered(self.namespace):
            return work()

    def connect(self, address: str, port: int, timeout_s: float = 5.0, source: str = "") -> socket.socket:
        """A TCP connection from this machine."""
        bound = (source, 0) if source else None
        return self.call(lambda: socket.create_connection((address, port), timeout_s, bound))

    def end(self) -> None:
        """End what was started here and not ended yet."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes.clear()
        self._end_strangers()

    def _end_strangers(self) -> None:
        """Whatever else lives in this namespace, such as workers whose supervisor was killed."""
        listed = subprocess.run(
            [require("ip"), "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def _entered(namespace: str) -> Iterator[None]:
    """This thread is in that network until the block ends."""
    with Path("/proc/thread-self/ns/net").open("rb") as home, (_FOLDER / namespace).open("rb") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
