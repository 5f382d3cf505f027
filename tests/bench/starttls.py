"""A sender and a server of mail with STARTTLS, which Postfix's load tools do not know; processes of `mail`.

Decides: what is said, without pipelining, as `smtp-source` does it.
Refuses to know: what is between them. `python -m tests.bench.starttls serve PORT PEM | send PORT CA SECONDS EACH`; the
sender prints messages per second.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time

from tests.bench.secure import NAME
from tests.support.smtp_client import Talk

MESSAGE = b"Subject: bench\r\n\r\n" + (b"x" * 78 + b"\r\n") * 51


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
    writer.write(b"220 sink ESMTP\r\n")
    while line := await reader.readline():
        verb = line[:4].upper()
        if verb == b"EHLO":
            writer.write(b"250-sink\r\n250-8BITMIME\r\n250 STARTTLS\r\n")
        elif verb == b"STAR":
            writer.write(b"220 go\r\n")
            await writer.start_tls(context)
        elif verb == b"DATA":
            writer.write(b"354 go\r\n")
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 taken\r\n")
        elif verb == b"QUIT":
            break
        else:
            writer.write(b"250 ok\r\n")
    writer.write(b"221 bye\r\n")
    writer.close()


async def serve(port: int, pem: str) -> None:
    """Serve until ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = await asyncio.start_server(lambda r, w: _guarded(r, w, context), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


async def _guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
    try:
        await _serve(reader, writer, context)
    except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
        writer.close()


def send(port: int, authority: str, seconds: float, each: int) -> float:
    """Send for some seconds, `each` messages on a connection; messages per second."""
    context = ssl.create_default_context(cafile=authority)
    began, sent = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        sock = socket.create_connection(("127.0.0.1", port), 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Talk(sock)
        client.begin()
        assert client.say(b"STARTTLS").startswith(b"220")
        client.secure(context, NAME)
        client.say(b"EHLO client.test")
        for _ in range(each):
            assert client.send(MESSAGE).startswith(b"250")
        client.say(b"QUIT")
        client.sock.close()
        sent += each
    return sent / (time.monotonic() - began)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2]), sys.argv[3]))
    else:
        print(send(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]), int(sys.argv[5])))
