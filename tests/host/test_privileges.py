"""Who we become: real users and capabilities, each tried in a child that may lose them."""

from __future__ import annotations

import os
import pwd
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer.errors import PrivilegeError
from mailbalancer.host.privileges import (
    CAP_NET_BIND_SERVICE,
    DEFAULT_USER,
    become,
    drop_everything,
    own_directories,
    service_user,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give privileges up")


def in_child(job: Callable[[], None]) -> None:
    """Run `job` in a process of its own; its failure is the test's."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        failure = said.read()
    os.waitpid(pid, 0)
    assert not failure, failure


def status(word: str) -> str:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(word + ":")).partition(":")[2].strip()


def low_port() -> int:
    """A port below 1024 that is free."""
    for port in range(1, 1024):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("every port below 1024 is taken")


@as_root
def test_root_becomes_the_user_and_keeps_only_low_ports() -> None:
    port = low_port()

    def job() -> None:
        assert become("nobody")
        assert os.getresuid() == (65534,) * 3
        assert 0 not in os.getgroups()
        for kind in ("CapEff", "CapPrm"):
            assert int(status(kind), 16) == 1 << CAP_NET_BIND_SERVICE
        assert int(status("CapInh"), 16) == 0
        assert status("NoNewPrivs") == "1"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
        with pytest.raises(PermissionError):
            os.setuid(0)

    in_child(job)


@as_root
@pytest.mark.parametrize("user", ["nobody", ""])
def test_a_worker_has_nothing_left(user: str) -> None:
    def job() -> None:
        become(user)
        drop_everything()
        assert int(status("CapEff"), 16) == int(status("CapPrm"), 16) == 0
        assert status("NoNewPrivs") == "1"

    in_child(job)


@as_root
@pytest.mark.parametrize("user", ["", "root"])
def test_root_stays_root_when_told_to(user: str) -> None:
    in_child(lambda: _assert(not become(user) and os.geteuid() == 0))


def _assert(truth: bool) -> None:
    assert truth


@as_root
def test_an_ordinary_user_stays_who_it_is() -> None:
    def job() -> None:
        os.setuid(65534)
        assert not become("somebody-who-is-not-there")
        assert os.geteuid() == 65534

    in_child(job)


@as_root
def test_a_missing_user_is_named_with_the_command_that_makes_it() -> None:
    with pytest.raises(PrivilegeError) as refused:
        become("mb-nobody-here")
    assert "mb-nobody-here does not exist" in refused.value.message
    assert "adduser --system" in refused.value.remedy
    assert "mb-nobody-here" in refused.value.remedy


@as_root
def test_directories_are_made_and_given_to_the_user(tmp_path: Path) -> None:
    fresh = tmp_path / "run" / "mailbalancer"
    own_directories([fresh, tmp_path], "nobody")
    assert fresh.stat().st_uid == 65534
    assert fresh.stat().st_mode & 0o777 == 0o755
    assert tmp_path.stat().st_uid == 0, "a directory that was there keeps its owner"
    assert (tmp_path / "run").stat().st_uid == 0


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivilegeError, match=r"install -d -o mailbalancer"):
        own_directories([tmp_path / "file" / "below"], "")


def test_the_user_of_the_documentation_is_taken_only_if_it_exists() -> None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    assert service_user("auto") == (DEFAULT_USER if DEFAULT_USER in known else "")


@pytest.mark.parametrize("wanted", ["", "root", "somebody-else"])
def test_a_user_that_is_named_is_not_second_guessed(wanted: str) -> None:
    assert service_user(wanted) == wanted
