"""A session is resumed with the server it was agreed with, verified the same way, and with no other."""

from __future__ import annotations

import ssl

import pytest

from mailbalancer.model import Endpoint, Verify
from mailbalancer.tls import verify as verification
from mailbalancer.tls.sessions import Sessions
from tests.support.certs import Authority, Issued
from tests.tls.handshake import Shake
from tests.tls.test_verify import by_authority, sha256

EX1 = Endpoint("192.0.2.11", 443)
EX2 = Endpoint("192.0.2.12", 443)
NAME = "mail.example.com"


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(NAME)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def server(request: pytest.FixtureRequest, issued: Issued) -> ssl.SSLContext:
    made = issued.server_context()
    made.maximum_version = request.param
    return made


@pytest.fixture
def client(authority: Authority) -> ssl.SSLContext:
    return verification.context(by_authority(authority, NAME))


def begun(shake: Shake, server: ssl.SSLContext, client: ssl.SSLContext, sessions: Sessions) -> None:
    handshake = shake(server, client, NAME)
    assert handshake.client is not None, handshake.client_error
    sessions.remember(handshake.client, EX1, NAME)


def test_resumed(shake: Shake, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    sessions = Sessions()
    assert sessions.session(client, EX1, NAME) is None
    begun(shake, server, client, sessions)
    again = shake(server, client, NAME, sessions.session(client, EX1, NAME))
    assert again.client is not None
    assert again.client.session_reused


def test_a_pin_is_held_against_a_resumed_session(shake: Shake, server: ssl.SSLContext, issued: Issued) -> None:
    pinned = verification.context(Verify("pin", pin_sha256="ab" * 32))
    sessions = Sessions()
    begun(shake, server, pinned, sessions)
    again = shake(server, pinned, NAME, sessions.session(pinned, EX1, NAME))
    assert again.client is not None
    assert again.client.session_reused
    assert verification.after_handshake(again.client, Verify("pin", pin_sha256=sha256(issued)), EX1) == ""
    assert sha256(issued) in verification.after_handshake(again.client, Verify("pin", pin_sha256="ab" * 32), EX1)


def test_for_nobody_else(shake: Shake, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    sessions = Sessions()
    begun(shake, server, client, sessions)
    assert sessions.session(client, EX2, NAME) is None
    assert sessions.session(client, EX1, "other.example.com") is None
    assert sessions.session(verification.context(Verify("none")), EX1, NAME) is None


def test_a_server_that_has_forgotten_shakes_hands_anew(
    shake: Shake, server: ssl.SSLContext, client: ssl.SSLContext, issued: Issued
) -> None:
    sessions = Sessions()
    begun(shake, server, client, sessions)
    again = shake(issued.server_context(), client, NAME, sessions.session(client, EX1, NAME))
    assert again.client is not None, again.client_error
    assert not again.client.session_reused


def test_bounded_and_forgetful(shake: Shake, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    sessions = Sessions(size=2)
    handshake = shake(server, client, NAME)
    assert handshake.client is not None
    for port in (1, 2, 3):
        sessions.remember(handshake.client, Endpoint("192.0.2.1", port), NAME)
    assert len(sessions) == 2
    assert sessions.session(client, Endpoint("192.0.2.1", 1), NAME) is None
    sessions.forget(Endpoint("192.0.2.1", 2))
    assert len(sessions) == 1


def test_nothing_to_resume_is_not_kept(shake: Shake, client: ssl.SSLContext, issued: Issued) -> None:
    server = issued.server_context()
    server.num_tickets = 0
    sessions = Sessions()
    begun(shake, server, client, sessions)
    assert len(sessions) == 0
