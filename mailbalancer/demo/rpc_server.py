"""A stand-in for the RPC ports of one Exchange 2010 server: answers every line with its name, its port and the line.

Decides: nothing beyond that answer. Three listening ports stand for 135 (endpoint mapper), 59531 (RPC Client Access)
and 59532 (address book), which one client must always find on one server.
Refuses to know: RPC, and the balancer. Run as `python -m mailbalancer.demo.rpc_server NAME PORT PORT PORT`; says
`ready` on stdout once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence

STOOD_FOR = (135, 59531, 59532)
LINE_BYTES = 1024


def echo(name: str, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """What one port does with a connection. `port` is the one it stands for."""

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        try:
            while line := await reader.readline():
                said = line.rstrip(b"\r\n")
                writer.write(f"{name} port {port}, you are {peer}: ".encode() + said + b"\r\n")
                await writer.drain()
        except (ValueError, ConnectionError):  # a line longer than LINE_BYTES, or the client left
            pass
        finally:
            writer.close()

    return session


async def serve(name: str, ports: Sequence[int]) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    servers = [
        await asyncio.start_server(echo(name, stood_for), "127.0.0.1", port, limit=LINE_BYTES)
        for stood_for, port in zip(STOOD_FOR, ports, strict=True)
    ]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
