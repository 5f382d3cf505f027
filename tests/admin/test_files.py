"""Files that are replaced whole, or not at all."""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailbalancer.admin import files
from mailbalancer.errors import MailbalancerError


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the write after that fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_mode_and_content_are_as_wanted(tmp_path: Path) -> None:
    file = tmp_path / "x"
    files.replace(file, b"one", 0o600)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    files.replace(file, b"two", 0o600)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"two", 0o644)
    files.replace(file, b"three", 0o600, keep=False)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"three", 0o600)
    assert list(content(tmp_path)) == ["x"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"one")
    (tmp_path / "link").symlink_to("real")
    with files.replaced(tmp_path / "link", b"two"):
        pass
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"two"


def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"old")
    for act in (lambda: files.replace(file, b"n" * 5000), lambda: files.replaced(file, b"n" * 5000).__enter__()):
        with room_for(1000), pytest.raises(MailbalancerError, match="cannot be written"):
            act()
        assert content(tmp_path) == {"x": b"old"}


def test_to_take_back_needs_no_room(tmp_path: Path) -> None:
    """The old content is larger than what may still be written."""
    file = tmp_path / "x"
    file.write_bytes(b"o" * 5000)
    inode = file.stat().st_ino
    seen = b""
    try:
        with room_for(1000), files.replaced(file, b"new"):
            seen = file.read_bytes()
            raise ValueError("no")
    except ValueError:
        assert seen == b"new"
    assert content(tmp_path) == {"x": b"o" * 5000}
    assert file.stat().st_ino == inode


def test_a_new_file_is_taken_back_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), files.replaced(tmp_path / "x", b"new"):
        raise ValueError("no")
    assert content(tmp_path) == {}


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"one")
    for left in (".x.new", ".x.old"):
        (tmp_path / left).write_bytes(b"left")
    with files.replaced(file, b"two"):
        pass
    assert content(tmp_path) == {"x": b"two"}


def test_a_file_that_may_have_no_second_name_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # the kernel's fs.protected_hardlinks, which only other users meet
    file = tmp_path / "x"
    file.write_bytes(b"one")
    file.chmod(0o640)
    with pytest.raises(ValueError, match="no"), files.replaced(file, b"two"):
        raise ValueError("no")
    assert content(tmp_path) == {"x": b"one"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
