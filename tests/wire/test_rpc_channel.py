"""The packets that open the channels of RPC over HTTP, built by the tables of MS-RPCH."""

from __future__ import annotations

import struct

from mailbalancer.wire.rpc_channel import NEEDED_BYTES, session

COOKIE = bytes(range(16))


def packet(flags: int, *commands: bytes) -> bytes:
    body = b"".join(commands)
    header = struct.pack("<BBBB4sHHIHH", 5, 0, 20, 3, b"\x10\0\0\0", 20 + len(body), 0, 0, flags, len(commands))
    return header + body


def number(command: int, value: int) -> bytes:
    return struct.pack("<II", command, value)


def cookie(value: bytes) -> bytes:
    return struct.pack("<I", 3) + value


CONN_A1 = packet(0, number(6, 1), cookie(COOKIE), cookie(bytes(16)), number(0, 65536))
CONN_B1 = packet(0, number(6, 1), cookie(COOKIE), cookie(bytes(16)), number(4, 1 << 30), number(5, 300000))


def test_both_channels_name_their_session() -> None:
    assert len(CONN_A1) == 76  # the length that MS-RPCH gives for the body of the first RPC_OUT_DATA
    assert session(CONN_A1) == COOKIE
    assert session(memoryview(CONN_B1 + b"more")) == COOKIE
    assert session(CONN_A1[:NEEDED_BYTES]) == COOKIE


def test_what_is_none() -> None:
    assert session(b"") == b""
    assert session(CONN_A1[: NEEDED_BYTES - 1]) == b""
    assert session(b"\xf8\xe8\x18\x08") == b""  # an echo test
    assert session(b"\x05\x00\x0b" + CONN_A1[3:]) == b""  # a bind
    assert session(packet(0, number(6, 1), number(0, 1), cookie(COOKIE))) == b""
    assert session(packet(0, cookie(COOKIE), cookie(COOKIE), cookie(COOKIE))) == b""
