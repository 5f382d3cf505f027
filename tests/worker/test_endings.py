"""Random conversations with random ends: each side sees what it would see without a balancer between them.

An orderly end arrives only where one was sent, and then everything before it has arrived. After a reset on either side
what has arrived is a beginning of what was sent, and it never ends in order unless the sender had ended in order.
"""

from __future__ import annotations

import random
import socket
import threading
from dataclasses import dataclass

import pytest

from mailbalancer.ipc.board import Count
from tests.support.lone_worker import Door, LoneWorker, service

SESSIONS = 60
BLOCK = bytes(range(251)) * 4096


@dataclass(slots=True)
class Side:
    """One end: what it sends and how it ends, then what it saw."""

    sizes: tuple[int, ...]
    ending: str  # "shutdown", or "close": where there is something unread the kernel makes a reset of it
    reads: bool
    sent: int = 0
    got: int = 0
    faithful: bool = True
    saw: str = ""
    broken: bool = False  # sending failed: the kernel tells of a reset once, so reading then sees an end
    stuck: bool = False

    def talk(self, sock: socket.socket) -> None:
        reading = threading.Thread(target=self._read, args=(sock,))
        if self.reads:
            reading.start()
        try:
            for size in self.sizes:
                sock.sendall(_slice(self.sent, size))
                self.sent += size
            if self.ending == "shutdown":
                sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.broken = True
        if self.reads:
            reading.join(30)
        self.stuck = reading.is_alive()
        sock.close()

    def _read(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                self.faithful &= data == _slice(self.got, len(data))
                self.got += len(data)
            self.saw = "end"
        except OSError:
            self.saw = "reset"


def _slice(start: int, size: int) -> bytes:
    at = start % 251
    return (BLOCK[at:] + BLOCK)[:size] if at + size > len(BLOCK) else BLOCK[at : at + size]


def a_side(dice: random.Random) -> Side:
    sizes = tuple(dice.choice((0, 1, 2, 500, 4096, 65536, 131072, 300_000, 900_000)) for _ in range(dice.randrange(5)))
    ending = dice.choice(("shutdown", "shutdown", "shutdown", "close"))
    return Side(sizes, ending, reads=ending == "shutdown" and dice.random() < 0.8)


def check(receiver: Side, sender: Side) -> None:
    assert not receiver.stuck, "nothing ever ended this side"
    assert receiver.faithful, "other bytes than were sent"
    assert receiver.got <= sum(sender.sizes)
    if receiver.saw == "end" and not receiver.broken:
        assert receiver.got == sender.sent, "a part that looks complete"
    if receiver.reads and sender.reads and sender.ending == receiver.ending == "shutdown":
        assert (receiver.saw, receiver.got) == ("end", sum(sender.sizes)), "lost, though nobody broke anything"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("buffer_bytes", [4096, 65536])
def test_what_arrives_is_what_was_sent_or_visibly_broken(seed: int, buffer_bytes: int) -> None:
    dice = random.Random(seed * 100_000 + buffer_bytes)
    with LoneWorker() as worker, Door("ex1") as door:
        worker.configure(service("imap", door, buffer_bytes=buffer_bytes))
        for _ in range(SESSIONS):
            sides = a_side(dice), a_side(dice)
            client = worker.connect("imap")
            client.settimeout(30)
            server = door.accept()
            server.settimeout(30)
            threads = [threading.Thread(target=s.talk, args=(e,)) for s, e in zip(sides, (client, server), strict=True)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            check(sides[0], sides[1])
            check(sides[1], sides[0])
        worker.eventually_counts(0, Count.SESSIONS, "imap")
        worker.session_lines(SESSIONS)
