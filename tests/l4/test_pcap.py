"""Capture files and what is in their frames."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from mailbalancer.l4.pcap import ACK, ICMP, ICMP6, SYN, TCP, UDP, BadCapture, Record, packet, records, written
from tests.l4.frames import framed, icmp, icmp6, ip, seen, tcp, udp

FRAMES = [Record(1_700_000_000.25, 60, b"x" * 60), Record(1_700_000_001.5, 1500, b"y" * 128)]
FILE = written(FRAMES)


def test_written_and_read() -> None:
    assert list(records(FILE)) == FRAMES


@pytest.mark.parametrize("end", range(len(FILE)))
def test_a_file_that_was_cut_anywhere(end: int) -> None:
    if 0 < end < 24:
        with pytest.raises(BadCapture, match="ends in its header"):
            list(records(FILE[:end]))
    else:
        found = list(records(FILE[:end]))
        assert found == FRAMES[: len(found)]


@pytest.mark.parametrize(("order", "magic", "part"), [(">", 0xA1B2C3D4, 500_000), ("<", 0xA1B23C4D, 500_000_000)])
def test_other_byte_orders_and_clocks(order: str, magic: int, part: int) -> None:
    data = (
        struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 1) + struct.pack(f"{order}IIII", 7, part, 2, 9) + b"ab"
    )
    assert list(records(data)) == [Record(7.5, 9, b"ab")]


def test_what_is_no_capture() -> None:
    with pytest.raises(BadCapture, match="does not begin"):
        list(records(b"x" * 40))
    with pytest.raises(BadCapture, match="link type 113"):
        list(records(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113)))


@pytest.mark.parametrize(("one", "other"), [("10.9.0.5", "10.0.1.100"), ("2001:db8::5", "fd00::100")])
def test_tcp(one: str, other: str) -> None:
    found = seen(1.0, framed(ip(one, other, TCP, tcp((40000, 25), SYN, mss=1410))))
    assert (found.source, found.source_port, found.destination, found.destination_port) == (one, 40000, other, 25)
    assert (found.protocol, found.flags, found.mss, found.payload) == (TCP, SYN, 1410, 0)
    assert (found.from_mac, found.to_mac) == ("02:00:00:00:00:05", "02:00:00:00:00:01")
    data = framed(ip(one, other, TCP, tcp((40000, 25), ACK, b"EHLO x\r\n", sequence=77)), vlan=12)
    assert (seen(1.0, data).payload, seen(1.0, data).sequence) == (8, 77)
    assert seen(1.0, data[:-8]).payload == 8, "only the headers were kept"


def test_udp_and_fragments() -> None:
    found = seen(0.0, framed(ip("10.9.0.5", "10.0.1.100", UDP, udp((5353, 53), b"query"))))
    assert (found.source_port, found.destination_port, found.payload) == (5353, 53, 5)
    rest = seen(0.0, framed(ip("10.9.0.5", "10.0.1.100", UDP, b"the rest", fragment=0x00B9)))
    assert (rest.fragment, rest.source_port) == (True, 0)
    assert seen(0.0, framed(ip("fd00::5", "fd00::1", UDP, b"the rest", fragment=0x00B8))).fragment


@pytest.mark.parametrize(
    ("kind", "code", "mtu", "says"),
    [
        (3, 4, 1400, "fragmentation needed"),
        (3, 13, 0, "forbidden by a firewall"),
        (3, 1, 0, "host unreachable"),
        (11, 0, 0, "goes round in a loop (time exceeded)"),
        (5, 1, 0, "there is a shorter way (redirect)"),
        (8, 0, 0, ""),
    ],
)
def test_errors(kind: int, code: int, mtu: int, says: str) -> None:
    about = ip("10.9.0.5", "10.0.2.11", TCP, tcp((40000, 25), ACK))[:28]
    found = seen(0.0, framed(ip("10.0.2.254", "10.9.0.5", ICMP, icmp(kind, code, about, mtu))))
    assert (found.error, found.mtu) == (says, mtu)
    assert found.about == (("10.9.0.5", "10.0.2.11") if says else ("", ""))


@pytest.mark.parametrize(
    ("kind", "code", "mtu", "says"), [(2, 0, 1280, "packet too big"), (1, 0, 0, "no route"), (3, 0, 0, "goes round")]
)
def test_errors_of_ipv6(kind: int, code: int, mtu: int, says: str) -> None:
    about = ip("fd00:9::5", "fd00:2::11", TCP, tcp((40000, 25), ACK))
    found = seen(0.0, framed(ip("fd00::1", "fd00:9::5", ICMP6, icmp6(kind, code, about, mtu))))
    assert found.error.startswith(says)
    assert (found.mtu, found.about) == (mtu, ("fd00:9::5", "fd00:2::11"))


@given(some.binary(max_size=200))
def test_any_frame_is_read_or_passed_over(frame: bytes) -> None:
    packet(Record(0.0, len(frame), frame))


@given(some.binary(max_size=120), some.sampled_from([TCP, UDP, ICMP, ICMP6, 0, 43, 44, 60]), some.booleans())
def test_any_packet_is_read_or_passed_over(body: bytes, protocol: int, ipv6: bool) -> None:
    one, other = ("fd00::1", "fd00::2") if ipv6 else ("10.0.0.1", "10.0.0.2")
    assert seen(0.0, framed(ip(one, other, protocol, body))).source == one


@given(some.binary(max_size=200))
def test_any_file_is_read_or_refused(data: bytes) -> None:
    try:
        list(records(data))
    except BadCapture:
        return
