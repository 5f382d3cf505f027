"""What a request says about who its client is, for persistence: the key under which its real server is remembered.

Decides: for each kind of persistence, where in a request the key stands, and that a key is never something that could
be used to log in as somebody: cookies and credentials become digests, because keys are listed, saved and told to other
processes.
Refuses to know: tables, real servers, and the cookies that carry their answer themselves (`http_cookie`).

Kinds:
    source         the client's address; the same key as in every other mode, so a group may span modes
    server_cookie  a cookie that the server has set
    super_http     User-Agent and Basic credentials together. Its weakness: the users of one program without Basic
                   credentials (NTLM, forms) would all look alike, so without them there is no key
    header, query  a field or a parameter of the operator's choice
    url            the path without query;  host: the name asked for
    exchange       the device of ActiveSync, the mailbox of MAPI over HTTP, X-AnchorMailbox, in that order
                   (MS-ASHTTP 2.2.1.1.1, MS-OXCMAPIHTTP 2.2.3, Exchange's affinity for EWS)
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

Values = Mapping[bytes, Sequence[bytes]]

#: Longer ones become digests: a key is kept in memory by every worker.
_LONGEST: Final = 80
_PRINTABLE: Final = re.compile(rb"[\x21-\x7e]++")
_BASIC: Final = re.compile(rb"basic[ \t]++(\S++)", re.IGNORECASE)
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})|\+")
_ACTIVESYNC: Final = b"/microsoft-server-activesync"
_MAPI: Final = b"/mapi/"
#: In the base64 form of an ActiveSync query: version, command, locale (2 bytes), then the length of the device id.
_DEVICE_LENGTH_AT: Final = 4


class Asked(NamedTuple):
    """A request, as far as keys are made of it."""

    source: str
    host: str
    path: bytes  # with query
    values: Values


Finder = Callable[[Asked], str]


def finder(kind: str, field: str = "", parameter: str = "", cookie: str = "") -> Finder:
    """The function that finds the key of this kind in a request; it answers "" when there is none.

    Args:
        kind: one of those above; cookies that carry their answer are none of them.
    """
    match kind:
        case "header":
            name = field.lower().encode()
            return lambda asked: _key("header", _only(asked.values.get(name)))
        case "query":
            wanted = parameter.encode()
            return lambda asked: _key("query", query_value(asked.path, wanted))
        case "server_cookie":
            named = cookie.encode()
            return lambda asked: cookie_key(cookie_value(asked.values.get(b"cookie", ()), named))
    return _FINDERS[kind]


def needed_fields(kinds: Sequence[str], field: str = "") -> tuple[str, ...]:
    """The request fields that the reader has to pick for these kinds."""
    needed: dict[str, tuple[str, ...]] = {
        "header": (field,),
        "server_cookie": ("cookie",),
        "cookie": ("cookie",),
        "cookie_prefix": ("cookie",),
        "super_http": ("user-agent",),
        "exchange": ("x-anchormailbox",),
    }
    return tuple(name for kind in kinds for name in needed.get(kind, ()))


def cookie_key(value: bytes) -> str:
    """The key of a cookie's value, whether a client shows it or a server sets it."""
    return f"cookie:{_digest(value)}" if value else ""


def cookie_value(fields: Sequence[bytes], name: bytes) -> bytes:
    """The value of the first cookie of this name (RFC 6265 section 5.4: the most specific path comes first)."""
    for field in fields:
        for pair in field.split(b";"):
            found, equals, value = pair.strip(b" \t").partition(b"=")
            if equals and found == name:
                return value
    return b""


def query_value(path: bytes, name: bytes) -> bytes:
    """The value of the first parameter of this name, without regard to case, decoded."""
    query = path.partition(b"?")[2]
    wanted = name.lower()
    for pair in query.split(b"&"):
        found, _, value = pair.partition(b"=")
        if found.lower() == wanted:
            return _decoded(value)
    return b""


def activesync_device(path: bytes) -> bytes:
    """The device id in an ActiveSync request, in either form of its query; empty when there is none."""
    query = path.partition(b"?")[2]
    if b"=" in query.rstrip(b"="):
        return query_value(path, b"DeviceId")
    plain = activesync_query(path)
    if len(plain) <= _DEVICE_LENGTH_AT:
        return b""
    end = _DEVICE_LENGTH_AT + 1 + plain[_DEVICE_LENGTH_AT]
    device = plain[_DEVICE_LENGTH_AT + 1 : end]
    return device.hex().encode() if len(plain) >= end else b""


def activesync_query(path: bytes) -> bytes:
    """The base64 form of an ActiveSync query, decoded; empty when it is not in that form."""
    try:
        return b64decode(_decoded(path.partition(b"?")[2], plus=b"+"), validate=True)
    except ValueError:
        return b""


def _super_http(asked: Asked) -> str:
    match = _BASIC.fullmatch(_only(asked.values.get(b"authorization")))
    if match is None:
        return ""
    return f"super_http:{_digest(_only(asked.values.get(b'user-agent')) + bytes(1) + match[1])}"


def _exchange(asked: Asked) -> str:
    beginning = asked.path[: len(_ACTIVESYNC)].lower()
    if beginning == _ACTIVESYNC:
        key = _key("device", activesync_device(asked.path))
    elif beginning.startswith(_MAPI):
        key = _key("mailbox", query_value(asked.path, b"MailboxId").lower())
    else:
        key = ""
    return key or _key("mailbox", _only(asked.values.get(b"x-anchormailbox")).lower())


_FINDERS: Final[dict[str, Finder]] = {
    "source": lambda asked: asked.source,
    "super_http": _super_http,
    "exchange": _exchange,
    "host": lambda asked: _key("host", asked.host.encode()),
    "url": lambda asked: _key("url", asked.path.partition(b"?")[0]),
}


def _key(kind: str, value: bytes) -> str:
    if not value:
        return ""
    if len(value) > _LONGEST or not _PRINTABLE.fullmatch(value):
        return f"{kind}:{_digest(value)}"
    return f"{kind}:{value.decode('ascii')}"


def _digest(value: bytes) -> str:
    return blake2b(value, digest_size=12).hexdigest()


def _only(values: Sequence[bytes] | None) -> bytes:
    return values[0] if values else b""


def _decoded(value: bytes, plus: bytes = b" ") -> bytes:
    if b"%" not in value and b"+" not in value:
        return value
    return _ESCAPE.sub(lambda escape: bytes((int(escape[1], 16),)) if escape[1] else plus, value)
