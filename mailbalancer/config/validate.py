"""Runs the schema over a tree and says in our words what it found.

Decides: the sentence for each kind of schema error, where in the file it belongs, and what is still usable beside it,
so that the rest of the file can be examined in the same run.
Refuses to know: what settings mean to each other.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Tag, ValidationError

from mailbalancer.config.problems import Path, Problem, hint, quoted
from mailbalancer.config.schema import CHECK_MODELS, SERVICE_MODELS, Document
from mailbalancer.config.yaml_lines import Node

Model = TypeVar("Model", bound=BaseModel)
Step = str | int

#: What a value under this key is called in "'x' is not …".
_NOUNS = {
    "schedule": "a schedule",
    "mode": "a mode",
    "by": "a kind of persistence",
    "type": "a check type",
    "state": "a state",
    "level": "a log level",
    "send": "a PROXY protocol version",
    "proxy_header": "a PROXY protocol version",
    "forward": "a way to forward",
    "version": "a version of this file format",
    "platform": "a platform",
}
_MODES_IN_WORDS = "tcp (bytes pass unchanged), tls (passed through by name), http, smtp, imap, pop3 or l4"


@dataclass(slots=True)
class Checked:
    """A document made of everything that is right by itself."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    #: What was left out because it is wrong: ("real_servers", "ex1"), ("services", "smtp", "check") or ("services",).
    dropped: set[Path] = field(default_factory=set)


def validate_document(root: Node) -> Checked:
    """Validate a whole file. Wrong settings are reported and left out."""
    data = root.plain()
    if not isinstance(data, dict):
        text = "this is not a configuration: it must be a mapping with version, real_servers and services"
        return Checked(Document(), [Problem(root.place, (), text)], {("services",), ("real_servers",)})
    problems: list[Problem] = []
    dropped: set[Path] = set()
    # What is right beside a wrong setting shows only after that setting has gone; each round drops at least one.
    while True:
        try:
            return Checked(Document.model_validate(data), problems, dropped)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path, _ = _without_tags(Document, detail["loc"])
                if path not in dropped:  # a required setting is missed because it was wrong, which is told already
                    problems.append(_problem(root, Document, detail))
                if not any(path[:length] in dropped for length in range(1, len(path))):
                    dropped.add(_drop(data, path))


def _drop(data: dict[str, Any], path: Path) -> Path:
    """Take out the smallest part that can be missed: a setting of a service, an entry, or a whole top-level key."""
    top, name = path[0], path[1] if len(path) > 1 else None
    entries = data.get(str(top))
    if top not in ("services", "real_servers", "certificates") or name is None or not isinstance(entries, dict):
        data.pop(str(top), None)
        return path[:1]
    service = entries.get(str(name))
    if top == "services" and isinstance(service, dict) and len(path) > 2 and path[2] in service:
        del service[str(path[2])]
        return path[:3]
    entries.pop(str(name), None)
    return path[:2]


def validate_as(model: type[Model], root: Node, problems: list[Problem]) -> Model | None:
    """Validate a tree as `model`; None, with its problems added, when it is not one."""
    try:
        return model.model_validate(root.plain())
    except ValidationError as error:
        problems.extend(_problem(root, model, detail) for detail in error.errors(include_url=False))
    return None


def _problem(root: Node, model: type[BaseModel], detail: Any) -> Problem:
    path, owner = _without_tags(model, detail["loc"])
    kind = detail["type"]
    if kind == "missing" and path:
        place, written = root.locate(path[:-1])
        return Problem(place, written, _missing(str(path[-1]), root.locate(path[:-1])[1]))
    if kind == "union_tag_not_found":
        place, written = root.locate(path)
        return Problem(place, written, _missing("mode", written))
    if kind == "union_tag_invalid":
        path = (*path, "mode" if path[0] == "services" and len(path) == 2 else "type")
    place, written = root.locate(path)
    return Problem(place, written, _sentence(detail, path, owner, _service_mode(root, path)))


def _missing(key: str, path: Path) -> str:
    if key == "mode":
        return f"'mode' is missing; write {_MODES_IN_WORDS}, or a profile"
    if key == "listen":
        return "'listen' is missing; write an address and port such as 10.0.1.100:25"
    return f"'{key}' is missing"


def _service_mode(root: Node, path: Path) -> str:
    """The mode of the service that a path lies in."""
    if len(path) < 2 or path[0] != "services":
        return ""
    node = root.step("services")
    service = node.step(path[1]) if node else None
    mode = service.get("mode") if service else None
    return mode.value if mode and isinstance(mode.value, str) else ""


# sentences


def _sentence(detail: Any, path: Path, owner: type[BaseModel] | None, mode: str) -> str:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    key = next((step for step in reversed(path) if isinstance(step, str)), "")
    if kind == "extra_forbidden":
        return _unknown_key(key, path, owner, mode)
    if kind in ("literal_error", "union_tag_invalid"):
        noun = "a type" if key == "type" and "parameters" in path else _NOUNS.get(key, f"a value of {key}")
        return _unknown_word(context.get("tag", value), context, key, mode, noun)
    if kind == "value_error":
        return str(context["error"])
    if key == "weight" and kind == "greater_than":
        return f"{value} is not a weight (more than 0); to give it no new sessions write state: draining"
    if value is None:
        return "is empty; write a value or remove the line"
    return _wrong_type(kind, value, key) or _out_of_bounds(kind, value, context) or str(detail["msg"])


