"""nginx and Apache behind a service that encrypts again: whom it believes, and what is said when it does not.

Every case runs twice at once: behind a check that verifies, which takes the server out and says so in `status`, and
without a check, where the connection of a client is what finds out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.apache import Apache
from tests.support.certs import Authority, Issued
from tests.support.ports import free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Nginx
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

NAME = "mail.example.com"
Server = Nginx | Apache
Start = Callable[[str, Issued], AbstractContextManager[Server]]


def fingerprint(issued: Issued) -> str:
    return hashlib.sha256(issued.certificate.public_bytes(Encoding.DER)).hexdigest()


class Front:
    """A balancer with two services in front of one server: `watched` by a check, and `blind`."""

    def __init__(self, balancer: Balancer, ports: list[int], authority: Authority) -> None:
        self.balancer = balancer
        self._ports = dict(zip(("watched", "blind"), ports, strict=True))
        self._authority = authority

    def get(self, service: str) -> tuple[int, str]:
        """Status and body of one request."""
        port = self._ports[service]
        curl = [require("curl"), "-sS", "--max-time", "10", "--noproxy", "*", "--cacert", str(self._authority.file)]
        resolved = ["--resolve", f"{NAME}:{port}:127.0.0.1", "-w", "\n%{http_code}", f"https://{NAME}:{port}/"]
        done = subprocess.run([*curl, *resolved], capture_output=True, text=True, timeout=20, check=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def server(self) -> dict[str, Any]:
        return self.balancer.real_server("watched", "web")

    def serves(self) -> None:
        """Both services give the server's answer."""
        eventually(lambda: self.server()["up"], what="the check is content")
        for service in ("watched", "blind"):
            eventually(lambda one=service: self._answers(one), what=f"{service} gives the server's answer")

    def refuses(self, *words: str) -> None:
        """Neither gives an answer of the server's, and log and status say why, naming the server."""
        eventually(lambda: self._is_out(words), what="the check is not content, and names the certificate")
        assert self.get("watched")[0] == 503
        eventually(lambda: self.get("blind")[0] in (502, 503), what="blind gives an error")
        page = " ".join(self.balancer.cli("status").stdout.split())
        log = self.balancer.log_text()
        assert [word for word in words if word not in page] == []
        endpoint = self.server()["endpoint"]
        seen_by_traffic = [line for line in log.splitlines() if "blind" in line and endpoint in line]
        assert any("certificate" in line for line in seen_by_traffic), log

    def _answers(self, service: str) -> bool:
        """A server that reads its certificate again has, for a moment, processes with the old and with the new one."""
        status, body = self.get(service)
        assert (status, body.split()[0]) == (200, "web")
        return True

    def _is_out(self, words: tuple[str, ...]) -> bool:
        """A server that is just reading another certificate shows the old one to a second look for a moment."""
        server = self.server()
        return server["up"] is False and all(word in server["check"]["reason"] for word in words)


@contextmanager
def front(server: Server, authority: Authority, shown: Issued, verify: Any, folder: Path) -> Iterator[Front]:
    ports = free_ports(2)
    check = {"type": "https", "interval_s": 0.5, "rise": 1, "fall": 1, "host": NAME, "verify": verify}
    common = {
        "mode": "http",
        "client_tls": {"certificate": "mail"},
        "server_tls": {"verify": verify},
        "persist": "none",
        "real_servers": {"web": server.https_port},
    }
    config = {
        "certificates": {"mail": str(shown.pem)},
        "real_servers": {"web": "127.0.0.1"},
        "services": {
            "watched": {**copy.deepcopy(common), "listen": f"127.0.0.1:{ports[0]}", "check": check},
            "blind": {**common, "listen": f"127.0.0.1:{ports[1]}", "check": "none"},
        },
    }
    with Balancer(config, folder) as balancer:
        eventually(lambda: balancer.real_server("watched", "web")["check"], what="checked")
        yield Front(balancer, ports, authority)


@pytest.fixture(params=[Nginx, Apache], ids=["nginx", "apache"])
def start(request: pytest.FixtureRequest) -> Start:
    made: Start = request.param
    return made


def trusting(authority: Authority) -> dict[str, str]:
    return {"ca": str(authority.file), "name": NAME}


