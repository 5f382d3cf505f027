"""The state file: written whole, read with suspicion, never a reason not to start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailbalancer.control.events import Events
from mailbalancer.control.state import MAX_BYTES, SavedState, StateFile
from mailbalancer.ipc.messages import Binding
from mailbalancer.log import Log
from mailbalancer.model import AdminState, MemberKey

EX1, EX2 = MemberKey("smtp", "", "ex1"), MemberKey("https", "owa", "ex2")


@pytest.fixture
def events() -> Iterator[Events]:
    log = Log()
    yield Events(log)
    log._close()


def texts(events: Events) -> list[str]:
    return [str(event["text"]) for event in events.listed()]


def test_what_was_written_is_read(tmp_path: Path, events: Events) -> None:
    file = StateFile(str(tmp_path / "state"), events)
    expires_at = time.monotonic() + 500
    file.write({EX1: AdminState.DRAINING}, [EX2], [Binding("cas", "10.0.0.1", "ex1", expires_at)])
    saved = file.read()
    assert saved.wanted == {EX1: AdminState.DRAINING}
    assert saved.not_ready == {EX2}
    (bound,) = saved.bindings
    assert (bound.group, bound.key, bound.real_server) == ("cas", "10.0.0.1", "ex1")
    assert bound.expires_at == pytest.approx(expires_at, abs=1.0)
    assert os.listdir(tmp_path) == ["state"]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
    assert texts(events) == []


def test_no_file_is_an_empty_state(tmp_path: Path, events: Events) -> None:
    assert StateFile(str(tmp_path / "state"), events).read() == SavedState()
    assert texts(events) == []


def test_no_path_keeps_nothing(events: Events) -> None:
    file = StateFile("", events)
    file.write({EX1: AdminState.DRAINING}, [], [])
    assert file.read() == SavedState()


GOOD = {"format": 1, "wanted": [["smtp", "", "ex1", "draining"]], "not_ready": [], "bindings": []}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps({**GOOD, "format": 2}).encode(),
        json.dumps({**GOOD, "wanted": [["smtp", "ex1", "draining"]]}).encode(),
        json.dumps({**GOOD, "wanted": [["smtp", "", "ex1", "sleeping"]]}).encode(),
        json.dumps({**GOOD, "not_ready": [["smtp"]]}).encode(),
        json.dumps({**GOOD, "bindings": [["cas", "k", "ex1", "soon"]]}).encode(),
        json.dumps(GOOD).encode()[:-1],
    ],
)
def test_a_damaged_file_is_a_warning(tmp_path: Path, events: Events, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    assert StateFile(str(path), events).read() == SavedState()
    (text,) = texts(events)
    assert text.startswith(f"state file {path} cannot be used (")
    assert "\n" not in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["format", "wanted", "not_ready", "bindings"]), inner)
        ),
        max_leaves=8,
    )
)
def test_any_json_is_a_state_or_a_warning(tmp_path: Path, events: Events, content: object) -> None:
    path = tmp_path / "state"
    path.write_text(json.dumps(content))
    assert isinstance(StateFile(str(path), events).read(), SavedState)


def test_a_file_of_absurd_size_is_not_read(tmp_path: Path, events: Events) -> None:
    path = tmp_path / "state"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert StateFile(str(path), events).read() == SavedState()
    assert "too large" in texts(events)[0]


def test_what_cannot_be_written_is_said_once(tmp_path: Path, events: Events) -> None:
    file = StateFile(str(tmp_path / "missing" / "state"), events)
    for _ in range(3):
        file.write({EX1: AdminState.DISABLED}, [], [])
    (text,) = texts(events)
    assert "cannot be written (No such file or directory)" in text
    (tmp_path / "missing").mkdir()
    file.write({EX1: AdminState.DISABLED}, [], [])
    assert file.read().wanted == {EX1: AdminState.DISABLED}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, events: Events) -> None:
    path = tmp_path / "state"
    file = StateFile(str(path), events)
    file.write({EX1: AdminState.DRAINING}, [], [])
    (tmp_path / "state.new").mkdir()
    file.write({EX1: AdminState.DISABLED}, [], [])
    assert file.read().wanted == {EX1: AdminState.DRAINING}
    assert len(texts(events)) == 1


def test_a_link_laid_beside_it_is_not_followed(tmp_path: Path, events: Events) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state.new").symlink_to(victim)
    StateFile(str(tmp_path / "state"), events).write({}, [], [])
    assert victim.read_text() == "precious"
