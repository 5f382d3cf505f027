"""Who the client is, when other proxies stand between it and us: X-Forwarded-* and Forwarded (RFC 7239).

Decides: which address counts as the client's, and what of the chain told to us is told on. Only a peer in a trusted
network is believed, and only for what it says itself: the chain is walked from the right, and the first address that
is not a trusted proxy's is the client; whatever stands left of it the client may have made up, and is dropped.
Refuses to know: which networks those are (configuration), sockets, which of the two forms the service writes.

The address found here is the one that persistence, limits, lists and logs go by.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mailbalancer.model import IPNetwork
from mailbalancer.wire.http_head import AUTHORITY, Head

#: All fields this module replaces. They are dropped from every request, whoever sent them.
IDENTITY_FIELDS: Final = frozenset(
    (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port", b"forwarded")
)
#: Longest chain that is walked; a longer one counts from the right only. Real ones have two or three.
MAX_HOPS: Final = 32
_REMEMBERED: Final = 4096
#: Longer texts, a zone or what a client made up, are not remembered.
_LONGEST_ADDRESS: Final = 45

_WITH_PORT: Final = re.compile(r"([0-9.]+):[0-9]{1,5}|\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?")
_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PAIR: Final = rf'{_WORD}=(?:{_WORD}|"(?:[^"\\]|\\.)*+")'
_ELEMENT: Final = re.compile(rf"[ \t]*+{_PAIR}(?:[ \t]*+;[ \t]*+{_PAIR})*+[ \t]*+")
_PAIRS: Final = re.compile(rf'({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*+")')


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a request comes from, as far as it can be believed.

    Attributes:
        client: the client's address; IPv4-mapped IPv6 is written as IPv4.
        hops: the believed addresses from the client to the proxy that connected to us, both included.
        proto: "http" or "https", as the client spoke it.
        host: host (and port) the client asked for.
        port: the port the client connected to.
    """

    client: str
    hops: tuple[str, ...]
    proto: str
    host: str
    port: int


class Trusted:
    """The networks whose proxies are believed. Remembers its last answers; addresses repeat."""

    def __init__(self, networks: Sequence[IPNetwork]) -> None:
        self._networks = tuple(networks)
        self._answers: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        answer = self._answers.get(address)
        if answer is None:
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            answer = self._answers[address] = self._look_up(address)
        return answer

    def _look_up(self, address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return any(ip in network for network in self._networks if network.version == ip.version)


def identify(head: Head, trusted: Trusted, seen: Identity, form: str = "x_forwarded") -> Identity:
    """Who sent the request.

    Args:
        seen: what we see ourselves (`seen_here`); it is the answer when its client, the peer, is not trusted.
        form: "x_forwarded" or "forwarded": which of the two the trusted proxies speak. Only one is ever read, for two
            that contradict each other would be read differently by somebody.
    """
    if seen.client not in trusted:
        return seen
    if form == "forwarded":
        return _from_forwarded(head.values.get(b"forwarded", ()), trusted, seen)
    values = head.values
    chain = _split(values.get(b"x-forwarded-for", ()))
    hops = _walk((_address(member) for member in reversed(chain)), trusted, seen)
    return Identity(
        client=hops[0],
        hops=hops,
        proto=_proto(_single(values.get(b"x-forwarded-proto"))) or seen.proto,
        host=_host(_single(values.get(b"x-forwarded-host"))) or seen.host,
        port=_port(_single(values.get(b"x-forwarded-port"))) or seen.port,
    )


def seen_here(peer: str, tls: bool, host: bytes, port: int) -> Identity:
    """What the connection itself shows.

    Args:
        peer: the other end of the connection, or the source of its PROXY header, as `plain_address` writes it (which
            takes as long as all the rest: once per connection will do).
        tls: whether the client speaks TLS to us.
        host: the authority of the request head.
        port: the port we listen on.
    """
    return Identity(peer, (peer,), "https" if tls else "http", host.decode("latin-1"), port)


def x_forwarded_fields(identity: Identity) -> bytes:
    """The X-Forwarded-* lines for the server behind; the address we saw ourselves stands last."""
    lines = (
        f"X-Forwarded-For: {', '.join(identity.hops)}\r\nX-Forwarded-Proto: {identity.proto}\r\n"
        f"X-Forwarded-Port: {identity.port}\r\n"
    )
    host = f"X-Forwarded-Host: {identity.host}\r\n" if identity.host else ""
    return (lines + host).encode("latin-1")


def forwarded_field(identity: Identity) -> bytes:
    """The Forwarded line for the server behind (RFC 7239 section 4); proto and host belong to the client's element."""
    elements = [f"for={_node(address)}" for address in identity.hops]
    host = f';host="{identity.host}"' if identity.host else ""
    elements[0] += f"{host};proto={identity.proto}"
    return f"Forwarded: {', '.join(elements)}\r\n".encode("latin-1")


def plain_address(text: str) -> str:
    """The one spelling of an address, mapped IPv6 as IPv4, without zone; empty when it is none."""
    return _plain_short(text) if len(text) <= _LONGEST_ADDRESS else _plain(text)


def _plain(text: str) -> str:
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(ip, "ipv4_mapped", None) or ip)


