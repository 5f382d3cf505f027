"""The usual network of the tests in namespaces, ready to be used: a client, a far client, the balancer, two servers.

Decides: addresses, in both families, and how a client talks.
Refuses to know: what the balancer is configured to do.

    client 10.0.1.5, fd00:1::5 ── lan ── balancer 10.0.1.1 | 10.0.2.1 ── farm ── s1 10.0.2.11, s2 10.0.2.12
    far    10.9.0.5, fd00:9::5 ── router 10.0.1.254, fd00:1::254 ── lan
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.waiting import eventually

PORT = 25
VIP, VIP6 = "10.0.1.100", "fd00:1::100"
SERVERS = {"s1": "10.0.2.11", "s2": "10.0.2.12"}
#: What servers behind a tunnel tell their clients: the largest segment that fits into it.
MSS = {4: 1410, 6: 1370}
SERVERS6 = {"s1": "fd00:2::11", "s2": "fd00:2::12"}


class Farm:
    """Two arms: clients on one side of the balancer, servers on the other."""

    def __init__(self, world: World, folder: Path, gateway: bool = True) -> None:
        self.world = world
        self.folder = folder
        self.lan, self.farm = world.switch("lan"), world.switch("farm")
        self.client = world.machine("client")
        self.client.plug(self.lan, "eth0", "10.0.1.5/24", "fd00:1::5/64")
        self.router = world.machine("router")
        self.router.plug(self.lan, "eth0", "10.0.1.254/24", "fd00:1::254/64")
        self.router.forwards()
        self.far = world.machine("far")
        world.cable(self.far, "eth0", self.router, "eth1")
        for machine, v4, v6 in (
            (self.far, "10.9.0.5/24", "fd00:9::5/64"),
            (self.router, "10.9.0.1/24", "fd00:9::1/64"),
        ):
            device = "eth0" if machine is self.far else "eth1"
            machine.address(device, v4)
            machine.address(device, v6)
        self.far.route("default", "10.9.0.1")
        self.far.route("default", "fd00:9::1")
        self.balancer = world.machine("balancer")
        self.balancer.plug(self.lan, "eth0", "10.0.1.1/24", "fd00:1::1/64")
        self.balancer.plug(self.farm, "eth1", "10.0.2.1/24", "fd00:2::1/64")
        for via in ("10.0.1.254", "fd00:1::254"):
            self.balancer.route("default", via)
        self.servers = {name: self._server(name, gateway) for name in SERVERS}

    def _server(self, name: str, gateway: bool) -> Machine:
        machine = self.world.machine(name)
        machine.plug(self.farm, "eth0", f"{SERVERS[name]}/24", f"{SERVERS6[name]}/64")
        if gateway:
            machine.route("default", "10.0.2.1")
            machine.route("default", "fd00:2::1")
        return machine

    def serve(self, port: int = PORT) -> None:
        """The servers listen on every address they have."""
        for name, machine in self.servers.items():
            serve(machine, name, self.log(name), port)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def seen(self, name: str) -> list[list[str]]:
        """What the server's log says: protocol, address, port, own address, per session; without the checks."""
        log = self.log(name)
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [line for line in lines if line[1] not in ("127.0.0.1", "::1")]

    def balanced(self, config: dict[str, Any]) -> Balancer:
        """The program on the balancer; a context manager."""
        return Balancer(config, self.folder, under=self.balancer.inside())


def serve(machine: Machine, name: str, log: Path, port: int = PORT, *addresses: str) -> None:
    """Start a server and wait until it listens."""
    machine.python("tests.support.netserver", name, str(log), str(port), *addresses)
    where = addresses[0] if addresses else "127.0.0.1"
    eventually(lambda: _listens(machine, where, port), 10.0, f"{name} listens")


def _listens(machine: Machine, address: str, port: int) -> bool:
    try:
        machine.connect(address, port, 1.0).close()
    except OSError:
        return False
    return True


