"""Reading YAML: lines, words that stay words, and everything that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.config.problems import Problem
from mailbalancer.config.yaml_lines import MAX_BYTES, Node, read_yaml, scalar


def read(text: str | bytes) -> tuple[Node | None, list[str]]:
    problems: list[Problem] = []
    root = read_yaml(text if isinstance(text, bytes) else text.encode(), "x.yaml", problems)
    return root, [str(problem) for problem in problems]


def refusal(text: str | bytes) -> str:
    root, problems = read(text)
    assert root is None
    assert len(problems) == 1
    return problems[0]


def test_every_value_knows_the_line_of_its_key_or_entry() -> None:
    root, problems = read("a:\n  b: 1\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n")
    assert problems == []
    assert root is not None
    assert root.plain() == {"a": {"b": 1, "c": ["x", {"d": 2, "e": 3}]}}
    lines = {
        path: root.locate(path)[0].line
        for path in [("a",), ("a", "b"), ("a", "c"), ("a", "c", 0), ("a", "c", 1, "d"), ("a", "c", 1, "e")]
    }
    assert list(lines.values()) == [1, 2, 3, 4, 5, 6]


def test_a_path_that_is_not_written_is_located_at_what_is() -> None:
    root, _ = read("a:\n  names: [x, y]\n")
    assert root is not None
    assert root.locate(("a", "missing", "deeper"))[1] == ("a",)
    assert root.locate(("a", "names", "y"))[1] == ("a", "names", "y")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25", 25),
        ("-3", -3),
        ("0", 0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:25", "1:25"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("１２", "１２"),
        ("10.0.0.1", "10.0.0.1"),
        (".inf", ".inf"),
        (".nan", ".nan"),
    ],
)
def test_words_stay_words(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_numbers_are_text() -> None:
    root, _ = read("a: \"25\"\nb: '25'\nc: 25\n")
    assert root is not None
    assert root.plain() == {"a": "25", "b": "25", "c": 25}


def test_a_duplicate_key_is_told_with_both_lines_and_the_first_is_kept() -> None:
    root, problems = read("services:\n  s:\n    mode: tcp\n    x: 1\n    mode: tls\n")
    assert problems == ["x.yaml:5: services.s: 'mode' is written twice, here and in line 3; keep one"]
    assert root is not None
    assert root.plain()["services"]["s"]["mode"] == "tcp"


def test_a_duplicate_inside_a_list_names_its_entry() -> None:
    _, problems = read("a:\n  - {b: 1}\n  - {c: 1, c: 2}\n")
    assert problems == ["x.yaml:3: a[1]: 'c' is written twice, here and in line 3; keep one"]


def test_aliases_and_merge_keys() -> None:
    root, problems = read("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nsame: *b\n")
    assert problems == []
    assert root is not None
    assert root.plain()["use"] == {"y": 3, "x": 1}
    assert root.plain()["same"] == {"x": 1, "y": 2}
    assert root.locate(("same",))[0].line == 5


def test_an_alias_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "values once its aliases are followed" in refusal("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"a: 1\nb: \xff\n", "x.yaml:2: byte 0xff is not UTF-8"),
        (b"a: 1\nb: \x07\n", "x.yaml:2: character U+0007 is not allowed in YAML"),
        ("a: 1\u2028b: 2\n", "x.yaml:1: character U+2028 is not allowed in YAML"),
        ("a:\n\tb: 1\n", "x.yaml:2: a tab indents this line"),
        ("a: 1\nlisten: *:25\n", "x.yaml:2: this is not YAML: put addresses that begin with * or [ in quotes"),
        ("a: 1\nlisten: [2001:db8::1]:25\n", "x.yaml:2: this is not YAML: put addresses that begin with * or [ in"),
        ("a: [1, 2\nb: 3\n", "x.yaml:"),
        ("a: *nobody\n", "x.yaml:1: *nobody stands for nothing written above"),
        ("a: &x [*x]\n", "x.yaml:1: the alias *x contains itself"),
        ("a: !!python/object:os.system x\n", "x.yaml:1: the tag 'tag:yaml.org,2002:python/object:os.system' is not"),
        ("a: !thing {b: 1}\n", "x.yaml:1: the tag '!thing' is not allowed"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: a second document begins here"),
        ("? [a, b]\n: 1\n", "x.yaml:1: a key must be a word"),
        ("a: {<<: 3}\n", "x.yaml:1: << takes a mapping"),
        ("", "x.yaml:1: the file is empty"),
        ("# nothing\n", "x.yaml:1: the file is empty"),
        ("[" * 41, "x.yaml:1: nested deeper than 40 levels"),
        ("[" * 100_000, "x.yaml:1: nested deeper than 40 levels"),
        ("{a: " * 100_000, "x.yaml:1: nested deeper than 40 levels"),
        (b"#" * (MAX_BYTES + 1), "x.yaml:1: the file is larger than 4 MiB"),
    ],
)
def test_refused(text: str | bytes, said: str) -> None:
    assert refusal(text).startswith(said)


def test_a_byte_order_mark_is_not_content() -> None:
    root, problems = read(b"\xef\xbb\xbfa: 1\n")
    assert problems == []
    assert root is not None
    assert root.plain() == {"a": 1}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes) -> None:
    root, problems = read(data)
    assert root is not None or problems
    assert all(problem.startswith("x.yaml:") and problem.isprintable() for problem in problems)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`\n ,?<1.", max_size=120))
def test_any_yaml_like_text_is_read_or_refused_in_one_line(text: str) -> None:
    root, problems = read(text)
    assert root is not None or problems
    assert all(problem.startswith("x.yaml:") and problem.isprintable() for problem in problems)
