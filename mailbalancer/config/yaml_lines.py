"""YAML text to plain data in which every value knows its line.

Decides: what is read at all. One document of UTF-8, at most 4 MiB, 40 levels deep and 200,000 values after its aliases
are followed; no tags; a key stands once in its mapping. Words stay words: only `true` and `false` are booleans here and
`010`, `1:25` and `1_000` are text, because YAML 1.1 reads them as 8, 85 and 1000 and nobody means that.
Refuses to know: which keys there should be.

The parser's events are put together here without recursion, so no nesting of brackets can exhaust a stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from mailbalancer.config.problems import Path, Place, Problem, quoted

MAX_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 40
MAX_VALUES = 200_000

Scalar = str | int | float | bool | None

# libyaml where PyYAML was built with it: thirty times faster, and the same events.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# also what YAML 1.1 takes for the end of a line and no editor does: U+0085, U+2028, U+2029
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\Z")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18}|[0-9]{1,18}(?:\.[0-9]{0,18})?[eE][-+]?[0-9]{1,3})\Z"
)
_WORDS: dict[str, Scalar] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
#: `*:25` and `[2001:db8::1]:25` mean something else to YAML unless they are quoted.
_UNQUOTED_ADDRESS = re.compile(r"(?:^|[\s,\[:-])(?:\*:[0-9]|\[[0-9A-Fa-f:.]*\]:[0-9])")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place: for a value in a mapping the line of its key, for one in a list its own line."""

    place: Place
    value: Scalar | list[Node] | dict[str, Node]

    def plain(self) -> Any:
        """The same data without places."""
        value = self.value
        if isinstance(value, dict):
            return {key: child.plain() for key, child in value.items()}
        if isinstance(value, list):
            return [child.plain() for child in value]
        return value

    def get(self, key: str) -> Node | None:
        """The value of a key; None when this is not a mapping or has no such key."""
        return self.value.get(key) if isinstance(self.value, dict) else None

    def items(self) -> dict[str, Node]:
        """The entries of a mapping; empty for everything else."""
        return self.value if isinstance(self.value, dict) else {}

    def step(self, step: str | int) -> Node | None:
        """One step down a path. A name in a list of names is found by itself, a number in a mapping by its order."""
        value = self.value
        if isinstance(value, dict):
            if isinstance(step, int):
                return list(value.values())[step] if step < len(value) else None
            return value.get(step)
        if isinstance(value, list):
            if isinstance(step, int):
                return value[step] if step < len(value) else None
            return next((child for child in value if child.value == step), None)
        return None

    def locate(self, path: Path) -> tuple[Place, Path]:
        """The place of a path, and the part of the path that is written in the file."""
        node, written = self, list[str | int]()
        for step in path:
            below = node.step(step)
            if below is None:
                break
            by_order = isinstance(node.value, dict) and isinstance(step, int)
            written.append(list(node.items())[int(step)] if by_order else step)
            node = below
        return node.place, tuple(written)


