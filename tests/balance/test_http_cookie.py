"""What a persistence cookie keeps to itself, and which ones count."""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.balance.http_cookie import KEY_BYTES, NONCE_BYTES, REMEMBERED, SEALED_CHARACTERS, Seal, parse_keys

SECRET = bytes(range(KEY_BYTES))
SERVERS = ("ex1", "a-server-with-a-long-name", "x")
SEAL = Seal([SECRET], "web", SERVERS)


def nonce() -> bytes:
    return os.urandom(NONCE_BYTES)


def test_there_and_back() -> None:
    for server in SERVERS:
        cookie = SEAL.seal(server, nonce())
        assert SEAL.open(cookie) == server
        assert SEAL.open(cookie) == server  # remembered
        assert Seal([SECRET], "web", SERVERS).open(cookie) == server  # another worker, or after a restart


def test_nothing_can_be_read_from_it() -> None:
    cookies = [SEAL.seal(server, nonce()) for server in SERVERS * 3]
    assert {len(cookie) for cookie in cookies} == {SEALED_CHARACTERS}
    assert len(set(cookies)) == len(cookies)
    assert not any(server.encode() in cookie for server in SERVERS[:2] for cookie in cookies)


def test_other_keys_groups_and_servers() -> None:
    cookie = SEAL.seal("ex1", nonce())
    assert Seal([bytes(KEY_BYTES)], "web", SERVERS).open(cookie) == ""
    assert Seal([SECRET], "other", SERVERS).open(cookie) == ""
    assert Seal([SECRET], "web", ("x",)).open(cookie) == ""


def test_keys_are_changed_one_after_the_other() -> None:
    old = SEAL.seal("ex1", nonce())
    both = Seal([bytes(KEY_BYTES), SECRET], "web", SERVERS)
    assert both.open(old) == "ex1"
    assert SEAL.open(both.seal("ex1", nonce())) == ""


@pytest.mark.parametrize("server", SERVERS)
def test_every_altered_character_is_noticed(server: str) -> None:
    cookie = SEAL.seal(server, nonce())
    for at in range(len(cookie)):
        for other in b"AB-_z9=+/. ":
            if cookie[at] != other:
                assert SEAL.open(cookie[:at] + bytes((other,)) + cookie[at + 1 :]) == ""
    assert SEAL.open(cookie[:-1]) == ""
    assert SEAL.open(cookie + b"A") == ""


def test_ten_thousand_forged_ones() -> None:
    for _ in range(10_000):
        assert SEAL.open(urlsafe_b64encode(os.urandom(44)).rstrip(b"=")) == ""
    assert len(SEAL._opened) < 100


@given(st.binary(max_size=80))
def test_anything_at_all(cookie: bytes) -> None:
    assert SEAL.open(cookie) == ""


def test_what_is_remembered_has_a_bound() -> None:
    seal = Seal([SECRET], "web", SERVERS)
    for _ in range(REMEMBERED + 10):
        assert seal.open(seal.seal("x", nonce())) == "x"
    assert len(seal._opened) <= REMEMBERED


def test_key_files() -> None:
    one, two = "ab" * KEY_BYTES, "0C" * KEY_BYTES
    assert parse_keys(f"# a comment\n{one}\n\n {two}\r\n") == [bytes.fromhex(one), bytes.fromhex(two)]
    for wrong in (
        "",
        "# nothing\n",
        "abc",
        one + "00",
        one[:-1] + "g",
        f"{one} {two}",
        " ".join(one[i : i + 2] for i in range(0, 64, 2)),
    ):
        with pytest.raises(ValueError, match=r"no key|is not a key"):
            parse_keys(wrong)
