"""`mailbalancer smoke` and connections of the balancer's own, on services that the kernel forwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import SERVERS, SERVERS6, VIP, VIP6, Farm, Segment, Talk
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}


def smoke(machine: Machine, balancer: Balancer) -> subprocess.CompletedProcess[str]:
    return machine.attempt(sys.executable, "-m", "mailbalancer", "smoke", "mail", "-c", str(balancer.config_file))


def config(forward: str, servers: dict[str, str], vip: str = VIP, **more: Any) -> dict[str, Any]:
    listen = f"[{vip}]:2626" if ":" in vip else f"{vip}:2626"
    service = {"mode": "l4", "forward": forward, "listen": listen, "real_servers": [*servers], "check": FAST, **more}
    return {"real_servers": servers, "services": {"mail": {"ramp_s": 0, **service}}}


@pytest.mark.parametrize(("servers", "vip"), [(SERVERS, VIP), (SERVERS6, VIP6)], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("forward", ["transparent", "snat"])
def test_the_balancer_reaches_its_own_service(farm: Farm, forward: str, servers: dict[str, str], vip: str) -> None:
    farm.serve(2626)
    with farm.balanced(config(forward, dict(servers), vip)) as balancer:
        done = smoke(farm.balancer, balancer)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "through" in done.stdout
        assert done.stdout.count("220 s1") + done.stdout.count("220 s2") >= 3
        talk = Talk(farm.balancer, vip, 2626)
        assert talk.say("hello") == f"{talk.server} hello"


@pytest.mark.parametrize("only_one", [False, True])
def test_what_cannot_be_reached_from_here_is_said(world: World, tmp_path: Path, only_one: bool) -> None:
    segment = Segment(world, tmp_path)
    segment.serve(2626)
    servers = {"s1": "10.0.1.11"} if only_one else {"s1": "10.0.1.11", "s2": "10.0.1.12"}
    with segment.balanced(config("dsr", servers)) as balancer:
        done = smoke(segment.balancer, balancer)
        assert done.returncode == 0, done.stdout + done.stderr
        told = " ".join(done.stdout.split())
        assert "from here nothing goes the way of a client" in told
        assert "220 s1" in told
        assert ("220 s2" in told) is not only_one


def test_datagrams_that_nobody_knows(farm: Farm) -> None:
    farm.serve(2626)
    with farm.balanced(config("snat", dict(SERVERS), protocol="udp", check={**FAST, "port": 2626})) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["up"], 10.0, "s1 is up")
        done = smoke(farm.balancer, balancer)
        assert "nothing was said" in done.stdout
        assert done.returncode == 0
