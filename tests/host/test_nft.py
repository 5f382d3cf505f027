"""Checked, then run; only tables of our own."""

from __future__ import annotations

import pytest

from mailbalancer.host.commands import HostError, RecordedCommands
from mailbalancer.host.nft import Counter, Nft


def test_a_script_is_checked_before_it_is_run() -> None:
    commands = RecordedCommands()
    Nft(commands).apply("add table inet mailbalancer\n")
    assert commands.asked == [
        ("nft --check -f -", "add table inet mailbalancer\n"),
        ("nft -f -", "add table inet mailbalancer\n"),
    ]


@pytest.mark.parametrize(
    "line",
    ["flush ruleset", "delete table inet filter", "add table ip mailbalancers", "add rule inet filter in drop", " x"],
)
def test_nobody_elses_table_is_touched(line: str) -> None:
    commands = RecordedCommands()
    with pytest.raises(HostError, match="not about its own table"):
        Nft(commands).apply(f"add table inet mailbalancer\n{line}\n")
    assert commands.asked == []


def test_what_is_ours_is_removed() -> None:
    listed = (
        '{"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": "nat"}},'
        ' {"table": {"family": "inet", "name": "mailbalancer"}}]}'
    )
    commands = RecordedCommands({"nft -j list tables": listed})
    assert Nft(commands).remove() == ["inet"]
    assert commands.asked[-1] == ("nft -f -", "delete table inet mailbalancer\n")


def test_counters() -> None:
    listed = '{"nftables": [{"counter": {"name": "new_1", "packets": 3, "bytes": 180}}]}'
    commands = RecordedCommands({"nft -j list counters table inet mailbalancer": listed})
    assert Nft(commands).counters("inet") == {"new_1": Counter(3, 180)}
