"""A throw-away authority, one that nobody trusts, and handshakes whose sockets are closed."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

from tests.support.certs import Authority
from tests.tls.handshake import Handshake, Shake


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls-authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("tls-stranger"), "stranger")


@pytest.fixture
def shake() -> Iterator[Shake]:
    made: list[Handshake] = []

    def begin(
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Handshake:
        made.append(Handshake(server, client, name, session))
        return made[-1]

    yield begin
    for handshake in made:
        handshake.close()
