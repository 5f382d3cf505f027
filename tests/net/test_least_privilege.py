"""As an ordinary user with the capabilities of the unit and nothing more."""

from __future__ import annotations

import pwd
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, VIP, Farm, Talk, state_of
from tests.support.program import Balancer

#: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (capabilities(7)).
OURS = 1 << 10 | 1 << 12 | 1 << 13


@pytest.mark.parametrize(
    ("service", "vip", "workers"),
    [
        ({"mode": "l4", "forward": "transparent", "listen": f"{VIP}:{PORT}"}, VIP, 0),
        ({"mode": "l4", "forward": "dsr", "listen": "10.0.2.100:2525"}, "", 0),
        ({"mode": "tcp", "source": "client", "listen": f"10.0.1.1:{PORT}"}, "10.0.1.1", 1 << 13),
    ],
    ids=["transparent", "dsr", "layer 7"],
)
def test_an_ordinary_user_can_do_it(
    farm: Farm, base: dict[str, Any], service: dict[str, Any], vip: str, workers: int
) -> None:
    farm.serve()
    before = state_of(farm.balancer)
    nobody = str(pwd.getpwnam("nobody").pw_uid)
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        Path(folder).chmod(0o755)
        own = f"{folder}/run/control"
        mail = {**service, "real_servers": ["s1", "s2"], "ramp_s": 0, "check": {"type": "tcp", "interval_s": 0.5}}
        config = {**base, "user": "nobody", "control_socket": own, "state_file": "", "services": {"mail": mail}}
        balancer = Balancer(config, Path(folder), under=farm.balancer.inside())
        balancer.control_socket = Path(own)
        with balancer:
            assert _status(balancer.pid, "Uid").split() == [nobody] * 4
            assert int(_status(balancer.pid, "CapPrm"), 16) == OURS
            assert {int(_status(pid, "CapPrm"), 16) for pid in balancer.worker_pids} == {workers}
            if vip:
                assert Talk(farm.far, vip).seen_as == "10.9.0.5"
            balancer.command("reload")
            assert state_of(farm.balancer) != before
            balancer.stop()
    assert state_of(farm.balancer) == before


def _status(pid: int, word: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{word}:")).partition(":")[2].strip()
