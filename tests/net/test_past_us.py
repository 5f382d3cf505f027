"""Direct server return and tunnels: what is theirs alone. All that they share: test_every_path.py."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control.host_plan import VXLAN_NUMBER, VXLAN_PORT, tunnel_mac
from tests.support.farm import (
    PORT,
    VIP,
    Farm,
    Segment,
    Talk,
    ask,
    ask_both,
    pattern_digest,
    prepare_dsr,
    serve,
)
from tests.support.netns import Machine, World
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
