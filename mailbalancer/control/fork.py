"""The fork: what a worker takes with it from the supervisor, and what not.

Decides: the child keeps its end of the channel, stderr, what the log writes to, and the board (memory). Listening
sockets come to it in messages, never by inheritance: otherwise an address dropped by a reload would stay open in it.
Signals are the supervisor's: a worker ignores the ones that a terminal or systemd sends to the whole group, and ends
when it is told to or when its channel closes. There is no parent-death signal for the same reason: the closed channel
says it, and lets sessions end in order.
Refuses to know: what the worker does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NoReturn

from mailbalancer.ipc.channel import Channel
from mailbalancer.log import Log

#: No file descriptor has this number (sysctl fs.nr_open ends below).
_NO_DESCRIPTOR_ABOVE = 2**31 - 1
_THE_SUPERVISORS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


def fork_worker(name: str, channel: Channel, log: Log, run: Callable[[], int]) -> int:
    """Start `run` in a child that has `channel`; returns its pid. The child ends with what `run` returns.

    The garbage collector's generations are frozen over the fork, so that the child's collections neither touch the
    parent's pages nor finalise its objects.
    """
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        _child(name, channel, log, run)
    gc.unfreeze()
    return pid


def _child(name: str, channel: Channel, log: Log, run: Callable[[], int]) -> NoReturn:
    code = 70  # EX_SOFTWARE
    try:
        asyncio._set_running_loop(None)  # the parent's loop is not ours, although this code was called from it
        log.forget_waiting()  # the parent writes those lines
        _forget_signals()
        _close_all_but({2, channel.fileno(), *log.descriptors()})
        code = run()
    except BaseException as error:
        log.error(f"{name} failed: {error!r}", traceback=traceback.format_exc())
    finally:
        log.flush()
        os._exit(code)  # nothing of the parent is flushed, closed or unlinked


def _forget_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    for number in _THE_SUPERVISORS:
        signal.signal(number, signal.SIG_IGN)


def _close_all_but(keep: Iterable[int]) -> None:
    """Standard input and output lead nowhere: a terminal or a pipe of the parent's must not stay open through us."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nowhere, standard, inheritable=True)
    edges = [1, *sorted(fd for fd in set(keep) if fd > 1), _NO_DESCRIPTOR_ABOVE]
    for before, after in pairwise(edges):
        if after > before + 1:  # an empty range would be taken for "to the end"
            os.closerange(before + 1, after)
