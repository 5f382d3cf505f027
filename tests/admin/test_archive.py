"""The configurations that ran: the last fifty, over restarts, and over a folder that fails."""

from __future__ import annotations

import stat
from pathlib import Path

from mailbalancer.admin.archive import KEPT, Archive


def test_the_last_fifty_are_kept_over_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "configurations"
    archive = Archive(folder)
    for number in range(60):
        assert archive.keep(f"# {number}\n", "2026-01-01T00:00:00Z", "jane", f"change {number}") is not None
    assert archive.keep("# 59\n", "2026-01-01T00:00:00Z", "jane", "again") is None, "it is what ran before"
    again = Archive(folder)
    assert [one.number for one in again] == list(range(11, 61)) == [one.number for one in archive]
    assert (again.newest(), again.find(11)) == (archive.newest(), archive.find(11))
    assert again.find(10) is None
    assert len(list(folder.iterdir())) == KEPT
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    fresh = again.keep("# new\n", "2026-01-01T00:00:00Z", "file", "by hand")
    assert fresh is not None
    assert fresh.number == 61


def test_what_is_damaged_is_said_and_costs_only_itself(tmp_path: Path) -> None:
    folder = tmp_path / "configurations"
    archive = Archive(folder)
    for number in range(3):
        archive.keep(f"# {number}\n", "2026-01-01T00:00:00Z", "jane", "change")
    (folder / "00000002.json").write_text('{"number": ')
    (folder / "00000009.json").write_text('{"number": "9"}')
    (folder / "note.txt").write_text("mine")
    again = Archive(folder)
    assert [one.number for one in again] == [1, 3]
    assert "is no configuration of the history" in again.complaint


def test_without_a_folder_they_are_in_memory_and_one_that_fails_is_said(tmp_path: Path) -> None:
    assert Archive(None).keep("x", "", "jane", "change") is not None
    (tmp_path / "file").write_text("")
    archive = Archive(tmp_path / "file")
    assert archive.keep("x", "", "jane", "change") is not None
    assert "cannot be written" in archive.complaint
    assert [one.text for one in archive] == ["x"]
