"""The TLS ClientHello: which name the client wants, before anybody decrypts anything.

Decides: the name (SNI) a connection may be routed by, the session id it may be brought back by, and whether the hello
is sound enough to do either. A name two readers could take differently is refused.
Refuses to know: certificates, keys, where connections go.

Facts: RFC 8446 section 4.1.2 (hello), RFC 6066 section 3 (SNI), RFC 7301 (ALPN), RFC 8701 (GREASE).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from mailbalancer.wire.tls_records import (
    SUPPORTED_VERSIONS,
    TLS_1_0,
    BadTls,
    Fields,
    first_message,
    read_extensions,
)

_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
#: Values a client strews in to keep servers honest: 0x0a0a, 0x1a1a … 0xfafa (RFC 8701).
_GREASE: Final = frozenset(value << 8 | value for value in range(0x0A, 0x100, 0x10))

# Letters, digits, hyphen, and the underscore that Windows networks have; a label never starts or ends with a hyphen.
_LABEL: Final = rb"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME: Final = re.compile(rb"%b(?:\.%b)*" % (_LABEL, _LABEL))
_MAX_NAME_BYTES: Final = 253


class BadClientHello(ValueError):
    """What the client sent is not a sound ClientHello; the text says why, for the log. The connection is closed."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """One ClientHello, read.

    Attributes:
        sni: the name wanted, lower-cased; empty when none was sent, or an IP literal, which RFC 6066 does not allow
            but clients that were given an address send: it names no host, as if nothing had been sent.
        session_id: TLS 1.2: the session to resume. TLS 1.3 clients send a random one that means nothing.
        alpn: protocol names in the client's order, each byte one character; GREASE left out.
        versions: protocol versions offered in the client's order (0x0303 is TLS 1.2); GREASE left out. Without the
            supported_versions extension: the single highest one.
        length: bytes on the wire up to the end of the hello.
    """

    sni: str
    session_id: bytes
    alpn: tuple[str, ...]
    versions: tuple[int, ...]
    length: int


def parse(data: bytes | bytearray | memoryview) -> ClientHello | None:
    """Read the ClientHello at the start of `data`; None when more bytes are needed.

    `data` never has to grow beyond 66 KiB: what is longer is refused (`tls_records`).

    Raises:
        BadClientHello: the bytes are not, and cannot become, a sound ClientHello.
    """
    try:
        message = first_message(data, _CLIENT_HELLO)
        if message is None:
            return None
        if not message.ends_record:
            raise BadTls("something follows the ClientHello in its record")
        return _read(message.body, message.length)
    except BadTls as bad:
        raise BadClientHello(str(bad)) from None


def _read(body: bytes, length: int) -> ClientHello:
    fields = Fields(body, "ClientHello")
    legacy_version = fields.number(2)
    if legacy_version < TLS_1_0 or legacy_version >> 8 != 3:
        raise BadTls(f"the ClientHello offers version 0x{legacy_version:04x}; TLS 1.0 (0x0301) is the oldest accepted")
    fields.take(32)  # random
    session_id = fields.vector(1)
    if len(session_id) > 32:
        raise BadTls(f"session id of {len(session_id)} bytes; at most 32 exist")
    _numbers(fields.vector(2), "cipher suites")
    if not fields.vector(1):
        raise BadTls("the ClientHello has no compression method")
    extensions = read_extensions(fields.vector(2)) if fields else {}
    fields.end()
    return ClientHello(
        sni=_server_name(extensions.get(_SERVER_NAME)),
        session_id=session_id,
        alpn=_protocols(extensions.get(_ALPN)),
        versions=_versions(extensions.get(SUPPORTED_VERSIONS), legacy_version),
        length=length,
    )


def _numbers(block: bytes, what: str) -> tuple[int, ...]:
    """A list of two byte numbers without its GREASE; at least one number has to be in it."""
    if not block or len(block) % 2:
        raise BadTls(f"{what}: {len(block)} bytes are no list of two byte numbers")
    numbers = (int.from_bytes(block[i : i + 2], "big") for i in range(0, len(block), 2))
    return tuple(number for number in numbers if number not in _GREASE)


def _versions(extension: bytes | None, legacy_version: int) -> tuple[int, ...]:
    if extension is None:
        return (legacy_version,)
    fields = Fields(extension, "supported_versions")
    block = fields.vector(1)
    fields.end()
    return _numbers(block, "supported_versions")


def _protocols(extension: bytes | None) -> tuple[str, ...]:
    if extension is None:
        return ()
    outer = Fields(extension, "ALPN")
    names = Fields(outer.vector(2), "ALPN")
    outer.end()
    found = []
    while names:
        name = names.vector(1)
        if not name:
            raise BadTls("ALPN: empty protocol name")
        if not (len(name) == 2 and int.from_bytes(name, "big") in _GREASE):
            found.append(name.decode("latin-1"))
    return tuple(found)


def _server_name(extension: bytes | None) -> str:
    """The name of the server_name extension. Other kinds of names never came to exist, so only one entry can stand."""
    if extension is None:
        return ""
    outer = Fields(extension, "SNI")
    entries = Fields(outer.vector(2), "SNI")
    outer.end()
    kind = entries.number(1)
    if kind != 0:
        raise BadTls(f"SNI: name of type {kind}; only host names (0) exist")
    name = entries.vector(2)
    entries.end()
    return _host_name(name)


def _host_name(name: bytes) -> str:
    lowered = name.lower()  # bytes.lower() touches A-Z only
    if _is_address(lowered):
        return ""
    if len(lowered) > _MAX_NAME_BYTES or not _HOST_NAME.fullmatch(lowered):
        raise BadTls(f"SNI: {name[:80]!r} is not a host name of letters, digits, hyphens, underscores and single dots")
    return lowered.decode("ascii")


def _is_address(name: bytes) -> bool:
    bare = name[1:-1] if name.startswith(b"[") and name.endswith(b"]") else name
    try:
        ipaddress.ip_address(bare.decode("ascii"))
    except ValueError:
        return False
    return True