def test_the_right_certificate(start: Start, authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    with start("web", certificate) as web, front(web, authority, certificate, trusting(authority), tmp_path) as seen:
        seen.serves()


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [(("elsewhere.example.com",), 90.0, ("elsewhere.example.com", NAME)), ((NAME,), -3.0, ("expired",))],
    ids=["wrong name", "expired"],
)
def test_a_wrong_name_and_an_expired_one(
    start: Start,
    authority: Authority,
    certificate: Issued,
    tmp_path: Path,
    names: tuple[str, ...],
    days: float,
    words: tuple[str, ...],
) -> None:
    bad = authority.issue(*names, days=days)
    with start("web", bad) as web, front(web, authority, certificate, trusting(authority), tmp_path) as seen:
        seen.refuses(*words)


def test_a_strange_authority(start: Start, authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    strange = Authority(tmp_path / "stranger", "a stranger").issue(NAME)
    with start("web", strange) as web, front(web, authority, certificate, trusting(authority), tmp_path) as seen:
        seen.refuses("a stranger", "authority")


def test_a_pinned_certificate_and_another(
    start: Start, authority: Authority, certificate: Issued, tmp_path: Path
) -> None:
    (tmp_path / "stranger").mkdir()
    pinned = Authority(tmp_path / "stranger").issue("whatever.example.com")  # its name does not matter
    with start("web", pinned) as web:
        with front(web, authority, certificate, {"pin": fingerprint(pinned)}, tmp_path) as seen:
            seen.serves()
        (tmp_path / "other").mkdir()
        with front(web, authority, certificate, {"pin": fingerprint(certificate)}, tmp_path / "other") as seen:
            seen.refuses("not the pinned one", fingerprint(pinned))


def test_a_pinned_certificate_that_has_expired(
    start: Start, authority: Authority, certificate: Issued, tmp_path: Path
) -> None:
    """The pin says that exactly this one is right: sessions and the check believe it, `status` says what it is."""
    expired = authority.issue(NAME, days=-3)
    with (
        start("web", expired) as web,
        front(web, authority, certificate, {"pin": fingerprint(expired)}, tmp_path) as seen,
    ):
        seen.serves()
        assert seen.server()["check"]["detail"]["cert_days"] < 0
        assert "web: its certificate has expired" in seen.balancer.cli("status").stdout


def test_verification_that_was_switched_off_is_red_and_warned_of(
    start: Start, authority: Authority, certificate: Issued, tmp_path: Path
) -> None:
    bad = authority.issue("elsewhere.example.com")
    with start("web", bad) as web, front(web, authority, certificate, "none", tmp_path) as seen:
        seen.serves()
        assert "TLS with servers: NOT VERIFIED" in seen.balancer.cli("status").stdout
        assert "certificates are not verified" in seen.balancer.log_text()
        assert any("not verified" in warning for warning in seen.balancer.status()["warnings"])


def test_a_certificate_that_changes_under_way(
    start: Start, authority: Authority, certificate: Issued, tmp_path: Path
) -> None:
    (tmp_path / "stranger").mkdir()
    strange = Authority(tmp_path / "stranger", "a stranger").issue(NAME)
    own = authority.issue(NAME, "web")
    good_chain, good_key = own.chain.read_bytes(), own.key.read_bytes()
    with start("web", own) as web, front(web, authority, certificate, trusting(authority), tmp_path) as seen:
        seen.serves()
        shutil.copyfile(strange.chain, own.chain)
        shutil.copyfile(strange.key, own.key)
        reread(web)
        seen.refuses("a stranger", "authority")
        own.chain.write_bytes(good_chain)
        own.key.write_bytes(good_key)
        reread(web)
        seen.serves()


def reread(server: Server) -> None:
    """Let it read its certificate again, without an end of its process."""
    assert server._process is not None
    server._process.send_signal(signal.SIGHUP if isinstance(server, Nginx) else signal.SIGUSR1)


def test_pin_as_an_operator_types_it(authority: Authority, certificate: Issued, tmp_path: Path) -> None:
    (tmp_path / "stranger").mkdir()
    own = Authority(tmp_path / "stranger", "Exchange itself").issue("ex1")
    with Nginx("web", own) as web, front(web, authority, certificate, "full", tmp_path) as seen:
        seen.refuses("Exchange itself")
        page = seen.balancer.cli("tls", "pin", "watched", "web")
        assert (page.returncode, page.stderr) == (0, "")
        assert fingerprint(own) in page.stdout
        assert "issuer   Exchange itself" in page.stdout
        for service in ("watched", "blind"):
            written = seen.balancer.cli("tls", "pin", service, "web", "--write", "--json")
            assert written.returncode == 0, written.stderr
            assert json.loads(written.stdout)["sha256"] == fingerprint(own)
        text = seen.balancer.config_file.read_text()
        assert text.count(fingerprint(own)) == 2
        seen.balancer.reload()
        eventually(lambda: seen.get("blind")[0] == 200, what="the pinned server is believed")
