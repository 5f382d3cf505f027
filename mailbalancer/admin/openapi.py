"""The OpenAPI description of the API, made of the same declarations that the server runs.

Decides: which answers each operation can give. PURE.
Refuses to know: the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from mailbalancer import __version__
from mailbalancer.admin.operation import NAME_PATTERN, TAG_PATTERN, Operation
from mailbalancer.admin.tokens import Role

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_TAG = {"type": "string", "pattern": f"^{TAG_PATTERN}$"}
_ERROR = {"$ref": "#/components/schemas/Error"}
_WORDS = {
    400: "the request is not one of this operation",
    401: "a token is needed, or this one is not known",
    403: "the role does not allow it, or the request came from another site",
    404: "there is nothing of this name",
    409: "the balancer refuses it as it is now",
    412: "the configuration has changed since it was read",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "the configuration would have problems; each is listed",
    428: "If-Match is missing",
    429: "too many wrong tokens",
    500: "a fault of mailbalancer",
    503: "not possible now; try again",
}


def describe(operations: Iterable[Operation]) -> dict[str, Any]:
    """The description, as data."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Error": _error_schema()}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mailbalancer",
            "version": __version__,
            "description": "State and configuration of a running mailbalancer. Send a token as a bearer token.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def answers(operation: Operation) -> set[int]:
    """Every status that this operation can answer with."""
    possible = {200, 400, 401, 403, 409, 429, 500, 503}
    if _PLACEHOLDER.search(operation.path):
        possible.add(404)
    if operation.method != "GET":
        possible |= {404, 413, 415}
    if operation.guarded or operation.body is not None:
        possible |= {422}
    if operation.guarded:
        possible |= {412, 428}
    return possible


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs the role `{operation.role}`.",
        "parameters": [*_in_path(operation), *_in_query(operation), *_in_header(operation)],
        "responses": {str(status): _answer(operation, status) for status in sorted(answers(operation))},
    }
    if operation.body is not None:
        name = _schema(operation.body, schemas)
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        described["requestBody"] = {"required": bool(schemas[name].get("required")), "content": content}
    if operation.role is Role.METRICS:
        described["security"] = [{"token": []}, {}]
    return described


def _in_path(operation: Operation) -> list[dict[str, Any]]:
    numbers = {"type": "integer", "minimum": 1, "maximum": 2**31}
    return [
        {
            "name": word,
            "in": "path",
            "required": True,
            "schema": numbers if word == "number" else {"type": "string", "pattern": NAME_PATTERN},
        }
        for word in _PLACEHOLDER.findall(operation.path)
    ]


def _in_query(operation: Operation) -> list[dict[str, Any]]:
    schema = operation.query.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": described}
        for name, described in schema.get("properties", {}).items()
    ]


def _in_header(operation: Operation) -> list[dict[str, Any]]:
    if not operation.guarded:
        return []
    text = "the ETag of /api/v1/config that you have seen, or * to overwrite whatever is there"
    return [{"name": "If-Match", "in": "header", "required": True, "schema": _TAG, "description": text}]


def _answer(operation: Operation, status: int) -> dict[str, Any]:
    if status != 200:
        return {"description": _WORDS[status], "content": {"application/json": {"schema": _ERROR}}}
    if operation.name == "live":
        return {"description": "events, one per second", "content": {"text/event-stream": {}}}
    if operation.kind != "application/json":
        return {"description": "a picture", "content": {operation.kind: {}}}
    schema = {"type": "object", "required": list(operation.keys)}
    return {"description": "done", "content": {"application/json": {"schema": schema}}}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> str:
    described = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(described.pop("$defs", {}))
    schemas[model.__name__] = described
    return model.__name__


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "required": ["error", "remedy"],
        "properties": {"error": text, "remedy": text, "problems": {"type": "array", "items": text}},
    }
