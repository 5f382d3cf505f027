"""Knocks, byte by byte, and what counts as an answer. With real servers: tests/net/test_black_holes.py."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.host.arp import internet_checksum
from mailbalancer.host.knock import Heard, Knock

PORT = 27750
ENDS = {4: ("10.0.1.1", "10.0.1.100"), 6: ("fd00:1::1", "fd00:1::100")}


def knock(protocol: str, version: int, question: bytes = b"") -> Knock:
    return Knock(protocol, ENDS[version][0], PORT, ENDS[version][1], 25, question)


def answered(asked: Knock, payload: bytes) -> bytes:
    """A packet that comes back with this behind its IP header."""
    packet = asked.packet()
    if asked.version == 6:
        return packet[:8] + packet[24:40] + packet[8:24] + payload
    return packet[:12] + packet[16:20] + packet[12:16] + payload


def segment(flags: int, acknowledged: int = 2, ports: tuple[int, int] = (25, PORT)) -> bytes:
    return struct.pack("!HHIIBBHHH", *ports, 77, acknowledged, 5 << 4, flags, 1024, 0, 0)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "echo"])
def test_every_checksum_is_right(protocol: str, version: int) -> None:
    packet = knock(protocol, version, b"abc").packet()
    header, body = (packet[:20], packet[20:]) if version == 4 else (packet[:40], packet[40:])
    kind = header[9] if version == 4 else header[6]
    addresses = header[12:20] if version == 4 else header[8:40]
    pseudo = b"" if kind == 1 else addresses + struct.pack("!II", len(body), kind)
    assert internet_checksum(pseudo + body) == 0
    if version == 4:
        assert internet_checksum(header) == 0
        assert struct.unpack_from("!H", header, 2)[0] == len(packet)
    else:
        assert struct.unpack_from("!H", header, 4)[0] == len(body)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp(version: int) -> None:
    asked = knock("tcp", version)
    assert asked.heard(answered(asked, segment(0x12))) is Heard.ANSWER
    assert asked.heard(answered(asked, segment(0x14))) is Heard.REFUSAL
    assert asked.heard(answered(asked, segment(0x12, ports=(25, PORT + 1)))) is None
    assert asked.heard(answered(asked, segment(0x12, ports=(26, PORT)))) is None


def test_what_is_half_open_is_reset() -> None:
    asked = knock("tcp", 4)
    end = asked.end(answered(asked, segment(0x12, acknowledged=2)))
    assert end[33] == 0x04  # RST
    assert struct.unpack_from("!I", end, 24)[0] == 2
    assert asked.end(answered(asked, segment(0x14))) == b""
    assert knock("udp", 4).end(answered(asked, segment(0x12))) == b""


@pytest.mark.parametrize(("version", "kind"), [(4, 0), (6, 129)])
def test_echo(version: int, kind: int) -> None:
    asked = knock("echo", version)
    assert asked.heard(answered(asked, struct.pack("!BBHHH", kind, 0, 0, PORT, 1))) is Heard.ANSWER
    assert asked.heard(answered(asked, struct.pack("!BBHHH", kind, 0, 0, PORT + 1, 1))) is None
    assert asked.heard(answered(asked, struct.pack("!BBHHH", 3, 0, 0, PORT, 1))) is None


def test_udp() -> None:
    asked = knock("udp", 4, b"question")
    assert asked.packet()[28:] == b"question"
    assert asked.heard(answered(asked, struct.pack("!HHHH", 25, PORT, 8, 0))) is Heard.ANSWER


@given(st.binary(min_size=20, max_size=80), st.sampled_from(["tcp", "udp", "echo"]), st.sampled_from([4, 6]))
def test_any_packet_can_come(data: bytes, protocol: str, version: int) -> None:
    asked = knock(protocol, version)
    packet = bytes([(version << 4) | (data[0] & 15)]) + data[1:]
    asked.heard(packet)
    asked.end(packet)
