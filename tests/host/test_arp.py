"""Announcements, byte by byte."""

from __future__ import annotations

from mailbalancer.host.arp import announcement

MAC = "02:00:00:00:00:01"


def test_gratuitous_arp() -> None:
    frame = announcement("10.0.1.100", MAC)
    assert frame.hex() == ("ffffffffffff020000000001080600010800060400010200000000010a0001640000000000000a000164")


def test_unsolicited_neighbour_advertisement() -> None:
    frame = announcement("fd00:1::100", MAC)
    assert frame[:14].hex() == "33330000000102000000000186dd"
    header, body = frame[14:54], frame[54:]
    assert (header[6], header[7]) == (58, 255)  # ICMPv6, hop limit
    assert body[:2] == bytes((136, 0))
    assert body[4:8].hex() == "20000000"
    assert body[24:].hex() == "0201" + MAC.replace(":", "")
    words = header[8:40] + len(body).to_bytes(4, "big") + bytes((0, 0, 0, 58)) + body
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    assert total == 0xFFFF  # RFC 1071: the sum over everything, with the checksum in it
