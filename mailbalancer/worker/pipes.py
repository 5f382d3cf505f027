"""Pipes for splice(2): two descriptors and some kernel memory each, so there are few and they are used again.

Decides: how many there are and how large.
Refuses to know: what flows through them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

PIPE_BYTES = 512 * 1024
#: Over all workers; half the kernel's default of 16,384 pages (64 MiB) of pipe buffers per user (pipe(7)), after which
#: new pipes shrink to a page or two. The other half is for the pipes of ordinary size.
PIPES_LARGE = 64
PIPES_KEPT = 16


class PipePool:
    """Pipes for bulk flows: few, reused, given back when a flow falls idle. A dirty pipe is closed, never reused."""

    def __init__(self, limit: int, workers: int = 1) -> None:
        self.limit = limit
        self._large = max(1, PIPES_LARGE // workers)
        self.open = 0
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int] | None:
        """Read and write end, or None when there are enough of them or descriptors are short."""
        if self._free:
            return self._free.pop()
        if self.open >= self.limit:
            return None
        try:
            pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        if self.open < self._large:
            with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: a small pipe works too
                fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.open += 1
        return pipe

    def give_back(self, pipe: tuple[int, int], *, empty: bool) -> None:
        if empty and len(self._free) < PIPES_KEPT:
            self._free.append(pipe)
            return
        os.close(pipe[0])
        os.close(pipe[1])
        self.open -= 1
