"""The order in which the machine changes, and what is left when a step of it fails. The machine here is a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mailbalancer.config.load import load_text
from mailbalancer.control.events import Events
from mailbalancer.control.l4_engine import L4Engine
from mailbalancer.control.members import Members
from mailbalancer.control.slots import Slots
from mailbalancer.errors import MailbalancerError
from mailbalancer.host.commands import HostError
from mailbalancer.ipc.board import Board
from mailbalancer.log import Log
from mailbalancer.model import Config

ADDRESSES = [
    {"ifname": "lo", "ifindex": 1, "link_type": "loopback", "flags": ["UP"], "addr_info": []},
    {
        "ifname": "nowhere0",
        "ifindex": 2,
        "link_type": "ether",
        "address": "02:00:00:00:00:01",
        "mtu": 1500,
        "flags": [],  # down: nobody can be asked there
        "addr_info": [{"local": "10.0.1.1", "prefixlen": 24}],
    },
]
ROUTES = [{"dst": "10.0.1.0/24", "dev": "nowhere0"}]


class Machine:
    """Answers `ip -json`, writes down everything else, and refuses what it is told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.refuses = ""

    def run(self, arguments: Sequence[str], text: str = "") -> str:
        line = " ".join(arguments)
        if self.refuses and line.startswith(self.refuses):
            raise HostError(f"{line}: no")
        if line == "ip -json address show":
            return json.dumps(ADDRESSES)
        if line == "ip -json -4 route show":
            return json.dumps(ROUTES)
        if "-json" in line or line.startswith("nft -j"):
            return ""
        self.done.append(line)
        return ""


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.flush()


class Engine:
    """An engine on such a machine."""

    def __init__(self, log: Log, folder: Path) -> None:
        self.machine = Machine()
        self.folder = folder
        board = Board(2, 64)
        self.slots = Slots(board)
        self.members = Members(board, Events(log), lambda slot, why: None)
        self.engine = L4Engine(self.members, Events(log), self.machine, folder / "control.host.json")

    def config(self, vip: str) -> Config:
        service = {"mode": "l4", "forward": "snat", "listen": f"{vip}:25", "real_servers": ["s1"]}
        text = {"version": 1, "real_servers": {"s1": "10.0.1.11"}, "services": {"mail": service}}
        return load_text(json.dumps({**text, "control_socket": str(self.folder / "control.sock")}), "x.yaml")

    def commit(self, config: Config) -> None:
        """As the workers do between the two halves of a change."""
        allocation = self.slots.plan(config)
        self.members.prepare(config, allocation, 0.0)
        self.slots.commit(allocation)
        self.members.commit(config, allocation, 0.0)

    def change(self, config: Config) -> None:
        self.engine.prepare(config)
        complete = self.engine.completed(config)
        self.commit(complete)
        self.engine.apply(complete, 0.0)


@pytest.fixture
def engine(log: Log, tmp_path: Path) -> Engine:
    return Engine(log, tmp_path)


def told(machine: Machine) -> list[str]:
    """Addresses and rules, in their order."""
    return [line for line in machine.done if "address" in line or line.startswith("nft")]


FIRST, SECOND = "10.0.1.100", "10.0.1.101"
ADD = "ip address replace {}/32 dev nowhere0"
GONE = "ip address del {}/32 dev nowhere0"
CHECK, APPLY = "nft --check -f -", "nft -f -"


def test_addresses_then_rules_then_what_is_not_wanted_any_more(engine: Engine) -> None:
    engine.change(engine.config(FIRST))
    assert told(engine.machine) == [ADD.format(FIRST), CHECK, CHECK, APPLY]
    engine.machine.done.clear()
    engine.change(engine.config(SECOND))
    assert told(engine.machine) == [ADD.format(SECOND), CHECK, CHECK, APPLY, GONE.format(FIRST)]


@pytest.mark.parametrize("refuses", ["ip address replace 10.0.1.101", "nft --check"])
def test_what_cannot_be_prepared_is_taken_back(engine: Engine, refuses: str) -> None:
    engine.change(engine.config(FIRST))
    engine.machine.done.clear()
    engine.machine.refuses = refuses
    with pytest.raises(MailbalancerError):
        engine.engine.prepare(engine.config(SECOND))
    assert told(engine.machine)[-1] == GONE.format(SECOND)
    assert APPLY not in engine.machine.done
    assert [str(step) for step in engine.engine.steps if "address" in str(step)] == [f"address {FIRST}/32 on nowhere0"]


def test_rules_that_fail_at_last_bring_back_what_was(engine: Engine) -> None:
    """nft says yes to a check and no to the same rules: the supervisor goes back to what ran."""
    engine.change(engine.config(FIRST))
    before = engine.engine.steps
    engine.machine.refuses = APPLY
    with pytest.raises(MailbalancerError):
        engine.change(engine.config(SECOND))
    engine.machine.refuses = ""
    engine.commit(engine.engine.completed(engine.config(FIRST)))
    engine.engine.take_back()
    assert engine.engine.steps == before
    engine.machine.done.clear()
    engine.change(engine.config(SECOND))
    assert told(engine.machine) == [ADD.format(SECOND), CHECK, CHECK, APPLY, GONE.format(FIRST)]


def test_a_stop_undoes_rules_and_changes_whatever_fails(engine: Engine) -> None:
    engine.change(engine.config(FIRST))
    engine.machine.done.clear()
    engine.machine.refuses = "nft -j list tables"
    engine.engine.stop()
    assert GONE.format(FIRST) in engine.machine.done
    assert engine.engine.steps == ()
