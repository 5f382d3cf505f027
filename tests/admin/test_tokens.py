from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mailbalancer.admin import tokens
from mailbalancer.admin.tokens import Role, TokensFile
from mailbalancer.errors import MailbalancerError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_a_token_is_found_and_never_written_down(path: Path) -> None:
    secret = tokens.create(path, "jane", Role.OPERATE, "2026-01-01")
    assert secret not in path.read_text()
    assert len(secret) > 40
    found = TokensFile(str(path)).find(secret)
    assert found is not None
    assert (found.name, found.role) == ("jane", Role.OPERATE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_nearly_right_is_nobody_s(path: Path) -> None:
    secret = tokens.create(path, "jane", Role.READ, "2026-01-01")
    file = TokensFile(str(path))
    assert [file.find(wrong) for wrong in ("", secret[:-1], secret + "x", secret.upper(), tokens.digest(secret))] == [
        None
    ] * 5


def test_changes_of_the_file_count_at_once(path: Path) -> None:
    file = TokensFile(str(path))
    assert file.is_empty()
    jane = tokens.create(path, "jane", Role.READ, "2026-01-01")
    joe = tokens.create(path, "joe", Role.ADMIN, "2026-01-01")
    assert file.find(jane)
    assert file.find(joe)
    tokens.revoke(path, "jane")
    assert file.find(jane) is None
    assert file.find(joe)
    assert [token.name for token in tokens.listed(path)] == ["joe"]


@pytest.mark.parametrize(
    "line",
    [
        "jane",
        "jane admin",
        "jane root sha256:" + "0" * 64,
        "jane admin sha256:" + "0" * 63,
        "jane admin md5:" + "0" * 64,
        "jane admin sha256:" + "0" * 64 + " 2026-01-01 more",
        "<b> admin sha256:" + "0" * 64,
    ],
)
def test_half_a_file_lets_nobody_in(path: Path, line: str) -> None:
    secret = tokens.create(path, "good", Role.ADMIN, "2026-01-01")
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MailbalancerError, match=":3: this is no token"):
        TokensFile(str(path)).find(secret)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_lets_nobody_in(path: Path) -> None:
    secret = tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    path.chmod(0)
    with pytest.raises(MailbalancerError, match="cannot be read"):
        TokensFile(str(path)).find(secret)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "../x", "-x", "x" * 65, "ä"])
def test_names_that_would_break_the_file_are_refused(path: Path, name: str) -> None:
    with pytest.raises(MailbalancerError, match="cannot name a token"):
        tokens.create(path, name, Role.READ, "2026-01-01")
    assert not path.exists()


def test_a_name_is_taken_once(path: Path) -> None:
    tokens.create(path, "jane", Role.READ, "2026-01-01")
    with pytest.raises(MailbalancerError, match="already"):
        tokens.create(path, "jane", Role.ADMIN, "2026-01-01")
    with pytest.raises(MailbalancerError, match="there are: jane"):
        tokens.revoke(path, "joe")


def test_roles_include_those_before_them() -> None:
    covered = {role: [str(needed) for needed in Role if role.covers(needed)] for role in Role}
    assert covered[Role.METRICS] == ["metrics"]
    assert covered[Role.OPERATE] == ["metrics", "read", "operate"]
    assert covered[Role.ADMIN] == ["metrics", "read", "operate", "admin"]
