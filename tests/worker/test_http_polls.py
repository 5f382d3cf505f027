"""Channels of RPC over HTTP by session: who ends with whom, and who is told."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

import pytest

from mailbalancer.wire.http_head import RequestReader
from mailbalancer.wire.http_long_poll import Wait
from mailbalancer.worker.http_polls import Channels, wait_of

if TYPE_CHECKING:
    from mailbalancer.worker.http_lifetime import Lifetime

ONE, OTHER = bytes(range(16)), bytes(16)


def begins(cookie: bytes) -> bytes:
    return b"\x05\x00\x14\x03\x10\x00\x00\x00" + bytes(12) + struct.pack("<III", 6, 1, 3) + cookie


class Channel:
    """The part of a connection that Channels knows: that it can be ended, and says so as a connection does."""

    def __init__(self, channels: Channels, cookie: bytes) -> None:
        self.ends: list[str] = []
        self._channels = channels
        self.cookie = channels.opened(cast("Lifetime", self), begins(cookie))

    def end(self, reason: str, *, reset: bool = False) -> None:
        assert reset
        self.ends.append(reason)
        self.close(broken=True)

    def close(self, *, broken: bool) -> None:
        self._channels.closed(cast("Lifetime", self), self.cookie, broken=broken)


@pytest.fixture
def told() -> list[bytes]:
    return []


@pytest.fixture
def channels(told: list[bytes]) -> Channels:
    return Channels(told.append)


def test_the_other_half_ends_with_a_broken_one_and_others_do_not(channels: Channels, told: list[bytes]) -> None:
    incoming, outgoing, stranger = Channel(channels, ONE), Channel(channels, ONE), Channel(channels, OTHER)
    incoming.close(broken=True)
    assert (incoming.ends, outgoing.ends, stranger.ends) == ([], ["rpc_peer_closed"], [])
    assert told == [ONE], "once, however many channels went"
    assert len(channels) == 1


def test_the_other_workers_are_told_of_a_half_that_was_alone_here(channels: Channels, told: list[bytes]) -> None:
    Channel(channels, ONE).close(broken=True)
    assert told == [ONE]
    assert len(channels) == 0


def test_a_channel_that_ends_in_order_ends_nothing(channels: Channels, told: list[bytes]) -> None:
    incoming, outgoing = Channel(channels, ONE), Channel(channels, ONE)
    incoming.close(broken=False)
    assert (outgoing.ends, told, len(channels)) == ([], [], 1)
    outgoing.close(broken=False)
    assert (told, len(channels)) == ([], 0)


def test_what_another_worker_tells_is_not_told_on(channels: Channels, told: list[bytes]) -> None:
    outgoing, stranger = Channel(channels, ONE), Channel(channels, OTHER)
    channels.end(ONE)
    channels.end(bytes(range(16, 32)))  # nobody's here
    assert (outgoing.ends, stranger.ends, told) == (["rpc_peer_closed"], [], [])


def test_a_body_that_names_no_session_belongs_to_none(channels: Channels) -> None:
    assert channels.opened(cast("Lifetime", None), b"GET / HTTP/1.1\r\n" * 4) == b""
    assert len(channels) == 0


@pytest.mark.parametrize(
    ("line", "wait"),
    [
        ("POST /Microsoft-Server-ActiveSync?Cmd=Ping&DeviceId=1", Wait.ACTIVESYNC),
        ("POST /ews/exchange.asmx", Wait.PERHAPS_EWS),
        ("RPC_OUT_DATA /rpc/rpcproxy.dll?ex:6001", Wait.RPC),
        ("POST /owa/", Wait.NOT),
    ],
)
def test_what_a_request_waits_for(line: str, wait: Wait) -> None:
    fields = "Host: m\r\nContent-Length: 76\r\n"
    head = RequestReader(("x-requesttype",)).read(f"{line} HTTP/1.1\r\n{fields}\r\n".encode())
    assert head is not None
    assert wait_of(head) is wait