class _Refused(Exception):
    """Reading stops here."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    node: Node
    anchor: str | None
    size: int = 1
    key: str | None = None
    key_line: int = 0
    merged: list[Node] = field(default_factory=list)


def read_yaml(data: bytes, file: str, problems: list[Problem]) -> Node | None:
    """The document in `data`; problems are added to `problems`.

    Returns:
        The root, or None when nothing of the file can be used. Duplicate keys are reported and the first one is kept.
    """
    try:
        text = _decode(data)
        return _Composer(file, problems).compose(text)
    except _Refused as refused:
        problems.append(Problem(Place(file, refused.line), (), refused.text))
    return None


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _Refused(1, f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB, so it is not a configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Refused(line, f"byte {data[error.start]:#04x} is not UTF-8; save the file as UTF-8") from None
    found = _NOT_TEXT.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise _Refused(line, f"character U+{ord(found[0]):04X} is not allowed in YAML; remove it")
    return text


def _events(text: str) -> Iterator[Any]:
    """The parser's events; a syntax error becomes one sentence with a line."""
    try:
        yield from yaml.parse(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        last = max(len(text.splitlines()), 1)  # the parser may complain one line behind the end
        line = min(mark.line + 1, last) if mark else 1
        raise _Refused(line, _syntax_text(error, text, line)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise _Refused(1, f"this is not YAML: {error}") from None


def _syntax_text(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    lines = text.split("\n")
    nearby = lines[max(0, line - 2) : line]
    if any("\t" in written[: len(written) - len(written.lstrip(" \t"))] for written in nearby):
        return "a tab indents this line (or the one above); YAML wants spaces"
    if any(_UNQUOTED_ADDRESS.search(written) for written in nearby):
        return 'this is not YAML: put addresses that begin with * or [ in quotes: "*:25", "[2001:db8::1]:25"'
    context = f" ({error.context})" if error.context else ""
    return f"this is not YAML: {error.problem or 'it cannot be read'}{context}"


class _Composer:
    """Puts events together into nodes."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._root: Node | None = None
        self._documents = 0

    def compose(self, text: str) -> Node:
        for event in _events(text):
            self._take(event, event.start_mark.line + 1)
        if self._root is None:
            raise _Refused(1, "the file is empty; it needs at least one service")
        return self._root

    def _take(self, event: Any, line: int) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event, line)
            self._scalar(event, line)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_tag(event, line)
            self._begin(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end()
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Refused(line, "a second document begins here (---); one file is one document")

    def _refuse_tag(self, event: Any, line: int) -> None:
        if event.tag not in (None, "!"):
            raise _Refused(line, f"the tag {quoted(event.tag)} is not allowed; write the plain value")

    def _scalar(self, event: Any, line: int) -> None:
        plain = event.implicit[0]
        if self._wants_key():
            self._stack[-1].key, self._stack[-1].key_line = event.value, line
            return
        node = Node(Place(self._file, line), scalar(event.value) if plain else event.value)
        if event.anchor:
            self._anchors[event.anchor] = (node, 1)
        self._put(node, 1, line)

    def _wants_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].node.value, dict) and self._stack[-1].key is None

    def _alias(self, event: Any, line: int) -> None:
        known = self._anchors.get(event.anchor)
        if known is None:
            if any(opened.anchor == event.anchor for opened in self._stack):
                raise _Refused(line, f"the alias *{event.anchor} contains itself")
            raise _Refused(
                line, f"*{event.anchor} stands for nothing written above; text that begins with * needs quotes"
            )
        if self._wants_key():
            raise _Refused(line, "an alias cannot be a key")
        self._put(known[0], known[1], line)

    def _begin(self, event: Any, line: int) -> None:
        if self._wants_key():
            raise _Refused(line, "a key must be a word, not a list or a mapping")
        if len(self._stack) >= MAX_DEPTH:
            raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels")
        empty: list[Node] | dict[str, Node] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._stack.append(_Open(Node(Place(self._file, line), empty), event.anchor))

    def _end(self) -> None:
        done = self._stack.pop()
        value = done.node.value
        if isinstance(value, dict):
            for source in done.merged:
                for key, child in source.items().items():
                    value.setdefault(key, child)
        if done.anchor:
            self._anchors[done.anchor] = (done.node, done.size)
        self._put(done.node, done.size, done.node.place.line)

    def _put(self, node: Node, size: int, line: int) -> None:
        if not self._stack:
            self._root = node
            return
        into = self._stack[-1]
        into.size += size
        if into.size > MAX_VALUES:
            raise _Refused(line, f"more than {MAX_VALUES} values once its aliases are followed")
        if isinstance(into.node.value, list):
            into.node.value.append(Node(Place(self._file, line), node.value))
        else:
            self._put_entry(into, node, line)

    def _put_entry(self, into: _Open, node: Node, line: int) -> None:
        key, into.key = into.key or "", None
        entries = into.node.items()
        if key == "<<":
            self._merge(into, node, line)
        elif key in entries:
            first = entries[key].place.line
            text = f"{quoted(key)} is written twice, here and in line {first}; keep one"
            self._problems.append(Problem(Place(self._file, into.key_line), self._path(), text))
        else:
            entries[key] = Node(Place(self._file, into.key_line), node.value)

    def _merge(self, into: _Open, node: Node, line: int) -> None:
        """`<<: *base`: the base's entries where this mapping has none of its own."""
        bases = node.value if isinstance(node.value, list) else [node]
        if not all(isinstance(base.value, dict) for base in bases):
            raise _Refused(line, "<< takes a mapping, or a list of mappings")
        into.merged.extend(bases)

    def _path(self) -> Path:
        steps: list[str | int] = []
        for opened in self._stack[:-1]:
            value = opened.node.value
            steps.append(len(value) if isinstance(value, list) else (opened.key or ""))
        return tuple(steps)


def scalar(text: str) -> Scalar:
    """What a plain (unquoted) word means."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    return text
