"""The default service under sslyze: compliant with Mozilla's intermediate profile, which sslyze carries with it.

sslyze lives in an environment of its own (see `tests/support/make-sslyze.sh`). It scans loopback, and asks nobody else.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certs import Authority
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.tools import cannot_run
from tests.support.web import Web

pytestmark = pytest.mark.live

NAME = "mail.example.com"
PROGRAM = Path(sys.prefix) / "sslyze" / "bin" / "sslyze"
COMPLIANT, NOT_COMPLIANT = "OK - Compliant.", "FAILED - Not compliant."


def scanned(authority: Authority, folder: Path, profile: str, rsa_bits: int = 0, **client_tls: str) -> str:
    """What sslyze says about a service that has no more in it than this."""
    if not PROGRAM.exists():
        cannot_run(f"sslyze is not installed ({PROGRAM}: sh tests/support/make-sslyze.sh .venv)")
    issued = authority.issue(NAME, days=60, rsa_bits=rsa_bits)
    port = free_port()
    with Web("web1") as web1:
        service = {
            "mode": "http",
            "listen": f"127.0.0.1:{port}",
            "client_tls": {"certificate": "mail", **client_tls},
            "check": "none",
            "real_servers": {"web1": web1.port},
        }
        config = {
            "certificates": {"mail": str(issued.pem)},
            "real_servers": {"web1": "127.0.0.1"},
            "services": {"web": service},
        }
        with Balancer(config, folder):
            options = ["--mozilla_config", profile, "--certinfo_ca_file", str(authority.file), "--sni", NAME]
            command = [str(PROGRAM), *options, f"127.0.0.1:{port}"]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=False
            )
    return done.stdout + done.stderr


@pytest.mark.parametrize("rsa_bits", [0, 2048], ids=["ECDSA", "RSA"])
def test_the_default_is_compliant_with_the_intermediate_profile(
    authority: Authority, tmp_path: Path, rsa_bits: int
) -> None:
    said = scanned(authority, tmp_path, "intermediate", rsa_bits)
    assert COMPLIANT in said, said
    assert "VULNERABLE" not in said, said


def test_1_3_alone_is_compliant_with_the_modern_profile(authority: Authority, tmp_path: Path) -> None:
    said = scanned(authority, tmp_path, "modern", min_version="1.3")
    assert COMPLIANT in said, said


def test_the_scanner_can_tell(authority: Authority, tmp_path: Path) -> None:
    """What the default has, TLS 1.2, is against the modern profile."""
    _, _, faults = scanned(authority, tmp_path, "modern").partition(NOT_COMPLIANT)
    assert "TLSv1.2" in faults
