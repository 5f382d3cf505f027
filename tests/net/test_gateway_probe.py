"""The gateway probe: known good, known bad, and not fooled. Every case is also tried with traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, SERVERS6, VIP, VIP6, Farm, Segment, Talk
from tests.support.netns import World
from tests.support.program import Balancer, run_cli
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 1.0, "rise": 1, "fall": 3}


def transparent(mode: str, **source: Any) -> dict[str, Any]:
    service: dict[str, Any] = {"real_servers": ["s1", "s2"], "check": FAST, "ramp_s": 0, "schedule": "round_robin"}
    if mode == "l4":
        service |= {"mode": "l4", "forward": "transparent", "listen": f"{VIP}:{PORT}"}
        service |= {"source": source} if source else {}
    else:
        service |= {"mode": "tcp", "listen": f"10.0.1.1:{PORT}", "source": {"use": "client", **source}}
    return {"real_servers": dict(SERVERS), "services": {"mail": service}}


def address(mode: str) -> str:
    return VIP if mode == "l4" else "10.0.1.1"


def judged(balancer: Balancer, name: str) -> dict[str, Any]:
    """The first verdict."""
    return eventually(lambda: balancer.real_server("mail", name)["way_back"], 15.0, f"{name} is probed")


@pytest.mark.parametrize("mode", ["l4", "tcp"])
def test_known_good(farm: Farm, mode: str) -> None:
    farm.serve()
    with farm.balanced(transparent(mode)) as balancer:
        assert [judged(balancer, name)["verdict"] for name in SERVERS] == ["good", "good"]
        assert Talk(farm.far, address(mode)).seen_as == "10.9.0.5"


@pytest.mark.parametrize("mode", ["l4", "tcp"])
def test_without_gateway_servers_are_given_our_address(world: World, tmp_path: Path, mode: str) -> None:
    """The puzzle: clients beside the servers could send mail, all others timed out."""
    farm = Farm(world, tmp_path, gateway=False)
    farm.serve()
    with farm.balanced(transparent(mode)) as balancer:
        ways = [judged(balancer, name) for name in SERVERS]
        assert {way["verdict"] for way in ways} == {"bad"}
        assert "does not come back through us; set its gateway" in ways[0]["reason"]
        seen = eventually(lambda: _attempt(farm, address(mode)), 10.0, "a far client is served")
        assert seen == "10.0.2.1"


@pytest.mark.parametrize("mode", ["l4", "tcp"])
def test_a_server_without_gateway_is_taken_out(farm: Farm, mode: str) -> None:
    farm.servers["s2"].run("ip", "route", "del", "default")
    farm.serve()
    with farm.balanced(transparent(mode, probe_failed="take_out_of_service")) as balancer:
        assert judged(balancer, "s1")["verdict"] == "good"
        assert judged(balancer, "s2")["verdict"] == "bad"
        eventually(lambda: _only_s1(farm, address(mode)), 10.0, "only s1 is used")
        out = balancer.real_server("mail", "s2")
        assert (out["up"], out["availability"]) == (True, "closed")
        assert "does not come back through us" in out["out_of_service"]
        shown = run_cli("status", "-c", str(balancer.config_file)).stdout
        assert "out of service" in shown
        assert "set its gateway to the balancer's address" in " ".join(shown.split())
        farm.servers["s2"].route("default", "10.0.2.1")
        eventually(lambda: balancer.real_server("mail", "s2")["availability"] == "ready", 15.0, "s2 is back")
        assert balancer.real_server("mail", "s2")["out_of_service"] == ""


def test_another_machine_is_the_gateway(farm: Farm) -> None:
    """A second router beside us leads to the clients; its answers come in through the other arm."""
    farm.router.plug(farm.farm, "eth2", "10.0.2.254/24")
    farm.servers["s1"].route("default", "10.0.2.254")
    farm.serve()
    with farm.balanced(transparent("l4")) as balancer:
        way = judged(balancer, "s1")
        assert way["verdict"] == "bad"
        assert f"the gateway of 10.0.2.11 is another machine ({farm.router.mac('eth0')})" in way["reason"]


def test_a_router_that_sends_packets_back_through_us_is_noticed(farm: Farm) -> None:
    between = farm.world.machine("between")
    between.plug(farm.farm, "eth0", "10.0.2.254/24")
    between.forwards()
    between.route("default", "10.0.2.1")
    farm.servers["s1"].sysctl("net.ipv4.conf.all.accept_redirects", "0")
    farm.servers["s1"].sysctl("net.ipv4.conf.eth0.accept_redirects", "0")
    farm.servers["s1"].route("default", "10.0.2.254")
    farm.serve()
    with farm.balanced(transparent("l4")) as balancer:
        way = judged(balancer, "s1")
        assert way["verdict"] == "unknown"
        assert f"came through another machine ({between.mac('eth0')})" in way["reason"]


def test_a_filtered_probe_address_is_not_a_verdict(farm: Farm) -> None:
    rules = "table inet f { chain i { type filter hook input priority 0; ip saddr 192.0.2.0/24 drop; }; }"
    farm.servers["s1"].run("nft", "-f", "-", text=rules)
    farm.serve()
    with farm.balanced(transparent("l4")) as balancer:
        way = judged(balancer, "s1")
        assert way["verdict"] == "unknown"
        assert "192.0.2.1 not at all: that address is filtered" in way["reason"]


@pytest.mark.parametrize(("version", "named"), [(4, "198.18.0.1"), (6, "2001:db8:7::1")])
def test_another_address_can_be_probed_from(farm: Farm, version: int, named: str) -> None:
    default = {4: "ip saddr 192.0.2.0/24", 6: "ip6 saddr 2001:db8::1"}[version]
    rules = f"table inet f {{ chain i {{ type filter hook input priority 0; {default} drop; }}; }}"
    for server in farm.servers.values():
        server.run("nft", "-f", "-", text=rules)
    farm.serve()
    config = transparent("l4", probe_address=named)
    if version == 6:
        config["real_servers"] = dict(SERVERS6)
        config["services"]["mail"]["listen"] = f"[{VIP6}]:{PORT}"
    with farm.balanced(config) as balancer:
        assert judged(balancer, "s1") | {"ago_s": 0} == {
            "verdict": "good",
            "reason": f"{config['real_servers']['s1']} answers {named} through the balancer",
            "far_only": False,
            "ago_s": 0,
        }
        config["services"]["mail"]["source"] = {}
        balancer.write_config(config)
        balancer.command("reload")
        filtered = eventually(lambda: _verdict(balancer, "unknown"), 15.0, "the default address is filtered")
        assert "probe_address" in filtered["reason"]


def _verdict(balancer: Balancer, verdict: str) -> dict[str, Any] | None:
    way: dict[str, Any] = balancer.real_server("mail", "s1")["way_back"]
    return way if way["verdict"] == verdict else None


def test_an_address_of_ours_proves_nothing(farm: Farm) -> None:
    balancer = farm.balanced(transparent("l4", probe_address="10.0.1.77"))
    with pytest.raises(
        RuntimeError, match=r"probe_address 10\.0\.1\.77 is in 10\.0\.1\.0/24, a network of this machine"
    ):
        balancer.start()


def test_a_server_that_turns_the_probe_away(farm: Farm) -> None:
    rules = (
        "table inet f { chain i { type filter hook input priority 0; ip saddr 192.0.2.0/24 "
        "meta l4proto tcp reject with tcp reset; }; }"
    )
    farm.servers["s1"].run("nft", "-f", "-", text=rules)
    farm.serve()
    with farm.balanced(transparent("l4")) as balancer:
        assert judged(balancer, "s1")["verdict"] == "unknown"


@pytest.mark.parametrize(("gateway", "verdict", "seen_as"), [("1", "good", "10.9.0.5"), ("254", "bad", "10.0.1.1")])
def test_one_arm(world: World, tmp_path: Path, gateway: str, verdict: str, seen_as: str) -> None:
    segment = Segment(world, tmp_path, gateway=gateway)
    segment.serve()
    config = transparent("l4")
    config["real_servers"] = {"s1": "10.0.1.11", "s2": "10.0.1.12"}
    config["services"]["mail"]["listen"] = f"10.0.1.200:{PORT}"
    with segment.balanced(config) as balancer:
        assert judged(balancer, "s1")["verdict"] == verdict
        assert judged(balancer, "s2")["verdict"] == verdict
        seen = eventually(lambda: _seen_as(segment.far, "10.0.1.200"), 10.0, "the far client is served")
        assert seen == seen_as
        assert Talk(segment.client, "10.0.1.200").seen_as == "10.0.1.1"


def _attempt(farm: Farm, vip: str) -> str:
    return _seen_as(farm.far, vip)


def _seen_as(machine: Any, vip: str) -> str:
    try:
        return Talk(machine, vip, timeout_s=1.0).seen_as
    except OSError:
        return ""


def _only_s1(farm: Farm, vip: str) -> bool:
    try:
        return {Talk(farm.far, vip, timeout_s=1.0).server for _ in range(12)} == {"s1"}
    except OSError:
        return False
