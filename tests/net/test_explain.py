"""What `explain` predicts is what traffic then meets, in every topology.

Each test draws a network, asks `explain` for each kind of client, and sends what it predicts: it works exactly when the
connection comes about, and the address that the server is said to see is the one in the server's log.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.config.load import load
from mailbalancer.control.explaining import explained
from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
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
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 1.0, "timeout_s": 2.0, "rise": 1, "fall": 3}
ONE, ONE6 = {"s1": SERVERS["s1"]}, {"s1": SERVERS6["s1"]}
NEAR, NEAR6 = {"s1": "10.0.1.11"}, {"s1": "fd00:1::11"}
TAKE_OUT = {"source": {"probe_failed": "take_out_of_service"}}
KILOBYTE = 1024
#: Any fragment is dropped, as by many firewalls.
NO_FRAGMENTS = (
    "table inet f { chain f { type filter hook prerouting priority -450; ip frag-off & 0x3fff != 0 drop; }; }"
)


def told_all(machine: Machine, balancer: Balancer, client: str) -> list[dict[str, Any]]:
    """As `mailbalancer explain --json`, without the start of a program."""
    status = balancer.status() if balancer.running else None
    ways = machine.call(lambda: explained(load(str(balancer.config_file)), client, "mail", "", status))
    return [asdict(way) for way in ways]


def told(machine: Machine, balancer: Balancer, client: str) -> dict[str, Any]:
    return told_all(machine, balancer, client)[0]


def seen_as(machine: Machine, vip: str) -> str:
    """How the server sees a client on this machine; empty: the connection does not come about."""
    try:
        talk = Talk(machine, vip, timeout_s=1.5)
    except OSError:
        return ""
    talk.close()
    return talk.seen_as


def config(forward: str, servers: dict[str, str], vip: str = VIP, **more: Any) -> dict[str, Any]:
    service: dict[str, Any] = {"real_servers": [*servers], "check": FAST, "ramp_s": 0, **more}
    if forward in ("client", "balancer"):
        vip = "fd00:1::1" if ":" in vip else "10.0.1.1"
        service |= {"mode": "tcp", "source": {"use": forward, **more.get("source", {})}}
    else:
        service |= {"mode": "l4", "forward": forward}
    service.setdefault("listen", f"[{vip}]:{PORT}" if ":" in vip else f"{vip}:{PORT}")
    return {"real_servers": servers, "services": {"mail": service}}


def settled(balancer: Balancer, fact: str = "up") -> None:
    """What explain rests on is known."""
    eventually(lambda: balancer.real_server("mail", "s1").get(fact) is not None, 15.0, f"{fact} of s1 is known")


def holds(machine: Machine, balancer: Balancer, clients: Mapping[str, Machine], vip: str) -> dict[str, dict[str, Any]]:
    """Send what is predicted; the predictions."""
    found = {}
    for address, client in clients.items():
        path = found[address] = told(machine, balancer, address)
        assert path["outcome"] in ("works", "fails"), path["sentence"]
        expected = path["seen_as"] if path["outcome"] == "works" else ""
        eventually(lambda c=client, e=expected: seen_as(c, vip) == e, 8.0, f"{address} is seen as '{expected}'")  # type: ignore[misc]
    return found


# 1 to 12: two arms, with the gateway and without it, in all ways that go through the balancer


@pytest.mark.parametrize("gateway", [True, False], ids=["gateway", "no gateway"])
@pytest.mark.parametrize(
    ("forward", "more"),
    [
        ("transparent", {}),
        ("transparent", TAKE_OUT),
        ("snat", {}),
        ("client", {}),
        ("client", TAKE_OUT),
        ("balancer", {}),
    ],
)
def test_two_arms(world: World, tmp_path: Path, forward: str, more: dict[str, Any], gateway: bool) -> None:
    farm = Farm(world, tmp_path, gateway)
    farm.serve()
    neighbour = world.machine("neighbour")
    neighbour.plug(farm.farm, "eth0", "10.0.2.50/24")
    neighbour.route("default", "10.0.2.1")
    vip = VIP if forward in ("transparent", "snat") else "10.0.1.1"
    clients = {"10.0.1.5": farm.client, "10.9.0.5": farm.far, "10.0.2.50": neighbour}
    with farm.balanced(config(forward, ONE, **more)) as balancer:
        settled(balancer, "way_back" if forward in ("transparent", "client") else "up")
        found = holds(farm.balancer, balancer, clients, vip)
    if forward in ("transparent", "client") and not gateway and not more:
        assert "is shown 10.0.2.1 instead of 10.9.0.5" in found["10.9.0.5"]["sentence"]


@pytest.mark.parametrize("gateway", [True, False], ids=["gateway", "no gateway"])
@pytest.mark.parametrize("forward", ["transparent", "client"])
def test_two_arms_of_ipv6(world: World, tmp_path: Path, forward: str, gateway: bool) -> None:
    farm = Farm(world, tmp_path, gateway)
    farm.serve()
    with farm.balanced(config(forward, ONE6, VIP6)) as balancer:
        settled(balancer, "way_back")
        vip = VIP6 if forward == "transparent" else "fd00:1::1"
        found = holds(farm.balancer, balancer, {"fd00:1::5": farm.client, "fd00:9::5": farm.far}, vip)
    assert found["fd00:9::5"]["seen_as"] == ("fd00:9::5" if gateway else "fd00:2::1")


@pytest.mark.parametrize("gateway", ["1", "254"])
def test_one_arm(world: World, tmp_path: Path, gateway: str) -> None:
    segment = Segment(world, tmp_path, gateway)
    segment.serve()
    with segment.balanced(config("transparent", NEAR, "10.0.1.200")) as balancer:
        settled(balancer, "way_back")
        clients = {"10.0.1.5": segment.client, "10.9.0.5": segment.far}
        found = holds(segment.balancer, balancer, clients, "10.0.1.200")
    assert found["10.9.0.5"]["seen_as"] == ("10.9.0.5" if gateway == "1" else "10.0.1.1")


# other routers


@pytest.mark.parametrize("more", [{}, TAKE_OUT], ids=["fall back", "take out"])
def test_a_router_beside_us_answers_for_the_server(farm: Farm, more: dict[str, Any]) -> None:
    """Asymmetric: questions come through us, answers would go through it."""
    farm.router.plug(farm.farm, "eth2", "10.0.2.254/24")
    farm.servers["s1"].route("default", "10.0.2.254")
    farm.serve()
    with farm.balanced(config("transparent", ONE, **more)) as balancer:
        settled(balancer, "way_back")
        found = holds(farm.balancer, balancer, {"10.0.1.5": farm.client, "10.9.0.5": farm.far}, VIP)
    assert f"another machine ({farm.router.mac('eth0')})" in found["10.9.0.5"]["sentence"]


def test_a_network_that_servers_reach_another_way(farm: Farm) -> None:
    """Only to that network there is a way past us; the operator names it."""
    farm.router.plug(farm.farm, "eth2", "10.0.2.254/24")
    farm.servers["s1"].route("10.9.0.0/24", "10.0.2.254")
    farm.serve()
    with farm.balanced(config("transparent", ONE, source={"balancer_for": ["10.9.0.0/24"]})) as balancer:
        settled(balancer, "way_back")
        found = holds(farm.balancer, balancer, {"10.0.1.5": farm.client, "10.9.0.5": farm.far}, VIP)
    assert (found["10.0.1.5"]["seen_as"], found["10.9.0.5"]["seen_as"]) == ("10.0.1.5", "10.0.2.1")


def test_a_client_that_we_have_no_way_to(farm: Farm) -> None:
    farm.serve()
    farm.balancer.run("ip", "-4", "route", "del", "default")
    with farm.balanced(config("snat", ONE)) as balancer:
        settled(balancer)
        found = holds(farm.balancer, balancer, {"10.0.1.5": farm.client, "10.9.0.5": farm.far}, VIP)
    path = found["10.9.0.5"]
    assert path["sentence"].startswith("the balancer has no route to 10.9.0.5")
    assert [hop["outcome"] for hop in path["hops"]] == ["works", "works", "works", "fails"]


def test_a_source_address_that_is_not_ours(farm: Farm) -> None:
    farm.serve()
    farm.balancer.address("eth1", "10.0.2.7/24")
    with farm.balanced(config("snat", ONE, snat_address="10.0.2.7")) as balancer:
        settled(balancer)
        assert holds(farm.balancer, balancer, {"10.9.0.5": farm.far}, VIP)["10.9.0.5"]["seen_as"] == "10.0.2.7"
        farm.balancer.run("ip", "address", "del", "10.0.2.7/24", "dev", "eth1")
        farm.servers["s1"].run("ip", "neighbour", "flush", "all")  # it would remember us for a while
        path = holds(farm.balancer, balancer, {"10.9.0.5": farm.far}, VIP)["10.9.0.5"]
        assert "10.0.2.7, which is no address of the balancer" in path["sentence"]


# direct server return


@pytest.mark.parametrize(
    ("servers", "vip", "near", "far"),
    [(NEAR, VIP, "10.0.1.5", "10.9.0.5"), (NEAR6, VIP6, "fd00:1::5", "fd00:9::5")],
    ids=["IPv4", "IPv6"],
)
def test_direct_server_return(
    world: World, tmp_path: Path, servers: dict[str, str], vip: str, near: str, far: str
) -> None:
    segment = Segment(world, tmp_path)
    segment.serve()
    clients = {near: segment.client, far: segment.far}
    with segment.balanced(config("dsr", servers, vip)) as balancer:
        settled(balancer, "through_vip")
        found = holds(segment.balancer, balancer, clients, vip)
        assert {path["outcome"] for path in found.values()} == {"works"}
        # a loopback without the address: up on its own address, a black hole on the service's
        segment.servers["s1"].run("ip", "address", "del", f"{vip}/{128 if ':' in vip else 32}", "dev", "lo")
        eventually(lambda: _through(balancer) == "bad", 20.0, "it is found out")
        found = holds(segment.balancer, balancer, clients, vip)
        assert f"{vip} is missing on its loopback" in found[far]["sentence"]


def test_a_loop(world: World, tmp_path: Path) -> None:
    """Without the address a server that forwards sends the frame back to us, and we send it on to the server."""
    segment = Segment(world, tmp_path)
    segment.serve()
    machine = segment.servers["s1"]
    machine.run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
    machine.forwards()
    with segment.balanced(config("dsr", NEAR)) as balancer:
        settled(balancer, "through_vip")
        found = holds(segment.balancer, balancer, {"10.0.1.5": segment.client, "10.9.0.5": segment.far}, VIP)
        assert {path["outcome"] for path in found.values()} == {"fails"}


def test_the_balancer_as_gateway_of_a_server_that_answers_itself(world: World, tmp_path: Path) -> None:
    """Clients of its own segment are answered directly; the answers to others come to us and are dropped."""
    segment = Segment(world, tmp_path, gateway="1")
    segment.serve()
    with segment.balanced(config("dsr", NEAR)) as balancer:
        settled(balancer, "through_vip")
        found = holds(segment.balancer, balancer, {"10.0.1.5": segment.client, "10.9.0.5": segment.far}, VIP)
    assert [found[client]["outcome"] for client in ("10.0.1.5", "10.9.0.5")] == ["works", "fails"]
    assert "its gateway must be another router" in found["10.9.0.5"]["sentence"]


def test_a_server_that_answers_arp_for_the_address(world: World, tmp_path: Path) -> None:
    """Who is asked first decides where clients go: nothing is promised, and the server is named."""
    segment = Segment(world, tmp_path)
    segment.serve()
    loud = segment.servers["s2"]
    for place in ("all", "eth0"):
        loud.sysctl(f"net.ipv4.conf.{place}.arp_ignore", "0")
    with segment.balanced(config("dsr", {**NEAR, "s2": "10.0.1.12"})) as balancer:
        eventually(lambda: balancer.status()["network"]["claims"], 20.0, "the claim is noticed")
        path = told(segment.balancer, balancer, "10.9.0.5")
        assert path["outcome"] == "unknown"
        assert f"s2 ({loud.mac('eth0')}) answers ARP for {VIP}" in path["sentence"]
        for place in ("all", "eth0"):
            loud.sysctl(f"net.ipv4.conf.{place}.arp_ignore", "1")
        eventually(lambda: not balancer.status()["network"]["claims"], 60.0, "it keeps quiet now")
        settled(balancer, "through_vip")
        segment.router.run("ip", "neighbour", "flush", "all")
        assert holds(segment.balancer, balancer, {"10.9.0.5": segment.far}, VIP)["10.9.0.5"]["outcome"] == "works"


# tunnels


class Site:
    """A server behind the router, at the end of a tunnel."""

    def __init__(self, farm: Farm) -> None:
        site = farm.world.switch("site")
        farm.router.plug(site, "eth2", "10.8.0.1/24")
        farm.client.route("default", "10.0.1.254")
        self.server = farm.world.machine("site-s1")
        self.server.plug(site, "eth0", "10.8.0.11/24")
        self.server.route("default", "10.8.0.1")
        words = ["id", str(VXLAN_NUMBER), "dstport", str(VXLAN_PORT), "local", "10.8.0.11", "nolearning"]
        mac = tunnel_mac("10.8.0.11")
        self.server.run("ip", "link", "add", "vx0", "address", mac, "type", "vxlan", *words)
        self.server.run("ip", "link", "set", "vx0", "up")
        for place in ("all", "vx0"):
            self.server.sysctl(f"net.ipv4.conf.{place}.rp_filter", "0")
        prepare_dsr(self.server)
        serve(self.server, "s1", farm.log("s1"))


def test_a_tunnel_over_a_router(farm: Farm) -> None:
    site = Site(farm)
    with farm.balanced(config("tunnel", {"s1": "10.8.0.11"})) as balancer:
        settled(balancer, "through_vip")
        clients = {"10.0.1.5": farm.client, "10.9.0.5": farm.far}
        found = holds(farm.balancer, balancer, clients, VIP)
        assert {path["outcome"] for path in found.values()} == {"works"}
        site.server.run("ip", "link", "set", "vx0", "down")
        eventually(lambda: _through(balancer) == "bad", 20.0, "it is found out")
        assert {path["outcome"] for path in holds(farm.balancer, balancer, clients, VIP).values()} == {"fails"}


def test_a_way_that_is_too_narrow(farm: Farm) -> None:
    """Fragments are dropped on the way: what is small works, what is large does not, until the server says so."""
    site = Site(farm)
    farm.router.run("nft", "-f", "-", text=NO_FRAGMENTS)
    with farm.balanced(config("tunnel", {"s1": "10.8.0.11"})) as balancer:
        settled(balancer, "through_vip")
        path = holds(farm.balancer, balancer, {"10.0.1.5": farm.client}, VIP)["10.0.1.5"]
        assert "a segment above 1410 bytes travels in two fragments, and is lost where those are" in path["notes"][0]
        with pytest.raises(OSError, match="timed out"):
            Talk(farm.client, VIP, timeout_s=2.0).give(bytes(100 * KILOBYTE))
        site.server.run("ip", "route", "change", "default", "via", "10.8.0.1", "advmss", "1410")
        talk = Talk(farm.client, VIP)
        assert talk.take(100 * KILOBYTE) == pattern_digest(100 * KILOBYTE)
        assert talk.give(bytes(100 * KILOBYTE))


# before anything is known, and who is not wanted


def test_before_the_probe_nothing_is_promised(farm: Farm) -> None:
    balancer = farm.balanced(config("transparent", dict(SERVERS)))
    path = told(farm.balancer, balancer, "10.9.0.5")
    assert path["outcome"] == "unknown"
    assert told(farm.balancer, balancer, "10.0.2.50")["outcome"] == "works"


def test_before_the_probe_of_direct_server_return(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    balancer = segment.balanced(config("dsr", NEAR))
    path = told(segment.balancer, balancer, "10.9.0.5")
    assert (path["outcome"], path["seen_as"]) == ("unknown", "10.9.0.5")
    assert f"must have {VIP} on its loopback interface" in path["sentence"]


def test_who_is_denied_is_told(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(config("transparent", dict(SERVERS), deny=["10.9.0.0/24"])) as balancer:
        settled(balancer, "way_back")
        path = holds(farm.balancer, balancer, {"10.0.1.5": farm.client, "10.9.0.5": farm.far}, VIP)["10.9.0.5"]
        assert path["sentence"] == "10.9.0.5 is in `deny` of service mail"


def test_what_the_operator_wants_of_each_server(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(config("snat", dict(SERVERS))) as balancer:
        settled(balancer)
        balancer.command("drain", real_server="s1")
        balancer.command("disable", real_server="s2")
        first, second = told_all(farm.balancer, balancer, "10.9.0.5")
        assert (first["takes"], second["takes"]) == ("returning clients", "nobody")
        assert first["sentence"].startswith("s1 is draining: only returning clients are sent there; ")
        assert second["sentence"] == "s2 is disabled: nobody is sent there; `mailbalancer enable s2` ends that"
        words = ["explain", "--client", "10.9.0.5", "--service", "mail", "-c", str(balancer.config_file)]
        said = farm.balancer.run(sys.executable, "-m", "mailbalancer", *words).splitlines()
        assert said[-1] == "10.9.0.5 is not served by mail: no real server takes new sessions"
        assert seen_as(farm.far, VIP) == ""


def test_a_client_of_the_other_ip_version(farm: Farm) -> None:
    """Layer 7 translates (layer 4 does not, and is refused)."""
    farm.serve()
    both = [f"10.0.1.1:{PORT}", f"[fd00:1::1]:{PORT}"]
    with farm.balanced(config("client", ONE, listen=both)) as balancer:
        settled(balancer, "way_back")
        path = holds(farm.balancer, balancer, {"fd00:9::5": farm.far}, "fd00:1::1")["fd00:9::5"]
        assert path["seen_as"] == "10.0.2.1"


def _through(balancer: Balancer) -> str:
    found = balancer.real_server("mail", "s1")["through_vip"]
    return str(found["verdict"]) if found else ""
