"""The usual network of these tests: clients, the balancer as gateway of the servers, two servers.

client 10.0.1.5 ── lan 10.0.1.0/24 ── balancer 10.0.1.1 | 10.0.2.1 ── farm 10.0.2.0/24 ── s1 10.0.2.11, s2 10.0.2.12
far    10.9.0.5 ── router 10.0.1.254 (a client in another network)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.farm import Farm
from tests.support.netns import World


@pytest.fixture
def world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def farm(world: World, tmp_path: Path) -> Farm:
    return Farm(world, tmp_path)


@pytest.fixture
def base() -> dict[str, Any]:
    """What every configuration of these tests begins with."""
    return {"real_servers": {"s1": "10.0.2.11", "s2": "10.0.2.12"}}
