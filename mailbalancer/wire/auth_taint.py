"""Recognises authentication that belongs to a connection instead of a request.

Decides: whether a message ties its connection to one user. NTLM, Negotiate (Kerberos), Nego2 and plain Kerberos
authenticate the TCP connection: whoever sends the next request on it is that user. A server-side connection that has
carried one of these in either direction is never given to another client.
Refuses to know: connections, users, tokens.

It errs to one side only: a word in a quoted realm that looks like a scheme ties a connection for nothing, which costs a
connection; the other error would cost a mailbox. So lists and quotes are not parsed, words are looked for.

Facts: MS-NTHT and MS-N2HT (scheme words), RFC 4559 (Negotiate, Proxy-Support), IIS (Persistent-Auth).
"""

from __future__ import annotations

import re
from typing import Final

from mailbalancer.wire.http_head import RequestHead, ResponseHead

_SCHEME: Final = re.compile(
    rb"(?<![!#$%&'*+.^_`|~0-9A-Za-z-])(?:ntlm|negotiate|nego2|kerberos)(?![!#$%&'*+.^_`|~0-9A-Za-z-])", re.IGNORECASE
)
_ASKED: Final = (b"authorization", b"proxy-authorization")
_OFFERED: Final = (b"www-authenticate", b"proxy-authenticate")
#: Said by a server (IIS) or proxy about the connection itself; nothing but `false` takes it back.
_SAID: Final = (b"persistent-auth", b"proxy-support")


def ties_request(head: RequestHead) -> bool:
    """Whether the client authenticates, or begins to, for its whole connection."""
    return _names_scheme(head.values, _ASKED)


def ties_response(head: ResponseHead) -> bool:
    """Whether the server offers, continues or confirms authentication of its whole connection."""
    values = head.values
    if _names_scheme(values, _OFFERED):
        return True
    return not values.keys().isdisjoint(_SAID) and any(
        value.lower() != b"false" for name in _SAID for value in values.get(name, ())
    )


def _names_scheme(values: dict[bytes, list[bytes]], names: tuple[bytes, ...]) -> bool:
    if values.keys().isdisjoint(names):  # most heads
        return False
    return any(_SCHEME.search(value) is not None for name in names for value in values.get(name, ()))
