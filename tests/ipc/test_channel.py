"""The channel: whole frames however the bytes arrive, descriptors with the frame they belong to, no blocking."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from mailbalancer.ipc.channel import FDS_PER_FRAME, MAX_FRAME_BYTES, Channel, ChannelClosed


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


def payloads(channel: Channel) -> list[bytes]:
    return [payload for payload, _ in channel.receive()]


def test_frames_arrive_in_order_and_whole(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send(b"first")
    one.send(b"")
    one.send(b"third")
    assert payloads(other) == [b"first", b"", b"third"]
    assert payloads(other) == []


def test_a_frame_arrives_byte_by_byte() -> None:
    raw, theirs = socket.socketpair()
    channel = Channel(theirs)
    try:
        frame = struct.pack("!II", 3, 0) + b"abc"
        for byte in frame[:-1]:
            raw.send(bytes([byte]))
            assert channel.receive() == []
        raw.send(frame[-1:] + frame[:4])  # the next frame has begun
        assert payloads(channel) == [b"abc"]
        raw.send(frame[4:])
        assert payloads(channel) == [b"abc"]
    finally:
        raw.close()
        channel.close()


def test_what_does_not_fit_waits_and_goes_out_later(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    large = os.urandom(3_000_000)
    one.send(large)
    one.send(b"after it")
    assert one.wants_write
    received: list[bytes] = []
    while len(received) < 2:
        received += payloads(other)
        one.flush()
    assert received == [large, b"after it"]
    assert not one.wants_write


def test_descriptors_come_with_their_frame(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    ends = [os.pipe() for _ in range(3)]
    one.send(b"none")
    one.send(b"two", [ends[0][1], ends[1][1]])
    one.send(b"one", [ends[2][1]])
    frames = other.receive()
    assert [(payload, len(fds)) for payload, fds in frames] == [(b"none", 0), (b"two", 2), (b"one", 1)]
    passed = [fd for _, fds in frames for fd in fds]
    for number, fd in enumerate(passed):
        assert not os.get_inheritable(fd)
        os.write(fd, bytes([number]))
    assert [os.read(reading, 10) for reading, _ in ends] == [b"\0", b"\1", b"\2"]
    for fd in [*passed, *(fd for end in ends for fd in end)]:
        os.close(fd)


def test_descriptors_of_a_frame_that_had_to_wait(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    reading, writing = os.pipe()
    one.send(os.urandom(2_000_000))
    one.send(b"late", [writing])
    frames: list[tuple[bytes, list[int]]] = []
    while len(frames) < 2:
        frames += other.receive()
        one.flush()
    (fd,) = frames[1][1]
    os.write(fd, b"x")
    assert os.read(reading, 1) == b"x"
    for end in (reading, writing, fd):
        os.close(end)


def test_as_many_descriptors_as_a_frame_carries(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    fd = os.open(os.devnull, os.O_RDONLY)
    one.send(b"many", [fd] * FDS_PER_FRAME)
    ((payload, fds),) = other.receive()
    assert (payload, len(fds)) == (b"many", FDS_PER_FRAME)
    for received in fds:
        os.close(received)
    with pytest.raises(ValueError, match="descriptors in one frame"):
        one.send(b"too many", [fd] * (FDS_PER_FRAME + 1))
    os.close(fd)


def test_a_closed_other_end(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send(b"last words")
    one.close()
    assert payloads(other) == [b"last words"]
    with pytest.raises(ChannelClosed):
        other.receive()
    with pytest.raises(ChannelClosed):
        other.send(b"anybody there?")


def test_an_absurd_frame_is_refused_before_it_is_read() -> None:
    raw, theirs = socket.socketpair()
    channel = Channel(theirs)
    raw.send(struct.pack("!II", MAX_FRAME_BYTES + 1, 0))
    with pytest.raises(ValueError, match="frame of"):
        channel.receive()
    raw.close()
    channel.close()


def test_closing_closes_descriptors_nobody_took(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    reading, writing = os.pipe()
    one.sock.sendmsg([struct.pack("!II", 10, 1)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", writing))])
    assert other.receive() == []  # the frame is not whole
    os.close(writing)
    other.close()
    assert os.read(reading, 1) == b""  # the last writer is gone
    os.close(reading)
