"""What `mailbalancer realserver` prints, typed on the servers as it is; and what `--verify` finds out from outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, SERVERS6, VIP, VIP6, Farm, Segment, Talk, pattern_digest, serve
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.tools import require
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.4, "rise": 1, "fall": 1}
#: What the lines write goes here and is gone afterwards: a namespace has no files of its own.
SCRATCH = """
set -e
mount -t tmpfs none /etc && mkdir -p /etc/sysctl.d /etc/network/interfaces.d /etc/systemd/system
mount -t tmpfs none /usr/local/sbin
"""
KILOBYTE = 1024


def config(forward: str, servers: dict[str, str], listen: str, **more: Any) -> dict[str, Any]:
    service: dict[str, Any] = {"real_servers": [*servers], "check": FAST, "ramp_s": 0, "listen": listen, **more}
    service |= {"mode": "tcp", "source": "client"} if forward == "client" else {"mode": "l4", "forward": forward}
    return {"real_servers": servers, "services": {"mail": service}}


def printed(machine: Machine, balancer: Balancer) -> dict[str, str]:
    """The lines for Debian, by real server."""
    words = ["realserver", "mail", "--os", "debian", "-c", str(balancer.config_file)]
    text = machine.run(sys.executable, "-m", "mailbalancer", *words)
    parts = text.split("# ---- ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def type_in(machine: Machine, lines: str) -> None:
    """As root on that server."""
    require("sysctl")
    done = machine.attempt("sh", text=SCRATCH + lines)
    assert done.returncode == 0, f"{done.stderr}\n{lines}"


def served(machine: Machine, vip: str) -> str:
    """How the server sees a client on this machine; empty: not yet."""
    try:
        return Talk(machine, vip, timeout_s=1.0).seen_as
    except OSError:
        return ""


@pytest.mark.parametrize("forward", ["transparent", "client"])
@pytest.mark.parametrize(
    ("servers", "vip", "far"), [(SERVERS, VIP, "10.9.0.5"), (SERVERS6, VIP6, "fd00:9::5")], ids=["IPv4", "IPv6"]
)
def test_the_gateway(world: World, tmp_path: Path, forward: str, servers: dict[str, str], vip: str, far: str) -> None:
    farm = Farm(world, tmp_path, gateway=False)
    if forward == "client":
        vip = "fd00:1::1" if ":" in vip else "10.0.1.1"
    listen = f"[{vip}]:{PORT}" if ":" in vip else f"{vip}:{PORT}"
    farm.serve()
    with farm.balanced(config(forward, {"s1": servers["s1"]}, listen)) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["way_back"], 10.0, "s1 is probed")
        assert served(farm.far, vip) != far
        type_in(farm.servers["s1"], printed(farm.balancer, balancer)["s1"])
        eventually(lambda: served(farm.far, vip) == far, 15.0, "the far client is seen")


@pytest.mark.parametrize(
    ("server", "vip", "far"), [("10.0.1.11", VIP, "10.9.0.5"), ("fd00:1::11", VIP6, "fd00:9::5")], ids=["IPv4", "IPv6"]
)
def test_direct_server_return(world: World, tmp_path: Path, server: str, vip: str, far: str) -> None:
    segment = Segment(world, tmp_path)
    machine = segment.servers["s1"]
    serve(machine, "s1", segment.log("s1"))
    listen = f"[{vip}]:{PORT}" if ":" in vip else f"{vip}:{PORT}"
    with segment.balanced(config("dsr", {"s1": server}, listen)) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is not None, 10.0, "s1 is checked")
        assert served(segment.far, vip) == ""
        type_in(machine, printed(segment.balancer, balancer)["s1"])
        eventually(lambda: served(segment.far, vip) == far, 15.0, "the far client is served")
        if ":" not in vip:  # nobody but the balancer says that it has the address
            segment.client.run("ip", "neighbour", "flush", "all")
            assert served(segment.client, vip) == "10.0.1.5"
            known = segment.client.run("ip", "neighbour", "show", vip)
            assert segment.balancer.mac("eth0") in known


def test_the_arp_alternative(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    machine = segment.servers["s1"]
    serve(machine, "s1", segment.log("s1"))
    with segment.balanced(config("dsr", {"s1": "10.0.1.11"}, f"{VIP}:{PORT}")) as balancer:
        lines = printed(segment.balancer, balancer)["s1"].splitlines()
        first = next(at for at, line in enumerate(lines) if line == "#   table arp mailbalancer {")
        table = "\n".join(line.removeprefix("#") for line in lines[first:] if line.startswith("#   "))
        rules = table[: table.index("\n   }\n") + 5] if "\n   }\n" in table else table
        done = machine.attempt("nft", "-f", "-", text=rules)
        if done.returncode != 0 and "Operation not supported" in done.stderr:
            pytest.skip("this kernel has no ARP tables of nftables")
        assert done.returncode == 0, f"{done.stderr}\n{rules}"
        machine.address("lo", f"{VIP}/32")
        segment.balancer.run("ip", "address", "del", f"{VIP}/32", "dev", "eth0")
        assert served(segment.client, VIP) == "", "nobody answers for the address"
        machine.run("nft", "flush", "ruleset")
        assert eventually(lambda: served(segment.client, VIP), 10.0, "without the rules the server answers")


def test_a_tunnel_and_its_segments(world: World, tmp_path: Path) -> None:
    """Fragments are dropped on the way, so that only what the server's `advmss` says gets through."""
    farm = Farm(world, tmp_path)
    site = world.switch("site")
    farm.router.plug(site, "eth2", "10.8.0.1/24")
    machine = world.machine("site-s1")
    machine.plug(site, "eth0", "10.8.0.11/24")
    machine.route("default", "10.8.0.1")
    farm.client.route("default", "10.0.1.254")
    rules = "table inet f { chain f { type filter hook prerouting priority -450; ip frag-off & 0x3fff != 0 drop; }; }"
    farm.router.run("nft", "-f", "-", text=rules)
    serve(machine, "s1", farm.log("s1"))
    with farm.balanced(config("tunnel", {"s1": "10.8.0.11"}, f"{VIP}:{PORT}")) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is not None, 10.0, "s1 is checked")
        type_in(machine, printed(farm.balancer, balancer)["s1"])
        assert eventually(lambda: served(farm.far, VIP), 15.0, "the far client is served") == "10.9.0.5"
        talk = Talk(farm.client, VIP)
        assert talk.take(100 * KILOBYTE) == pattern_digest(100 * KILOBYTE)
        talk.give(bytes(100 * KILOBYTE))
