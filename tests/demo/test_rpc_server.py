"""The RPC stand-in answers every line on three ports with its name and the port it stands for."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from mailbalancer.demo import rpc_server
from tests.support.ports import free_port, free_ports


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        with suppress(ConnectionRefusedError):
            return await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0)


async def _answers(said: bytes) -> list[bytes]:
    """Everything each of the three ports answers until it has no more to say."""
    ports = free_ports(3)
    server = asyncio.create_task(rpc_server.serve("ex2", ports))
    try:
        answers = []
        for port in ports:
            reader, writer = await _connect(port)
            writer.write(said)
            writer.write_eof()
            answers.append(await reader.read())
            writer.close()
        return answers
    finally:
        server.cancel()
        with suppress(asyncio.CancelledError):
            await server


def test_every_port_names_server_port_and_client() -> None:
    assert asyncio.run(_answers(b"hello\r\nagain\n")) == [
        b"ex2 port %d, you are 127.0.0.1: hello\r\nex2 port %d, you are 127.0.0.1: again\r\n" % (port, port)
        for port in (135, 59531, 59532)
    ]


@pytest.mark.parametrize("said", [b"", b"x" * 5000])
def test_nothing_is_answered_to_nothing_or_to_a_line_without_end(said: bytes) -> None:
    async def first_only() -> bytes:
        port = free_port()
        server = await asyncio.start_server(rpc_server.echo("ex2", 135), "127.0.0.1", port, limit=rpc_server.LINE_BYTES)
        reader, writer = await _connect(port)
        writer.write(said)
        if not said:
            writer.write_eof()
        with suppress(ConnectionResetError):
            answer = await reader.read()
            writer.close()
            server.close()
            return answer
        return b""

    assert asyncio.run(first_only()) == b""
