"""The way of a request: gate, arguments, handler, answer, audit.

Decides: the order, the shape of every answer and error, and that no handler can be asked with anything undeclared.
Refuses to know: sockets and aiohttp's server (`server` does), and what operations do.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel, ValidationError

from mailbalancer.admin.audit import Audit
from mailbalancer.admin.edit import MissingError
from mailbalancer.admin.gate import Asked, Gate, Refused, Visitor, check_change, permit
from mailbalancer.admin.operation import NAME_PATTERN, TAG_PATTERN, Call, Operation, Reply
from mailbalancer.admin.tokens import Role
from mailbalancer.errors import ConfigError, MailbalancerError
from mailbalancer.log import Log

#: Who is written down for commands that came through the control socket.
ON_THIS_MACHINE = "command-line"
MAX_BODY_BYTES = 2 * 1024 * 1024
#: A body that has not come within this time will not come.
BODY_S = 15.0
_NAME = re.compile(NAME_PATTERN.replace("$", r"\Z"))
_NUMBER = re.compile(r"[1-9][0-9]{0,8}\Z")


def asked(request: web.Request) -> Asked:
    """What the gate looks at."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return Asked(request.method, request.headers, str(peer[0]) if peer else "", request.secure)


class Runner:
    """Runs operations for requests."""

    def __init__(self, gate: Gate, audit: Audit, log: Log) -> None:
        self.gate = gate
        self._audit = audit
        self._log = log

    def route(self, operation: Operation) -> web.RouteDef:
        """What aiohttp is told of an operation."""

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handle(operation, request)

        return web.route(operation.method, operation.path, handle)

    def visitor(self, request: web.Request, needed: Any) -> Visitor:
        """Who asks; may they not, then `Refused`."""
        facts = asked(request)
        visitor = self.gate.visitor(facts, asyncio.get_running_loop().time())
        permit(visitor, needed)
        check_change(facts, visitor.visit)
        return visitor

    async def _handle(self, operation: Operation, request: web.Request) -> web.StreamResponse:
        visitor = self.visitor(request, operation.role)
        if not operation.audited:
            return answer(await self._run(operation, request, visitor))
        what = f"{operation.name} {request.path}"
        return answer(await self._recorded(visitor, what, lambda: self._run(operation, request, visitor), request))

    async def obey(self, operation: Operation, arguments: Mapping[str, Any]) -> Any:
        """The same for a command of the control socket: whoever may use that may do everything.

        Args:
            arguments: the words of the operation's path, and `query` and `body` where it has them.

        Raises:
            MailbalancerError: it is refused.
        """
        call = commanded(operation, arguments)

        async def run() -> Reply:
            return Reply(await operation.handler(call))

        if not operation.audited:
            return (await run()).body
        what = f"{operation.name} {' '.join(call.path.values())}"
        return (await self._recorded(call.visitor, what, run, {"body": call.body})).body

    async def _recorded(
        self, visitor: Visitor, what: str, run: Callable[[], Awaitable[Reply]], request: MutableMapping[Any, Any]
    ) -> Reply:
        """Run a change, and write down that it was made or refused. `request` has its body once it was read."""
        try:
            reply = await run()
        except MailbalancerError as error:
            self._audit.record(visitor, what, f"refused: {error}")
            raise
        facts = reply.body
        before, after = facts.get("before", ""), facts.get("state", facts.get("diff", ""))
        done = "looked at" if facts.get("applied") is False else "done"
        self._audit.record(visitor, f"{what} {_shown(request)}".strip(), done, _compact(before), _compact(after))
        return reply

    async def _run(self, operation: Operation, request: web.Request, visitor: Visitor) -> Reply:
        path = _path(request.match_info)
        query = _validated(operation.query, _query(request), "query")
        raw = await body(request)
        if operation.body is None:
            if raw and raw.strip() not in (b"", b"{}", b"null"):
                raise Refused(400, "this operation takes no body")
            given: Any = None
        else:
            given = _validated(operation.body, _json(raw), "body")
        request["body"] = given
        call = Call(visitor, path, query, given, _if_match(request) if operation.guarded else "")
        result = await operation.handler(call)
        return result if isinstance(result, Reply) else Reply(result)


