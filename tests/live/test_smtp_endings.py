"""Servers that die, freeze or reset at random in every state, under a real balancer and many clients.

What clients were told is compared with what servers stored: no 250 without a stored message, no message twice after its
final dot, and nobody waits for longer than the timeouts allow.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

#: How many of the servers' connections are struck, at least; MAILBALANCER_STRIKES=20000 for a long evening.
STRIKES = int(os.environ.get("MAILBALANCER_STRIKES", "2000"))
CLIENTS = 24
#: Greeting, a message and an idle timeout of a second each, several times over: who waits longer was forgotten.
PATIENCE_S = 30.0
STATES = ("CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "BODY", "DOT", "STORED", "ANSWER", "QUIT")
KINDS = ("close", "reset", "freeze")


class Struck(Exception):
    """This connection is over."""


class MortalServer:
    """Stores what it accepts, by number; connections meet their fate in a given state, or all of them at once."""

    def __init__(self, name: str, fates: random.Random, strikes: Counter[str]) -> None:
        self.name = name
        self.port = free_port()
        self.armed = False
        self.stored: list[str] = []
        self._fates = fates
        self._strikes = strikes
        self._talks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Everything ends at once, as when the machine goes."""
        assert self._server is not None
        self._server.close()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def die_now_and_then(self) -> None:
        """Deaths of the whole server, whatever its sessions are doing."""
        while True:
            await asyncio.sleep(self._fates.uniform(0.3, 1.5))
            self._strikes["whole server"] += 1
            self._strikes["connections"] += len(self._talks)
            await self.close()
            await asyncio.sleep(0.05)
            await self.open()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        doomed = self.armed and self._fates.random() < 0.6
        talk = _Talk(self, reader, writer, self._fates.choice(STATES) if doomed else "", self._fates.choice(KINDS))
        try:
            await talk.run()
        except (Struck, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._talks.discard(task)
            writer.close()

    def count(self, state: str, kind: str) -> None:
        self._strikes["connections"] += 1
        self._strikes[state] += 1
        self._strikes[kind] += 1


class _Talk:
    """One connection of such a server."""

    def __init__(
        self, server: MortalServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: str, kind: str
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._state = state
        self._kind = kind

    async def run(self) -> None:
        await self._at("CONNECT")
        self._say(f"220 {self._server.name}.test ESMTP")
        while line := (await self._reader.readline()).decode().rstrip("\r\n"):
            verb = line.split()[0].upper()
            if verb in STATES:
                await self._at(verb)
            if verb == "DATA":
                self._say("354 Go on")
                await self._take()
            elif verb == "QUIT":
                self._say("221 Bye")
                return
            else:
                self._say("250-hello\r\n250 PIPELINING" if verb == "EHLO" else "250 OK")

    async def _take(self) -> None:
        number = (await self._reader.readline()).decode().strip()
        await self._at("BODY")
        await self._reader.readuntil(b"\r\n.\r\n")
        await self._at("DOT")
        self._server.stored.append(number)
        await self._at("STORED")
        if self._state == "ANSWER":
            self._writer.write(b"250 sto")
        await self._at("ANSWER")
        self._say(f"250 stored {number}")

    async def _at(self, state: str) -> None:
        """The fate of this connection, if it is due."""
        if state != self._state:
            return
        self._server.count(state, self._kind)
        if self._kind == "freeze":
            await self._reader.read()  # until the balancer gives up
        elif self._kind == "reset":
            sock: socket.socket = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self._writer.close()
            raise Struck
        raise Struck

    def _say(self, line: str) -> None:
        self._writer.write(line.encode() + b"\r\n")


class Sender:
    """Sends messages with numbers of their own, each once, and keeps those that were answered 250."""

    def __init__(self, port: int, name: int, choices: random.Random) -> None:
        self.accepted: list[str] = []
        self.ended = 0
        self._port = port
        self._name = name
        self._choices = choices
        self._sent = 0

    async def run(self, strikes: Counter[str]) -> None:
        while strikes["connections"] < STRIKES:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                with suppress(EOFError, ConnectionError):
                    await self._session(reader, writer)
                writer.close()
            self.ended += 1

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await self._reply(reader) != "220":
            return
        writer.write(b"EHLO client.test\r\n")
        if await self._reply(reader) != "250":
            return
        for _ in range(self._choices.randrange(1, 4)):
            self._sent += 1
            number = f"{self._name}.{self._sent}"
            for command in ("MAIL FROM:<a@x.test>", "RCPT TO:<b@x.test>", "DATA"):
                writer.write(f"{command}\r\n".encode())
                if (await self._reply(reader))[0] not in "23":
                    return
            body = f"{number}\r\n".encode() + b"x" * self._choices.randrange(40_000) + b"\r\n.\r\n"
            cut = self._choices.randrange(len(body))
            writer.write(body[:cut])
            await writer.drain()
            writer.write(body[cut:])
            if await self._reply(reader) == "250":
                self.accepted.append(number)
        writer.write(b"QUIT\r\n")
        await self._reply(reader)

    @staticmethod
    async def _reply(reader: asyncio.StreamReader) -> str:
        while (line := await reader.readline()).endswith(b"\n"):
            if line[3:4] != b"-":
                return line[:3].decode()
        raise EOFError


async def storm(port: int, servers: list[MortalServer], strikes: Counter[str], seed: int) -> list[Sender]:
    senders = [Sender(port, at, random.Random(seed + at)) for at in range(CLIENTS)]
    deaths = [asyncio.create_task(server.die_now_and_then()) for server in servers]
    async with asyncio.TaskGroup() as group:
        for sender in senders:
            group.create_task(sender.run(strikes))
    for death in deaths:
        death.cancel()
    await asyncio.gather(*deaths, return_exceptions=True)
    return senders


def config(port: int, servers: list[MortalServer]) -> dict[str, object]:
    return {
        "real_servers": {server.name: "127.0.0.1" for server in servers},
        "services": {
            "mx": {
                "mode": "smtp",
                "listen": f"127.0.0.1:{port}",
                "real_servers": {server.name: server.port for server in servers},
                "check": {"type": "smtp", "interval_s": 0.5, "timeout_s": 1, "rise": 1, "fall": 100},
                "greeting_timeout_s": 1,
                "idle_timeout_s": 1,
                "connect_timeout_s": 1,
                "ramp_s": 0,
            }
        },
    }


def test_no_message_is_lost_or_doubled_by_servers_that_die(tmp_path: Path) -> None:
    seed = int(os.environ.get("MAILBALANCER_SEED", "4"))
    strikes: Counter[str] = Counter()
    servers = [MortalServer(f"mx{at}", random.Random(seed * 100 + at), strikes) for at in range(3)]
    port = free_port()

    async def play() -> list[Sender]:
        for server in servers:
            await server.open()
        with Balancer(config(port, servers), tmp_path) as balancer:
            await asyncio.to_thread(all_up, balancer)
            for server in servers:
                server.armed = True
            senders = await storm(port, servers, strikes, seed)
            await asyncio.to_thread(nobody_is_left, balancer)
        for server in servers:
            await server.close()
        return senders

    senders = asyncio.run(play())
    told = [number for sender in senders for number in sender.accepted]
    stored = [number for server in servers for number in server.stored]
    print(f"{strikes['connections']} connections struck, {sum(s.ended for s in senders)} sessions: {dict(strikes)}")
    print(f"{len(told)} messages answered 250, {len(stored)} stored")
    assert not set(told) - set(stored), "answered 250, and no server has it"
    assert len(stored) == len(set(stored)), "sent twice"
    assert len(set(told)) == len(told)
    assert len(told) > STRIKES / 4, "most of the mail got through"
    assert not {*STATES, *KINDS, "whole server"} - set(strikes), "every state was struck"


def all_up(balancer: Balancer) -> None:
    def states() -> bool:
        return all(balancer.real_server("mx", f"mx{at}")["up"] for at in range(3))

    eventually(states, what="all servers are up")


def nobody_is_left(balancer: Balancer) -> None:
    """Every session is over, and counted as over."""
    eventually(lambda: balancer.service("mx")["sessions"] == 0, what="no session is left")
    for at in range(3):
        assert balancer.real_server("mx", f"mx{at}")["sessions"] == 0
