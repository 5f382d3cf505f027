from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.admin import edit
from mailbalancer.admin.edit import EditError, MissingError

TEXT = """\
# head
version: 1
real_servers:
  ex1: 10.0.2.11
  # the second
  ex2: {address: 10.0.2.12, weight: 2}   # heavy
services:
  # mail in
  smtp:
    mode: tcp
    listen:
      - 10.0.1.100:25   # vip
      - "10.0.1.100:587"
    schedule: least_connections   # fair

    real_servers: [ex1, ex2]
  # the mapper
  rpc:
    mode: tcp
    listen: 10.0.1.100:135
    check: {type: tcp, send: 'a\\n', interval_s: 10}
    real_servers: {ex1: 25, ex2: {port: 25, weight: 1}}  # both
# tail
"""
SMTP, RPC = ("services", "smtp"), ("services", "rpc")


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines taken out and lines put in."""
    lines = edit.difference(before, after).split("\n")[2:]
    return [x[1:] for x in lines if x.startswith("-")], [x[1:] for x in lines if x.startswith("+")]


def test_one_setting_changes_one_line() -> None:
    out, into = changed(TEXT, edit.with_value(TEXT, (*SMTP, "schedule"), "round_robin"))
    assert out == ["    schedule: least_connections   # fair"]
    assert [line.split() for line in into] == [["schedule:", "round_robin", "#", "fair"]]


def test_a_real_server_joins_a_list_and_a_mapping() -> None:
    _, into = changed(TEXT, edit.with_member(TEXT, SMTP, "ex3", None))
    assert into == ["    real_servers: [ex1, ex2, ex3]"]
    _, into = changed(TEXT, edit.with_member(TEXT, RPC, "ex3", 26))
    assert [" ".join(line.split()) for line in into] == [
        "real_servers: {ex1: 25, ex2: {port: 25, weight: 1}, ex3: 26} # both"
    ]


def test_a_list_becomes_a_mapping_when_one_of_them_has_settings() -> None:
    text = edit.with_member(TEXT, SMTP, "ex2", {"weight": 3})
    assert yaml.safe_load(text)["services"]["smtp"]["real_servers"] == {"ex1": None, "ex2": {"weight": 3}}


@pytest.mark.parametrize("path", [SMTP, RPC, ("real_servers", "ex1"), ("real_servers", "ex2"), (*SMTP, "listen")])
def test_taking_something_out_leaves_every_other_line_as_it_was(path: tuple[str, ...]) -> None:
    out, into = changed(TEXT, edit.without(TEXT, path))
    assert into == []
    assert not [line for line in out if line.strip().startswith("#")]
    assert not edit.has(edit.without(TEXT, path), path)


def test_a_real_server_leaves_a_list_and_a_mapping() -> None:
    assert "[ex2]" in edit.without_member(TEXT, SMTP, "ex1")
    left = yaml.safe_load(edit.without_member(TEXT, RPC, "ex1"))
    assert left["services"]["rpc"]["real_servers"] == {"ex2": {"port": 25, "weight": 1}}
    for service in (SMTP, RPC):
        with pytest.raises(MissingError):
            edit.without_member(TEXT, service, "ex9")


@pytest.mark.parametrize(
    "word", ["yes", "on", "null", "~", "1", "1e3", "0x10", "12:30", "2026-01-01", "a: b", "# x", ""]
)
def test_words_that_yaml_takes_for_something_else_stay_words(word: str) -> None:
    text = edit.with_value(TEXT, (*SMTP, "note"), {"word": word, "list": [word]})
    assert yaml.safe_load(text)["services"]["smtp"]["note"] == {"word": word, "list": [word]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_value_is_written_as_it_was_meant_or_refused(value: object) -> None:
    try:
        text = edit.with_value(TEXT, ("services", "new"), value)
    except EditError:
        return
    wanted = yaml.safe_load(TEXT)
    wanted["services"]["new"] = value
    assert yaml.safe_load(text) == wanted
    assert "# mail in" in text
    assert "# tail" in text


def test_no_value_becomes_structure() -> None:
    evil = "x\nservices: {}\n# "
    text = edit.with_value(TEXT, (*SMTP, "note"), evil)
    assert yaml.safe_load(text)["services"]["smtp"]["note"] == evil
    assert set(yaml.safe_load(text)["services"]) == {"smtp", "rpc"}


def test_what_cannot_be_changed_alone_is_refused() -> None:
    anchored = "base: &b {x: 1}\nservices:\n  a: {<<: *b, y: 2}\n"
    with pytest.raises(EditError):
        edit.without(anchored, ("services", "a", "x"))
    with pytest.raises(EditError, match="not a mapping"):
        edit.with_value("services: [a]\n", ("services", "a"), 1)
    with pytest.raises(EditError, match="no YAML"):
        edit.with_value("a: [", ("b",), 1)


def test_an_empty_file_takes_its_first_setting() -> None:
    assert yaml.safe_load(edit.with_value("", ("services", "a"), {"mode": "tcp"})) == {
        "services": {"a": {"mode": "tcp"}}
    }


def test_what_two_services_share_by_an_anchor_is_not_changed_for_both() -> None:
    anchored = "services:\n  a: &both {tls: {verify: full}}\n  b: *both\n"
    for change in (
        lambda: edit.with_value(anchored, ("services", "a", "tls", "verify"), "none"),
        lambda: edit.without(anchored, ("services", "b", "tls", "verify")),
    ):
        with pytest.raises(edit.EditError, match="anchors"):
            change()
