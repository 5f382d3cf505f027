"""Transparent and snat through the kernel, with the program running in a namespace of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.farm import PORT, VIP, Farm, Talk, ask_both, pattern_digest, state_of
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}


def l4(base: dict[str, Any], forward: str, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    service = {
        "mode": "l4",
        "protocol": protocol,
        "listen": f"{VIP}:{PORT}",
        "forward": forward,
        "real_servers": ["s1", "s2"],
        "check": FAST,
        "ramp_s": 0,
        **more,
    }
    return {**base, "services": {"mail": service}}


@pytest.mark.parametrize(("forward", "seen_as"), [("transparent", "10.0.1.5"), ("snat", "10.0.2.1")])
def test_a_session_and_a_large_transfer(farm: Farm, base: dict[str, Any], forward: str, seen_as: str) -> None:
    farm.serve()
    with farm.balanced(l4(base, forward)) as balancer:
        talk = Talk(farm.client, VIP)
        assert talk.seen_as == seen_as
        assert talk.say("hello") == f"{talk.server} hello"
        assert talk.take(100 * MEGABYTE) == pattern_digest(100 * MEGABYTE)
        assert talk.seen_as in [line[1] for line in farm.seen(talk.server)]
        counted = eventually(lambda: _busy(balancer.real_server("mail", talk.server)), 10.0, "the flow is counted")
        assert counted["sessions"] == 1
        assert counted["bytes_out"] > 100 * MEGABYTE
        talk.close()


def _busy(server: dict[str, Any]) -> dict[str, Any] | None:
    return server if server["sessions"] == 1 and server["total"] >= 1 and server["bytes_out"] > MEGABYTE else None


@pytest.mark.parametrize(("forward", "seen_as"), [("transparent", "10.0.1.5"), ("snat", "10.0.2.1")])
def test_datagrams(farm: Farm, base: dict[str, Any], forward: str, seen_as: str) -> None:
    farm.serve()
    with farm.balanced(l4(base, forward, "udp")):
        answers = ask_both(farm.client, VIP, count=40)
        assert {answer[1] for answer in answers} == {seen_as}
        assert [answer[3] for answer in answers] == [f"q{n}" for n in range(40)]


def test_the_address_is_added_and_everything_is_undone(farm: Farm, base: dict[str, Any]) -> None:
    before = state_of(farm.balancer)
    farm.serve()
    with farm.balanced(l4(base, "transparent")) as balancer:
        assert VIP in farm.balancer.run("ip", "address", "show", "eth0")
        assert balancer.stop() == 0
    assert state_of(farm.balancer) == before
