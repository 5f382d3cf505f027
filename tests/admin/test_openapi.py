"""The description and the server say the same, whatever is sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailbalancer.admin.operation import NAME_PATTERN
from tests.admin.door import Answer, Door, open_door

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["smtp", "pop", "ex1", "ex2", "none", "1", "exchange-2019"]) | st.text(min_size=1, max_size=12)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with open_door(tmp_path_factory.mktemp("door")) as door:
        door.make_tokens()
        yield door
        assert door.balancer.running


@pytest.fixture(scope="module")
def described(door: Door) -> Any:
    return door.get("/openapi.json")


def operations(described: Any) -> list[tuple[str, str, Any]]:
    return [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def check(answer: Answer, operation: Any) -> None:
    """An answer is one of those that are described, and looks like it."""
    assert answer.status != 500, answer
    if answer.status == 200 and "json" not in answer.headers["Content-Type"]:
        assert answer.headers["Content-Type"] in operation["responses"]["200"]["content"]
        return
    schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
    required = schema.get("required", ["error", "remedy"])
    assert set(required) <= set(answer.json), (answer, required)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_answer_is_described(door: Door, described: Any, data: st.DataObject) -> None:
    method, path, operation = data.draw(st.sampled_from(operations(described)))
    place = re.sub(r"\{\w+\}", lambda _: quote(data.draw(WORDS), safe="") or "x", path)
    if re.search(r"/\.{1,2}(/|$)", place):  # a client takes these out before it sends
        return
    names = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"]
    query = data.draw(st.dictionaries(st.sampled_from([*names, "else"]), WORDS | st.just("drain"), max_size=2))
    body: Any = None
    if method != "GET":
        body = data.draw(body_of(operation, described) | VALUES)
    headers = data.draw(st.sampled_from([{}, {"If_Match": "*"}, {"If_Match": "x"}, {"If_Match": door.etag()}]))
    url = f"{place}?{urlencode(query)}" if query else place
    raw = None if method == "GET" else json.dumps(body).encode()
    more = {} if method == "GET" else {"Content_Type": "application/json"}
    check(door.ask(method, url, raw=raw, **headers, **more), operation)


def body_of(operation: Any, described: Any) -> st.SearchStrategy[Any]:
    """Bodies with the right keys and any values."""
    content = operation.get("requestBody")
    if content is None:
        return st.just({})
    name = content["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    keys = described["components"]["schemas"][name]["properties"]
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, VALUES))


def test_names_and_references_lead_somewhere(described: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(described)]
    assert len(names) == len(set(names)) > 30
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)):
        assert reference in described["components"]["schemas"]


def test_every_operation_says_what_it_is_and_who_may(described: Any) -> None:
    for method, path, operation in operations(described):
        assert operation["summary"], (method, path)
        assert {"401", "403"} <= set(operation["responses"])
        guarded = any(parameter["name"] == "If-Match" for parameter in operation["parameters"])
        changes = path.startswith("/api/v1/config") and method in ("PUT", "DELETE")
        assert guarded == (changes or "apply" in path or "rollback" in path or "windows" in path)


def test_names_of_the_configuration_fit_the_paths() -> None:
    for name in ("owa", "rpc-cas", "Mail_1", "ex2.example.com"):
        assert re.match(NAME_PATTERN, name)


def test_the_description_does_not_depend_on_the_machine(door: Door, tmp_path: Path) -> None:
    assert str(door.folder) not in json.dumps(door.get("/openapi.json"))
