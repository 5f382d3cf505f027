"""Changes to the text of the configuration file, with everything else in it as it was: comments, order, quotes.

Decides: how a setting is put into a YAML text or taken out of it, and that the result, read again, differs in that
setting and in nothing else; a text for which that cannot be had is not changed.
Refuses to know: what settings mean (the result is validated like any file), files, and who asks. PURE.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.util import load_yaml_guess_indent

from mailbalancer.errors import MailbalancerError

Path = tuple[str, ...]
#: What JSON can say, and so what a client may send.
Value = Any


class EditError(MailbalancerError):
    """The text cannot be changed like that."""


class MissingError(EditError):
    """There is nothing at this place."""


def value_at(text: str, path: Path) -> Value:
    """What is written there, as plain data.

    Raises:
        MissingError: nothing is.
    """
    here: Any = _plain(text)
    for word in path:
        if not isinstance(here, dict) or word not in here:
            raise MissingError(f"the configuration file has no {'.'.join(path)}")
        here = here[word]
    return here


def has(text: str, path: Path) -> bool:
    """Whether something is written there."""
    try:
        value_at(text, path)
    except MissingError:
        return False
    return True


def with_value(text: str, path: Path, value: Value) -> str:
    """The text with `value` at `path`; what is missing on the way is made.

    A mapping that takes the place of a mapping changes only the keys that differ, so that comments between the others
    stay.

    Raises:
        EditError: the text is no mapping there, or cannot be changed without changing something else.
    """
    yaml_file, root = _open(text)
    here = _mapping(root, ())
    for depth, word in enumerate(path[:-1], 1):
        if here.get(word) is None:
            here[word] = CommentedMap()
        here = _mapping(here[word], path[:depth])
    _put(here, path[-1], value)
    wanted = _separate(text) or {}
    _put_plain(wanted, path, value)
    return _written(yaml_file, root, wanted, path)


def without(text: str, path: Path) -> str:
    """The text without what is at `path`.

    Raises:
        MissingError: nothing is there.
        EditError: it cannot be taken out without changing something else.
    """
    value_at(text, path)
    wanted = _separate(text)
    _remove_plain(wanted, path)
    cut = _cut(text, path)
    if _says(cut, wanted):  # lines were taken out, and no comment with them that is somebody else's
        return cut
    yaml_file, root = _open(text)
    here = root
    for depth, word in enumerate(path[:-1], 1):
        here = _mapping(here[word], path[:depth])
    del here[path[-1]]
    return _written(yaml_file, root, wanted, path)


# ---------------------------------------------------------------- real servers of a service: a list or a mapping


def members(written: Value) -> dict[str, Value]:
    """`real_servers` of a service as a mapping, however it is written."""
    if isinstance(written, str):
        return {written: None}
    if isinstance(written, list):
        return dict.fromkeys(map(str, written))
    return dict(written) if isinstance(written, dict) else {}


def with_member(text: str, service: Path, name: str, value: Value) -> str:
    """The text with a real server in a service; a list stays a list while nothing else is said about any of them.

    Raises:
        EditError: as `with_value`.
    """
    place = (*service, "real_servers")
    written = value_at(text, place) if has(text, place) else {}
    if isinstance(written, dict):
        return with_value(text, (*place, name), value)
    together = {**members(written), name: value or None}
    return with_value(text, place, list(together) if not any(together.values()) else together)


def without_member(text: str, service: Path, name: str) -> str:
    """The text without a real server in a service.

    Raises:
        MissingError: it is not in there.
        EditError: as `without`.
    """
    place = (*service, "real_servers")
    written = value_at(text, place)
    if isinstance(written, dict):
        return without(text, (*place, name))
    left = [other for other in members(written) if other != name]
    if len(left) == len(members(written)):
        raise MissingError(f"{'.'.join(service)} has no real server {name}")
    return with_value(text, place, left)


def difference(old: str, new: str, old_name: str = "before", new_name: str = "after") -> str:
    """A unified diff, as administrators read it."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), old_name, new_name, lineterm="", n=3)
    return "\n".join(lines)


# ---------------------------------------------------------------- inside


def _open(text: str) -> tuple[YAML, CommentedMap]:
    yaml_file = YAML(typ="rt")
    yaml_file.preserve_quotes = True
    yaml_file.width = 1_000_000  # nothing is folded
    try:
        _, indent, offset = load_yaml_guess_indent(text)
        if indent:
            yaml_file.indent(
                mapping=2 if offset is None else max(2, indent - (offset or 0)), sequence=indent, offset=offset or 0
            )
        root = yaml_file.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise EditError("the configuration file is no YAML that can be changed here", "change it by hand") from error
    return yaml_file, _mapping(CommentedMap() if root is None else root, ())