def _unknown_key(key: str, path: Path, owner: type[BaseModel] | None, mode: str) -> str:
    if len(path) == 3 and path[0] == "services":
        others = [name for name, model in SERVICE_MODELS.items() if key in model.model_fields]
        if others:
            return f"'{key}' belongs to mode {_either(others)}, not to {mode}; remove it or change the mode"
    if len(path) >= 2 and path[-2] == "check":
        types = [name for name, model in CHECK_MODELS.items() if key in model.model_fields]
        if types:
            return f"'{key}' belongs to a check of type {_either(types)}; write that type or remove it"
    known = [name for name in owner.model_fields if name != "profile"] if owner else []
    return f"unknown key {quoted(key)}{hint(key, known)}"


def _either(words: list[str]) -> str:
    return " or ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _unknown_word(value: Any, context: Any, key: str, mode: str, noun: str) -> str:
    known = [word for word in _words(context.get("expected") or context["expected_tags"]) if word != "profile"]
    elsewhere = _persistence_elsewhere(value) if key == "by" else ""
    if elsewhere:
        return f"{quoted(value)} is a persistence of mode {elsewhere}; a {mode} service has {' and '.join(known)}"
    if value is None:
        return f"is empty; write one of: {', '.join(known)}"
    if isinstance(value, dict | list):
        return f"must be one of: {', '.join(known)}"
    return f"{quoted(value)} is not {noun}{hint(str(value), known)}"


def _words(expected: str) -> list[str]:
    """The words in pydantic's enumeration `'a', 'b' or 'c'`."""
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]


def _persistence_elsewhere(value: Any) -> str:
    for mode in ("tls", "http"):
        persist = SERVICE_MODELS[mode].model_fields["persist"].annotation
        if value in typing.get_args(_model_in(persist).model_fields["by"].annotation):
            return mode
    return ""


def _wrong_type(kind: str, value: Any, key: str) -> str:
    if kind in ("int_type", "int_parsing", "int_from_float"):
        return f"{_shown(value)} is not a whole number"
    if kind in ("float_type", "float_parsing", "finite_number"):
        unit = " of seconds, written without a unit" if key.endswith("_s") else ""
        return f"{_shown(value)} is not a number{unit}"
    if kind in ("bool_type", "bool_parsing"):
        return f"{_shown(value)} is neither true nor false"
    if kind == "string_type":
        return f"{_shown(value)} is not text; put it in quotes if it is meant to be"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"{_shown(value)} is not a mapping (lines of 'key: value')"
    if kind == "list_type":
        return f"{_shown(value)} is not a list"
    return ""


def _out_of_bounds(kind: str, value: Any, context: Any) -> str:
    if kind == "greater_than_equal":
        return f"{value} is too small (at least {_number(context['ge'])})"
    if kind == "greater_than":
        return f"{value} is too small (more than {_number(context['gt'])})"
    if kind == "less_than_equal":
        return f"{value} is too large (at most {_number(context['le'])})"
    if kind == "too_short":
        return "is empty; name at least one"
    if kind == "string_too_long":
        return f"is longer than {context['max_length']} characters"
    if kind == "string_too_short":
        return "is empty; write a value"
    if kind == "string_pattern_mismatch":
        return f"{quoted(value)} is not allowed here"
    return ""


def _number(value: float) -> str:
    return f"{value:.12g}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else quoted(value)


# where in the schema


def _without_tags(model: type[BaseModel], loc: tuple[Step, ...]) -> tuple[Path, type[BaseModel] | None]:
    """The path of a schema error without the names of union branches, and the model that owns its last key."""
    path: list[Step] = []
    current: Any = model
    owner: type[BaseModel] | None = None
    in_mapping = False
    for step in loc:
        current = _bare(current)
        branch = _tagged(current, step)
        if branch is not None:
            current = branch
            continue
        if step == "[key]" and in_mapping:
            continue  # pydantic's mark for an error in the key that stands before it
        in_mapping = typing.get_origin(current) is dict
        path.append(step)
        owner = _model_in(current)
        current = _below(current, step)
    return tuple(path), owner


def _bare(kind: Any) -> Any:
    """Without Annotated, and without `| None` when that leaves one alternative."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    arguments = typing.get_args(kind)
    others = [argument for argument in arguments if argument is not type(None)]
    return _bare(others[0]) if len(others) == 1 and len(arguments) == 2 else kind


def _tagged(kind: Any, step: Step) -> Any:
    """The branch of a tagged union that `step` names; None when this is no such union."""
    for branch in typing.get_args(kind):
        if typing.get_origin(branch) is Annotated:
            for extra in typing.get_args(branch)[1:]:
                if isinstance(extra, Tag) and extra.tag == step:
                    return branch
    return None


def _below(kind: Any, step: Step) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found = kind.model_fields.get(str(step))
        return found.annotation if found else None
    arguments = typing.get_args(kind)
    return arguments[-1] if arguments else None


def _model_in(kind: Any) -> Any:
    """The model that a kind of value is; None for everything else."""
    kind = _bare(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind
    return None
