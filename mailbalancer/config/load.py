"""The door to the configuration room: a file or text in, `model.Config` out, or every problem at once.

Decides: the order of the steps: read, expand profiles, validate each part, compare the parts with each other.
Refuses to know: who asked. Nothing of a wrong file is ever handed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mailbalancer import model
from mailbalancer.config.build import build
from mailbalancer.config.diff import diff
from mailbalancer.config.expand import Expanded, expand
from mailbalancer.config.problems import Place, Problem, formatted, why_unread
from mailbalancer.config.profiles import search_dirs
from mailbalancer.config.report import Report
from mailbalancer.config.schema import json_schema
from mailbalancer.config.validate import validate_document
from mailbalancer.config.yaml_lines import MAX_BYTES, Node, read_yaml
from mailbalancer.errors import ConfigError

__all__ = ["diff", "json_schema", "load", "load_text", "search_dirs", "tree"]


def load(path: Path | str, *, profile_dirs: Sequence[Path] | None = None) -> model.Config:
    """Read a configuration file.

    Args:
        profile_dirs: where profiles are looked for after the file's own `profiles_dir`; by default `search_dirs()`.

    Raises:
        ConfigError: every problem, each as `FILE:LINE: services.smtp.schedule: …`.
    """
    return _load(_read(Path(path)), str(path), Path(path).absolute().parent, profile_dirs)


def load_text(
    text: str,
    name: str = "mailbalancer.yaml",
    *,
    folder: Path | None = None,
    profile_dirs: Sequence[Path] | None = None,
) -> model.Config:
    """The same for text. `name` stands in problems; relative paths are relative to `folder`, or the working folder."""
    data = text.encode("utf-8", "surrogatepass")
    return _load(data, name, folder or Path.cwd(), profile_dirs)


def tree(path: Path | str, *, profile_dirs: Sequence[Path] | None = None) -> Node:
    """A file's data with its profiles expanded and nothing validated, for `profiles.export`.

    Raises:
        ConfigError: it cannot be read, or a profile cannot be expanded.
    """
    expanded = _expanded(_read(Path(path)), str(path), Path(path).absolute().parent, profile_dirs)
    if expanded.problems:
        raise ConfigError(formatted(expanded.problems))
    return expanded.root


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        problem = Problem(Place(str(path), 1), (), f"the file cannot be read: {why_unread(error)}")
        raise ConfigError(formatted([problem])) from None


def _expanded(data: bytes, name: str, folder: Path, profile_dirs: Sequence[Path] | None) -> Expanded:
    problems: list[Problem] = []
    root = read_yaml(data, name, problems)
    if root is None:
        raise ConfigError(formatted(problems))
    dirs = [folder / own for own in _own_dirs(root)]
    expanded = expand(root, [*dirs, *(profile_dirs if profile_dirs is not None else search_dirs())])
    expanded.problems[:0] = problems
    return expanded


def _own_dirs(root: Node) -> list[str]:
    named = root.get("profiles_dir")
    entries = named.value if named and isinstance(named.value, list) else [named]
    return [entry.value for entry in entries if entry and isinstance(entry.value, str) and "\0" not in entry.value]


def _load(data: bytes, name: str, folder: Path, profile_dirs: Sequence[Path] | None) -> model.Config:
    expanded = _expanded(data, name, folder, profile_dirs)
    checked = validate_document(expanded.root)
    checked.dropped |= expanded.dropped
    report = Report(expanded.root, folder, [*expanded.problems, *checked.problems])
    config = build(report, checked, expanded.profiles)
    if report.problems:
        raise ConfigError(formatted(report.problems))
    return config
