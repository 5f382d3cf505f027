"""Three legs of NTLM, as curl and a hostile client speak them."""

from __future__ import annotations

import base64
import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.demo import ntlm


def third_leg(user: bytes, flags: int) -> str:
    head = b"NTLMSSP\0" + struct.pack("<I", 3)
    fields = [b"", b"", b"", user, b"", b""]  # LM, NT, domain, user, workstation, session key
    at = 64
    for field in fields:
        head += struct.pack("<HHI", len(field), len(field), at)
        at += len(field)
    return "NTLM " + base64.b64encode(head + struct.pack("<I", flags) + b"".join(fields)).decode()


def test_the_first_leg_asks_for_a_challenge() -> None:
    first = base64.b64encode(b"NTLMSSP\0" + struct.pack("<II", 1, 0)).decode()
    assert ntlm.leg(f"NTLM {first}") == ("negotiate", "")
    assert ntlm.leg(f"Negotiate {first}") == ("negotiate", "")


def test_the_challenge_says_where_its_parts_are() -> None:
    message = base64.b64decode(ntlm.challenge(b"12345678").removeprefix("NTLM "))
    kind, length, _, at = struct.unpack_from("<IHHI", message, 8)
    assert (kind, message[at : at + length].decode("utf-16-le")) == (2, "DEMO")
    assert message[24:32] == b"12345678"
    length, _, at = struct.unpack_from("<HHI", message, 40)
    assert message[at : at + length].endswith(bytes(4))
    assert at + length == len(message)


@pytest.mark.parametrize(("user", "flags"), [("Zoë".encode("utf-16-le"), 1), ("Zoë".encode("latin-1"), 0)])
def test_the_third_leg_names_the_user(user: bytes, flags: int) -> None:
    assert ntlm.leg(third_leg(user, flags)) == ("authenticate", "Zoë")


@pytest.mark.parametrize(
    "field",
    ["", "Basic bWU6c2VjcmV0", "NTLM", "NTLM ***", "NTLM TlRMTVNTUAA=", third_leg(b"", 0), third_leg(b"\x1b", 0)],
)
def test_what_is_no_leg_is_refused(field: str) -> None:
    with pytest.raises(ntlm.NotNtlm):
        ntlm.leg(field)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ntlm.NotNtlm):
        ntlm.leg("NTLM " + base64.b64encode(b"NTLMSSP\0" + data).decode())