def commanded(operation: Operation, arguments: Mapping[str, Any]) -> Call:
    """A command as the operation wants it.

    Raises:
        Refused: it is not as described.
    """
    given = dict(arguments)
    query = _validated(operation.query, given.pop("query", {}), "options")
    sent = given.pop("body", None)
    body = _validated(operation.body, sent, "body") if operation.body is not None else None
    path = _path({word: str(value) for word, value in given.items()})
    return Call(Visitor(ON_THIS_MACHINE, Role.ADMIN, "control socket"), path, query, body)


def failure(error: Exception, log: Log) -> web.Response:
    """The answer to a request that failed."""
    match error:
        case Refused():
            return _error(error.status, error.message, error.remedy, headers=error.headers)
        case ConfigError():
            count = len(error.problems)
            said = f"the configuration has {count} problem{'s' if count > 1 else ''}; nothing was changed"
            return _error(422, said, "", error.problems)
        case MissingError():
            return _error(404, error.message, error.remedy)
        case MailbalancerError():
            return _error(409, error.message, error.remedy)
        case web.HTTPException():
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _error(error.status, (error.reason or "refused").lower(), "", headers=allow)
    log.error(f"a request to the API failed: {error!r}", traceback="".join(traceback.format_exception(error)))
    return _error(500, "a fault of mailbalancer", "the log says more")


def answer(reply: Reply) -> web.Response:
    """As HTTP."""
    if reply.kind != "application/json":
        return web.Response(body=reply.body, status=reply.status, headers={**reply.headers, "Content-Type": reply.kind})
    content = json.dumps(reply.body, default=str, separators=(",", ":")).encode()
    return web.Response(
        body=content, status=reply.status, headers={**reply.headers, "Content-Type": "application/json; charset=utf-8"}
    )


def _error(
    status: int, error: str, remedy: str, problems: list[str] | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    facts: dict[str, Any] = {"error": error, "remedy": remedy}
    if problems:
        facts["problems"] = problems
    return answer(Reply(facts, status, dict(headers or {})))


async def body(request: web.Request) -> bytes:
    """The whole body, bounded in size and time.

    Raises:
        Refused: 408 too slow, 413 too large.
    """
    if not request.can_read_body:
        return b""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise Refused(400, "the body did not come", headers={"Connection": "close"}) from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(413, f"a body has at most {MAX_BODY_BYTES // 1024} KiB") from None


def _if_match(request: web.Request) -> str:
    """One ETag of ours, or `*`; empty when there is none."""
    given = request.headers.getall("If-Match", [])
    if len(given) > 1 or (given and not re.fullmatch(TAG_PATTERN, given[0])):
        raise Refused(400, "If-Match must be one ETag as /api/v1/config gives it, or *")
    return given[0] if given else ""


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None


def _path(found: Mapping[str, str]) -> dict[str, str]:
    for word, value in found.items():
        if word == "number":
            if not _NUMBER.match(value):
                raise Refused(400, "a number is needed in the path")
        elif not _NAME.match(value):
            raise Refused(400, f"{word}: this cannot be a name")
    return dict(found)


def _query(request: web.Request) -> dict[str, str]:
    given: dict[str, str] = {}
    for key, value in request.query.items():
        if key in given:
            raise Refused(400, f"{key[:60]} is there twice")
        given[key] = value
    return given


def _validated(model: type[BaseModel], given: Any, where: str) -> BaseModel:
    try:
        if where != "query":
            return model.model_validate(given, strict=True)
        return model.model_validate_strings(given)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc'])) or where}: {one['msg']}" for one in error.errors()[:20]]
        raise Refused(400, f"the {where} is not as described: {'; '.join(problems)[:1000]}") from None


def _shown(request: MutableMapping[Any, Any]) -> str:
    """What was sent: no whole files, and of secrets only that they came."""
    given = request.get("body")
    return given.model_dump_json(exclude={"text", "pem"}) if given is not None else ""


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
