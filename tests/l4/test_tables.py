"""From one set of objects to another: only what differs, and what remembers stays."""

from __future__ import annotations

from mailbalancer.l4.tables import Chain, Table, script


def table(rules: tuple[str, ...] = ("accept",), **more: object) -> Table:
    return Table("inet", **{"chains": {"one": Chain(rules)}, **more})  # type: ignore[arg-type]


def test_what_is_not_known_goes_first() -> None:
    assert script([table()], None).splitlines() == [
        "add table inet mailbalancer",
        "delete table inet mailbalancer",
        "add table inet mailbalancer",
        "add chain inet mailbalancer one",
        "add rule inet mailbalancer one accept",
    ]


def test_nothing_to_do_is_nothing() -> None:
    assert script([table()], [table()]) == ""


def test_only_a_chain_that_differs_is_written() -> None:
    before = Table("inet", chains={"one": Chain(("accept",)), "two": Chain(("drop",))}, counters=("c",))
    after = Table("inet", chains={"one": Chain(("drop",)), "two": Chain(("drop",))}, counters=("c",))
    assert script([after], [before]).splitlines() == [
        "flush chain inet mailbalancer one",
        "add rule inet mailbalancer one drop",
    ]


def test_what_remembers_is_added_once_and_removed_last() -> None:
    memory = {"clients": ("map", "{ type ipv4_addr : mark; }")}
    added = script([table(memory=memory)], [table()])
    assert added == "add map inet mailbalancer clients { type ipv4_addr : mark; }\n"
    assert script([table(memory=memory)], [table(memory=memory)]) == ""
    assert script([table()], [table(memory=memory)]) == "delete map inet mailbalancer clients\n"


def test_a_chain_that_goes_is_emptied_before_others_let_go_of_it() -> None:
    before = Table("inet", chains={"one": Chain(("goto two",)), "two": Chain(("drop",))})
    assert script([table()], [before]).splitlines() == [
        "flush chain inet mailbalancer one",
        "flush chain inet mailbalancer two",
        "add rule inet mailbalancer one accept",
        "delete chain inet mailbalancer two",
    ]


def test_elements_are_written_anew() -> None:
    before, after = (table(fixed={"count": ("{ type mark : counter; }", (element,))}) for element in ("1 : a", "2 : b"))
    assert script([after], [before]).splitlines() == [
        "flush map inet mailbalancer count",
        "add element inet mailbalancer count { 2 : b }",
    ]


def test_a_family_that_is_not_wanted_goes() -> None:
    assert script([], [table()]) == "delete table inet mailbalancer\n"
