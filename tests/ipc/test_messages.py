"""Messages survive the way down (pickle) and up (JSON), and nothing but ours comes up."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailbalancer.ipc.messages import (
    Bind,
    Binding,
    Bound,
    Configure,
    Configured,
    Down,
    DropSessions,
    Imbalance,
    Listening,
    ListSessions,
    OwnAddress,
    SessionList,
    Stop,
    Stopped,
    Unbind,
    Up,
    pack_down,
    pack_up,
    unpack_down,
    unpack_up,
)
from mailbalancer.model import Config, Endpoint, MemberKey

CONFIG = Config("x.yaml", (), (), 2, "/run/x/control", "", "")
BINDING = Binding("cas", "10.0.0.1", "ex1", 12.5)

DOWN: list[Down] = [
    Configure(
        3, CONFIG, {MemberKey("s", "", "a"): 1}, {"s": 2}, {7: Listening("s", Endpoint("::1", 25))}, (7,), (BINDING,)
    ),
    Bind(BINDING),
    Unbind("cas"),
    DropSessions(4, "drained"),
    ListSessions(1, "s", 5),
    Stop(99.5),
]
UP: list[Up] = [
    Configured(3, "no"),
    Bound("cas", "10.0.0.1", "ex1", 12.5),
    Imbalance("s", "10.0.0.1", 5, 9),
    OwnAddress("s", "10.0.2.0/24"),
    SessionList(1, [{"service": "s", "age_s": 0.5}], 2),
    Stopped(0),
]


@pytest.mark.parametrize("message", DOWN, ids=lambda message: type(message).__name__)
def test_downwards(message: Down) -> None:
    assert unpack_down(pack_down(message)) == message


@pytest.mark.parametrize("message", UP, ids=lambda message: type(message).__name__)
def test_upwards(message: Up) -> None:
    assert unpack_up(pack_up(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"type": "Stop", "deadline_at": 1}',
        b'{"type": ["Bound"]}',
        b'{"type": "Stopped"}',
        b'{"type": "Stopped", "left": 1, "more": 2}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_of_a_worker(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- that it is one is the contract
        unpack_up(data)


@given(st.binary(max_size=200))
def test_any_bytes_from_a_worker_are_a_message_or_a_value_error(data: bytes) -> None:
    try:
        unpack_up(data)
    except ValueError:
        return


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine makes the data slowly
@given(st.dictionaries(st.sampled_from(["type", "left", "version", "error"]), json_values))
def test_any_json_object_is_a_message_or_a_value_error(fields: dict[str, object]) -> None:
    try:
        unpack_up(json.dumps(fields).encode())
    except ValueError:
        return
