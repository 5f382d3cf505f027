"""Single changes to the machine: what is run, that it is undone, and that nothing strange can be part of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailbalancer.host import steps
from mailbalancer.host.commands import HostError, RecordedCommands
from mailbalancer.host.steps import (
    Address,
    Forwarding6,
    IpTunnel,
    LocalRoute,
    Rule,
    Step,
    Sysctl,
    TunnelEnd,
    Vxlan,
    as_facts,
    from_facts,
    lacks_device_type,
    sysctl_now,
)

MAC = "02:6d:62:66:ea:14"
ALL: list[Step] = [
    Address("10.0.1.100/32", "eth0"),
    Address("fd00:1::100/128", "eth0.5"),
    Rule(4, 2774, 0x6D64FFFF, 27746),
    LocalRoute(6, 27746),
    Vxlan("mbvxlan4", 27746, 4789, "10.0.1.1", 1450),
    TunnelEnd("mbvxlan4", "10.8.0.11", MAC),
    IpTunnel("mbip4", "10.0.1.1", "10.8.0.11", 1480),
    IpTunnel("mbip6", "fd00:1::1", "fd00:8::11", 1460),
]


def run(step: Step, verb: str) -> list[str]:
    commands = RecordedCommands()
    getattr(step, verb)(commands)
    return [line for line, _ in commands.asked]


@pytest.mark.parametrize(
    ("step", "done", "undone"),
    [
        (ALL[0], ["ip address replace 10.0.1.100/32 dev eth0"], ["ip address del 10.0.1.100/32 dev eth0"]),
        (
            ALL[1],
            ["ip address replace fd00:1::100/128 dev eth0.5 nodad preferred_lft 0"],
            ["ip address del fd00:1::100/128 dev eth0.5"],
        ),
        (
            ALL[2],
            [f"ip -4 rule {verb} pref 2774 fwmark 0x6d64ffff lookup 27746" for verb in ("del", "add")],
            ["ip -4 rule del pref 2774 fwmark 0x6d64ffff lookup 27746"],
        ),
        (
            ALL[3],
            ["ip -6 route replace local ::/0 dev lo table 27746"],
            ["ip -6 route del local ::/0 dev lo table 27746"],
        ),
        (
            ALL[4],
            [
                "ip link del mbvxlan4",
                "ip link add mbvxlan4 mtu 1450 type vxlan id 27746 dstport 4789 local 10.0.1.1 nolearning",
                "ip link set mbvxlan4 up",
            ],
            ["ip link del mbvxlan4"],
        ),
        (
            ALL[5],
            [
                f"bridge fdb replace {MAC} dev mbvxlan4 dst 10.8.0.11 self permanent",
                f"ip neighbour replace 10.8.0.11 dev mbvxlan4 lladdr {MAC} nud permanent",
            ],
            [
                "ip neighbour del 10.8.0.11 dev mbvxlan4",
                f"bridge fdb del {MAC} dev mbvxlan4 dst 10.8.0.11 self",
            ],
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_is_run(step: Step, done: list[str], undone: list[str]) -> None:
    assert run(step, "do") == done
    assert run(step, "undo") == undone


@pytest.mark.parametrize("step", [*ALL, Sysctl("net.ipv4.ip_forward", "1", "0"), Forwarding6("eth0=0 eth1=1")])
def test_it_comes_back_from_its_facts(step: Step) -> None:
    assert from_facts(as_facts(step)) == step


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "address", "address": "10.0.1.100/32", "device": "eth0 up"},
        {"kind": "address", "address": "fe80::1%eth0 x/64", "device": "eth0"},
        {"kind": "address", "address": "10.0.1.300/32", "device": "eth0"},
        {"kind": "rule", "version": "4 flush", "priority": 1, "mark": 1, "table": 1},
        {"kind": "local route", "version": 4, "table": -1},
        {"kind": "ip tunnel", "device": "a", "local": "10.0.1.1 x", "remote": "10.8.0.11", "mtu": 1480},
        {"kind": "ip tunnel", "device": "a", "local": "10.0.1.1", "remote": "10.8.0.11/8", "mtu": 1480},
        {"kind": "vxlan", "device": "a b", "number": 1, "port": 1, "local": "10.0.1.1", "mtu": 1450},
        {"kind": "vxlan", "device": "a", "number": "1 dev b", "port": 1, "local": "10.0.1.1", "mtu": 1450},
        {"kind": "tunnel end", "device": "a", "address": "10.0.1.1", "mac": "02:00:00:00:00:00 dev b"},
        {"kind": "sysctl", "key": "net.ipv4.x/../../y", "value": "1", "before": "0"},
        {"kind": "sysctl", "key": "net.ipv4.ip_forward", "value": "1\n2", "before": "0"},
        {"kind": "ipv6 forwarding", "before": "../../x=1"},
    ],
)
def test_strange_facts_are_no_step(facts: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_facts(facts)


@pytest.mark.parametrize(
    ("step", "made"),
    [
        (ALL[6], "ip link add mbip4 mtu 1480 type ipip ttl 64 local 10.0.1.1 remote 10.8.0.11"),
        (
            ALL[7],
            "ip link add mbip6 mtu 1460 type ip6tnl mode ip6ip6 encaplimit none local fd00:1::1 remote fd00:8::11",
        ),
    ],
)
def test_a_tunnel_of_ip_in_ip(step: IpTunnel, made: str) -> None:
    name = step.device
    assert run(step, "do") == [f"ip link del {name}", made, f"ip link set {name} up"]
    assert run(step, "undo") == [f"ip link del {name}"]


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("Error: Unknown device type.", True),
        ("RTNETLINK answers: Operation not supported", True),
        ("Error: mtu less than device minimum.", False),
        ("RTNETLINK answers: Operation not permitted", False),
    ],
)
def test_whether_a_kernel_lacks_a_device(said: str, lacks: bool) -> None:
    assert lacks_device_type(Refusing(said), "ipip") is lacks


def test_a_device_that_was_tried_does_not_stay() -> None:
    commands = RecordedCommands()
    assert not lacks_device_type(commands, "ipip")
    assert [line for line, _ in commands.asked][-1] == "ip link del mbtry"


class Refusing:
    """Every command fails with these words."""

    def __init__(self, words: str) -> None:
        self._words = words

    def run(self, arguments: object, text: str = "") -> str:
        raise HostError(self._words)


@pytest.mark.parametrize("words", ["Cannot find device", "RTNETLINK answers: No such process", "not found"])
def test_what_is_gone_counts_as_undone(words: str) -> None:
    for step in ALL:
        step.undo(Refusing(words))


def test_what_cannot_be_undone_is_said() -> None:
    with pytest.raises(HostError, match="not permitted"):
        ALL[0].undo(Refusing("RTNETLINK answers: Operation not permitted"))


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc/sys of our own."""
    monkeypatch.setattr(steps, "PROC_SYS", tmp_path)
    for name, value in (("all", "0"), ("eth0", "0"), ("eth0.5", "1")):
        folder = tmp_path / "net/ipv6/conf" / name
        folder.mkdir(parents=True)
        (folder / "forwarding").write_text(f"{value}\n")
    return tmp_path


