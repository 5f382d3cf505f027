"""What the configuration's tests share: a file's text in, its configuration or its problems out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from mailbalancer.config.load import load_text
from mailbalancer.errors import ConfigError
from mailbalancer.model import Config

PROFILES = Path(__file__).parent / "profiles"


def _load(text: str, folder: Path | None = None) -> Config:
    return load_text(textwrap.dedent(text).lstrip("\n"), "x.yaml", folder=folder, profile_dirs=[PROFILES])


@pytest.fixture
def load() -> Callable[..., Config]:
    """Load text that is right."""
    return _load


@pytest.fixture
def told() -> Callable[..., list[str]]:
    """Load text that is wrong; the lines that the operator reads."""

    def problems(text: str, folder: Path | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            _load(text, folder)
        return caught.value.problems

    return problems
