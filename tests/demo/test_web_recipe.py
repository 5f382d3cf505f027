"""The web part on paper: lines a shell can run, with addresses that are the demo's."""

from __future__ import annotations

import shlex
from pathlib import Path

from mailbalancer.demo import web_recipe
from mailbalancer.demo.authority import papers
from tests.demo.test_recipe import PORTS

FOLDER = "/tmp/my demo"


def test_every_command_can_be_pasted() -> None:
    lines = list(web_recipe.to_try(PORTS, papers(Path(FOLDER)), FOLDER, "mailbalancer"))
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("  ")]
    curls = [words for words in commands if words[0] == "curl"]
    assert len(curls) == 6
    for words in curls:
        assert words[words.index("--cacert") + 1] == f"{FOLDER}/demo-ca.pem"
        assert any(word.startswith("https://127.0.0.1:2550/") for word in words)
    assert ["mailbalancer", "tls", "pin", "-c", f"{FOLDER}/mailbalancer.yaml", "web", "ex1"] in commands
