"""Every way of forwarding, in both IP versions: mail by hand, names, 100 MB, and whom the servers' logs name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, VIP, VIP6, Farm, Segment, Site, ask_both, pattern_digest, state_of, with_both
from tests.support.netns import World
from tests.support.waiting import eventually

MEGABYTE = 1 << 20
#: The whole of it in IPv4; enough to fill every window in IPv6.
SIZE = {4: 100 * MEGABYTE, 6: 20 * MEGABYTE}
FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 2.0, "rise": 1, "fall": 3}
VIPS = {4: VIP, 6: VIP6}
NEAR, FAR = {4: "10.0.1.5", 6: "fd00:1::5"}, {4: "10.9.0.5", 6: "fd00:9::5"}
TOPOLOGIES: dict[str, type[Farm | Segment]] = {"transparent": Farm, "snat": Farm, "dsr": Segment, "tunnel": Site}
NETWORKS = {
    ("transparent", 4): "10.0.2.",
    ("transparent", 6): "fd00:2::",
    ("snat", 4): "10.0.2.",
    ("snat", 6): "fd00:2::",
    ("dsr", 4): "10.0.1.",
    ("dsr", 6): "fd00:1::",
    ("tunnel", 4): "10.8.0.",
    ("tunnel", 6): "fd00:8::",
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("forward", TOPOLOGIES)
def test_every_path(world: World, tmp_path: Path, forward: str, version: int) -> None:
    at = TOPOLOGIES[forward](world, tmp_path)
    at.serve()
    before = state_of(at.balancer)
    vip, network = VIPS[version], NETWORKS[forward, version]
    door = f"[{vip}]:{PORT}" if version == 6 else f"{vip}:{PORT}"
    service = {"mode": "l4", "forward": forward, "listen": door, "real_servers": ["s1", "s2"], "check": FAST}
    service |= {"ramp_s": 0, "schedule": "round_robin"}
    config: dict[str, Any] = {
        "real_servers": {"s1": f"{network}11", "s2": f"{network}12"},
        "services": {"mail": service, "names": {**service, "protocol": "udp"}},
    }
    ours = {4: "10.0.2.1", 6: "fd00:2::1"}[version]
    with at.balanced(config) as balancer:
        eventually(lambda: balancer.service("mail")["pools"][0]["real_servers"][1]["up"], 20.0, "both are up")
        for machine, own in ((at.client, NEAR[version]), (at.far, FAR[version])):
            seen_as = ours if forward == "snat" else own
            talks = {talk.server: talk for talk in with_both(machine, vip)}
            for talk in talks.values():
                assert talk.seen_as == seen_as
                assert talk.say("hello") == f"{talk.server} hello"
                assert seen_as in [line[1] for line in at.seen(talk.server) if line[0] == "tcp"]
            answers = ask_both(machine, vip)
            assert {answer[1] for answer in answers} == {seen_as}
            for name in ("s1", "s2"):
                assert seen_as in [line[1] for line in at.seen(name) if line[0] == "udp"]
        size = SIZE[version]
        assert talks["s1"].take(size) == pattern_digest(size)
        upload = os.urandom(MEGABYTE) * (size // MEGABYTE // 5)
        assert talks["s2"].give(upload) == hashlib.sha256(upload).hexdigest()
        eventually(lambda: balancer.real_server("mail", "s2")["bytes_in"] > len(upload), 10.0, "bytes are counted")
        assert balancer.stop() == 0
    assert state_of(at.balancer) == before
