"""What holds for every test: the markers, and that a test run leaves no process behind.

Decides: how a leaked process is found (a direct child, or whoever carries this run's mark in its environment, also
after its parent died). Refuses to know: what the tests start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually

MARK = "MAILBALANCER_TEST_RUN"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "live: starts the program and drives it with real clients and servers")
    config.addinivalue_line("markers", "net: builds network namespaces; needs root")


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails the run when a process that a test started is still alive at the end, and ends that process."""
    mark = f"{MARK}={uuid.uuid4().hex}"
    os.environ[MARK] = mark.partition("=")[2]
    yield
    try:
        eventually(lambda: not leftovers(mark), timeout_s=5, what="no process of this test run is left")
    except AssertionError:
        left = leftovers(mark)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pytest.fail(f"tests left {len(left)} processes behind: {left}", pytrace=False)


def leftovers(mark: str) -> dict[int, str]:
    """Living processes that this one started, directly or not: process id and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        if pid != os.getpid() and _alive(folder) and (_parent(folder) == os.getpid() or _marked(folder, mark)):
            found[pid] = _read(folder / "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def _read(path: Path) -> bytes:
    """A file under /proc; empty when the process went away or belongs to somebody else."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _stat_fields(folder: Path) -> list[bytes]:
    """State, parent, … of proc(5) `stat`; the name before them may contain spaces and brackets."""
    return _read(folder / "stat").rpartition(b") ")[2].split()


def _alive(folder: Path) -> bool:
    return _stat_fields(folder)[:1] not in ([], [b"Z"], [b"X"])


def _parent(folder: Path) -> int:
    fields = _stat_fields(folder)
    return int(fields[1]) if len(fields) > 1 else 0


def _marked(folder: Path, mark: str) -> bool:
    return mark.encode() in _read(folder / "environ").split(b"\0")
