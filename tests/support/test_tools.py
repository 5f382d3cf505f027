"""What a missing program means: a skipped test here, a failed one in CI."""

from __future__ import annotations

import pytest

from tests.support.tools import require


def test_a_program_that_is_there_is_found() -> None:
    assert require("sh").endswith("/sh")


def test_a_missing_program_skips_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAILBALANCER_CI", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("tests.support.tools.SYSTEM_FOLDERS", "/nonexistent")
    with pytest.raises(pytest.skip.Exception, match=r"postconf is not installed.*apt-get install postfix"):
        require("postconf")


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILBALANCER_CI", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        require("no-such-program")
