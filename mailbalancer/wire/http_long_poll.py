"""Requests that are meant to wait: their answer comes when there is news, in minutes or hours.

Decides: from a request, and where that is not enough the beginning of its body, whether it is one of those with which
mail programs wait for new mail.
Refuses to know: how long one lasts and what is done about it. They are counted and shown, so that an operator who takes
a server out sees what he is waiting for.

    ActiveSync  Ping, and Sync with a heartbeat (both by command; a Sync that waits looks like any other from outside)
    EWS         GetStreamingEvents, which stands in the body (within its first piece, as SOAP clients send it)
    MAPI/HTTP   X-RequestType: NotificationWait
    RPC/HTTP    RPC_IN_DATA and RPC_OUT_DATA with a body: the channels. Without one they are legs of a login.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

_ACTIVESYNC: Final = b"/microsoft-server-activesync"
_EWS: Final = b"/ews/"
_MAPI: Final = b"/mapi/"
_COMMAND: Final = re.compile(rb"[?&]cmd=(?:ping|sync)(?:&|$)", re.IGNORECASE)
#: MS-ASHTTP 2.2.1.1.1.1.2: command codes Sync (0) and Ping (18), second byte of the base64 form of a query.
_COMMAND_CODES: Final = frozenset((0, 18))
_STREAMING: Final = b"GetStreamingEvents"


class Wait(Enum):
    """What a request waits for."""

    NOT = ""
    ACTIVESYNC = "activesync"
    EWS = "ews"
    MAPI = "mapi"
    RPC = "rpc"
    PERHAPS_EWS = "perhaps ews"  # its body will tell: ask `in_body`


def classify(
    method: bytes, path: bytes, values: Mapping[bytes, Sequence[bytes]], activesync_query: bytes = b""
) -> Wait:
    """What a request waits for, as far as its head tells.

    Args:
        values: picked fields; `x-requesttype` and `content-length` are looked at.
        activesync_query: the query decoded from base64 where it is in that form, else empty.
    """
    if method.startswith(b"RPC_"):
        channel = method in (b"RPC_IN_DATA", b"RPC_OUT_DATA") and values.get(b"content-length") not in (None, [b"0"])
        return Wait.RPC if channel else Wait.NOT
    if method != b"POST":
        return Wait.NOT
    lower = path[: len(_ACTIVESYNC)].lower()
    if lower == _ACTIVESYNC:
        coded = len(activesync_query) > 1 and activesync_query[1] in _COMMAND_CODES
        return Wait.ACTIVESYNC if coded or _COMMAND.search(path) else Wait.NOT
    if lower.startswith(_MAPI):
        waits = any(value.lower() == b"notificationwait" for value in values.get(b"x-requesttype", ()))
        return Wait.MAPI if waits else Wait.NOT
    return Wait.PERHAPS_EWS if lower.startswith(_EWS) else Wait.NOT


def in_body(beginning: bytes | memoryview) -> Wait:
    """What an EWS request waits for, by the first piece of its body."""
    return Wait.EWS if _STREAMING in bytes(beginning) else Wait.NOT
