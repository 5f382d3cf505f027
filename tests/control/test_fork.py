"""What a worker inherits: looked at from inside a real child."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control.fork import fork_worker
from mailbalancer.ipc.channel import Channel
from mailbalancer.log import Log


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log._close()


def seen_by_child(log: Log, look: Callable[[Channel], Any], from_loop: bool = False) -> Any:
    """What `look` returns in a forked worker, by way of its channel."""
    ours, theirs = Channel.pair()
    ours.sock.setblocking(True)

    def run() -> int:
        theirs.sock.setblocking(True)
        theirs.sock.sendall(json.dumps(look(theirs)).encode() + b"\n")
        return 0

    async def fork() -> int:
        return fork_worker("worker 0", theirs, log, run)

    pid = asyncio.run(fork()) if from_loop else fork_worker("worker 0", theirs, log, run)
    theirs.close()
    with ours.sock.makefile("rb") as answers:
        line = answers.readline()
    ours.close()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(line)


def open_files(_: Channel) -> dict[str, str]:
    return {fd.name: os.readlink(fd) for fd in Path("/proc/self/fd").iterdir() if fd.exists()}


def test_only_channel_stderr_and_log_stay_open(log: Log) -> None:
    with socket.create_server(("127.0.0.1", 0)), open(os.devnull) as _:
        left = seen_by_child(log, lambda channel: [open_files(channel), channel.fileno(), log.descriptors()])
    files, channel, of_log = left
    expected = {0, 1, 2, channel, *of_log}
    assert set(map(int, files)) == expected
    assert files["0"] == files["1"] == os.devnull


def test_signals_are_the_supervisors(log: Log) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        seen = seen_by_child(
            log,
            lambda _: [
                [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)],
                signal.set_wakeup_fd(-1),
            ],
            from_loop=True,
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    ignored, default = int(signal.SIG_IGN), int(signal.SIG_DFL)
    assert seen == [[ignored, ignored, ignored, default], -1]


def test_a_worker_may_run_a_loop_of_its_own(log: Log) -> None:
    async def nothing() -> str:
        await asyncio.sleep(0)
        return "ran"

    assert seen_by_child(log, lambda _: asyncio.run(nothing()), from_loop=True) == "ran"


def test_the_parent_collects_garbage_again_afterwards(log: Log) -> None:
    frozen = seen_by_child(log, lambda _: gc.get_freeze_count())
    assert frozen > 1000
    assert gc.get_freeze_count() == 0


def test_a_failing_worker_says_why_and_what_the_parent_has_to_say_is_not_said_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    log._waiting.append(b"from the parent\n")
    log._waiting_bytes = 16
    ours, theirs = Channel.pair()

    def fail() -> int:
        raise RuntimeError("no more")

    pid = fork_worker("worker 7", theirs, log, fail)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 70
    said = capfd.readouterr().err
    assert "worker 7 failed: RuntimeError('no more')" in said
    assert "from the parent" not in said
    for end in (ours, theirs):
        end.close()
    log._close()
