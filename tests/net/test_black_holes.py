"""Servers that answer clients themselves, and cannot; and whoever answers for our addresses beside us."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
from tests.support.farm import PORT, VIP, VIP6, Farm, Segment, Site, Talk, pattern_digest, prepare_dsr, serve
from tests.support.netns import Machine, World
from tests.support.program import Balancer, run_cli
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.9, "rise": 1, "fall": 3}
NEAR = {4: {"s1": "10.0.1.11", "s2": "10.0.1.12"}, 6: {"s1": "fd00:1::11", "s2": "fd00:1::12"}}
VIPS = {4: VIP, 6: VIP6}


def dsr(version: int = 4, **more: Any) -> dict[str, Any]:
    vip = VIPS[version]
    service = {"mode": "l4", "forward": "dsr", "listen": f"[{vip}]:{PORT}" if version == 6 else f"{vip}:{PORT}"}
    service |= {"real_servers": ["s1", "s2"], "check": FAST, "ramp_s": 0, **more}
    return {"real_servers": NEAR[version], "services": {"mail": service}}


def judged(balancer: Balancer, name: str, verdict: str) -> dict[str, Any]:
    """What is known of a server, once it is this."""

    def found() -> dict[str, Any] | None:
        way: dict[str, Any] | None = balancer.real_server("mail", name)["through_vip"]
        return way if way and way["verdict"] == verdict else None

    return eventually(found, 20.0, f"{name} is {verdict}")


@pytest.fixture
def segment(world: World, tmp_path: Path) -> Segment:
    return Segment(world, tmp_path)


@pytest.mark.parametrize("version", [4, 6])
def test_a_server_without_the_address_is_found(segment: Segment, version: int) -> None:
    """Up on its own address, a black hole on the service's."""
    segment.serve()
    vip = VIPS[version]
    missing = (f"{vip}/{128 if version == 6 else 32}", "dev", "lo")
    segment.servers["s2"].run("ip", "address", "del", *missing)
    with segment.balanced(dsr(version, source={"probe_failed": "take_out_of_service"})) as balancer:
        judged(balancer, "s1", "good")
        way = judged(balancer, "s2", "bad")
        assert f"{NEAR[version]['s2']} is up on its own address and silent on" in way["reason"]
        assert f"{vip} is missing on its loopback" in way["reason"]
        server = balancer.real_server("mail", "s2")
        assert (server["up"], server["availability"], server["out_of_service"]) == (True, "closed", way["reason"])
        eventually(lambda: {Talk(segment.far, vip, timeout_s=1.0).server for _ in range(8)} == {"s1"}, 10.0, "only s1")
        segment.servers["s2"].run("ip", "address", "add", *missing)
        judged(balancer, "s2", "good")
        eventually(lambda: {Talk(segment.far, vip).server for _ in range(8)} == {"s1", "s2"}, 10.0, "s2 is back")
        assert balancer.status()["network"]["guards"] == [{"device": "eth0", "own_mac": 0, "own_address": 0}]


def test_by_default_it_is_an_alarm_only(segment: Segment) -> None:
    segment.serve()
    segment.servers["s2"].run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
    with segment.balanced(dsr()) as balancer:
        judged(balancer, "s2", "bad")
        assert balancer.real_server("mail", "s2")["availability"] == "ready"
        assert "mail: answers with the service's address from s2: bad" in balancer.log_text()
        shown = " ".join(run_cli("status", "-c", str(balancer.config_file)).stdout.split())
        assert "s2 does not serve its clients: 10.0.1.12 is up on its own address and silent" in shown


def test_a_server_whose_program_listens_elsewhere(segment: Segment) -> None:
    for name, machine in segment.servers.items():
        prepare_dsr(machine)
        serve(machine, name, segment.log(name), PORT, *(["0.0.0.0"] if name == "s1" else ["10.0.1.12"]))
    with segment.balanced(dsr()) as balancer:
        judged(balancer, "s1", "good")
        assert f"10.0.1.12 refuses {VIP}:{PORT}" in judged(balancer, "s2", "bad")["reason"]


#: Any question is answered with NOERROR and nothing.
_NAME_SERVER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], 53))
while True:
    asked, client = s.recvfrom(512)
    s.sendto(asked[:2] + bytes((0x81, 0x80)) + asked[4:], client)
