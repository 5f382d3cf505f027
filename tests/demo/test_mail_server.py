"""The embedded mail server says who it is and numbers what it takes."""

from __future__ import annotations

import asyncio
import os
import signal
import smtplib
import socket
import ssl
from pathlib import Path

from mailbalancer.demo import authority, mail_server
from mailbalancer.demo.child import Program
from tests.support.ports import free_port
from tests.support.waiting import eventually


def _talk(port: int) -> tuple[bytes, list[tuple[int, bytes]]]:
    """The banner, and the answers to two messages."""
    client = smtplib.SMTP()
    _, banner = client.connect("127.0.0.1", port)
    client.ehlo("me")
    answers = []
    for text in ("Subject: one\n\nhello", "Subject: two\n\n.dots.\n"):
        client.mail("me@example.com")
        client.rcpt("you@example.com")
        answers.append(client.data(text))
    client.quit()
    return banner, answers


def test_banner_and_answer_name_the_server(tmp_path: Path) -> None:
    port = free_port()
    program = Program("ex2's mail server", "mailbalancer.demo.mail_server", ("ex2", str(port)), tmp_path / "log")

    async def scene() -> tuple[bytes, list[tuple[int, bytes]]]:
        child = await program.start()
        try:
            await child.ready()
            return await asyncio.to_thread(_talk, port)
        finally:
            await child.stop()

    banner, answers = asyncio.run(scene())
    assert banner.startswith(b"ex2.demo ESMTP")
    assert answers == [(250, b"2.0.0 ex2 took your message as 1"), (250, b"2.0.0 ex2 took your message as 2")]
    assert (tmp_path / "log").read_text() == ""


def test_starttls_maintenance_and_back_pressure(tmp_path: Path) -> None:
    made = authority.make(tmp_path)
    port = free_port()
    arguments = ("ex1", str(port), str(made.server))
    program = Program("ex1's mail server", "mailbalancer.demo.mail_server", arguments, tmp_path / "log")

    def sender() -> smtplib.SMTP:
        client = smtplib.SMTP("127.0.0.1", port, timeout=10)
        client.starttls(context=ssl.create_default_context(cafile=str(made.authority)))
        return client

    def maintained() -> bool:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            return client.recv(100) == b"421 4.3.2 Service not active\r\n"

    def verdict(client: smtplib.SMTP) -> int:
        client.ehlo_or_helo_if_needed()
        client.rset()
        return client.mail("me@example.com")[0]

    def talk(pid: int) -> None:
        with sender() as client:
            assert verdict(client) == 250
            os.kill(pid, signal.SIGUSR2)
            eventually(lambda: verdict(client) == 452)
            os.kill(pid, signal.SIGUSR1)
            eventually(maintained)
            assert verdict(client) == 421
            os.kill(pid, signal.SIGUSR1)
            eventually(lambda: not maintained())
            os.kill(pid, signal.SIGUSR2)
        with sender() as client:
            eventually(lambda: verdict(client) == 250)

    async def scene() -> None:
        child = await program.start()
        try:
            await child.ready()
            await asyncio.to_thread(talk, child.pid)
        finally:
            await child.stop()

    asyncio.run(scene())


def test_only_the_newest_messages_are_kept() -> None:
    mailbox = mail_server.Mailbox("ex1")

    class Envelope:
        original_content = b""

    async def fill() -> str:
        for number in range(mail_server.MESSAGES_KEPT + 5):
            Envelope.original_content = b"%d" % number
            answer = await mailbox.handle_DATA(None, None, Envelope())
        return answer

    assert asyncio.run(fill()) == "250 2.0.0 ex1 took your message as 105"
    assert (len(mailbox.kept), mailbox.kept[0], mailbox.kept[-1]) == (100, b"5", b"104")
