"""What Python has no word for works where it can, and is refused in words where it cannot."""

from __future__ import annotations

import ctypes
import gc
import ssl
import time
from collections.abc import Iterator

import pytest

from mailbalancer.tls import openssl, profile
from tests.support.certs import Authority, Issued
from tests.tls.handshake import Shake


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("mail.example.com")


@pytest.fixture
def context(issued: Issued) -> ssl.SSLContext:
    return issued.server_context()


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found out about this Python is forgotten before and after."""
    openssl._library.cache_clear()
    yield
    openssl._library.cache_clear()


def test_possible_here() -> None:
    assert openssl.why_impossible() == ""


def test_no_context_is_reached_where_python_and_openssl_disagree(
    context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.options |= ssl.OP_NO_TICKET
    monkeypatch.setattr(openssl, "_address", lambda _: ctypes.c_size_t.from_address(id(other) + 16).value)
    with pytest.raises(openssl.Impossible, match="disagree"):
        openssl.set_groups(context, "P-256")


@pytest.mark.parametrize("address", [0, 1, 8, 2**47 - 8, 0xFFFF_FFFF_FFFF_FFF8])
def test_an_address_without_memory_is_never_looked_at(
    fresh: None, monkeypatch: pytest.MonkeyPatch, address: int
) -> None:
    monkeypatch.setattr(openssl, "_address", lambda _: address)
    assert "unknown place" in openssl.why_impossible()


def test_memory_that_holds_something_else_is_not_believed(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"\0", b"\xff", b"\x01"):
        something = ctypes.create_string_buffer(content * 8192, 8192)
        aligned = ctypes.addressof(something) + 15 & ~15
        monkeypatch.setattr(openssl, "_address", lambda _, at=aligned: at)
        openssl._library.cache_clear()
        assert "unknown place" in openssl.why_impossible()


def test_another_library_is_refused_and_the_profile_does_without(
    fresh: None, monkeypatch: pytest.MonkeyPatch, issued: Issued, shake: Shake, authority: Authority
) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "LibreSSL 3.9.0")
    assert "LibreSSL 3.9.0 is not" in openssl.why_impossible()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    profile.configure(context)
    profile.load_pair(context, issued.pem.read_bytes())
    with pytest.raises(openssl.Impossible):
        openssl.staple(context, b"answer", time.time() + 60)
    assert shake(context, authority.client_context(), "mail.example.com").client_error is None


@pytest.mark.parametrize("groups", ["no-such-group", "", "X25519:nonsense"])
def test_unknown_groups(context: ssl.SSLContext, groups: str) -> None:
    with pytest.raises(openssl.Impossible, match="does not know the groups"):
        openssl.set_groups(context, groups)


def test_groups(context: ssl.SSLContext, authority: Authority, shake: Shake) -> None:
    openssl.set_groups(context, "P-384")
    client = authority.client_context()
    client.set_ecdh_curve("prime256v1")
    assert shake(context, client, "mail.example.com").client_error is not None
    client.set_ecdh_curve("secp384r1")
    assert shake(context, client, "mail.example.com").client_error is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(["imap"], "imap"), (["h2", "imap"], "imap"), (["pop3", "imap"], "imap"), (None, None)],
)
def test_protocols(
    context: ssl.SSLContext,
    authority: Authority,
    shake: Shake,
    version: ssl.TLSVersion,
    offered: list[str] | None,
    agreed: str | None,
) -> None:
    openssl.insist_on_protocols(context, ("imap", "pop3"))
    client = authority.client_context()
    client.maximum_version = version
    if offered:
        client.set_alpn_protocols(offered)
    handshake = shake(context, client, "mail.example.com")
    assert handshake.client is not None, handshake.client_error
    assert handshake.server is not None
    assert handshake.client.selected_alpn_protocol() == agreed
    assert handshake.server.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"], ["ima"], ["imapx"], ["a" * 255]])
def test_other_protocols_end_the_handshake(
    context: ssl.SSLContext, authority: Authority, shake: Shake, version: ssl.TLSVersion, offered: list[str]
) -> None:
    openssl.insist_on_protocols(context, ("imap",))
    client = authority.client_context()
    client.maximum_version = version
    client.set_alpn_protocols(offered)
    handshake = shake(context, client, "mail.example.com")
    assert "no application protocol" in str(handshake.client_error).lower().replace("_", " ")


@pytest.mark.parametrize(
    ("offer", "found"),
    [
        (b"", []),
        (b"\x04imap", [(b"imap", 1)]),
        (b"\x02h2\x04imap", [(b"h2", 1), (b"imap", 4)]),
        (b"\x05imap", []),  # longer than what is there
        (b"\x02h2\xff", [(b"h2", 1)]),
        (b"\x00\x02h2", [(b"", 1), (b"h2", 2)]),
    ],
)
def test_offers_are_read_within_their_bounds(offer: bytes, found: list[tuple[bytes, int]]) -> None:
    assert list(openssl._protocols(offer)) == found


def test_callbacks_of_a_context_that_is_gone_find_nothing(context: ssl.SSLContext) -> None:
    openssl.insist_on_protocols(context, ("imap",))
    openssl.staple(context, b"answer", time.time() + 60)
    number = openssl._number_of[context]
    assert openssl._shown[number].answer == b"answer"
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    openssl.staple(other, b"gone", time.time() + 60)
    gone = openssl._number_of[other]
    del other
    gc.collect()
    assert gone not in openssl._shown
    assert openssl._on_status_request(1, gone) == openssl._CALLBACK_NOTHING
    assert number in openssl._shown
