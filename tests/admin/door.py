"""A running balancer with its door open, and a plain HTTP client for it: tests see status, headers and bytes.

Decides: what a small configuration with a door looks like. Refuses to know: what a test asks.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailbalancer.admin import tokens
from mailbalancer.admin.tokens import Role
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.waiting import eventually

CONFIG = """\
version: 1
# the administrator's own words
workers: 2
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens, hosts: [mail-lb.example.com]}}
real_servers:
  ex1: 127.0.0.3   # the first
  # the second, in the other rack
  ex2: {{address: 127.0.0.2, weight: 2}}
services:
  # mail comes in here
  smtp:
    mode: tcp
    listen: 127.0.0.1:{smtp}   # vip
    check: {{type: none}}
    real_servers: {{ex1: 9, ex2: 9}}
  pop:
    mode: tcp
    listen: "127.0.0.1:{pop}"
    check: {{type: none}}
    persist: {{by: source, timeout_s: 600}}
    real_servers: [ex1, ex2]
# the end
"""


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Door:
    """The client's side; `token` goes with every request unless a request says otherwise."""

    port: int
    balancer: Balancer
    folder: Path
    token: str = ""
    secrets: dict[Role, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        /,
        *,
        token: str | None = None,
        raw: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """One request on a connection of its own; `_` in the names of headers stands for `-`."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            raw = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        use = self.token if token is None else token
        if use:
            sent.setdefault("Authorization", f"Bearer {use}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=raw, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Any:
        """What a path says; anything but 200 fails the test."""
        answer = self.ask("GET", f"/api/v1{path}", **options)
        assert answer.status == 200, answer
        return answer.json

    def etag(self) -> str:
        return str(self.get("/config")["etag"])

    def make_tokens(self) -> None:
        """One for each role, in the file that the configuration names."""
        for role in Role:
            self.secrets[role] = tokens.create(self.folder / "tokens", f"a-{role}", role, "2026-01-01")
        self.token = self.secrets[Role.ADMIN]

    @property
    def file(self) -> str:
        return self.balancer.config_file.read_text()


@contextmanager
def open_door(folder: Path, config: str = CONFIG, under: Sequence[str] = (), **more: Any) -> Iterator[Door]:
    """A balancer whose door is open; `under` is a command that runs it."""
    port = free_port()
    text = config.format(door=port, smtp=free_port(), pop=free_port(), **more)
    with Balancer(text, folder, under=under) as balancer:
        door = Door(port, balancer, folder)
        eventually(lambda: door.ask("GET", "/").status == 200, what="the door is open")
        yield door
