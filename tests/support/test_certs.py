"""The throw-away authority is believed where its file is given, and only for what it issued."""

from __future__ import annotations

import ssl
from pathlib import Path

from tests.support.certs import Authority


def test_authority_is_trusted_only_where_its_file_is(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good = authority.issue("mail.example.com", "127.0.0.1")
    expired = authority.issue("mail.example.com", days=-2)
    assert _handshake(good.server_context(), authority.client_context(), "mail.example.com") == ""
    assert "Hostname mismatch" in _handshake(good.server_context(), authority.client_context(), "other.example.com")
    assert "expired" in _handshake(expired.server_context(), authority.client_context(), "mail.example.com")
    assert "self-signed" in _handshake(good.server_context(), ssl.create_default_context(), "mail.example.com")


def _handshake(server_context: ssl.SSLContext, client_context: ssl.SSLContext, name: str) -> str:
    """The client's reason for refusing; empty when both sides finish. Both ends live in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(10):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError:
                continue  # the server hears of the client's refusal; the client's own words are wanted
    return "" if client.version() else "no handshake"
