"""A pin gets into the file, with every comment around it left where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailbalancer.admin import pinning
from mailbalancer.config.load import load
from mailbalancer.errors import MailbalancerError

OLD, NEW = "a1" * 32, "12" * 32  # the second one could be read as a number
FILE = """version: 1
real_servers: {ex1: 10.0.2.11, ex2: 10.0.2.12}   # both in the cellar
services:
  owa:
    mode: smtp
    listen: 127.0.0.1:2525
    server_tls:   # Exchange's own certificate
VERIFY
    real_servers: [ex1, ex2]   # not the old one
"""


def facts(*pinned: str, sha256: str = NEW) -> dict[str, Any]:
    return {
        "service": "owa",
        "real_server": "ex1",
        "endpoint": "10.0.2.11:443",
        "names": ["ex1.example.com", "ex1"],
        "issuer": "ex1",
        "not_before": "2026-01-01T00:00:00Z",
        "not_after": "2031-01-01T00:00:00Z",
        "days_left": 1500,
        "sha256": sha256,
        "pinned": list(pinned),
        "others": ["ex2"],
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mailbalancer.yaml"


def written(file: Path, verify: str) -> Path:
    file.write_text(FILE.replace("VERIFY", f"      starttls: require\n{verify}"))
    return file


@pytest.mark.parametrize(
    ("before", "pinned", "after", "name"),
    [
        ("      verify: none  # for the test", (), NEW, ""),
        ("      verify: {name: mail.example.com}", (), NEW, "mail.example.com"),
        (f"      verify: {{pin: {OLD}}}", (OLD,), f"{OLD},{NEW}", ""),
        ("", (), NEW, ""),
    ],
)
def test_the_pin_is_written_and_comments_stay(
    file: Path, before: str, pinned: tuple[str, ...], after: str, name: str
) -> None:
    written(file, before)
    said = pinning.write(facts(*pinned), file)
    assert said == f"{file} is changed; `mailbalancer reload` applies it"
    service = load(file).service("owa")
    assert service is not None
    assert service.server_tls is not None
    verify = service.server_tls.verify
    assert (verify.kind, verify.pin_sha256, verify.name) == ("pin", after, name)
    text = file.read_text()
    for comment in ("# both in the cellar", "# Exchange's own certificate", "# not the old one"):
        assert comment in text


def test_what_would_not_be_valid_is_not_written(file: Path) -> None:
    before = written(file, "      verify: full").read_text().replace("2525", "99999")
    file.write_text(before)
    with pytest.raises(MailbalancerError, match="99999"):
        pinning.write(facts(), file)
    assert file.read_text() == before


def test_a_pinned_certificate_changes_nothing(file: Path) -> None:
    before = written(file, f"      verify: {{pin: {NEW}}}").read_text()
    assert "pinned already" in pinning.write(facts(NEW), file)
    assert file.read_text() == before
    assert "It is pinned already." in pinning.page(facts(NEW), file)


def test_the_page_has_a_line_that_can_be_copied(file: Path) -> None:
    page = pinning.page(facts(), written(file, "      verify: full")).splitlines()
    assert page[0] == "ex1 (10.0.2.11:443) of owa shows this certificate:"
    assert f"  sha256   {NEW}" in page
    assert f'  services.owa.server_tls.verify: {{pin: "{NEW}"}}' in page
    assert page[-1].endswith("look at the others, too: ex2")


def test_names_of_strangers_are_harmless(file: Path) -> None:
    hostile = facts() | {"names": ["\x1b[2Jex1"], "issuer": "a\nb"}
    page = pinning.page(hostile, written(file, "      verify: full"))
    assert "?[2Jex1" in page
    assert "issuer   a?b" in page
