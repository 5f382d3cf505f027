"""A disk that is full, and a folder that may not be written: a change is refused in words, and nothing is half done."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.admin.door import CONFIG, Door, open_door
from tests.support.certs import Authority
from tests.support.program import Balancer
from tests.support.tools import require

#: The log may still be written: it stays far below this.
ROOM_BYTES = 200_000
LONG = "# " + "long words of an administrator " * 10_000 + "\n"


def listing(folder: Path) -> dict[str, bytes]:
    """Files that a change writes, and all that lies beside them."""
    ours = (path for path in folder.iterdir() if path.is_file() and path.name not in ("mailbalancer.log", "state.json"))
    return {path.name: path.read_bytes() for path in ours}


@contextmanager
def full_disk(balancer: Balancer) -> Iterator[None]:
    """The kernel refuses what would make a file larger than ROOM_BYTES, in the middle of writing it."""
    before = resource.prlimit(balancer.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(balancer.pid, resource.RLIMIT_FSIZE, (ROOM_BYTES, before[1]))
    try:
        yield
    finally:
        resource.prlimit(balancer.pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_a_change_and_nothing_else(tmp_path: Path) -> None:
    with open_door(tmp_path, CONFIG + LONG) as door:
        door.make_tokens()
        before = listing(tmp_path)
        with full_disk(door.balancer):
            answer = door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": 9}, If_Match="*")
            assert answer.status == 409
            assert "mailbalancer.yaml cannot be written" in answer.json["error"]
            assert listing(tmp_path) == before
            assert door.balancer.real_server("pop", "ex1")["weight"] == 1
        assert door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": 9}, If_Match="*").status == 200
        assert door.balancer.real_server("pop", "ex1")["weight"] == 9


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Door]:
    """Folders that this balancer may only read. Root may write anything, unless it gives that right away."""
    under = (
        (require("setpriv"), "--bounding-set=-dac_override", "--inh-caps=-dac_override") if os.geteuid() == 0 else ()
    )
    (tmp_path / "certs").mkdir()
    with open_door(tmp_path, under=under) as door:
        door.make_tokens()
        for folder in (tmp_path / "certs", tmp_path):
            folder.chmod(0o555)
        try:
            yield door
        finally:
            tmp_path.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_named(unwritable: Door, tmp_path_factory: pytest.TempPathFactory) -> None:
    door, folder = unwritable, unwritable.folder
    before = listing(folder)
    answer = door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": 9}, If_Match="*")
    assert (answer.status, str(folder) in answer.json["remedy"]) == (409, True), answer
    issued = Authority(tmp_path_factory.mktemp("authority")).issue("mail.example.com")
    answer = door.ask("PUT", "/api/v1/certificates/mail", {"pem": issued.pem.read_text()})
    assert (answer.status, "certs/mail.pem cannot be written" in answer.json["error"]) == (409, True), answer
    answer = door.ask("POST", "/api/v1/certificates/mail/request", {"names": ["a.example"], "key": "ecdsa-p256"})
    assert (answer.status, "cannot be written" in answer.json["error"]) == (409, True), answer
    assert listing(folder) == before
    assert list((folder / "certs").iterdir()) == []
    assert door.balancer.real_server("pop", "ex1")["weight"] == 1
