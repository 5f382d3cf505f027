"""Five hundred slow senders of large messages: what a worker holds does not grow with what they send."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

SENDERS = 500
#: `MAILBALANCER_MESSAGE_BYTES=10485760` sends ten MiB each.
MESSAGE_BYTES = int(os.environ.get("MAILBALANCER_MESSAGE_BYTES", str(2 * 1024 * 1024)))
CHUNK = (b"x" * 998 + b"\r\n") * 16
#: Per session: its objects, and `buffer_bytes` in the one direction that is busy.
PER_SENDER_BYTES = 64 * 1024 + 24 * 1024


@pytest.fixture
def sink() -> Iterator[int]:
    """Postfix's server that throws everything away. Its port."""
    port = free_port()
    user = ["-u", "postfix"] if os.geteuid() == 0 else []
    with subprocess.Popen(
        [require("smtp-sink"), *user, "-m", str(2 * SENDERS), f"127.0.0.1:{port}", "1024"]
    ) as process:
        yield port
        process.terminate()


class Held:
    """What the workers hold, by their own account."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def bytes(self) -> int:
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in self._pids
        )


async def reply(reader: asyncio.StreamReader) -> bytes:
    while (line := await reader.readline())[3:4] == b"-":
        pass
    return line


async def send(port: int, ready: asyncio.Barrier) -> bytes:
    """One sender: a piece, then everybody else's turn; the verdict."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        assert (await reply(reader)).startswith(b"220")
        for command in (b"EHLO c.test", b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"DATA"):
            writer.write(command + b"\r\n")
            assert (await reply(reader))[:1] in b"23"
        await ready.wait()
        for _ in range(MESSAGE_BYTES // len(CHUNK)):
            writer.write(CHUNK)
            await writer.drain()
            await asyncio.sleep(0)
        await ready.wait()  # everybody has sent all but the end
        writer.write(b".\r\n")
        return await reply(reader)
    finally:
        writer.close()


async def watch(held: Held, seen: list[int]) -> None:
    while True:
        seen.append(held.bytes())
        await asyncio.sleep(0.1)


def test_memory_is_flat_under_slow_senders(sink: int, tmp_path: Path) -> None:
    port = free_port()
    service = {
        "mode": "smtp",
        "listen": f"127.0.0.1:{port}",
        "real_servers": {"sink": sink},
        "check": {"type": "smtp", "interval_s": 60},
    }
    seen: list[int] = []

    async def scene(held: Held) -> list[bytes]:
        ready = asyncio.Barrier(SENDERS)
        watching = asyncio.create_task(watch(held, seen))
        async with asyncio.timeout(120):
            verdicts = await asyncio.gather(*(send(port, ready) for _ in range(SENDERS)))
        watching.cancel()
        return verdicts

    with Balancer({"real_servers": {"sink": "127.0.0.1"}, "services": {"mx": service}}, tmp_path) as balancer:
        eventually(lambda: balancer.real_server("mx", "sink")["up"], what="smtp-sink is up")
        held = Held(balancer.worker_pids)
        before = held.bytes()
        verdicts = asyncio.run(scene(held))
        assert all(verdict.startswith(b"250") for verdict in verdicts)
        grown = max(seen) - before
        print(f"{SENDERS} senders of {MESSAGE_BYTES} bytes: {grown / 1e6:.1f} MB more, {grown / SENDERS:.0f} a sender")
        assert grown < SENDERS * PER_SENDER_BYTES
