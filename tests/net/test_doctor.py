"""`mailbalancer doctor` on a machine with a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.support.farm import PORT, SERVERS, VIP, Farm
from tests.support.netns import World
from tests.support.program import Balancer
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 1.0, "timeout_s": 2.0, "rise": 1, "fall": 3}


def config(**more: Any) -> dict[str, Any]:
    service = {"mode": "l4", "forward": "transparent", "listen": f"{VIP}:{PORT}", "real_servers": ["s1", "s2"]}
    return {"real_servers": dict(SERVERS), "services": {"mail": {**service, "check": FAST, "ramp_s": 0, **more}}}


def visit(farm: Farm, balancer: Balancer) -> tuple[int, list[dict[str, Any]]]:
    words = ["doctor", "--json", "-c", str(balancer.config_file)]
    done = farm.balancer.attempt(sys.executable, "-m", "mailbalancer", *words)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    # whether somebody keeps this machine's clock, and its programs, is not the question
    return done.returncode, [one for one in found if one["about"] != "machine"]


def probed(balancer: Balancer) -> bool:
    return all(balancer.real_server("mail", name)["way_back"] for name in SERVERS)


def test_a_network_that_is_as_it_should_be(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(config()) as balancer:
        eventually(lambda: probed(balancer), 20.0, "both are probed")
        assert [one for one in visit(farm, balancer)[1] if one["severity"] != "note"] == []


def test_the_puzzle_is_found(world: World, tmp_path: Path) -> None:
    farm = Farm(world, tmp_path, gateway=False)
    farm.serve()
    with farm.balanced(config()) as balancer:
        eventually(lambda: probed(balancer), 20.0, "both are probed")
        code, found = visit(farm, balancer)
        assert code == 1
        first = found[0]
        assert (first["severity"], first["about"]) == ("risk", "mail")
        assert "served, but not with their address" in first["text"]
        assert "set its gateway to the balancer" in first["remedy"]
        balancer.command("drain", real_server="s2")
        drained = [one for one in visit(farm, balancer)[1] if one["text"] == "s2 is draining"]
        assert drained[0]["remedy"] == "`mailbalancer enable s2` when the work is done"


def test_what_somebody_else_has_switched_off(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(config()) as balancer:
        eventually(lambda: probed(balancer), 20.0, "both are probed")
        farm.balancer.sysctl("net.ipv4.conf.eth1.forwarding", "0")
        rules = "table inet fw { chain forward { type filter hook forward priority 0; policy drop; accept; }; }"
        farm.balancer.run("nft", "-f", "-", text=rules)
        done = farm.balancer.attempt(sys.executable, "-m", "mailbalancer", "doctor", "-c", str(balancer.config_file))
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0].startswith("broken  machine: forwarding is off on eth1")
        assert "the firewall chain inet fw forward drops forwarded packets" in done.stdout


def test_from_the_file_alone(farm: Farm) -> None:
    balancer = farm.balanced(config())
    found = visit(farm, balancer)[1]
    assert {one["severity"] for one in found} == {"note"}
    assert any("judged from the file and the machine alone" in one["text"] for one in found)
    farm.balancer.run("ip", "address", "del", "10.0.2.1/24", "dev", "eth1")
    farm.balancer.run("ip", "route", "del", "default")
    code, found = visit(farm, balancer)
    assert (code, found[0]["severity"]) == (1, "broken")
    assert "the balancer has no route to 10.0.2.11" in found[0]["text"]
