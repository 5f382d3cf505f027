"""Which session of RPC over HTTP a channel belongs to (MS-RPCH).

A session is two HTTP requests, RPC_IN_DATA and RPC_OUT_DATA, each on a connection of its own. The first packet in the
body of both is an RTS packet that names the session: CONN/B1 on the way in, CONN/A1 on the way out, with the virtual
connection's cookie as their second command (MS-RPCH 2.2.4.2 and 2.2.4.5).

Decides: what that cookie is, from the beginning of a body.
Refuses to know: anything else of RPC.
"""

from __future__ import annotations

import struct
from typing import Final

#: Common header: version 5.0, packet type RTS (20), first and last fragment, little-endian data representation.
_RTS: Final = b"\x05\x00\x14\x03\x10\x00\x00\x00"
_HEADER_BYTES: Final = 20
_VERSION_COMMAND: Final = 6
_COOKIE_COMMAND: Final = 3
_COOKIE_BYTES: Final = 16
#: How much of a body must be there: the header, the Version command (8 bytes), the command's number and the cookie.
NEEDED_BYTES: Final = _HEADER_BYTES + 8 + 4 + _COOKIE_BYTES


def session(beginning: bytes | memoryview) -> bytes:
    """The cookie of the session that this channel opens or renews; empty when the body does not begin so."""
    data = bytes(beginning[:NEEDED_BYTES])
    if len(data) < NEEDED_BYTES or not data.startswith(_RTS):
        return b""
    version, _, command = struct.unpack_from("<III", data, _HEADER_BYTES)
    if version != _VERSION_COMMAND or command != _COOKIE_COMMAND:
        return b""
    return data[-_COOKIE_BYTES:]
