"""One machine's IMAP and POP3 of the demo: one mailbox with one message, which says whose it is.

Decides: just enough of both protocols for `openssl s_client`, `telnet`, curl and a mail program to log in (any name,
any password) and read; STARTTLS and STLS, with what came in clear before the handshake thrown away with its connection.
Refuses to know: the balancer, and real mail. Run as `python -m mailbalancer.demo.mailbox_server NAME IMAP_PORT
POP3_PORT PEM`; says `ready` on stdout once.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys
from typing import cast

#: A longer line is nobody's who reads his mail.
LINE_BYTES = 8192


def message(name: str) -> str:
    """The one message of this server, as lines end in a mailbox."""
    return (
        f"From: {name} <postmaster@mail.demo>\r\nTo: you@mail.demo\r\nSubject: this is the mailbox on {name}\r\n"
        f"\r\nYou are on {name}. Close, come again, and another server may greet you.\r\n"
    )


class Talk(asyncio.Protocol):
    """One connection: lines in, answers out.

    Attributes:
        name: whose server this is.
        secured: inside TLS.
    """

    def __init__(self, name: str, tls: ssl.SSLContext) -> None:
        self.name = name
        self.secured = False
        self._tls = tls
        self._waiting = b""
        self._shaking: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport

    def greeting(self) -> str:
        """What is said first."""
        raise NotImplementedError

    def answer(self, line: str) -> str:
        """What a line is answered with; `secure` or `end` may follow it."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self.secured:
            self._say(self.greeting())

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > LINE_BYTES:
            self._transport.abort()
        self._go_on()

    def _go_on(self) -> None:
        """Everything that has been said; during a handshake nothing is, and what is first said inside TLS waits for
        its transport."""
        while b"\n" in self._waiting and self._shaking is None and not self._transport.is_closing():
            line, self._waiting = self._waiting.split(b"\n", 1)
            self._say(self.answer(line.decode("latin-1").strip(" \r")))

    def end(self, last: str) -> str:
        """Close behind these words."""
        self._say(last)
        self._transport.close()
        return ""

    def secure(self, consent: str) -> str:
        """TLS behind these words. Whoever has said more already is not who he says he is (RFC 3207 section 4.2)."""
        if self._waiting:
            self._transport.abort()
            return ""
        self._say(consent)
        self._transport.pause_reading()
        self._shaking = asyncio.get_running_loop().create_task(self._shake())
        return ""

    async def _shake(self) -> None:
        self.secured = True
        loop = asyncio.get_running_loop()
        try:
            inside = await loop.start_tls(self._transport, self, self._tls, server_side=True)
        except (OSError, ssl.SSLError):
            self._transport.abort()
            return
        if inside is None:  # the connection went away in the handshake
            return
        self._transport = inside
        self._shaking = None
        self._go_on()

    def _say(self, text: str) -> None:
        if text:
            self._transport.write(text.encode("ascii", "replace"))