def _mapping(node: object, path: Path) -> CommentedMap:
    if not isinstance(node, CommentedMap):
        raise EditError(f"{'.'.join(path) or 'the configuration'} is not a mapping", "change it by hand")
    return node


def _put(here: CommentedMap, key: str, value: Value) -> None:
    there = here.get(key)
    if isinstance(there, CommentedMap) and isinstance(value, Mapping) and not there.merge:
        for gone in [word for word in there if str(word) not in value]:
            del there[gone]
        for word, wanted in value.items():
            if word not in there or _bare(there[word]) != wanted:
                _put(there, word, wanted)
    else:
        here[key] = _styled(value)


def _styled(value: Value) -> Any:
    """As ruamel writes it: short lists on one line, and words that older YAML takes for something else in quotes."""
    if isinstance(value, str):
        return value if _means_itself(value) else DoubleQuotedScalarString(value)
    if isinstance(value, Mapping):
        made = CommentedMap()
        for key, entry in value.items():
            made[_styled(str(key))] = _styled(entry)
        return made
    if isinstance(value, Sequence):
        listed = CommentedSeq([_styled(entry) for entry in value])
        if all(not isinstance(entry, Mapping | list) for entry in value):
            listed.fa.set_flow_style()
        return listed
    return value


def _means_itself(text: str) -> bool:
    """Whether the text, written without quotes, is read as this text (`yes`, `12:30`, `1e3` are not)."""
    try:
        return bool(yaml.safe_load(text) == text) and text.isprintable()
    except (yaml.YAMLError, ValueError):
        return False


def _bare(node: Any) -> Value:
    if isinstance(node, Mapping):
        return {str(key): _bare(entry) for key, entry in node.items()}
    return [_bare(entry) for entry in node] if isinstance(node, list) else node


def _plain(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise EditError("the configuration file is no YAML", "change it by hand") from error


def _separate(text: str) -> Any:
    try:
        return _unshared(_plain(text))
    except RecursionError as error:
        raise EditError("the configuration file contains itself", "change it by hand") from error


def _unshared(node: Value) -> Value:
    """A copy in which what YAML takes from one anchor is not one object: a change of one place is a change of one."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(entry) for entry in node] if isinstance(node, list) else node


def _put_plain(root: dict[str, Any], path: Path, value: Value) -> None:
    here = root
    for word in path[:-1]:
        if here.get(word) is None:
            here[word] = {}
        here = here[word]
    here[path[-1]] = value


def _remove_plain(root: dict[str, Any], path: Path) -> None:
    here = root
    for word in path[:-1]:
        here = here[word]
    del here[path[-1]]


def _cut(text: str, path: Path) -> str:
    """The text without the lines from the key at `path` to the last line of its value."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    first = last = 0
    for word in path:
        if not isinstance(node, yaml.MappingNode):
            return text
        pair = next(((key, value) for key, value in node.value if key.value == word), None)
        if pair is None:  # it comes out of an anchor
            return text
        first, last, node = pair[0].start_mark.line, _last_line(pair[1]), pair[1]
    lines = text.split("\n")
    return "\n".join(lines[:first] + lines[max(first, last) + 1 :])


def _last_line(node: yaml.Node) -> int:
    """Where the value ends; a block ends where its last entry does, not where the next one begins."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return max(_last_line(value) for pair in node.value for value in pair)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return max(map(_last_line, node.value))
    end = node.end_mark
    return int(end.line - 1 if end.column == 0 else end.line)


def _says(text: str, wanted: Any) -> bool:
    try:
        return bool(_plain(text) == wanted)
    except EditError:
        return False


def _written(yaml_file: YAML, root: CommentedMap, wanted: Any, path: Path) -> str:
    """The changed text, once it is certain that it says what it should."""
    stream = io.StringIO()
    try:
        yaml_file.dump(root, stream)
    except (YAMLError, TypeError, AttributeError, RecursionError):
        stream = io.StringIO("?")
    text = stream.getvalue()
    if not _says(text, wanted):
        raise EditError(
            f"{'.'.join(path)} cannot be changed here without changing other parts of the file",
            "change the file by hand and reload (anchors and merges of YAML may be in the way)",
        )
    return text
