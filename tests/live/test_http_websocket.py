"""WebSocket as browsers speak it, through the balancer with TLS on both sides: aiohttp at either end."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually_async

pytestmark = pytest.mark.live

NAME = "mail.example.com"
#: Frames with each of the three forms of a length (RFC 6455 section 5.2), and one that fills every buffer on the way.
SIZES = (1, 125, 126, 65535, 65536, 300_000, 5_000_000)
LARGEST = 8 * 1024 * 1024


async def _echo(request: web.Request) -> web.StreamResponse:
    """Gives back what it is sent; `end` makes the server close."""
    socket = web.WebSocketResponse(max_msg_size=LARGEST, protocols=("mail",))
    await socket.prepare(request)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT and message.data == "end":
            await socket.close(code=4001, message=b"as asked")
        elif message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(hashlib.sha256(message.data).digest() + message.data)
    return socket


async def _refuse(_: web.Request) -> web.Response:
    return web.Response(status=403, text="not for you")


async def _talk(port: int, trusting: ssl.SSLContext, balancer: Balancer) -> None:
    url = f"https://127.0.0.1:{port}"
    connector = aiohttp.TCPConnector(ssl=trusting)
    async with aiohttp.ClientSession(connector=connector, headers={"Host": NAME}) as session:
        async with session.ws_connect(f"{url}/echo", max_msg_size=LARGEST, protocols=("mail",)) as socket:
            assert socket.protocol == "mail"
            await socket.send_str("grüße")
            assert await socket.receive_str() == "grüße"
            for size in SIZES:
                data = bytes(size)
                await socket.send_bytes(data)
                assert await socket.receive_bytes() == hashlib.sha256(data).digest() + data
            await socket.ping(b"still there?")
            for number in range(100):  # many at once, in order
                await socket.send_str(str(number))
            assert [await socket.receive_str() for _ in range(100)] == [str(number) for number in range(100)]
            await socket.send_str("end")
            closed = await socket.receive()
            assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "as asked")
        async with session.ws_connect(f"{url}/echo") as socket:
            await socket.close(code=1000)
            assert socket.close_code == 1000
        with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
            await session.ws_connect(f"{url}/refused")
        async with session.get(f"{url}/refused") as answer:
            assert (answer.status, await answer.text()) == (403, "not for you")
    await eventually_async(lambda: balancer.service("web")["sessions"] == 0, what="every connection has ended")


async def _serve_and_talk(authority: Authority, certificate: Issued, folder: Path) -> None:
    application = web.Application()
    application.add_routes([web.get("/echo", _echo), web.get("/refused", _refuse)])
    runner = web.AppRunner(application)
    await runner.setup()
    behind, port = free_port(), free_port()
    await web.TCPSite(runner, "127.0.0.1", behind, ssl_context=certificate.server_context()).start()
    service = {
        "mode": "http",
        "listen": f"127.0.0.1:{port}",
        "client_tls": {"certificate": "mail"},
        "server_tls": {"verify": {"ca": str(authority.file), "name": NAME}},
        "check": "none",
        "real_servers": {"web1": behind},
    }
    config = {
        "certificates": {"mail": str(certificate.pem)},
        "real_servers": {"web1": "127.0.0.1"},
        "services": {"web": service},
    }
    balancer = Balancer(config, folder)
    await asyncio.to_thread(balancer.__enter__)
    try:
        await asyncio.wait_for(_talk(port, authority.client_context(), balancer), 60)
    finally:
        await asyncio.to_thread(balancer.__exit__, None, None, None)
        await runner.cleanup()


def test_websocket(authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    asyncio.run(_serve_and_talk(authority, certificate, tmp_path))