"""


def test_names_are_asked_for_where_the_check_asks(segment: Segment) -> None:
    """A datagram with the check's own question; without one a ping, whose silence proves nothing."""
    segment.serve()
    for machine in segment.servers.values():
        for address in ("0.0.0.0", VIP):
            machine.start("python3", "-c", _NAME_SERVER, address)
    no_ping = "ip daddr 10.0.1.100 icmp type echo-request drop"
    silent = f"table inet f {{ chain i {{ type filter hook input priority 0; {no_ping}; }}; }}"
    segment.servers["s2"].run("nft", "-f", "-", text=silent)
    asked = dsr(protocol="udp", listen=f"{VIP}:53", check={"type": "dns", "interval_s": 0.5, "timeout_s": 0.9})
    with segment.balanced(asked) as balancer:
        for name in ("s1", "s2"):
            eventually(lambda n=name: balancer.real_server("mail", n)["up"], 10.0, f"{name} is up")  # type: ignore[misc]
        segment.servers["s1"].run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
        judged(balancer, "s1", "bad")
        judged(balancer, "s2", "good")
        asked["services"]["mail"]["check"] = {**FAST, "port": PORT}
        balancer.write_config(asked)
        balancer.command("reload")
        judged(balancer, "s2", "unknown")


def at_the_end(farm: Farm, site: Machine, address: str, name: str, vip: bool = True) -> None:
    """A server behind the router, at the far end of a tunnel."""
    machine = farm.world.machine(f"site-{name}")
    machine.plug(site, "eth0", f"{address}/24")
    machine.route("default", "10.8.0.1")
    words = ["id", str(VXLAN_NUMBER), "dstport", str(VXLAN_PORT), "local", address, "remote", "10.0.1.1"]
    machine.run("ip", "link", "add", "vx0", "address", tunnel_mac(address), "type", "vxlan", *words)
    machine.run("ip", "link", "set", "vx0", "up")
    for place in ("all", "vx0"):
        machine.sysctl(f"net.ipv4.conf.{place}.rp_filter", "0")
    prepare_dsr(machine)
    if not vip:
        machine.run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
    serve(machine, name, farm.log(name))


def test_through_a_tunnel(world: World, tmp_path: Path) -> None:
    farm = Farm(world, tmp_path)
    servers = {"s1": "10.8.0.11", "s2": "10.8.0.12"}
    site = world.switch("site")
    farm.router.plug(site, "eth2", "10.8.0.1/24")
    at_the_end(farm, site, servers["s1"], "s1")
    at_the_end(farm, site, servers["s2"], "s2", vip=False)
    config = dsr(forward="tunnel")
    config["real_servers"] = servers
    with farm.balanced(config) as balancer:
        judged(balancer, "s1", "good")
        judged(balancer, "s2", "bad")
        tunnel = {"device": "mbvxlan4", "mtu": 1450, "mss": 1410}
        assert balancer.service("mail")["tunnel"] == [tunnel]


def test_segments_that_do_not_fit_into_a_tunnel(world: World, tmp_path: Path) -> None:
    """Over IPv6 nobody cuts packets on the way: a server that does not tell its clients to send less gets nothing."""
    site = Site(world, tmp_path)
    site.serve()
    for machine in site.servers.values():
        machine.route("default", "fd00:8::1")
    config = dsr(6, forward="tunnel")
    config["real_servers"] = {"s1": "fd00:8::11", "s2": "fd00:8::12"}
    with site.balanced(config) as balancer:
        judged(balancer, "s1", "good")
        with pytest.raises(TimeoutError):
            Talk(site.client, VIP6, timeout_s=1.5).give(bytes(MEGABYTE))
        eventually(lambda: balancer.status()["network"]["tunnel"]["too_big"] >= 1, 10.0, "it is counted")
        told = "the way to a tunnel's end lets only smaller packets through; give its real server a smaller advmss"
        eventually(lambda: told in balancer.log_text(), 10.0, "it is told")


@pytest.mark.parametrize("version", [4, 6])
def test_a_server_that_answers_for_the_address_is_named(segment: Segment, version: int) -> None:
    segment.serve()
    vip = VIPS[version]
    loud = segment.servers["s2"]
    for place in ("all", "eth0"):
        loud.sysctl(f"net.ipv4.conf.{place}.arp_ignore", "0")
    if version == 6:
        loud.run("ip", "address", "add", f"{vip}/128", "dev", "eth0")
    mac = loud.mac("eth0")
    with segment.balanced(dsr(version)) as balancer:
        claims = eventually(lambda: balancer.status()["network"]["claims"], 20.0, "it is noticed")
        assert claims == [{"address": vip, "mac": mac, "who": "real server s2"}]
        assert f"real server s2 ({mac}) answers for {vip}, so some clients go there past the balancer" in (
            balancer.log_text()
        )