class Talk:
    """A TCP conversation with a server, as one types it into telnet: the server speaks first."""

    def __init__(self, machine: Machine, address: str, port: int = PORT, timeout_s: float = 5.0) -> None:
        self.sock = machine.connect(address, port, timeout_s)
        self.lines = self.sock.makefile("rb")
        _, self.server, self.seen_as, _ = self.lines.readline().decode().split()

    def say(self, text: str) -> str:
        """`echo TEXT`; what came back."""
        self.sock.sendall(f"echo {text}\r\n".encode())
        return self.lines.readline().decode().strip()

    def take(self, size: int) -> str:
        """Have so many bytes sent to us; their SHA-256."""
        self.sock.sendall(f"send {size}\r\n".encode())
        digest = hashlib.sha256()
        while size:
            data = self.lines.read(min(size, 1 << 20))
            assert data, f"{size} bytes are missing"
            digest.update(data)
            size -= len(data)
        return digest.hexdigest()

    def give(self, data: bytes) -> str:
        """Send bytes; the SHA-256 that the server has computed of them."""
        self.sock.sendall(f"take {len(data)}\r\n".encode())
        self.sock.sendall(data)
        return self.lines.readline().decode().strip()

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


def with_both(machine: Machine, vip: str, count: int = 8) -> list[Talk]:
    """So many conversations, among them some with each server: who is asked first is nobody's promise."""

    def held() -> list[Talk] | None:
        talks = [Talk(machine, vip) for _ in range(count)]
        if {talk.server for talk in talks} == {"s1", "s2"}:
            return talks
        for talk in talks:
            talk.close()
        return None

    return eventually(held, 20.0, "both servers are used")


def ask_both(machine: Machine, vip: str, text: str = "q", count: int = 20) -> list[list[str]]:
    """The same with datagrams: their answers."""

    def asked() -> list[list[str]] | None:
        answers = [ask(machine, vip, f"{text}{number}") for number in range(count)]
        return answers if {answer[0] for answer in answers} == {"s1", "s2"} else None

    return eventually(asked, 20.0, "both servers are asked")


def ask(machine: Machine, address: str, text: str, port: int = PORT, timeout_s: float = 3.0) -> list[str]:
    """One datagram and its answer: the server's name, our address as it saw it, our port, the text."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with machine.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(timeout_s)
        sock.sendto(text.encode(), (address, port))
        data, peer = sock.recvfrom(65535)
    assert peer[0] == address, f"the answer came from {peer[0]}"
    return data.decode().split()


def pattern_digest(size: int) -> str:
    """The SHA-256 of what the server sends for `send SIZE`."""
    chunk = bytes(range(256)) * 256
    digest = hashlib.sha256()
    for _ in range(size // len(chunk)):
        digest.update(chunk)
    digest.update(chunk[: size % len(chunk)])
    return digest.hexdigest()


#: Everything that the program may change on a machine.
STATE = (
    "ip -o address",
    "ip -o link",
    "ip -4 rule",
    "ip -6 rule",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "nft list ruleset",
    r"sysctl -a --pattern ^net\.ipv[46]\.(conf|neigh|ip_forward)",
)


def state_of(machine: Machine) -> dict[str, str]:
    """The machine's rules, routes, addresses and settings, byte for byte."""
    return {command: machine.run(*command.split()) for command in STATE}


