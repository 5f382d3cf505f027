"""What has been changed on this machine, written down before it is done.

Decides: that a step is in the file before the machine has it, so that a program killed at any moment leaves a list of
everything there may be to undo; and that undoing goes backwards.
Refuses to know: what the steps are for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from mailbalancer.host.commands import Commands, HostError
from mailbalancer.host.steps import Step, as_facts, from_facts


class Ledger:
    """The steps in force, in the order in which they were taken."""

    def __init__(self, path: Path, commands: Commands) -> None:
        self._path = path
        self._commands = commands
        self._steps: list[Step] = _read(path)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(self._steps)

    def follow(self, wanted: Iterable[Step]) -> None:
        """Only these steps are in force from now on. What a step found before it is kept from the first time.

        Raises:
            HostError: a step failed; it and those before it are in force and in the file.
        """
        steps = list(dict.fromkeys(wanted))
        self.begin(steps)
        self.finish(steps)

    def begin(self, wanted: Iterable[Step]) -> None:
        """Do what is new. What is not wanted any more stays, unless something new takes its place.

        Raises:
            HostError: a step failed; it and those before it are in force and in the file.
        """
        steps = list(dict.fromkeys(wanted))
        for step in self._in_the_way(steps):
            self._undo(step)
        for step in [s for s in steps if s not in self._steps]:
            self._steps.append(step)
            self._write()
            step.do(self._commands)

    def finish(self, wanted: Iterable[Step]) -> None:
        """Undo what is not wanted any more, the last step first.

        Raises:
            HostError: something could not be undone; it is still in the file.
        """
        steps = set(wanted)
        for step in [s for s in reversed(self._steps) if s not in steps]:
            self._undo(step)

    def _in_the_way(self, wanted: list[Step]) -> list[Step]:
        """A device that is made anew must go first, and all that was done to it must be done again."""
        taken = {step.place for step in wanted if step not in self._steps}
        gone = {step.place for step in self._steps if step not in wanted and step.place in taken}
        return [step for step in reversed(self._steps) if step.place in gone or step.inside in gone]

    def undo_all(self) -> list[Step]:
        """Everything as it was, the last step first; returns what was undone."""
        undone = list(reversed(self._steps))
        for step in undone:
            self._undo(step)
        self._path.unlink(missing_ok=True)
        return undone

    def _undo(self, step: Step) -> None:
        step.undo(self._commands)
        self._steps.remove(step)
        self._write()

    def _write(self) -> None:
        """Whole, on the disk, before anything else happens."""
        text = json.dumps({"steps": [as_facts(step) for step in self._steps]}, indent=1) + "\n"
        fresh = self._path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise HostError(
                f"{self._path} cannot be written: {error.strerror}",
                "without it a crash could not be cleaned up after, so nothing was changed",
            ) from error


def _read(path: Path) -> list[Step]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return [from_facts(facts) for facts in json.loads(text)["steps"]]
    except (ValueError, TypeError, KeyError) as error:
        raise HostError(
            f"{path} is damaged: {error}", "compare the machine with `mailbalancer host plan`, then remove the file"
        ) from None
