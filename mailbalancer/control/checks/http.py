"""The `http` and `https` checks: one HTTP/1.1 request, one answer, its status and its body.

Decides: what is asked (path and Host exactly as configured, `Connection: close`, redirects never followed) and how
much of the answer is read. The parser is h11, because the PROXY header, the deadline, the TLS verification and the
transcript belong to the connection, and the HTTP client libraries keep that to themselves.
Refuses to know: names; the endpoint is an address.
"""

from __future__ import annotations

import re

import h11

from mailbalancer.control.checks.conversation import Conversation, Failed, shown
from mailbalancer.model import HttpCheck

BODY_BYTES = 65536
HEAD_BYTES = 65536


async def converse(options: HttpCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    try:
        response, body = await _exchange(options, talk)
    except h11.LocalProtocolError as error:
        raise Failed(f"the request cannot be sent: {error}") from error
    except h11.RemoteProtocolError as error:
        raise Failed(f"the answer is not valid HTTP: {shown(str(error))}") from error
    status = _status(response)
    talk.detail["status"] = response.status_code
    if response.status_code not in options.statuses:
        raise Failed(f"status {status}, expected {_choice(options.statuses)}")
    _search(options.body, body)
    return f"status {status}"


async def _exchange(options: HttpCheck, talk: Conversation) -> tuple[h11.Response, bytes]:
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
    await _ask(options, talk, peer)
    what = f"answer to {options.method} {shown(options.path)}"
    body = bytearray()
    response: h11.Response | None = None
    while len(body) <= BODY_BYTES:
        event = await _event(talk, peer, what)
        if isinstance(event, h11.Response):
            response = event
            what = f"end of the {what}"
            _note_head(talk, response)
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
            break
    if response is None:
        raise Failed(f"connection closed by the server, no {what}")
    return response, bytes(body[:BODY_BYTES])


async def _ask(options: HttpCheck, talk: Conversation, peer: h11.Connection) -> None:
    headers = [
        ("Host", options.host or str(talk.endpoint)),
        ("User-Agent", "mailbalancer-check"),
        ("Accept", "*/*"),
        ("Connection", "close"),
    ]
    request = h11.Request(method=options.method, target=options.path, headers=headers)
    head = peer.send(request) or b""
    for line in head.decode("latin-1").split("\r\n"):
        if line:
            talk.note(">", shown(line))
    await talk.send(head + (peer.send(h11.EndOfMessage()) or b""))


async def _event(talk: Conversation, peer: h11.Connection, what: str) -> object:
    """The next event of h11 (its types overlap too much to be named here)."""
    while (event := peer.next_event()) is h11.NEED_DATA:
        data = await talk.read(what)
        if not data and peer.their_state is h11.SEND_RESPONSE:
            raise Failed(f"connection closed by the server, no {what}")
        peer.receive_data(data)
    return event


def _note_head(talk: Conversation, response: h11.Response) -> None:
    talk.note("<", f"HTTP/{shown(response.http_version)} {_status(response)}")
    for name, value in response.headers.raw_items():
        talk.note("<", f"{shown(name)}: {shown(value)}")


def _status(response: h11.Response) -> str:
    words = f"{response.status_code} {shown(response.reason)}".rstrip()
    location = next((value for name, value in response.headers if name == b"location"), b"")
    return f"{words} (redirects to {shown(location)})" if location else words


def _choice(statuses: tuple[int, ...]) -> str:
    return " or ".join(str(status) for status in statuses)


def _search(pattern: str, body: bytes) -> None:
    """Raises Failed unless the pattern (empty: none) is found; at most BODY_BYTES bytes are searched."""
    if not pattern:
        return
    try:
        found = re.search(pattern, body.decode("utf-8", "replace"))
    except re.error as error:
        raise Failed(f"body pattern {pattern!r} is not a regular expression: {error}") from error
    if found is None:
        raise Failed(f"{pattern!r} is not in the body, which starts '{shown(body[:80])}'")
