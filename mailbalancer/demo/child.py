"""A process the demo starts: it ends when the demo ends, however that ends.

Decides: how a child is started (own session, so that Ctrl-C in the terminal reaches only the demo; the kernel ends it
when the demo dies), how it says that it is ready, and how it is ended.
Refuses to know: what it runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mailbalancer.errors import MailbalancerError
from mailbalancer.log import one_line

_PR_SET_PDEATHSIG = 1  # prctl(2)
_PRCTL = ctypes.CDLL(None).prctl  # looked up now: between fork and exec nothing may be loaded
READY_S = 15.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to start: `name` for people, `module` and `arguments` for Python, `log` takes what it writes to stderr."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path

    async def start(self) -> Child:
        """Start a process; it runs after this, ready or not."""
        parent = os.getpid()

        def end_with_parent() -> None:
            _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self.module, *self.arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        return Child(self, process)

    def last_words(self) -> str:
        """The last line in the log."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return one_line(next((line for line in reversed(lines) if line.strip()), "it logged nothing"))


class Child:
    """One process that runs a program."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self.program = program
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Wait for the line with which the program says that it listens.

        Raises:
            MailbalancerError: it ended instead, or said nothing for `READY_S`; with the last line it logged.
        """
        stdout = self._process.stdout
        line = b""
        with suppress(TimeoutError):
            line = await asyncio.wait_for(stdout.readline(), READY_S) if stdout else b""
        if not line:
            raise MailbalancerError(f"{self.program.name} did not start: {self.program.last_words()}")

    async def ended(self) -> int:
        """Wait for the end of the process; its exit code, or minus the signal."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the process and whatever it started; returns when it is gone."""
        if self._process.returncode is not None:
            return
        self._process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), STOP_S)
        with suppress(ProcessLookupError):  # nobody of its session is left: as it should be
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
