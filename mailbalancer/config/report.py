"""Collects what `build` finds wrong, at the places where it stands in the file.

Decides: nothing; turns paths of settings into places.
Refuses to know: what the settings mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath

from mailbalancer.config.problems import Path, Problem
from mailbalancer.config.yaml_lines import Node


@dataclass(slots=True)
class Report:
    """Problems and warnings of one file. `folder` is what relative paths in the file are relative to."""

    root: Node
    folder: FilePath
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, path: Path, text: str) -> None:
        """This setting cannot be used."""
        place, written = self.root.locate(path)
        self.problems.append(Problem(place, written, text))

    def warning(self, path: Path, text: str) -> None:
        """This setting can be used, and is probably not what is wanted."""
        place, written = self.root.locate(path)
        self.warnings.append(Problem(place, written, text))

    def has_problem(self, path: Path) -> bool:
        """Whether something at or below this path is wrong."""
        return any(problem.path[: len(path)] == path for problem in self.problems)

    def line(self, path: Path) -> int:
        """The line of a setting."""
        return self.root.locate(path)[0].line

    def spot(self, path: Path) -> str:
        """`line 12`, or `FILE:12` when that is another file: how a sentence points at another setting."""
        place = self.root.locate(path)[0]
        return f"line {place.line}" if place.file == self.root.place.file else f"{place.file}:{place.line}"

    def file(self, written: str) -> str:
        """The absolute path of a file that is named in the configuration."""
        return str((self.folder / written).absolute())
