"""What `explain` predicts is what traffic then meets, in every topology."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, VIP, Farm, Segment, Talk
from tests.support.netns import Machine, World
from tests.support.program import Balancer
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.4, "rise": 1, "fall": 3}
NEAR = {"s1": "10.0.1.11"}


def told(machine: Machine, balancer: Balancer, client: str) -> dict[str, Any]:
    words = ["explain", "--client", client, "--service", "mail", "--json", "-c", str(balancer.config_file)]
    answer: list[dict[str, Any]] = json.loads(machine.run(sys.executable, "-m", "mailbalancer", *words))
    return answer[0]


def seen_as(machine: Machine, vip: str) -> str:
    """How the server sees a client on this machine; empty: the connection does not come about."""
    try:
        return Talk(machine, vip, timeout_s=1.5).seen_as
    except OSError:
        return ""


def config(forward: str, servers: dict[str, str], vip: str = VIP, **more: Any) -> dict[str, Any]:
    service: dict[str, Any] = {"real_servers": [*servers], "check": FAST, "ramp_s": 0, **more}
    if forward in ("client", "balancer"):
        service |= {"mode": "tcp", "listen": f"10.0.1.1:{PORT}", "source": {"use": forward, **more.get("source", {})}}
    else:
        service |= {"mode": "l4", "listen": f"{vip}:{PORT}", "forward": forward}
    return {"real_servers": servers, "services": {"mail": service}}


TAKE_OUT = {"source": {"probe_failed": "take_out_of_service"}}


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
    with farm.balanced(config(forward, {"s1": SERVERS["s1"]}, **more)) as balancer:
        if forward in ("transparent", "client"):
            eventually(lambda: balancer.real_server("mail", "s1")["way_back"], 10.0, "s1 is probed")
        for address, machine in clients.items():
            path = told(farm.balancer, balancer, address)
            expected = path["seen_as"] if path["outcome"] == "works" else ""
            eventually(lambda m=machine, e=expected: seen_as(m, vip) == e, 6.0, f"{address} is seen as predicted")  # type: ignore[misc]
            assert path["outcome"] != "unknown"


@pytest.mark.parametrize("gateway", ["1", "254"])
def test_one_arm(world: World, tmp_path: Path, gateway: str) -> None:
    segment = Segment(world, tmp_path, gateway)
    segment.serve()
    with segment.balanced(config("transparent", NEAR, "10.0.1.200")) as balancer:
        eventually(lambda: balancer.real_server("mail", "s1")["way_back"], 10.0, "s1 is probed")
        for address, machine in {"10.0.1.5": segment.client, "10.9.0.5": segment.far}.items():
            path = told(segment.balancer, balancer, address)
            assert path["outcome"] == "works"
            eventually(lambda m=machine, p=path: seen_as(m, "10.0.1.200") == p["seen_as"], 6.0, "as predicted")  # type: ignore[misc]


def test_direct_server_return(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path)
    segment.serve()
    with segment.balanced(config("dsr", NEAR)) as balancer:
        path = told(segment.balancer, balancer, "10.9.0.5")
        assert path["outcome"] == "unknown"
        assert f"must have {VIP} on its loopback interface" in path["sentence"]
        assert seen_as(segment.far, VIP) == path["seen_as"] == "10.9.0.5"
        segment.servers["s1"].run("ip", "address", "del", f"{VIP}/32", "dev", "lo")
        assert seen_as(segment.far, VIP) == ""


def test_before_the_probe_nothing_is_promised(farm: Farm) -> None:
    balancer = farm.balanced(config("transparent", dict(SERVERS)))
    path = told(farm.balancer, balancer, "10.9.0.5")
    assert path["outcome"] == "unknown"
    assert told(farm.balancer, balancer, "10.0.2.50")["outcome"] == "works"


def test_who_is_denied_is_told(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(config("transparent", dict(SERVERS), deny=["10.9.0.0/24"])) as balancer:
        path = told(farm.balancer, balancer, "10.9.0.5")
        assert (path["outcome"], path["sentence"]) == ("fails", "10.9.0.5 is in `deny` of service mail")
        assert seen_as(farm.far, VIP) == ""
