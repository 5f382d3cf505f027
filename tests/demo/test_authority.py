"""The demo's certificates: trusted by who trusts its authority, for loopback only, and the key is private."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest

from mailbalancer.demo import authority


def shake(context: ssl.SSLContext, papers: authority.Papers, name: str) -> None:
    """A handshake in memory; raises what the client would."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(papers.server)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_it_is_for_this_machine(tmp_path: Path, name: str) -> None:
    papers = authority.make(tmp_path)
    assert papers == authority.papers(tmp_path)
    shake(ssl.create_default_context(cafile=str(papers.authority)), papers, name)
    assert stat.S_IMODE(papers.server.stat().st_mode) == 0o600


def test_nobody_else_is_believed(tmp_path: Path) -> None:
    papers = authority.make(tmp_path)
    trusting = ssl.create_default_context(cafile=str(papers.authority))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(trusting, papers, "mail.example.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(ssl.create_default_context(), papers, "localhost")
