"""As an ordinary user with the capabilities of the unit and nothing more."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, VIP, Farm, Talk, state_of
from tests.support.program import Balancer
from tests.support.tools import require

#: CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW (capabilities(7)).
OURS = 1 << 10 | 1 << 12 | 1 << 13


L4 = {"mode": "l4", "listen": f"{VIP}:{PORT}"}
#: A service, where to talk to it (empty: real servers would have to be set up), whom they see, and workers' rights.
SERVICES: dict[str, tuple[dict[str, Any], str, str, int]] = {
    "transparent": ({**L4, "forward": "transparent"}, VIP, "10.9.0.5", 0),
    "snat": ({**L4, "forward": "snat"}, VIP, "10.0.2.1", 0),
    "dsr": ({**L4, "forward": "dsr", "listen": "10.0.2.100:2525"}, "", "", 0),
    "tunnel": ({**L4, "forward": "tunnel"}, "", "", 0),
    "layer 7": ({"mode": "tcp", "source": "client", "listen": f"10.0.1.1:{PORT}"}, "10.0.1.1", "10.9.0.5", 1 << 13),
    "address": ({"mode": "tcp", "listen": f"{VIP}:{PORT}"}, VIP, "10.0.2.1", 0),
}
#: As systemd starts it, with the unit and its drop-in: an ordinary user from the first moment.
RIGHTS = "+net_bind_service,+net_admin,+net_raw"
LIKE_THE_UNIT = ["--reuid", "nobody", "--clear-groups", "--no-new-privs", "--inh-caps", f"-all,{RIGHTS}"]
LIKE_THE_UNIT += ["--ambient-caps", f"-all,{RIGHTS}", "--bounding-set", f"-all,{RIGHTS}"]


@pytest.mark.parametrize("kind", SERVICES)
@pytest.mark.parametrize("start", ["root", "unit"])
def test_an_ordinary_user_can_do_it(farm: Farm, base: dict[str, Any], kind: str, start: str) -> None:
    service, vip, seen_as, workers = SERVICES[kind]
    farm.serve()
    before = state_of(farm.balancer)
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        Path(folder).chmod(0o755)
        own = Path(folder) / "run/control"
        mail = {**service, "real_servers": ["s1", "s2"], "ramp_s": 0, "check": {"type": "tcp", "interval_s": 0.5}}
        config = {**base, "user": "nobody", "control_socket": str(own), "state_file": "", "services": {"mail": mail}}
        under = farm.balancer.inside()
        if start == "unit":
            own.parent.mkdir()
            os.chown(own.parent, nobody.pw_uid, nobody.pw_gid)
            under += [require("setpriv"), *LIKE_THE_UNIT]
        balancer = Balancer(config, Path(folder), under=under)
        balancer.config_file.chmod(0o644)
        balancer.control_socket = own
        with balancer:
            assert _status(balancer.pid, "Uid").split() == [str(nobody.pw_uid)] * 4
            assert int(_status(balancer.pid, "CapPrm"), 16) == OURS
            assert {int(_status(pid, "CapPrm"), 16) for pid in balancer.worker_pids} == {workers}
            if vip:
                assert Talk(farm.far, vip).seen_as == seen_as
            balancer.command("reload")
            assert state_of(farm.balancer) != before
            assert "may not" not in balancer.log_text()
            balancer.stop()
    assert state_of(farm.balancer) == before


def _status(pid: int, word: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{word}:")).partition(":")[2].strip()