def test_a_small_link_to_a_client_is_no_black_hole(segment: Segment) -> None:
    """A router tells the service's address that a server's packet is too big; the server must hear it."""
    segment.serve()
    segment.router.run("ip", "link", "set", "eth1", "mtu", "1280")
    with segment.balanced(dsr()) as balancer:
        talks = [Talk(segment.far, VIP) for _ in range(6)]
        for talk in talks:
            assert talk.take(MEGABYTE) == pattern_digest(MEGABYTE)
        eventually(lambda: balancer.service("mail")["too_big"] >= 1, 10.0, "it is counted")
        upload = os.urandom(MEGABYTE)
        assert talks[0].give(upload) == hashlib.sha256(upload).hexdigest()


def test_a_small_link_to_a_client_is_no_black_hole_in_ipv6(segment: Segment) -> None:
    segment.serve()
    segment.router.run("ip", "link", "set", "eth1", "mtu", "1280")
    with segment.balanced(dsr(6)) as balancer:
        talk = Talk(segment.far, VIP6)
        assert talk.take(MEGABYTE) == pattern_digest(MEGABYTE)
        eventually(lambda: balancer.service("mail")["too_big"] >= 1, 10.0, "it is counted")


def test_too_big_for_transparent(world: World, tmp_path: Path) -> None:
    farm = Farm(world, tmp_path)
    farm.serve()
    farm.router.run("ip", "link", "set", "eth1", "mtu", "1280")
    service = {"mode": "l4", "forward": "transparent", "listen": f"{VIP}:{PORT}", "real_servers": ["s1"], "check": FAST}
    with farm.balanced({"real_servers": {"s1": "10.0.2.11"}, "services": {"mail": service}}) as balancer:
        assert Talk(farm.far, VIP).take(MEGABYTE) == pattern_digest(MEGABYTE)
        eventually(lambda: balancer.service("mail")["too_big"] >= 1, 10.0, "it is counted")


def test_an_answer_past_us_is_counted(world: World, tmp_path: Path) -> None:
    """One arm, and the balancer is the gateway: a client reaches a server's own address, its answer passes us."""
    segment = Segment(world, tmp_path, gateway="1")
    segment.serve()
    config = dsr(forward="transparent", listen=f"10.0.1.200:{PORT}")
    with segment.balanced(config) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        assert Talk(segment.far, "10.0.1.11").server == "s1"
        eventually(lambda: balancer.service("mail")["strays"] >= 1, 10.0, "it is counted")
        told = "service mail: a real server answers clients that came to it past the balancer"
        eventually(lambda: told in balancer.log_text(), 10.0, "it is told")


def test_answers_through_us_raise_an_alarm(world: World, tmp_path: Path) -> None:
    """The gateway of a dsr server must not be the balancer."""
    segment = Segment(world, tmp_path, gateway="1")
    segment.serve()
    with segment.balanced(dsr()) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        with pytest.raises(TimeoutError):
            Talk(segment.far, VIP, timeout_s=1.0)
        eventually(lambda: balancer.status()["network"]["guards"][0]["own_address"] >= 1, 10.0, "it is counted")
        told = "frames came in with an address of our services as sender: a real server answers through us"
        eventually(lambda: told in balancer.log_text(), 10.0, "it is told")


def test_our_own_frames_are_dropped(segment: Segment) -> None:
    segment.serve()
    with segment.balanced(dsr()) as balancer:
        mac = segment.balancer.mac("eth0")
        frame = f"b'\\xff'*6+bytes.fromhex('{mac}'.replace(':',''))+b'\\x88\\xb5'+bytes(60)"
        send = f"import socket;s=socket.socket(17,3);s.sendto({frame},('eth0',0))"
        segment.client.run("python3", "-c", send)
        eventually(lambda: balancer.status()["network"]["guards"][0]["own_mac"] >= 1, 10.0, "it is counted")
        eventually(lambda: "there is a loop in the network" in balancer.log_text(), 10.0, "it is told")