class Segment:
    """One segment with everybody on it: for direct server return, and for one-armed balancers.

    client 10.0.1.5, balancer 10.0.1.1, s1 10.0.1.11, s2 10.0.1.12, router 10.0.1.254 (to far 10.9.0.5) on one switch.
    """

    def __init__(self, world: World, folder: Path, gateway: str = "254") -> None:
        self.world = world
        self.folder = folder
        self.lan = world.switch("lan")
        self.client = self._plugged("client", "5")
        self.router = self._plugged("router", "254")
        self.router.forwards()
        self.far = world.machine("far")
        world.cable(self.far, "eth0", self.router, "eth1")
        for machine, device, host in ((self.far, "eth0", "5"), (self.router, "eth1", "1")):
            machine.address(device, f"10.9.0.{host}/24")
            machine.address(device, f"fd00:9::{host}/64")
        self.balancer = self._plugged("balancer", "1")
        self.servers = {name: self._plugged(name, host) for name, host in (("s1", "11"), ("s2", "12"))}
        for machine, via in [(self.far, ""), (self.client, "254"), (self.balancer, "254")] + [
            (server, gateway) for server in self.servers.values()
        ]:
            machine.route("default", f"10.0.1.{via}" if via else "10.9.0.1")
            machine.route("default", f"fd00:1::{via}" if via else "fd00:9::1")

    def _plugged(self, name: str, host: str) -> Machine:
        machine = self.world.machine(name)
        machine.plug(self.lan, "eth0", f"10.0.1.{host}/24", f"fd00:1::{host}/64")
        return machine

    def serve(self, port: int = PORT) -> None:
        """The servers have the service's addresses on `lo`, keep quiet about them, and listen."""
        for name, machine in self.servers.items():
            prepare_dsr(machine)
            serve(machine, name, self.log(name), port)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def seen(self, name: str) -> list[list[str]]:
        """See `Farm.seen`."""
        log = self.log(name)
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def balanced(self, config: dict[str, Any]) -> Balancer:
        """The program on the balancer; a context manager."""
        return Balancer(config, self.folder, under=self.balancer.inside())


class Site(Farm):
    """Servers in a network of their own, behind the router: for tunnels. They answer clients past the balancer.

    s1 10.8.0.11, fd00:8::11, s2 10.8.0.12, fd00:8::12 ── router 10.8.0.1, fd00:8::1
    """

    def __init__(self, world: World, folder: Path) -> None:
        super().__init__(world, folder)
        site = world.switch("site")
        self.router.plug(site, "eth2", "10.8.0.1/24", "fd00:8::1/64")
        for via in ("10.0.1.254", "fd00:1::254"):
            self.client.route("default", via)
        self.servers = {name: self._behind(site, name, host) for name, host in (("s1", "11"), ("s2", "12"))}

    def _behind(self, site: Machine, name: str, host: str) -> Machine:
        machine = self.world.machine(f"site-{name}")
        addresses = {4: f"10.8.0.{host}", 6: f"fd00:8::{host}"}
        machine.plug(site, "eth0", f"{addresses[4]}/24", f"{addresses[6]}/64")
        for version, gateway, balancer in ((4, "10.8.0.1", "10.0.1.1"), (6, "fd00:8::1", "fd00:1::1")):
            machine.run("ip", f"-{version}", "route", "replace", "default", "via", gateway, "advmss", str(MSS[version]))
            end_tunnel(machine, f"vx{version}", addresses[version], balancer)
        prepare_dsr(machine)
        return machine


def end_tunnel(machine: Machine, device: str, address: str, balancer: str) -> None:
    """The far end of the balancer's tunnel to this address."""
    words = ["id", str(VXLAN_NUMBER), "dstport", str(VXLAN_PORT), "local", address, "remote", balancer]
    machine.run("ip", "link", "add", device, "address", tunnel_mac(address), "type", "vxlan", *words)
    machine.run("ip", "link", "set", device, "up")
    for place in ("all", device):
        machine.sysctl(f"net.ipv4.conf.{place}.rp_filter", "0")


def prepare_dsr(machine: Machine) -> None:
    """What a Linux real server needs for direct server return."""
    for place in ("all", "eth0"):
        machine.sysctl(f"net.ipv4.conf.{place}.arp_ignore", "1")
        machine.sysctl(f"net.ipv4.conf.{place}.arp_announce", "2")
    machine.address("lo", f"{VIP}/32")
    machine.address("lo", f"{VIP6}/128")
