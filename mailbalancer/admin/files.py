"""Files of the administrator's that are changed: replaced whole, or not at all.

Decides: that the new content is on the disk before the old one is gone, and that owner and permissions stay.
Refuses to know: what is in them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mailbalancer.errors import MailbalancerError


def replace(
    path: Path, content: bytes, mode: int = 0o640, owner: tuple[int, int] | None = None, *, keep: bool = True
) -> None:
    """Put `content` in place of the file, or make it with `mode` and `owner` (user and group id).

    With `keep` a file that is there keeps its own mode and owner. A symbolic link stays one: the file it leads to is
    replaced.

    Raises:
        MailbalancerError: it cannot be written; the old content is still there.
    """
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.new")
    try:
        if keep:
            mode, owner = _kept(target, mode, owner)
        _write_through(fresh, content, mode, owner)
        fresh.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise _unwritable(path, error) from error


@contextmanager
def replaced(
    path: Path, content: bytes, mode: int = 0o640, owner: tuple[int, int] | None = None, *, keep: bool = True
) -> Iterator[None]:
    """`replace`, and what was there before comes back when the block raises.

    It waits beside the file under a name of its own, so that to bring it back needs no room on the disk.

    Raises:
        MailbalancerError: it cannot be written; the old content is still there.
    """
    target = path.resolve()
    old = target.with_name(f".{target.name}.old")
    there = _set_aside(target, old)
    try:
        replace(path, content, mode, owner, keep=keep)
        try:
            yield
        except BaseException:
            if there:
                old.replace(target)
            else:
                target.unlink(missing_ok=True)
            raise
    finally:
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _set_aside(target: Path, old: Path) -> bool:
    """A second name for what is there; a copy where the file may not have two (fs.protected_hardlinks)."""
    try:
        old.unlink(missing_ok=True)
        if not target.exists():
            return False
        try:
            os.link(target, old)
        except OSError:
            status = target.stat()
            _write_through(old, target.read_bytes(), stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid))
    except OSError as error:
        raise _unwritable(target, error) from error
    return True


def _unwritable(path: Path, error: OSError) -> MailbalancerError:
    remedy = f"let the user that runs this write to {path.resolve().parent} (a new file is put beside the old one)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room on that disk"
    elif error.errno == errno.EROFS:
        remedy = (
            "it is mounted read-only here: `ReadWritePaths=` of the systemd unit, or the container's volume, says so"
        )
    return MailbalancerError(f"{path} cannot be written: {error.strerror or error}", remedy)


def _kept(target: Path, mode: int, owner: tuple[int, int] | None) -> tuple[int, tuple[int, int] | None]:
    """Mode and owner of what is there now."""
    try:
        now = target.stat()
    except FileNotFoundError:
        return mode, owner
    if not stat.S_ISREG(now.st_mode):
        raise OSError(0, "it is not a file")
    return stat.S_IMODE(now.st_mode), (now.st_uid, now.st_gid)


def _write_through(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    with suppress(FileNotFoundError):
        path.unlink()  # left by a run that was killed
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            with suppress(PermissionError):  # the new file is ours then; its folder let us
                os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
