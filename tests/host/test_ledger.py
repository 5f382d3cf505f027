"""Written down before it is done, undone backwards, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailbalancer.host.commands import HostError, RecordedCommands
from mailbalancer.host.ledger import Ledger
from mailbalancer.host.steps import Address, LocalRoute, Rule

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


def test_what_is_not_wanted_any_more_goes_first(tmp_path: Path) -> None:
    commands = RecordedCommands()
    ledger = Ledger(tmp_path / "ledger", commands)
    ledger.follow([A])
    ledger.follow([B])
    assert [line.split()[2] for line, _ in commands.asked] == ["replace", "del", "replace"]
    assert ledger.steps == (B,)


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
