"""Written down before it is done, undone backwards, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailbalancer.host.commands import HostError, RecordedCommands
from mailbalancer.host.ledger import Ledger
from mailbalancer.host.steps import Address, LocalRoute, Rule, TunnelEnd, Vxlan

A, B = Address("10.0.1.100/32", "eth0"), Address("10.0.1.101/32", "eth0")


def test_steps_are_done_once_and_undone_backwards(tmp_path: Path) -> None:
    commands = RecordedCommands()
    ledger = Ledger(tmp_path / "ledger", commands)
    ledger.follow([A, B])
    ledger.follow([A, B])
    assert [line for line, _ in commands.asked] == [
        "ip address replace 10.0.1.100/32 dev eth0",
        "ip address replace 10.0.1.101/32 dev eth0",
    ]
    commands.asked.clear()
    assert ledger.undo_all() == [B, A]
    assert [line for line, _ in commands.asked] == [
        "ip address del 10.0.1.101/32 dev eth0",
        "ip address del 10.0.1.100/32 dev eth0",
    ]
    assert not (tmp_path / "ledger").exists()


def test_what_is_new_comes_before_what_is_not_wanted_goes(tmp_path: Path) -> None:
    """So that what fails leaves what worked."""
    commands = RecordedCommands()
    ledger = Ledger(tmp_path / "ledger", commands)
    ledger.follow([A])
    ledger.begin([B])
    assert [line.split()[2] for line, _ in commands.asked] == ["replace", "replace"]
    assert ledger.steps == (A, B)
    ledger.finish([B])
    assert commands.asked[-1][0] == "ip address del 10.0.1.100/32 dev eth0"
    assert ledger.steps == (B,)


def test_a_device_that_is_made_anew_goes_first_with_everything_in_it(tmp_path: Path) -> None:
    commands = RecordedCommands()
    ledger = Ledger(tmp_path / "ledger", commands)
    end = TunnelEnd("mbvxlan4", "10.8.0.11", "02:6d:62:00:00:01")
    ledger.follow([A, Vxlan("mbvxlan4", 27746, 4789, "10.0.1.1", 1450), end])
    commands.asked.clear()
    fresh = Vxlan("mbvxlan4", 27746, 4789, "10.0.1.1", 1300)
    ledger.follow([A, fresh, end])
    told = [line for line, _ in commands.asked]
    made = next(at for at, line in enumerate(told) if line.startswith("ip link add mbvxlan4 mtu 1300"))
    assert "ip link del mbvxlan4" in told[:made]
    assert [line.split()[1] for line in told[made + 1 :]] == ["link", "fdb", "neighbour"]
    assert ledger.steps == (A, fresh, end)


def test_a_step_is_on_the_disk_before_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    seen: list[str] = []

    class Watching:
        def run(self, arguments: Sequence[str], text: str = "") -> str:
            seen.append(path.read_text())
            raise HostError("killed here")

    with pytest.raises(HostError):
        Ledger(path, Watching()).follow([A])
    assert json.loads(seen[0])["steps"] == [{"kind": "address", "address": "10.0.1.100/32", "device": "eth0"}]
    assert Ledger(path, RecordedCommands()).steps == (A,)


def test_every_kind_comes_back_from_the_disk(tmp_path: Path) -> None:
    steps = [A, Rule(4, 2774, 0x6D64FFFF, 27746), LocalRoute(6, 27746)]
    Ledger(tmp_path / "ledger", RecordedCommands()).follow(steps)
    assert Ledger(tmp_path / "ledger", RecordedCommands()).steps == tuple(steps)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"steps": [{"kind": "shell", "command": "rm"}]}',
        '{"steps": [{"kind": "address", "address": "10.0.1.100/32", "device": "eth0; reboot"}]}',
        '{"steps": [{"kind": "sysctl", "key": "kernel.panic", "value": "1", "before": "0"}]}',
        '{"steps": [{"kind": "sysctl", "key": "net.ipv4./../../x.y", "value": "1", "before": "0"}]}',
    ],
)
def test_a_damaged_ledger_is_not_obeyed(tmp_path: Path, text: str) -> None:
    (tmp_path / "ledger").write_text(text)
    with pytest.raises(HostError, match="is damaged"):
        Ledger(tmp_path / "ledger", RecordedCommands())
