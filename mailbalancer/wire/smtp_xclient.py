"""XCLIENT: telling a mail server that trusts the balancer who the client is (Postfix XCLIENT_README).

Decides: which attributes are sent, in which lines, in which bytes. Nothing that a client or its DNS can choose becomes
more than one value: values are xtext (RFC 3461 section 4), and a reverse name that is no host name is unavailable.
Refuses to know: whether the server may be trusted with it, and the names themselves.

A line holds at most 512 bytes; ADDR goes last, because a server may decide on it at once. The server answers every line
with 220 and begins anew, as after its greeting.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

MAX_LINE_BYTES: Final = 512
#: Instead of a name: there is none, or none can be told now.
NO_NAME: Final = "[UNAVAILABLE]"
NOT_NOW: Final = "[TEMPUNAVAIL]"

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_XTEXT_UNSAFE: Final = re.compile(rb"[^\x21-\x2a\x2c-\x3c\x3e-\x7e]")


class NoXclient(ValueError):
    """The server would not learn the client's address. Going on would give the client the balancer's rights."""


@dataclass(frozen=True, slots=True)
class Client:
    """Who the client is.

    Attributes:
        address, port: where it comes from; an IP literal.
        name: its reverse name, NO_NAME or NOT_NOW; empty: nobody has asked for it.
        listen_address, listen_port: where it came to.
    """

    address: str
    port: int
    name: str = ""
    listen_address: str = ""
    listen_port: int = 0


def xclient_lines(offered: Collection[bytes], client: Client) -> list[bytes]:
    """The XCLIENT commands, CRLF included, to send one after the other.

    Args:
        offered: the attributes behind XCLIENT in the server's EHLO reply.

    Raises:
        NoXclient: the server does not take ADDR.
    """
    names = {name.upper() for name in offered}
    if b"ADDR" not in names:
        raise NoXclient(
            "the server offers no XCLIENT with ADDR; allow the balancer's address there, such as with "
            "smtpd_authorized_xclient_hosts (Postfix) or login_trusted_networks (Dovecot)"
        )
    lines = [b"XCLIENT"]
    for name, value in _attributes(client):
        if name not in names:
            continue
        word = b" %b=%b" % (name, xtext(value))
        if len(lines[-1]) + len(word) + 2 > MAX_LINE_BYTES:
            lines.append(b"XCLIENT")
        lines[-1] += word
    return [line + b"\r\n" for line in lines]


def _attributes(client: Client) -> list[tuple[bytes, str]]:
    found = [(b"NAME", NOT_NOW if client.name == NOT_NOW else host_name(client.name)), (b"PORT", str(client.port))]
    if client.listen_address:
        found += [(b"DESTADDR", _address(client.listen_address)), (b"DESTPORT", str(client.listen_port))]
    return [*found, (b"ADDR", _address(client.address))]


def host_name(name: str) -> str:
    """A reverse name that is fit to be told, else NO_NAME.

    Whoever owns an address chooses its reverse name: only letters, digits, dots, hyphens and the underscore that
    RFC 1123 does not know and many names have pass, and nothing that could be read as an address.
    """
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        return NO_NAME
    name = name.rstrip(".").lower()
    last = name.rpartition(".")[2]
    return NO_NAME if re.fullmatch(r"[0-9]+|0[xX][0-9A-Fa-f]*", last) else name


def xtext(value: str) -> bytes:
    """RFC 3461 section 4: what is no printable ASCII, and `+` and `=`, as + and two hexadecimal digits."""
    return _XTEXT_UNSAFE.sub(lambda found: b"+%02X" % found[0][0], value.encode("utf-8", "surrogateescape"))


def _address(literal: str) -> str:
    address = ipaddress.ip_address(literal)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"IPV6:{address.compressed}"
        address = address.ipv4_mapped
    return str(address)
