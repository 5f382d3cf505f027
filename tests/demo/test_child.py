"""A child says when it is ready, why it is not, and never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mailbalancer.demo.child import Program
from mailbalancer.errors import MailbalancerError
from tests.support.ports import free_port


def mail_server(log: Path, port: int) -> Program:
    return Program("ex1's mail server", "mailbalancer.demo.mail_server", ("ex1", str(port)), log)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_start_ready_stop(tmp_path: Path) -> None:
    async def scene() -> tuple[int, int]:
        child = await mail_server(tmp_path / "log", free_port()).start()
        await child.ready()
        await child.stop()
        await child.stop()  # a second time is no error
        return child.pid, await child.ended()

    pid, code = asyncio.run(scene())
    assert code == -signal.SIGTERM
    assert not is_running(pid)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def scene() -> None:
        port = free_port()
        taken = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", port)
        child = await mail_server(tmp_path / "log", port).start()
        try:
            await child.ready()
        finally:
            await child.stop()
            taken.close()

    with pytest.raises(MailbalancerError, match=r"ex1's mail server did not start: .*address already in use"):
        asyncio.run(scene())


PARENT = """
import asyncio, sys
from pathlib import Path
from mailbalancer.demo.child import Program

async def scene():
    child = await Program("x", "mailbalancer.demo.mail_server", ("ex1", sys.argv[1]), Path(sys.argv[2])).start()
    await child.ready()
    print(child.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(scene())
"""


def test_the_kernel_ends_a_child_whose_parent_was_killed(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, str(free_port()), str(tmp_path / "log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        handle = os.pidfd_open(pid)
        parent.kill()
        asyncio.run(_end_of(handle))
    assert not is_running(pid)


async def _end_of(handle: int) -> None:
    """Wait until the process behind a pidfd has ended."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(handle, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    os.close(handle)
