"""The only place where a program is started to change or read the machine: `nft`, `ip`.

Decides: that a program gets no shell, a deadline, and its words in English; and what its failure is called.
Refuses to know: what is asked of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mailbalancer.errors import MailbalancerError

TIMEOUT_S = 15.0
_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PACKAGES = {"nft": "nftables", "ip": "iproute2", "bridge": "iproute2", "tcpdump": "tcpdump"}


class HostError(MailbalancerError):
    """The machine could not be changed or asked."""


class Commands(Protocol):
    """Starts a program and returns what it printed.

    Raises:
        HostError: it is not there, took too long, or said no; the message is its own first line.
    """

    def run(self, arguments: Sequence[str], text: str = "") -> str: ...


class RealCommands:
    """On this machine."""

    def run(self, arguments: Sequence[str], text: str = "") -> str:
        name = arguments[0]
        path = shutil.which(name, path=_FOLDERS)
        if path is None:
            raise HostError(f"{name} is not installed", f"apt-get install {_PACKAGES.get(name, name)}")
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and a program of a fixed folder
                [path, *arguments[1:]],
                input=text,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
                env={"PATH": _FOLDERS, "LC_ALL": "C", **_kept()},
            )
        except subprocess.TimeoutExpired:
            raise HostError(f"{name} did not end within {TIMEOUT_S:.0f} s") from None
        except OSError as error:
            raise HostError(f"{name} cannot be started: {error.strerror}") from error
        if done.returncode != 0:
            raise HostError(f"{' '.join(arguments)}: {_first_line(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout


class RecordedCommands:
    """Keeps what was asked and changes nothing.

    Args:
        answers: what a program prints, by its whole command line; a callable is asked with the text it was given.
    """

    def __init__(self, answers: Mapping[str, str | Callable[[str], str]] | None = None) -> None:
        self.asked: list[tuple[str, str]] = []
        self._answers = dict(answers or {})

    def run(self, arguments: Sequence[str], text: str = "") -> str:
        line = " ".join(arguments)
        self.asked.append((line, text))
        answer = self._answers.get(line, "")
        return answer(text) if callable(answer) else answer


def _kept() -> dict[str, str]:
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""
