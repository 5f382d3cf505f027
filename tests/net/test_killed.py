"""`kill -9` of everything at any moment, then `host clean`: the machine is byte for byte as before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import PORT, SERVERS, SERVERS6, VIP, VIP6, Farm, state_of
from tests.support.netns import World
from tests.support.program import Balancer
from tests.support.waiting import eventually

FAST = {"type": "tcp", "interval_s": 0.5, "timeout_s": 0.4}
BOTH = {**SERVERS, **{f"{name}-6": address for name, address in SERVERS6.items()}}
SERVICES: dict[str, dict[str, Any]] = {
    "transparent": {"mode": "l4", "forward": "transparent", "listen": [f"{VIP}:{PORT}", f"[{VIP6}]:{PORT}"]},
    "tunnel": {"mode": "l4", "forward": "tunnel", "listen": [f"{VIP}:{PORT}", f"[{VIP6}]:{PORT}"]},
    "layer 7": {"mode": "tcp", "source": "client", "listen": [f"{VIP}:{PORT}", f"[{VIP6}]:{PORT}"]},
}
#: Of the changes that a start makes, each so-many-th one is a moment; 1 with MAILBALANCER_ALL=1.
EVERY = 1 if os.environ.get("MAILBALANCER_ALL") else 5
#: How long a start takes at most here; what is killed later is running.
START_S = 20.0


def config(kind: str, **more: Any) -> dict[str, Any]:
    mail = {**SERVICES[kind], "real_servers": [*BOTH], "check": FAST, **more}
    return {"real_servers": BOTH, "services": {"mail": mail}}


def steps(balancer: Balancer) -> int:
    """How many changes are written down now."""
    try:
        found: list[Any] = json.loads(balancer.control_socket.with_suffix(".host.json").read_text())["steps"]
    except (OSError, ValueError):
        return 0
    return len(found)


class Killed:
    """The program, ended in the middle of what it does."""

    def __init__(self, farm: Farm, kind: str) -> None:
        self._farm = farm
        self._kind = kind
        self.before = state_of(farm.balancer)
        self.balancer = farm.balanced(config(kind))

    def when(self, moment: Callable[[], bool]) -> None:
        """Start it, end everything at this moment, clean up, and compare."""
        command = [sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(self.balancer.config_file)]
        process = subprocess.Popen(
            self._farm.balancer.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ends_at = time.monotonic() + START_S
        while not moment() and process.poll() is None and time.monotonic() < ends_at:
            pass  # as soon as it is true
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._farm.balancer.end()
        done = self._farm.balancer.attempt(
            sys.executable, "-m", "mailbalancer", "host", "clean", "-c", str(self.balancer.config_file)
        )
        assert done.returncode == 0, done.stderr
        assert state_of(self._farm.balancer) == self.before

    def rules(self) -> bool:
        """Whether the kernel has rules of ours."""
        return "mailbalancer" in self._farm.balancer.run("nft", "list", "tables")

    def reloads(self, last: int) -> Callable[[], bool]:
        """A moment within a reload to another set of changes, told from how many are written down."""
        asked = False

        def moment() -> bool:
            nonlocal asked
            if not asked and self.runs():
                asked = True
                self.balancer.write_config(config(self._kind, listen=[f"10.0.1.101:{PORT}", f"[{VIP6}]:{PORT}"]))
                words = ["reload", "-c", str(self.balancer.config_file)]
                self._farm.balancer.start(sys.executable, "-m", "mailbalancer", *words)
            return asked and steps(self.balancer) != last

        return moment

    def runs(self) -> bool:
        """Whether it serves."""
        try:
            return bool(self.balancer.status())
        except (OSError, AssertionError, ValueError):
            return False


@pytest.mark.parametrize("kind", SERVICES)
def test_at_any_moment(world: World, tmp_path: Path, kind: str) -> None:
    farm = Farm(world, tmp_path)
    farm.serve()
    killed = Killed(farm, kind)
    killed.balancer.start()
    whole = steps(killed.balancer)
    assert killed.balancer.stop() == 0
    eventually(lambda: state_of(farm.balancer) == killed.before, 5.0, "a stop undoes everything")
    for count in range(1, whole + 1, EVERY):
        killed.when(lambda count=count: steps(killed.balancer) >= count)  # type: ignore[misc]
    killed.when(killed.rules)
    killed.when(killed.runs)
    killed.when(killed.reloads(whole))
