"""Certificates of clients: asked for, verified, and required where the configuration says so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer, Refused
from tests.support.tools import require
from tests.support.web import Web

pytestmark = pytest.mark.live

NAME = "mail.example.com"


class Front:
    """A balancer that asks clients for certificates of an authority of their own."""

    def __init__(self, balancer: Balancer, config: dict[str, Any], port: int, authority: Authority) -> None:
        self.balancer, self._config, self._port, self._authority = balancer, config, port, authority

    def demand(self, **client_tls: str) -> None:
        """Reload with these words in `client_tls`."""
        self._config["services"]["web"]["client_tls"].update(client_tls)
        self.balancer.reload(self._config)

    def curl(self, *arguments: str) -> str:
        """The status that curl met with; `000`: there was no answer."""
        command = [require("curl"), "-sS", "--max-time", "10", "--noproxy", "*", "--cacert", str(self._authority.file)]
        command += ["--resolve", f"{NAME}:{self._port}:127.0.0.1", "-o", "/dev/null", "-w", "%{http_code}"]
        done = subprocess.run(
            [*command, *arguments, f"https://{NAME}:{self._port}/"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return done.stdout

    def showing(self, issued: Issued, *arguments: str) -> str:
        """As `curl`, with this certificate."""
        return self.curl("--cert", str(issued.chain), "--key", str(issued.key), *arguments)

    def openssl(self, *arguments: str) -> str:
        """What `openssl s_client` says about one request."""
        command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{self._port}", "-servername", NAME]
        command += ["-CAfile", str(self._authority.file), "-ign_eof", *arguments]
        request = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"
        done = subprocess.run(command, input=request, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout + done.stderr


@pytest.fixture
def staff(tmp_path: Path) -> Authority:
    (tmp_path / "staff").mkdir()
    return Authority(tmp_path / "staff", "staff")


@pytest.fixture
def front(authority: Authority, certificate: Issued, staff: Authority, tmp_path: Path) -> Iterator[Front]:
    port = free_port()
    with Web("web1") as web1:
        service = {
            "mode": "http",
            "listen": f"127.0.0.1:{port}",
            "client_tls": {"certificate": "mail", "client_ca": str(staff.file)},
            "check": "none",
            "real_servers": {"web1": web1.port},
        }
        config = {
            "certificates": {"mail": str(certificate.pem)},
            "real_servers": {"web1": "127.0.0.1"},
            "services": {"web": service},
        }
        with Balancer(config, tmp_path) as balancer:
            yield Front(balancer, config, port, authority)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_optional_then_required(front: Front, staff: Authority, authority: Authority, version: str) -> None:
    tls = f"--tlsv{version}", "--tls-max", version
    member = staff.issue("a member", for_clients=True)
    stranger = authority.issue("a stranger", for_clients=True)
    assert front.curl(*tls) == "200"
    assert front.showing(member, *tls) == "200"
    assert front.showing(stranger, *tls) == "000"
    front.demand(client_certificate="required")
    assert front.curl(*tls) == "000"
    assert front.showing(member, *tls) == "200"
    assert front.showing(stranger, *tls) == "000"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_who_came_without_one_does_not_resume_once_it_is_required(front: Front, tmp_path: Path, version: str) -> None:
    session = str(tmp_path / "session")
    assert "HTTP/1.1 200 OK" in front.openssl(version, "-sess_out", session)
    resumed = front.openssl(version, "-sess_in", session)
    assert "Reused, TLSv1." in resumed
    assert "HTTP/1.1 200 OK" in resumed
    front.demand(client_certificate="required")
    assert "HTTP/1.1 200 OK" not in front.openssl(version, "-sess_in", session)


def test_nothing_can_be_required_of_no_authority(front: Front) -> None:
    del front._config["services"]["web"]["client_tls"]["client_ca"]
    with pytest.raises(Refused, match="without client_ca"):
        front.demand(client_certificate="required")
