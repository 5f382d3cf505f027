"""What `mailbalancer realserver` prints, typed on the servers as it is; and what `--verify` finds out from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import (
    PORT,
    SERVERS,
    SERVERS6,
    VIP,
    VIP6,
    Farm,
    Segment,
    Talk,
    pattern_digest,
    prepare_dsr,
    serve,
)
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.tools import cannot_run, require
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 1.0, "timeout_s": 2.0, "rise": 1, "fall": 3}
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
        eventually(lambda: balancer.real_server("mail", "s1")["way_back"], 20.0, "s1 is probed")
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
    """Nobody has the address but the server, which keeps quiet about it by rules instead of settings."""
    segment = Segment(world, tmp_path)
    machine = segment.servers["s1"]
    serve(machine, "s1", segment.log("s1"))
    machine.address("lo", f"{VIP}/32")
    balancer = segment.balanced(config("dsr", {"s1": "10.0.1.11"}, f"{VIP}:{PORT}"))
    lines = printed(segment.balancer, balancer)["s1"].splitlines()
    first = lines.index("#   table arp mailbalancer {")
    rules = "\n".join(line.removeprefix("#") for line in lines[first : lines.index("#   }") + 1])
    done = machine.attempt("nft", "-f", "-", text=rules)
    if done.returncode != 0 and "not supported" in done.stderr:
        cannot_run("this kernel has no ARP tables of nftables")
    assert done.returncode == 0, f"{done.stderr}\n{rules}"
    assert served(segment.client, VIP) == "", "nobody answers for the address"
    machine.run("nft", "flush", "ruleset")
    assert eventually(lambda: served(segment.client, VIP), 15.0, "without the rules the server answers")


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


# seen from outside


def verified(machine: Machine, balancer: Balancer, name: str = "s1") -> dict[str, dict[str, str]]:
    """The answers by their questions."""
    words = ["realserver", "mail", name, "--verify", "--json", "-c", str(balancer.config_file)]
    done = machine.attempt(sys.executable, "-m", "mailbalancer", *words)
    assert done.stdout, done.stderr
    answers: list[dict[str, str]] = json.loads(done.stdout)
    assert done.returncode == any(one["verdict"] == "bad" for one in answers)
    return {one["what"]: one for one in answers}


def verdicts(answers: dict[str, dict[str, str]]) -> dict[str, str]:
    return {what: one["verdict"] for what, one in answers.items()}


@pytest.mark.parametrize(("server", "vip"), [("10.0.1.11", VIP), ("fd00:1::11", VIP6)], ids=["IPv4", "IPv6"])
def test_verified_direct_server_return(world: World, tmp_path: Path, server: str, vip: str) -> None:
    segment = Segment(world, tmp_path)
    segment.serve()
    machine, listen = segment.servers["s1"], f"[{vip}]:{PORT}" if ":" in vip else f"{vip}:{PORT}"
    with segment.balanced(config("dsr", {"s1": server}, listen)) as balancer:
        well = verified(segment.balancer, balancer)
        assert verdicts(well) == dict.fromkeys(
            (
                "its own address",
                "same segment",
                "the service's address",
                "gateway",
                "segment size",
                "silence",
                "packet size",
            ),
            "good",
        )
        assert well["packet size"]["text"] == "packets of 1500 bytes reach it in one piece"
        machine.route("default", "fd00:1::1" if ":" in vip else "10.0.1.1")
        assert "comes to the balancer, which drops it" in verified(segment.balancer, balancer)["gateway"]["text"]
        machine.run("ip", "address", "del", f"{vip}/{128 if ':' in vip else 32}", "dev", "lo")
        gone = verified(segment.balancer, balancer)["the service's address"]
        assert (gone["verdict"], gone["text"]) == ("bad", f"it is silent on {listen}")
        assert "put that address on its loopback interface" in gone["remedy"]


def test_verified_that_it_answers_arp(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    segment.serve()
    for place in ("all", "eth0"):
        segment.servers["s1"].sysctl(f"net.ipv4.conf.{place}.arp_ignore", "0")
    with segment.balanced(config("dsr", {"s1": "10.0.1.11", "s2": "10.0.1.12"}, f"{VIP}:{PORT}")) as balancer:
        loud, quiet = (verified(segment.balancer, balancer, name)["silence"] for name in ("s1", "s2"))
        assert (loud["verdict"], loud["text"]) == ("bad", f"it answers ARP for {VIP}")
        assert quiet["verdict"] == "good"


def test_verified_gateway(farm: Farm) -> None:
    farm.serve()
    farm.servers["s2"].run("ip", "-4", "route", "del", "default")
    with farm.balanced(config("transparent", dict(SERVERS), f"{VIP}:{PORT}")) as balancer:
        good, bad = (verified(farm.balancer, balancer, name)["gateway"] for name in SERVERS)
        assert (good["verdict"], bad["verdict"]) == ("good", "bad")
        assert "set its gateway to 10.0.2.1" in bad["remedy"]
        words = ["realserver", "mail", "--verify", "-c", str(balancer.config_file)]
        said = farm.balancer.attempt(sys.executable, "-m", "mailbalancer", *words)
        assert said.returncode == 1
        assert [line for line in said.stdout.splitlines() if line.startswith("#")] == ["# ---- s1", "# ---- s2"]
        assert balancer.real_server("mail", "s1")["way_back"]["verdict"] == "good", "the probe was not disturbed"


def test_verified_sizes(world: World, tmp_path: Path) -> None:
    """Through a tunnel over a router with a smaller MTU."""
    farm = Farm(world, tmp_path)
    site = world.switch("site")
    farm.router.plug(site, "eth2", "10.8.0.1/24")
    machine = world.machine("site-s1")
    machine.plug(site, "eth0", "10.8.0.11/24")
    machine.route("default", "10.8.0.1")
    serve(machine, "s1", farm.log("s1"))
    with farm.balanced(config("tunnel", {"s1": "10.8.0.11"}, f"{VIP}:{PORT}")) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        type_in(machine, printed(farm.balancer, balancer)["s1"])
        assert set(verdicts(verified(farm.balancer, balancer)).values()) == {"good"}
        machine.run("ip", "route", "change", "default", "via", "10.8.0.1")
        farm.router.run("ip", "link", "set", "eth2", "mtu", "1400")
        found = verified(farm.balancer, balancer)
        assert (found["segment size"]["verdict"], found["packet size"]["verdict"]) == ("bad", "bad")
        assert found["segment size"]["remedy"] == "add `advmss 1410` to its default route"
        assert found["packet size"]["text"] == "packets of 1500 bytes do not reach it, such of 1400 do"
        assert "`advmss 1310`" in found["packet size"]["remedy"]


def test_verified_what_is_not_there(farm: Farm) -> None:
    with farm.balanced(config("snat", dict(SERVERS), f"{VIP}:{PORT}")) as balancer:
        found = verified(farm.balancer, balancer)
        assert found["its own address"]["text"] == "10.0.2.11:25 refuses connections"
        assert list(found) == ["its own address", "packet size"]
        words = ["realserver", "mail", "s9", "--verify", "-c", str(balancer.config_file)]
        said = farm.balancer.attempt(sys.executable, "-m", "mailbalancer", *words)
        assert "service mail has no real server 's9'; it has: s1, s2" in said.stderr


def test_verified_datagrams(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    machine = segment.servers["s1"]
    prepare_dsr(machine)
    for address in ("10.0.1.11", VIP):
        machine.python("tests.support.name_server", address)
    asked = {"type": "dns", "interval_s": 1.0, "timeout_s": 2.0, "rise": 1, "fall": 3}
    wanted = config("dsr", {"s1": "10.0.1.11"}, f"{VIP}:53", protocol="udp", check=asked)
    with segment.balanced(wanted) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 15.0, "s1 is up")
        well = verified(segment.balancer, balancer)
        assert well["its own address"]["text"] == "10.0.1.11:53: SOA .: NOERROR, answers: 0"
        assert set(verdicts(well).values()) == {"good"}
        machine.run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
        assert verified(segment.balancer, balancer)["the service's address"]["verdict"] == "bad"