class Imap(Talk):
    """RFC 3501, the part of it that reading one message needs."""

    def __init__(self, name: str, tls: ssl.SSLContext) -> None:
        super().__init__(name, tls)
        self._idle = ""  # the tag of IDLE, while it lasts
        self._logged_in = False

    def greeting(self) -> str:
        return f"* OK [CAPABILITY {self._capabilities()}] {self.name}.demo IMAP\r\n"

    def answer(self, line: str) -> str:
        if self._idle:
            tag, self._idle = self._idle, ""
            return f"{tag} OK not idle any more\r\n" if line.upper() == "DONE" else f"{tag} BAD it was DONE\r\n"
        tag, _, rest = line.partition(" ")
        verb, _, words = rest.partition(" ")
        verb = verb.upper()
        if verb == "UID":
            verb, _, words = words.partition(" ")
            verb = verb.upper()
        match verb:
            case "STARTTLS" if not self.secured:
                return self.secure(f"{tag} OK begin TLS\r\n")
            case "LOGOUT":
                return self.end(f"* BYE from {self.name}\r\n{tag} OK done\r\n")
            case "LOGIN":
                self._logged_in = True
                return f"{tag} OK [CAPABILITY {self._capabilities()}] logged in on {self.name}\r\n"
            case "IDLE":
                self._idle = tag
                return "+ idling\r\n"
        told = self._told(verb, words)
        return (
            f"{tag} BAD {self.name} knows no {verb or 'such thing'}\r\n" if told is None else f"{told}{tag} OK done\r\n"
        )

    def _told(self, verb: str, words: str) -> str | None:
        """The untagged answer; None: there is no such command, or not yet."""
        simple = {"CAPABILITY": f"* CAPABILITY {self._capabilities()}\r\n", "NOOP": "", "ID": "* ID NIL\r\n"}
        if verb in simple or not self._logged_in:
            return simple.get(verb)
        opened = "* FLAGS (\\Seen)\r\n* 1 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1]\r\n* OK [UIDNEXT 2]\r\n"
        mailbox = {
            "LIST": '* LIST (\\HasNoChildren) "/" INBOX\r\n',
            "LSUB": '* LSUB () "/" INBOX\r\n',
            "SELECT": opened,
            "EXAMINE": opened,
            "STATUS": "* STATUS INBOX (MESSAGES 1 UNSEEN 0)\r\n",
            "SEARCH": "* SEARCH 1\r\n",
            "FETCH": self._fetched(words),
        }
        return mailbox.get(verb, "" if verb in ("CLOSE", "EXPUNGE", "STORE", "CHECK") else None)

    def _fetched(self, words: str) -> str:
        whole = message(self.name)
        part = re.search(r"(?:BODY(?:\.PEEK)?\[[^\]]*\]|RFC822)", words.upper())
        if part is None:
            return f"* 1 FETCH (UID 1 FLAGS (\\Seen) RFC822.SIZE {len(whole)})\r\n"
        item = part[0].replace(".PEEK", "")
        return f"* 1 FETCH (UID 1 FLAGS (\\Seen) {item} {{{len(whole)}}}\r\n{whole})\r\n"

    def _capabilities(self) -> str:
        return "IMAP4rev1 ID IDLE" + ("" if self.secured else " STARTTLS")


class Pop3(Talk):
    """RFC 1939, with CAPA and STLS."""

    def greeting(self) -> str:
        return f"+OK {self.name}.demo POP3\r\n"

    def answer(self, line: str) -> str:
        verb, _, words = line.partition(" ")
        verb, whole = verb.upper(), message(self.name)
        if verb == "STLS" and not self.secured:
            return self.secure("+OK begin TLS\r\n")
        if verb == "QUIT":
            return self.end(f"+OK from {self.name}\r\n")
        stls = "" if self.secured else "STLS\r\n"
        answers = {
            "CAPA": f"+OK\r\nUSER\r\nUIDL\r\nTOP\r\n{stls}.\r\n",
            "USER": "+OK\r\n",
            "PASS": f"+OK logged in on {self.name}\r\n",
            "STAT": f"+OK 1 {len(whole)}\r\n",
            "LIST": f"+OK 1 {len(whole)}\r\n" if words else f"+OK\r\n1 {len(whole)}\r\n.\r\n",
            "UIDL": f"+OK 1 {self.name}-1\r\n" if words else f"+OK\r\n1 {self.name}-1\r\n.\r\n",
            "RETR": f"+OK\r\n{whole}.\r\n",
            "TOP": f"+OK\r\n{whole}.\r\n",
            "NOOP": "+OK\r\n",
            "RSET": "+OK\r\n",
        }
        return answers.get(verb, f"-ERR {self.name} knows no {verb or 'such thing'}\r\n")


async def serve(name: str, imap_port: int, pop3_port: int, pem: str) -> None:
    """Serve on 127.0.0.1 until cancelled."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    loop = asyncio.get_running_loop()
    kinds: dict[int, type[Talk]] = {imap_port: Imap, pop3_port: Pop3}
    servers = [
        await loop.create_server(lambda kind=kind: kind(name, tls), "127.0.0.1", port, backlog=512)  # type: ignore[misc]
        for port, kind in kinds.items()
    ]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
