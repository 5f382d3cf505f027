"""Layer 7 with the client's address: workers connect as the client, and the answers come back through the balancer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, SERVERS6, Farm, Segment, Talk, pattern_digest, state_of, with_both
from tests.support.netns import World
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}


def layer7(servers: dict[str, str], listen: list[str], **more: Any) -> dict[str, Any]:
    service = {"mode": "tcp", "listen": listen, "real_servers": [*servers], "check": FAST, "ramp_s": 0, **more}
    return {"real_servers": servers, "stop_timeout_s": 0, "services": {"mail": {"source": "client"} | service}}


@pytest.mark.parametrize(
    ("servers", "ours", "near", "far"),
    [(SERVERS, "10.0.1.1", "10.0.1.5", "10.9.0.5"), (SERVERS6, "fd00:1::1", "fd00:1::5", "fd00:9::5")],
)
def test_servers_see_the_client(farm: Farm, servers: dict[str, str], ours: str, near: str, far: str) -> None:
    farm.serve()
    before = state_of(farm.balancer)
    listen = f"[{ours}]:{PORT}" if ":" in ours else f"{ours}:{PORT}"
    with farm.balanced(layer7(servers, [listen])) as balancer:
        for machine, address in ((farm.client, near), (farm.far, far)):
            talks = with_both(machine, ours)
            assert {talk.seen_as for talk in talks} == {address}
            assert talks[0].take(20 * MEGABYTE) == pattern_digest(20 * MEGABYTE)
            assert address in [line[1] for line in farm.seen(talks[0].server)]
        assert balancer.stop() == 0
    assert state_of(farm.balancer) == before


def test_a_client_among_the_servers_is_given_our_address(farm: Farm) -> None:
    """Its server would answer it directly; it can send mail all the same, and the log says what it loses."""
    farm.serve()
    neighbour = farm.world.machine("neighbour")
    neighbour.plug(farm.farm, "eth0", "10.0.2.50/24")
    neighbour.route("default", "10.0.2.1")
    with farm.balanced(layer7(SERVERS, [f"10.0.1.1:{PORT}"])) as balancer:
        assert {Talk(neighbour, "10.0.1.1").seen_as for _ in range(4)} == {"10.0.2.1"}
        told = (
            "mail: clients in 10.0.2.0/24 are shown with the balancer's address (real servers would answer them "
            "directly); rights that real servers grant by address (relay) do not hold for them"
        )
        eventually(lambda: told in balancer.log_text(), 5.0, "it is told")
        assert balancer.log_text().count(told) == 1
        own = balancer.service("mail")["own_address"]
        network = {"network": "10.0.2.0/24", "why": "real servers would answer them directly", "sessions": None}
        assert own == {"sessions": 4, "networks": [network]}


def test_listed_clients_are_told_as_such(farm: Farm) -> None:
    farm.serve()
    listed = layer7(SERVERS, [f"10.0.1.1:{PORT}"], source={"use": "client", "balancer_for": "10.9.0.0/24"})
    with farm.balanced(listed) as balancer:
        assert Talk(farm.far, "10.0.1.1").seen_as == "10.0.2.1"
        assert Talk(farm.client, "10.0.1.1").seen_as == "10.0.1.5"
        why = "clients in 10.9.0.0/24 are shown with the balancer's address (they are listed in balancer_for)"
        eventually(lambda: why in balancer.log_text(), 5.0, "it is told")


def test_one_arm_is_warned_of(world: World, tmp_path: Path) -> None:
    segment = Segment(world, tmp_path, gateway="1")
    segment.serve()
    with segment.balanced(layer7({"s1": "10.0.1.11"}, [f"10.0.1.1:{PORT}"])) as balancer:
        assert Talk(segment.far, "10.0.1.1").seen_as == "10.9.0.5"
        assert "clients and real servers are both reached through eth0" in balancer.log_text()


def test_workers_keep_one_capability(world: World, tmp_path: Path) -> None:
    farm = Farm(world, tmp_path)
    farm.serve()
    with farm.balanced(layer7(SERVERS, [f"10.0.1.1:{PORT}"])) as balancer:
        for pid in balancer.worker_pids:
            status = Path(f"/proc/{pid}/status").read_text()
            bits = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
            assert int(bits, 16) == 1 << 13  # CAP_NET_RAW, capabilities(7)
