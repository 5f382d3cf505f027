"""What tests against real programs share: one authority, and the servers that take a moment to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.certs import Authority, Issued
from tests.support.real_servers import Dovecot, Nginx, Postfix

MAIL_NAME = "mail.example.com"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Issued:
    return authority.issue(MAIL_NAME, "127.0.0.1")


@pytest.fixture(scope="module")
def mx1(certificate: Issued) -> Iterator[Postfix]:
    with Postfix("mx1", certificate) as server:
        yield server


@pytest.fixture(scope="module")
def mx2(certificate: Issued) -> Iterator[Postfix]:
    with Postfix("mx2", certificate) as server:
        yield server


@pytest.fixture(scope="module")
def mx3(certificate: Issued) -> Iterator[Postfix]:
    with Postfix("mx3", certificate) as server:
        yield server


@pytest.fixture(scope="module")
def store1(certificate: Issued, mx1: Postfix) -> Iterator[Dovecot]:
    with Dovecot("store1", certificate, relay_port=mx1.port) as server:
        yield server


@pytest.fixture(scope="module")
def web1(certificate: Issued) -> Iterator[Nginx]:
    with Nginx("web1", certificate) as server:
        yield server


@pytest.fixture(scope="module")
def web2(authority: Authority) -> Iterator[Nginx]:
    with Nginx("web2", authority.issue("web2.example.com")) as server:
        yield server
