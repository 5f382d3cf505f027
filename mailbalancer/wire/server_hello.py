"""The session id a TLS 1.2 server hands out in its ServerHello, by which the client may ask for that session again.

Decides: whether the server's first bytes carry a session id worth remembering.
Refuses to know: which server it was and for how long it is remembered.

A server's answer is never refused here: it goes to the client as it is, whatever it is, and only the persistence by
session id goes without.

Facts: RFC 5246 section 7.4.1.3, RFC 8446 sections 4.1.3 (TLS 1.3 only echoes what the client made up) and 4.1.4.
"""

from __future__ import annotations

from typing import Final

from mailbalancer.wire.tls_records import (
    SUPPORTED_VERSIONS,
    TLS_1_0,
    BadTls,
    Fields,
    first_message,
    read_extensions,
)

_SERVER_HELLO: Final = 2
_TLS_1_2: Final = 0x0303
_MAX_SESSION_ID_BYTES: Final = 32


def session_id(data: bytes | bytearray | memoryview) -> bytes | None:
    """The session id in the first bytes of a server.

    Returns:
        None when more bytes are needed; empty when there is none to remember: an empty one, TLS 1.3 (also its
        HelloRetryRequest), an alert, or something that is no TLS at all.
    """
    try:
        message = first_message(data, _SERVER_HELLO)
        return None if message is None else _read(message.body)
    except BadTls:
        return b""


def _read(body: bytes) -> bytes:
    fields = Fields(body, "ServerHello")
    version = fields.number(2)
    fields.take(32)  # random
    found = fields.vector(1)
    fields.take(3)  # cipher suite, compression method
    extensions = read_extensions(fields.vector(2)) if fields else {}
    fields.end()
    # TLS 1.3, and a HelloRetryRequest, call themselves 1.2 and say the truth in supported_versions.
    resumable = TLS_1_0 <= version <= _TLS_1_2 and SUPPORTED_VERSIONS not in extensions
    return found if resumable and len(found) <= _MAX_SESSION_ID_BYTES else b""
