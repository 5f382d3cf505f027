"""Pipes are few, used again when clean, and closed when not."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from mailbalancer.worker.pipes import PIPE_BYTES, PIPES_KEPT, PIPES_LARGE, PipePool


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_pipe_carries_bytes_and_never_blocks() -> None:
    pool = PipePool(4)
    pipe = pool.take()
    assert pipe is not None
    os.write(pipe[1], b"x" * 1000)
    assert os.read(pipe[0], 2000) == b"x" * 1000
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 1)
    assert not os.get_inheritable(pipe[0])
    pool.give_back(pipe, empty=False)


def test_an_empty_pipe_is_used_again_and_a_dirty_one_is_closed() -> None:
    pool = PipePool(4)
    clean, dirty = pool.take(), pool.take()
    assert clean is not None
    assert dirty is not None
    pool.give_back(clean, empty=True)
    pool.give_back(dirty, empty=False)
    assert is_open(clean[0])
    assert not is_open(dirty[0])
    assert not is_open(dirty[1])
    assert pool.take() == clean
    assert pool.open == 1
    pool.give_back(clean, empty=False)
    assert pool.open == 0


def test_there_are_no_more_than_the_limit() -> None:
    pool = PipePool(3)
    pipes = [pool.take() for _ in range(5)]
    assert [pipe is None for pipe in pipes] == [False] * 3 + [True] * 2
    for pipe in pipes:
        if pipe is not None:
            pool.give_back(pipe, empty=True)
    assert pool.take() is not None
    assert PipePool(0).take() is None


def test_the_large_ones_are_shared_among_the_workers() -> None:
    pool = PipePool(8, workers=PIPES_LARGE // 2)
    pipes = [pipe for _ in range(4) if (pipe := pool.take()) is not None]
    sizes = [fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) for pipe in pipes]
    assert sizes[:2] == [PIPE_BYTES] * 2
    assert max(sizes[2:]) < PIPE_BYTES
    for pipe in pipes:
        pool.give_back(pipe, empty=False)


def test_few_are_kept() -> None:
    pool = PipePool(PIPES_KEPT + 4)
    pipes = [pipe for _ in range(PIPES_KEPT + 4) if (pipe := pool.take()) is not None]
    for pipe in pipes:
        pool.give_back(pipe, empty=True)
    assert pool.open == PIPES_KEPT == sum(is_open(pipe[0]) for pipe in pipes)
    for _ in range(PIPES_KEPT):
        taken = pool.take()
        assert taken is not None
        pool.give_back(taken, empty=False)


def test_without_descriptors_there_is_no_pipe_and_no_error() -> None:
    pool = PipePool(4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # no gap below the limit is left
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, hard))
        assert pool.take() is None
        assert pool.open == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
