"""Every operation of the API, asked by a program that knows nothing of it but its OpenAPI description: no answer is a
fault, and none is one that the description does not announce. Each role, and a visitor without a token."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbalancer.admin.tokens import Role
from tests.admin.door import Door, open_door
from tests.admin.test_certifying import CONFIG
from tests.support.certs import Authority
from tests.support.program import run_cli

pytestmark = pytest.mark.live

#: Those not listed want other answers than ours: 400 where If-Match is missing (428, RFC 6585 section 3), 401 where
#: somebody guesses tokens (429), and nothing refused that has the right types (422 names what the file's rules refuse).
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"),
)
#: Names that are there, for the second half: with random ones nearly every answer is 404.
PRESENT = """\
[parameters]
"path.service" = "smtp"
"path.real_server" = "ex1"
"path.profile" = "dns"
"path.certificate" = "mail"
"path.number" = 1
"header.If-Match" = "*"
"""
EXAMPLES = os.environ.get("MAILBALANCER_SCHEMATHESIS_EXAMPLES", "4")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    for name in ("certs", "authority"):
        (tmp_path / name).mkdir()
    authority = Authority(tmp_path / "authority")
    authority.issue("mail.example.com").pem.rename(tmp_path / "certs" / "mail.pem")
    with open_door(tmp_path, CONFIG, web=authority.issue("web.example.com").pem) as door:
        yield door


def walk(door: Door, folder: Path, token: str, phases: str, *options: str) -> None:
    """One run; whatever it finds is what the test says."""
    # without a token loopback may read: to leave the token out is then no mistake
    checks = CHECKS if token else tuple(check for check in CHECKS if check != "negative_data_rejection")
    named = ("-H", f"Authorization: Bearer {token}") if token else ()
    url = f"http://127.0.0.1:{door.port}"
    run = ("run", str(folder / "openapi.json"), "--url", url, *named, "--checks", ",".join(checks))
    bounded = ("--phases", phases, "--max-examples", EXAMPLES, "--workers", "2", "--request-timeout", "20")
    steady = ("--generation-deterministic", "--warnings", "off", "--no-color", "--max-failures", "20")
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *options, *run, *bounded, *steady],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: " in done.stdout


@pytest.mark.parametrize("role", [*Role, None], ids=lambda role: str(role or "nobody"))
def test_no_role_meets_a_fault_or_an_answer_that_is_not_announced(
    door: Door, tmp_path: Path, role: Role | None
) -> None:
    description = door.ask("GET", "/api/v1/openapi.json").body
    if role is not None:
        door.make_tokens()
    token = door.secrets[role] if role is not None else ""
    described = tmp_path / "schemathesis.toml"
    described.write_text(PRESENT)
    folder = tmp_path / "walk"
    folder.mkdir()
    (folder / "openapi.json").write_bytes(description)
    walk(door, folder, token, "coverage" if role is Role.ADMIN else "fuzzing")
    walk(door, folder, token, "fuzzing", "--config-file", str(described))
    assert door.balancer.running
    assert run_cli("check", str(door.balancer.config_file)).returncode == 0, (
        "the file is one that can be loaded, whatever was asked"
    )