def test_a_setting_goes_back_unless_somebody_else_changed_it(proc: Path) -> None:
    step = Sysctl("net.ipv6.conf.eth0/5.forwarding", "0", "1")
    file = proc / "net/ipv6/conf/eth0.5/forwarding"
    assert sysctl_now(step.key) == "1"
    step.do(RecordedCommands())
    assert file.read_text() == "0\n"
    step.undo(RecordedCommands())
    assert file.read_text() == "1\n"
    file.write_text("2\n")
    step.undo(RecordedCommands())
    assert file.read_text() == "2\n"
    assert sysctl_now("net.ipv6.conf.gone.forwarding") == ""


def test_a_setting_that_cannot_be_written_names_what_is_missing(proc: Path) -> None:
    with pytest.raises(HostError) as caught:
        Sysctl("net.ipv6.conf.gone.forwarding", "1", "0").do(RecordedCommands())
    assert "CAP_NET_ADMIN" in caught.value.remedy


def test_each_interface_gets_its_own_ipv6_forwarding_back(proc: Path) -> None:
    step = Forwarding6.as_now()
    assert step == Forwarding6("eth0=0 eth0.5=1")
    step.do(RecordedCommands())
    conf = proc / "net/ipv6/conf"
    for name in ("eth0", "eth0.5"):  # as the kernel does it
        (conf / name / "forwarding").write_text("1\n")
    step.undo(RecordedCommands())
    values = {name: (conf / name / "forwarding").read_text().strip() for name in ("all", "eth0", "eth0.5")}
    assert values == {"all": "0", "eth0": "0", "eth0.5": "1"}
