"""The RPC proxy's two channels: what goes in on one comes out on the other of the same session."""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailbalancer.demo.rpc_proxy import RpcProxy
from tests.support.waiting import eventually_async


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, in a loop of its own."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


def beginning(cookie: bytes) -> bytes:
    """The first packet of a channel, as far as the cookie, and the rest of a first OUT request's 76 bytes."""
    packet = b"\x05\x00\x14\x03\x10\x00\x00\x00" + bytes(12) + struct.pack("<III", 6, 1, 3) + cookie
    return packet.ljust(76, b"\0")


@asynccontextmanager
async def proxy(*, well: bool = True) -> AsyncIterator[tuple[RpcProxy, int]]:
    made = RpcProxy("ex1", lambda: well)
    server = await asyncio.start_server(made.session, "127.0.0.1", 0)
    async with server:
        yield made, server.sockets[0].getsockname()[1]


async def ask(port: int, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    return reader, writer


@in_a_loop
async def test_what_comes_in_goes_out_in_its_session() -> None:
    async with proxy() as (made, port):
        out = []
        for cookie in (b"a" * 16, b"b" * 16):
            head = b"RPC_OUT_DATA /rpc/rpcproxy.dll HTTP/1.1\r\nContent-Length: 76\r\n\r\n"
            reader, writer = await ask(port, head + beginning(cookie))
            assert b"application/rpc" in await reader.readuntil(b"\r\n\r\n")
            out.append((reader, writer))
        await eventually_async(lambda: len(made._out) == 2)
        head = b"RPC_IN_DATA /rpc/rpcproxy.dll HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n"
        _, channel = await ask(port, head + beginning(b"b" * 16) + b"hello")
        heard = await out[1][0].readuntil(b"hello")
        assert heard.strip(b"\0") == b"hello"
        for _, writer in out:
            writer.write_eof()
        assert await out[0][0].read() == b""
        channel.close()
        await eventually_async(lambda: not made._out)


@pytest.mark.parametrize(
    ("request_line", "body", "status"),
    [
        (b"RPC_IN_DATA /rpc/rpcproxy.dll", b"", b"200 Success"),
        (b"RPC_IN_DATA /rpc/rpcproxy.dll", b"\xf8\xe8\x18\x08", b"200 Success"),
        (b"GET /rpc/healthcheck.htm", b"", b"200 OK"),
        (b"GET /rpc/else", b"", b"404 Not Found"),
    ],
)
@in_a_loop
async def test_short_requests_are_answered_one_after_the_other(request_line: bytes, body: bytes, status: bytes) -> None:
    async with proxy() as (_, port):
        request = request_line + b" HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        reader, writer = await ask(port, request * 2)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            await reader.readexactly(int(head.rpartition(b": ")[2]))
        writer.close()


@in_a_loop
async def test_a_broken_one_has_no_health_page() -> None:
    async with proxy(well=False) as (_, port):
        reader, writer = await ask(port, b"GET /rpc/healthcheck.htm HTTP/1.1\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
        writer.close()
