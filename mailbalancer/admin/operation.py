"""What the API can do, one declaration per operation: the server and its OpenAPI description are both made of these.

Decides: what an operation has to say about itself.
Refuses to know: HTTP servers, and what any operation does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mailbalancer.admin.gate import Visitor
from mailbalancer.admin.tokens import Role

#: What `configuration.etag` makes, or any.
TAG_PATTERN = r'("[0-9a-f]{32}"|[*])'
#: Names in paths, queries and bodies: what the configuration allows, with room.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _decimal(value: Any) -> Any:
    """Of a query: digits and nothing else, where Python would take `+1_0` too."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError("must be a whole number")
    return value


Number = Annotated[int, BeforeValidator(_decimal)]


class Given(BaseModel):
    """A query or a body: what is not declared is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Given):
    """No query, no body."""


class DryRun(Given):
    """Configuration changes can be looked at first."""

    dry_run: bool = Field(default=False, description="Answer with the diff and change nothing")


class Paged(Given):
    """Lists have an end."""

    limit: Number = Field(default=100, ge=1, le=10_000)


@dataclass(frozen=True, slots=True)
class Call:
    """One request that passed the gate. `query` and `body` are instances of what the operation declares."""

    visitor: Visitor
    path: Mapping[str, str]
    query: Any
    body: Any
    if_match: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is more than facts with status 200."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    kind: str = "application/json"


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Attributes:
        name: `operationId`, and what the audit log calls it.
        role: the least that a visitor must be.
        keys: what the answer, an object, always has.
        body: what must be sent; None for nothing.
        guarded: changes the configuration file, so `If-Match` is needed.
        audited: changes something.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    name: str
    summary: str
    role: Role
    handler: Handler
    keys: tuple[str, ...] = ()
    query: type[BaseModel] = Nothing
    body: type[BaseModel] | None = None
    guarded: bool = False
    audited: bool = False
    kind: str = "application/json"
