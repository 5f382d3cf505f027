"""The ways an alarm travels: mail, webhook, syslog.

Decides: how each says it, and that none takes longer than its time or needs a name to be looked up (the supervisor has
no thread for that, and an alarm must not depend on DNS).
Refuses to know: which events become an alarm.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import uuid
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from mailbalancer.admin.alarms import Alarm
from mailbalancer.errors import MailbalancerError
from mailbalancer.log import one_line
from mailbalancer.model import AlarmMail, Alarms, AlarmWebhook

#: One attempt of one way.
PATIENCE_S = 20.0
_LINE_CHARACTERS = 900  # RFC 5321 section 4.5.3.1.6 has 998 bytes
_SEVERITY = {"info": 6, "warning": 4, "error": 3}
_FACILITY_MAIL = 2


class NotSent(MailbalancerError):
    """An alarm did not get through."""


async def send(alarm: Alarm, settings: Alarms) -> list[NotSent]:
    """Send an alarm every way that is configured; returns what did not get through."""
    tries = []
    if settings.mail is not None:
        tries.append(_attempt("mail", _mail(alarm, settings.mail)))
    if settings.webhook is not None:
        tries.append(_attempt("webhook", _webhook(alarm, settings.webhook)))
    if settings.syslog:
        tries.append(_attempt("syslog", _syslog(alarm, settings.syslog)))
    return [failed for failed in await asyncio.gather(*tries) if failed is not None]


async def _attempt(way: str, sending: Any) -> NotSent | None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await sending
    except TimeoutError:
        return NotSent(f"alarm by {way} was not sent: no answer within {PATIENCE_S:.0f} s")
    except Exception as error:
        return NotSent(f"alarm by {way} was not sent: {one_line(str(error) or repr(error))[:300]}")
    return None


# ---------------------------------------------------------------- mail


async def _mail(alarm: Alarm, settings: AlarmMail) -> None:
    """Hand one message to a mail server (RFC 5321), in clear: it is a server of the house."""
    reader, writer = await asyncio.open_connection(settings.server.host, settings.server.port, limit=65536)
    try:
        await _reply(reader, 220)
        commands = [
            (f"EHLO [{writer.get_extra_info('sockname')[0]}]", 250),
            (f"MAIL FROM:<{settings.sender}>", 250),
            *((f"RCPT TO:<{recipient}>", 250) for recipient in settings.recipients),
            ("DATA", 354),
        ]
        for command, expected in commands:
            writer.write(command.encode("ascii") + b"\r\n")
            await _reply(reader, expected)
        writer.write(message(alarm, settings.sender, settings.recipients))
        await _reply(reader, 250)
        writer.write(b"QUIT\r\n")
    finally:
        writer.close()


async def _reply(reader: asyncio.StreamReader, expected: int) -> None:
    lines = 0
    while True:
        line = await reader.readuntil(b"\n")
        lines += 1
        if line[3:4] != b"-" or lines > 100:
            break
    if line[:3] != str(expected).encode():
        raise NotSent(f"the mail server answers {line.decode('ascii', 'replace').strip()}")


def message(alarm: Alarm, sender: str, recipients: Sequence[str]) -> bytes:
    """The message as it goes over the wire, dots doubled and ended. Whatever strangers put into an event is text."""
    head = [
        f"From: mailbalancer <{sender}>",
        f"To: {', '.join(recipients)}",
        f"Subject: {one_line(f'[mailbalancer] {alarm.cause}')[:200]}",
        f"Date: {formatdate(time.time())}",
        f"Message-ID: <{uuid.uuid4()}@mailbalancer.invalid>",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=us-ascii",
        "",
    ]
    body = [one_line(line)[:_LINE_CHARACTERS] for line in alarm.text.split("\n")]
    stuffed = [f".{line}" if line.startswith(".") else line for line in body]
    return "\r\n".join([*head, *stuffed, ".", ""]).encode("ascii")


# ---------------------------------------------------------------- webhook


class _Known(AbstractResolver):
    """The one address that is configured."""

    def __init__(self, host: str) -> None:
        self._host = host

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        kind = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        found = ResolveResult(hostname=host, host=self._host, port=port, family=kind, proto=0, flags=0)
        return [found]

    async def close(self) -> None:
        return None


def _url(settings: AlarmWebhook) -> str:
    """Read anew each time: a secret is changed without a reload."""
    return settings.url or Path(settings.url_file).read_text(encoding="utf-8").strip()


async def _webhook(alarm: Alarm, settings: AlarmWebhook) -> None:
    url = _url(settings)
    address = settings.address or (urlsplit(url).hostname or "")
    context: ssl.SSLContext | None = None
    if url.startswith("https:"):
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    connector = TCPConnector(resolver=_Known(address), ssl=context or True, force_close=True)
    facts = {"cause": alarm.cause, "level": alarm.level, "text": alarm.text, "events": alarm.lines, "more": alarm.more}
    session = ClientSession(connector=connector, timeout=ClientTimeout(PATIENCE_S))
    async with (
        session,
        session.post(
            url, data=json.dumps(facts), headers={"Content-Type": "application/json"}, allow_redirects=False
        ) as answer,
    ):
        if not 200 <= answer.status < 300:
            raise NotSent(f"{urlsplit(url).hostname} answers {answer.status}")


# ---------------------------------------------------------------- syslog


async def _syslog(alarm: Alarm, address: str) -> None:
    """One datagram per line (RFC 3164, as local daemons read it)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as log:
        log.connect(address)
        priority = _FACILITY_MAIL * 8 + _SEVERITY[alarm.level]
        for line in (f"ALARM {alarm.cause}", *alarm.lines):
            log.send(f"<{priority}>mailbalancer: {one_line(line)[:2000]}".encode())
