"""What is changed on the machine is shown before, listed while, and undone after, also when everything was killed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.farm import PORT, VIP, VIP6, Farm, Talk, state_of
from tests.support.waiting import eventually

MODES = {
    "transparent": {"mode": "l4", "forward": "transparent", "listen": [f"{VIP}:{PORT}", f"[{VIP6}]:{PORT}"]},
    "dsr": {"mode": "l4", "forward": "dsr", "listen": [f"10.0.2.100:{PORT}"]},
    "tunnel": {"mode": "l4", "forward": "tunnel", "listen": [f"{VIP}:{PORT}"]},
    "layer 7": {"mode": "tcp", "source": "client", "listen": [f"10.0.1.1:{PORT}"]},
}
SERVERS = {"s1": "10.0.2.11", "s2": "10.0.2.12", "s6": "fd00:2::11"}


def configured(mode: str) -> dict[str, Any]:
    names = [*SERVERS] if mode == "transparent" else ["s1", "s2"]
    service = {**MODES[mode], "real_servers": names, "check": {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.4}}
    return {"real_servers": {name: SERVERS[name] for name in names}, "services": {"mail": service}}


def host(farm: Farm, config_file: str, *words: str) -> subprocess.CompletedProcess[str]:
    return farm.balancer.attempt(sys.executable, "-m", "mailbalancer", "host", *words, "-c", config_file)


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_balancer_is_cleaned_up_after(farm: Farm, mode: str) -> None:
    strangers = (
        "table inet others { chain in { type filter hook input priority 0; ip saddr 192.0.2.7 counter drop; }; }"
    )
    farm.balancer.run("nft", "-f", "-", text=strangers)
    before = state_of(farm.balancer)
    with farm.balanced(configured(mode)) as balancer:
        config_file = str(balancer.config_file)
        refused = host(farm, config_file, "clean")
        assert refused.returncode == 1
        assert "mailbalancer runs" in refused.stderr
        shown = json.loads(host(farm, config_file, "show", "--json").stdout)
        assert shown["steps"]
        assert "mailbalancer" in shown["rules"]
        assert state_of(farm.balancer) != before
        balancer.kill()
        farm.balancer.end()
        done = host(farm, config_file, "clean")
        assert done.returncode == 0, done.stderr
        assert state_of(farm.balancer) == before
        assert "nothing to undo" in host(farm, config_file, "clean").stdout


@pytest.mark.parametrize("mode", MODES)
def test_the_plan_says_what_will_be_done(farm: Farm, mode: str) -> None:
    before = state_of(farm.balancer)
    balancer = farm.balanced(configured(mode))
    planned = json.loads(host(farm, str(balancer.config_file), "plan", "--json").stdout)
    assert state_of(farm.balancer) == before
    with balancer:
        shown = json.loads(host(farm, str(balancer.config_file), "show", "--json").stdout)
    assert planned["steps"] == shown["steps"]


def test_rules_that_somebody_flushed_come_back(farm: Farm) -> None:
    farm.serve()
    with farm.balanced(configured("transparent")) as balancer:
        Talk(farm.client, VIP).close()
        farm.balancer.run("nft", "flush", "ruleset")
        eventually(lambda: "our nftables rules were not there any more" in balancer.log_text(), 15.0, "it is noticed")
        Talk(farm.client, VIP).close()
