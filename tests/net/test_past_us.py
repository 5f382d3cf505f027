"""Direct server return and tunnels: what is theirs alone. All that they share: test_every_path.py."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_device, tunnel_mac
from tests.support.farm import (
    PORT,
    VIP,
    VIP6,
    Farm,
    Segment,
    Site,
    Talk,
    ask,
    ask_both,
    pattern_digest,
    prepare_dsr,
    serve,
    state_of,
    with_both,
)
from tests.support.netns import Machine, World
from tests.support.program import Refused
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}
NEAR = {4: {"s1": "10.0.1.11", "s2": "10.0.1.12"}, 6: {"s1": "fd00:1::11", "s2": "fd00:1::12"}}


def config(
    servers: dict[str, str], vip: str, protocol: str = "tcp", forward: str = "dsr", **more: Any
) -> dict[str, Any]:
    """In turn, so that who gets a burst of flows does not hang on when sessions were last counted."""
    listen = f"[{vip}]:{PORT}" if ":" in vip else f"{vip}:{PORT}"
    service = {"mode": "l4", "protocol": protocol, "listen": listen, "forward": forward, "real_servers": [*servers]}
    service["schedule"] = "round_robin"
    return {"real_servers": servers, "services": {"mail": {**service, "check": FAST, "ramp_s": 0, **more}}}


@pytest.fixture
def segment(world: World, tmp_path: Path) -> Segment:
    return Segment(world, tmp_path)


def test_dsr_datagrams_leave_a_dead_server(segment: Segment) -> None:
    segment.serve()
    with segment.balanced(config(NEAR[4], VIP, "udp")) as balancer:
        ask_both(segment.client, VIP)
        segment.servers["s1"].end()
        eventually(lambda: balancer.real_server("mail", "s1")["up"] is False, 10.0, "s1 is down")
        eventually(lambda: _only(segment, "s2"), 15.0, "only s2 answers")


def _only(segment: Segment, name: str) -> bool:
    try:
        return {ask(segment.client, VIP, "q", timeout_s=0.5)[0] for _ in range(20)} == {name}
    except TimeoutError:
        return False


def test_vxlan_to_another_network(world: World, tmp_path: Path) -> None:
    """The servers are behind a router; they answer clients without us."""
    farm = Farm(world, tmp_path)
    site = world.switch("site")
    farm.router.plug(site, "eth2", "10.8.0.1/24")
    servers = {"s1": "10.8.0.11", "s2": "10.8.0.12"}
    farm.client.route("default", "10.0.1.254")
    with farm.balanced(config(servers, VIP, forward="tunnel")) as balancer:
        for name, address in servers.items():
            machine = world.machine(f"site-{name}")
            machine.plug(site, "eth0", f"{address}/24")
            machine.route("default", "10.8.0.1")
            tunnel_end(machine, address)
            serve(machine, name, farm.log(name))
        eventually(lambda: all(balancer.real_server("mail", name)["up"] for name in servers), 10.0, "both are up")
        upload = os.urandom(MEGABYTE) * 20
        both = eventually(lambda: len({Talk(farm.client, VIP).server for _ in range(8)}) == 2, 10.0, "both are used")
        assert both
        talks = [Talk(machine, VIP) for machine in (farm.client, farm.far) for _ in range(12)]
        assert {talk.server for talk in talks} == {"s1", "s2"}
        assert {talk.seen_as for talk in talks} == {"10.0.1.5", "10.9.0.5"}
        assert talks[0].take(20 * MEGABYTE) == pattern_digest(20 * MEGABYTE)
        assert talks[1].give(upload) == hashlib.sha256(upload).hexdigest()


def tunnel_end(machine: Machine, address: str) -> None:
    words = ["id", str(VXLAN_NUMBER), "dstport", str(VXLAN_PORT), "local", address, "remote", "10.0.1.1"]
    machine.run("ip", "link", "add", "vx0", "address", tunnel_mac(address), "type", "vxlan", *words)
    machine.run("ip", "link", "set", "vx0", "up")
    for place in ("all", "vx0"):
        machine.sysctl(f"net.ipv4.conf.{place}.rp_filter", "0")
    prepare_dsr(machine)


IP_IN_IP = {"ipip": (4, VIP, "ipip", []), "ip6ip6": (6, VIP6, "ip6tnl", ["mode", "ip6ip6"])}
AWAY = {4: {"s1": "10.8.0.11", "s2": "10.8.0.12"}, 6: {"s1": "fd00:8::11", "s2": "fd00:8::12"}}


@pytest.mark.parametrize("encapsulation", IP_IN_IP)
def test_ip_in_ip_or_a_kernel_that_says_no(world: World, tmp_path: Path, encapsulation: str) -> None:
    """Where the kernel has such devices, traffic goes through them; where it has not, nothing is changed."""
    site = Site(world, tmp_path)
    version, vip, kind, mode = IP_IN_IP[encapsulation]
    found = config(AWAY[version], vip, forward="tunnel", tunnel={"encapsulation": encapsulation})
    ends = ["local", vip, "remote", AWAY[version]["s1"]]
    made = site.client.attempt("ip", "link", "add", "mbtest", "type", kind, *mode, *ends)
    if made.returncode == 0:
        _carried(site, found, encapsulation)
    else:
        assert "Unknown device type" in made.stderr
        _refused(site, found, kind)


def _refused(site: Site, found: dict[str, Any], kind: str) -> None:
    before = state_of(site.balancer)
    with pytest.raises(RuntimeError, match=f"this kernel has no {kind} devices") as caught, site.balanced(found):
        pass
    assert "service mail: " in str(caught.value)
    assert state_of(site.balancer) == before
    version = 6 if kind == "ip6tnl" else 4
    with site.balanced(config(AWAY[version], VIP6 if version == 6 else VIP, forward="tunnel")) as balancer:
        running = state_of(site.balancer)
        with pytest.raises(Refused, match=f"this kernel has no {kind} devices"):
            balancer.reload(found)
        assert state_of(site.balancer) == running


def _carried(site: Site, found: dict[str, Any], encapsulation: str) -> None:
    version, vip, kind, mode = IP_IN_IP[encapsulation]
    before, balancer_address = state_of(site.balancer), {4: "10.0.1.1", 6: "fd00:1::1"}[version]
    with site.balanced(found) as balancer:
        for name, machine in site.servers.items():
            ends = ["local", AWAY[version][name], "remote", balancer_address]
            machine.run("ip", "link", "add", "ip0", "type", kind, *mode, *ends)
            machine.run("ip", "link", "set", "ip0", "up")
            if version == 4:
                machine.sysctl("net.ipv4.conf.ip0.rp_filter", "0")
            serve(machine, name, site.log(name))
            device = tunnel_device(encapsulation, ipaddress.ip_address(AWAY[version][name]))
            assert f"mtu {1480 if version == 4 else 1460} " in site.balancer.run("ip", "link", "show", device)
        eventually(lambda: all(balancer.real_server("mail", name)["up"] for name in AWAY[version]), 10.0, "both are up")
        talks = with_both(site.client, vip)
        assert {talk.seen_as for talk in talks} == {"10.0.1.5" if version == 4 else "fd00:1::5"}
        upload = os.urandom(MEGABYTE)
        assert talks[0].take(MEGABYTE) == pattern_digest(MEGABYTE)
        assert talks[1].give(upload) == hashlib.sha256(upload).hexdigest()
        for name in AWAY[version]:
            told = "it answers through the tunnel"
            eventually(lambda n=name: balancer.real_server("mail", n)["through_vip"]["verdict"] == "good", 20.0, told)
    assert state_of(site.balancer) == before