#: Clients come again, and to read an address takes as long as to choose a server.
_plain_short: Final = lru_cache(_REMEMBERED)(_plain)


def _walk(from_right: Iterable[str], trusted: Trusted, seen: Identity) -> tuple[str, ...]:
    """The believed part of a chain whose members come from the right; "" stands for one that names no address."""
    hops = [seen.client]
    for address in from_right:
        if not address or len(hops) > MAX_HOPS:
            break
        hops.append(address)
        if address not in trusted:
            break
    return tuple(reversed(hops))


def _split(values: Sequence[bytes]) -> list[str]:
    """The members of a list over several field lines, empty ones included: they are a gap in the chain."""
    return b",".join(values).decode("latin-1").split(",") if values else []


def _address(member: str) -> str:
    """The address of an X-Forwarded-For member; some proxies add the port."""
    text = member.strip(" \t")
    match = _WITH_PORT.fullmatch(text)
    return plain_address((match[1] or match[2]) if match else "" if "%" in text else text)


def _single(values: Sequence[bytes] | None) -> str:
    """The value of a field that must be there once, as one word: a list has been added to by somebody unknown."""
    return values[0].decode("latin-1") if values is not None and len(values) == 1 else ""


def _proto(text: str) -> str:
    return text.lower() if text.lower() in ("http", "https") else ""


def _host(text: str) -> str:
    return text if AUTHORITY.fullmatch(text.encode("latin-1")) else ""


def _port(text: str) -> int:
    return int(text) if re.fullmatch("[1-9][0-9]{0,4}", text) and int(text) < 65536 else 0


# --- RFC 7239 --------------------------------------------------------------------------------------------------------


def _from_forwarded(values: Sequence[bytes], trusted: Trusted, seen: Identity) -> Identity:
    elements = _elements(values)
    hops = _walk((_for_address(element) for element in reversed(elements)), trusted, seen)
    # hops holds the peer besides the believed elements, so the client's element is this far from the right
    believed = elements[-(len(hops) - 1)] if len(hops) > 1 else {}
    return Identity(
        client=hops[0],
        hops=hops,
        proto=_proto(believed.get("proto", "")) or seen.proto,
        host=_host(believed.get("host", "")) or seen.host,
        port=seen.port,
    )


def _elements(values: Sequence[bytes]) -> list[dict[str, str]]:
    """The elements of Forwarded from left to right; a malformed one is an empty gap, at which the walk stops.

    Every comma divides, also one in quotes: no proxy has a reason to send that, and a client could leave a quote open
    to swallow what the trusted proxy adds to its right.
    """
    return [_element(part) for part in _split(values)]


def _element(text: str) -> dict[str, str]:
    if not _ELEMENT.fullmatch(text):
        return {}
    pairs = _PAIRS.findall(text)
    element = {name.lower(): _unquoted(value) for name, value in pairs}
    return element if len(element) == len(pairs) else {}


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _for_address(element: dict[str, str]) -> str:
    return _address(element.get("for", ""))


def _node(address: str) -> str:
    return f'"[{address}]"' if ":" in address else address
