"""A stand-in for /rpc/rpcproxy.dll: what comes in on a session's IN channel goes out on its OUT channel.

Decides: the two methods, their endless bodies, and that a channel finds its other half by the session's cookie.
Refuses to know: RPC beyond that cookie, and TLS.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from mailbalancer.wire.rpc_channel import NEEDED_BYTES, session

HEAD_BYTES = 65536
READ_BYTES = 65536
#: What an OUT channel announces (MS-RPCH 2.1.2.1.3: between 128 KiB and 2 GiB).
OUT_BYTES = 1024**3
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,12})[ \t]*\r\n", re.IGNORECASE)


class RpcProxy:
    """The RPC proxy of one server.

    Args:
        is_well: whether its health page is there.
    """

    def __init__(self, name: str, is_well: Callable[[], bool]) -> None:
        self._name = name
        self._is_well = is_well
        self._out: dict[bytes, asyncio.StreamWriter] = {}

    async def session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests, and a channel at its end."""
        try:
            while await self._request(reader, writer):
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the other side left
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.partition(b" ")
        found = _LENGTH.search(head)
        length = int(found.group(1)) if found else 0
        if method == b"RPC_IN_DATA" and length >= NEEDED_BYTES:
            return await self._in_channel(reader, writer, length)
        if method == b"RPC_OUT_DATA" and length >= NEEDED_BYTES:
            await self._out_channel(reader, writer, length)
            return False
        await reader.readexactly(length)
        if rest.lower().startswith(b"/rpc/healthcheck.htm") and self._is_well():
            self._say(writer, "200 OK", f"200 OK<br/>{self._name.upper()}.DEMO")
        elif method in (b"RPC_IN_DATA", b"RPC_OUT_DATA"):  # a leg of a login, or an echo
            self._say(writer, "200 Success", self._name)
        else:
            self._say(writer, "404 Not Found", f"{self._name} has nothing there\n")
        return True

    def _say(self, writer: asyncio.StreamWriter, status: str, text: str) -> None:
        head = f"HTTP/1.1 {status}\r\nX-FEServer: {self._name}\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write((head + text).encode())

    async def _in_channel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> bool:
        """Pass on what comes, to wherever its session's OUT channel is."""
        beginning = await reader.readexactly(NEEDED_BYTES)
        cookie, left = session(beginning), length - len(beginning)
        while left:
            data = await reader.read(min(READ_BYTES, left))
            if not data:
                return False
            left -= len(data)
            out = self._out.get(cookie)
            if out is not None:
                out.write(data)
                await out.drain()
        self._say(writer, "200 Success", self._name)
        return True

    async def _out_channel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        """Announce much, and stay until the client leaves."""
        cookie = session(await reader.readexactly(length))
        head = f"HTTP/1.1 200 Success\r\nX-FEServer: {self._name}\r\nContent-Type: application/rpc\r\n"
        writer.write(f"{head}Content-Length: {OUT_BYTES}\r\n\r\n".encode())
        self._out[cookie] = writer
        try:
            await reader.read(1)
        finally:
            if self._out.get(cookie) is writer:
                del self._out[cookie]
