"""Questions to a segment and answers from it, byte by byte. With a real segment: tests/net/test_addresses.py."""

from __future__ import annotations

import pytest

from mailbalancer.host.segment import Claim, claim_in, question

OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:02"


def test_an_arp_request() -> None:
    asked = question("10.0.1.100", OURS, "10.0.1.1").hex()
    assert asked == "ffffffffffff020000000001080600010800060400010200000000010a0001010000000000000a000164"
    assert question("10.0.1.100", OURS).hex()[56:64] == "00000000"  # as one who has no address yet (RFC 5227)


def test_a_neighbour_solicitation() -> None:
    asked = question("fd00:1::abcd:100", OURS, "fd00:1::1")
    assert asked[:6].hex() == "3333ffcd0100"
    assert asked[38:54].hex() == "ff0200000000000000000001ffcd0100"
    assert asked[54:56] == bytes((135, 0))
    assert asked[-8:].hex() == "0101" + OURS.replace(":", "")
    assert len(question("fd00:1::100", OURS)) == len(asked) - 8  # without an address of one's own it names no hardware
    words = asked[22:54] + (len(asked) - 54).to_bytes(4, "big") + bytes((0, 0, 0, 58)) + asked[54:]
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # RFC 1071: the sum over everything, with the checksum in it


def test_an_arp_reply_is_a_claim() -> None:
    reply = bytes.fromhex("020000000001020000000002080600010800060400020200000000020a0001640200000000010a000101")
    assert claim_in(reply + bytes(18)) == Claim("10.0.1.100", THEIRS)
    for cut in range(len(reply)):
        assert claim_in(reply[:cut]) is None


def test_a_neighbour_advertisement_is_a_claim() -> None:
    address = "fd000001000000000000000000000100"
    frame = bytes.fromhex(
        f"02000000000102000000000286dd6000000000203aff{address}{address}88000000a0000000" + address + "0201020000000002"
    )
    assert claim_in(frame) == Claim("fd00:1::100", THEIRS)
    assert claim_in(frame[:70]) is None


@pytest.mark.parametrize("frame", [b"", bytes(60), bytes(12) + b"\x08\x00" + bytes(60)])
def test_anything_else_is_none(frame: bytes) -> None:
    assert claim_in(frame) is None
