"""The embedded mailboxes, read with Python's own clients: each says whose it is, and TLS begins cleanly."""

from __future__ import annotations

import asyncio
import imaplib
import poplib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from mailbalancer.demo import authority, mailbox_server
from mailbalancer.demo.child import Program
from tests.support.ports import free_ports

T = TypeVar("T")


def visit(folder: Path, read: Callable[[int, int, ssl.SSLContext], T]) -> T:
    """What `read` finds at ex2's mailboxes: it is given the ports of IMAP and POP3."""
    made = authority.make(folder)
    imap, pop3 = free_ports(2)
    arguments = ("ex2", str(imap), str(pop3), str(made.server))
    program = Program("ex2's mailboxes", "mailbalancer.demo.mailbox_server", arguments, folder / "log")
    context = ssl.create_default_context(cafile=str(made.authority))

    async def scene() -> T:
        child = await program.start()
        try:
            await child.ready()
            return await asyncio.to_thread(read, imap, pop3, context)
        finally:
            await child.stop()

    found = asyncio.run(scene())
    assert (folder / "log").read_text() == ""
    return found


@pytest.mark.parametrize("secured", [False, True])
def test_imap_reads_the_message(tmp_path: Path, secured: bool) -> None:
    def read(port: int, _: int, context: ssl.SSLContext) -> bytes:
        with imaplib.IMAP4("localhost", port, timeout=10) as client:
            if secured:
                client.starttls(context)
            assert ("STARTTLS" in client.capabilities) is not secured
            client.login("me", "secret")
            assert client.select("INBOX") == ("OK", [b"1"])
            assert client.search(None, "ALL") == ("OK", [b"1"])
            (found, *_), *_ = client.fetch("1", "(BODY[])")[1], ""
            assert isinstance(found, tuple)
            return bytes(found[1])

    assert visit(tmp_path, read).decode() == mailbox_server.message("ex2")


@pytest.mark.parametrize("secured", [False, True])
def test_pop3_reads_the_message(tmp_path: Path, secured: bool) -> None:
    def read(_: int, port: int, context: ssl.SSLContext) -> list[bytes]:
        client = poplib.POP3("localhost", port, timeout=10)
        assert "STLS" in client.capa()
        if secured:
            client.stls(context)
            assert "STLS" not in client.capa()
        client.user("me")
        assert client.pass_("secret") == b"+OK logged in on ex2"
        assert client.stat() == (1, len(mailbox_server.message("ex2")))
        lines = client.retr(1)[1]
        client.quit()
        return list(lines)

    assert b"\r\n".join(visit(tmp_path, read)).decode() + "\r\n" == mailbox_server.message("ex2")


def test_idle_and_what_is_not_known(tmp_path: Path) -> None:
    def read(imap: int, pop3: int, _: ssl.SSLContext) -> tuple[bytes, bytes]:
        said = b"a SELECT INBOX\r\nb LOGIN me secret\r\nc IDLE\r\nDONE\r\nd LOGOUT\r\n"
        return everything(imap, said), everything(pop3, b"XYZZY\r\nQUIT\r\n")

    first, second = visit(tmp_path, read)
    assert b"a BAD ex2 knows no SELECT\r\nb OK " in first
    assert b"+ idling\r\nc OK not idle any more\r\n* BYE from ex2\r\nd OK done\r\n" in first
    assert second == b"+OK ex2.demo POP3\r\n-ERR ex2 knows no XYZZY\r\n+OK from ex2\r\n"


def test_words_in_clear_behind_starttls_end_it(tmp_path: Path) -> None:
    def read(imap: int, pop3: int, _: ssl.SSLContext) -> tuple[bytes, bytes]:
        return everything(imap, b"a STARTTLS\r\nb LOGIN me x\r\n"), everything(pop3, b"STLS\r\nUSER me\r\n")

    first, second = visit(tmp_path, read)
    assert b"begin TLS" not in first + second
    assert b"OK [CAPABILITY IMAP4rev1 ID IDLE] logged in" not in first


def everything(port: int, said: bytes) -> bytes:
    found = b""
    with socket.create_connection(("localhost", port), 10) as sock:
        sock.sendall(said)
        try:
            while data := sock.recv(65536):
                found += data
        except ConnectionResetError:
            pass
    return found
