"""Addresses that services listen on: added where nobody has them, for every mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, VIP, VIP6, Farm, Segment, Talk, state_of
from tests.support.netns import World
from tests.support.program import Balancer, Refused
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}
DEVICE = ("ip", "address", "show", "dev", "eth0")


def service(mode: str, listen: str | list[str], **more: Any) -> dict[str, Any]:
    return {"mode": mode, "listen": listen, "real_servers": [*SERVERS], "check": FAST, "ramp_s": 0, **more}


def config(**services: dict[str, Any]) -> dict[str, Any]:
    return {"real_servers": dict(SERVERS), "stop_timeout_s": 0, "services": services}


def test_a_service_of_layer_7_gets_its_address(farm: Farm) -> None:
    farm.serve()
    before = state_of(farm.balancer)
    listen = [f"{VIP}:{PORT}", f"[{VIP6}]:{PORT}"]
    with farm.balanced(config(mail=service("tcp", listen))) as balancer:
        for address in (VIP, VIP6):
            assert Talk(farm.client, address).server in SERVERS
        balancer.write_config(config(mail=service("tcp", f"10.0.1.1:{PORT}")))
        balancer.command("reload")
        assert state_of(farm.balancer) == before
        balancer.write_config(config(mail=service("tcp", listen[0])))
        balancer.command("reload")
        assert Talk(farm.client, VIP).server in SERVERS
        assert balancer.stop() == 0
    assert state_of(farm.balancer) == before


def test_layer_7_beside_layer_4_on_one_address(farm: Farm) -> None:
    farm.serve()
    both = config(
        mail=service("tcp", f"{VIP}:2525", real_server_port=PORT), fast=service("l4", f"{VIP}:{PORT}", forward="snat")
    )
    with farm.balanced(both):
        assert Talk(farm.client, VIP, 2525).seen_as == "10.0.2.1"
        assert Talk(farm.client, VIP).seen_as == "10.0.2.1"


def test_an_address_that_is_nowhere_near_is_refused(farm: Farm) -> None:
    before = state_of(farm.balancer)
    balancer = farm.balanced(config(mail=service("tcp", f"10.77.0.1:{PORT}")))
    with pytest.raises(RuntimeError, match=r"10\.77.0.1 is not an address of this machine"):
        balancer.start()
    assert "is added by itself" in balancer.log_text()
    assert state_of(farm.balancer) == before


@pytest.mark.parametrize("taken", [VIP, VIP6])
@pytest.mark.parametrize("mode", ["tcp", "l4"])
def test_an_address_that_another_machine_has_is_refused(farm: Farm, mode: str, taken: str) -> None:
    farm.client.address("eth0", f"{taken}/{64 if ':' in taken else 24}")
    before = state_of(farm.balancer)
    more = {"forward": "snat"} if mode == "l4" else {}
    listen = f"[{taken}]:{PORT}" if ":" in taken else f"{taken}:{PORT}"
    servers = {"s1": "fd00:2::11"} if ":" in taken else {"s1": "10.0.2.11"}
    asked = {"real_servers": servers, "services": {"mail": {**service(mode, listen, **more), "real_servers": ["s1"]}}}
    balancer = farm.balanced(asked)
    with pytest.raises(RuntimeError, match=f"{taken} is in use: {farm.client.mac('eth0')} on eth0 answers for it"):
        balancer.start()
    assert state_of(farm.balancer) == before


def test_nothing_of_a_configuration_that_cannot_work_is_done(world: World, tmp_path: Path) -> None:
    """Its other services do not listen, its addresses are not there, and what ran before runs on."""
    farm = Farm(world, tmp_path)
    farm.serve()
    good = config(mail=service("l4", f"{VIP}:{PORT}", forward="transparent"))
    with farm.balanced(good) as balancer:
        before = state_of(farm.balancer)
        for wrong in (
            {"bad": service("l4", "10.0.1.102:26", forward="dsr", real_servers=["away"])},
            {"bad": service("l4", "10.0.1.102:26", forward="snat", snat_address="10.0.1.199")},
        ):
            asked = config(**good["services"], extra=service("tcp", "10.0.1.101:2600"), **wrong)
            asked["real_servers"]["away"] = "10.66.0.1"
            balancer.write_config(asked)
            with pytest.raises(Refused):
                balancer.command("reload")
            assert _rules_aside(state_of(farm.balancer)) == _rules_aside(before)
            with pytest.raises(ConnectionRefusedError):
                farm.balancer.connect("10.0.1.1", 2600, 1.0)
        assert [one["name"] for one in balancer.status()["services"]] == ["mail"]
        assert Talk(farm.client, VIP).server in SERVERS


def _rules_aside(state: dict[str, str]) -> dict[str, str]:
    """Counters move, and so do shares."""
    return {command: text for command, text in state.items() if not command.startswith("nft")}


def test_an_address_moves_with_its_service(world: World, tmp_path: Path) -> None:
    """It goes when no service has it any more, and is told to the segment when it comes."""
    segment = Segment(world, tmp_path)
    segment.serve()
    near = {"real_servers": {"s1": "10.0.1.11"}}

    def at(address: str) -> dict[str, Any]:
        return {
            **near,
            "services": {"mail": {**service("l4", f"{address}:{PORT}", forward="snat"), "real_servers": ["s1"]}},
        }

    with segment.balanced(at("10.0.1.201")) as balancer:
        segment.client.run(
            "ip", "neighbour", "replace", "10.0.1.202", "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "stale"
        )
        balancer.write_config(at("10.0.1.202"))
        balancer.command("reload")
        assert "10.0.1.201" not in segment.balancer.run(*DEVICE)
        eventually(lambda: _serves(segment, balancer), 10.0, "the segment has heard of it")


def _serves(segment: Segment, balancer: Balancer) -> bool:
    assert balancer.running
    return Talk(segment.client, "10.0.1.202", timeout_s=0.5).server == "s1"
