"""Work that would hold up the supervisor, done in a child of its own.

Decides: how such work is bounded (processor time, waiting time, size of the answer), and that nothing of the parent is
touched by it. To make an RSA key takes up to a second, and a PFX may ask for any number of rounds; the supervisor has
no threads, because it forks, so it forks here too.
Refuses to know: what the work is.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress

from mailbalancer.errors import MailbalancerError

SECONDS = 20
_MOST_BYTES = 4 * 1024 * 1024
#: No file descriptor has this number (sysctl fs.nr_open ends below).
_NO_DESCRIPTOR_ABOVE = 2**31 - 1
Facts = dict[str, str]


async def aside(work: Callable[[], Facts]) -> Facts:
    """What `work` returns.

    Raises:
        MailbalancerError: what `work` raised, or that it took too long.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, writer)
    os.close(writer)
    try:
        async with asyncio.timeout(SECONDS + 5):
            told = await _whole(reader)
    except TimeoutError:
        told = b""
    finally:
        os.close(reader)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it has answered, or never will
        os.waitpid(pid, 0)  # noqa: ASYNC222 it was killed; this takes microseconds
    return _understood(told)


def _understood(told: bytes) -> Facts:
    try:
        facts: Facts = json.loads(told)
    except ValueError:
        raise MailbalancerError(
            f"it took more than {SECONDS} s of work", "a PFX with fewer rounds (Windows' own export) is opened faster"
        ) from None
    if "error" in facts:
        raise MailbalancerError(facts["error"], facts["remedy"])
    return facts


async def _whole(reader: int) -> bytes:
    loop = asyncio.get_running_loop()
    os.set_blocking(reader, False)
    ended: asyncio.Future[None] = loop.create_future()
    pieces: list[bytes] = []

    def readable() -> None:
        with suppress(BlockingIOError):
            piece = os.read(reader, 65536)
            pieces.append(piece)
            if not piece or sum(map(len, pieces)) > _MOST_BYTES:
                loop.remove_reader(reader)
                if not ended.done():
                    ended.set_result(None)

    loop.add_reader(reader, readable)
    try:
        await ended
    finally:
        loop.remove_reader(reader)
    return b"".join(pieces)


def _child(work: Callable[[], Facts], writer: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, writer)  # a listener that the parent closes meanwhile must not stay open here
        os.closerange(writer + 1, _NO_DESCRIPTOR_ABOVE)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # keys are in this memory
        try:
            facts = work()
        except MailbalancerError as error:
            facts = {"error": error.message, "remedy": error.remedy}
        except Exception as error:  # without its words: they may quote what nobody may see
            facts = {"error": f"a fault of mailbalancer ({type(error).__name__})", "remedy": "report it"}
        told = json.dumps(facts).encode()
        while told:
            told = told[os.write(writer, told) :]
    finally:
        os._exit(0)  # nothing of the parent is flushed, closed or unlinked
