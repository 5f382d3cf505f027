"""What a mail server says it can do after EHLO (RFC 5321 section 4.1.1.1), and what the balancer says instead.

Decides: the one list of a service, which must be true for every server it may send the session to, and must not promise
what the balancer does not pass on.
Refuses to know: which servers there are and how their lists were got.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mailbalancer.wire.smtp_reply import Reply

#: Keyword in upper case to its parameters. `AUTH=` (an old way to write AUTH) is a keyword of its own.
Capabilities = Mapping[bytes, tuple[bytes, ...]]

_LINE: Final = re.compile(
    rb"([A-Za-z0-9][A-Za-z0-9-]*=?)(?: *| +([\x21-\x7e][\x20-\x7e]*)|(?<==)([\x21-\x7e][\x20-\x7e]*))"
)
_SIZE: Final = re.compile(rb"[0-9]{1,20}")
_AUTHS: Final = frozenset((b"AUTH", b"AUTH=", b"X-EXPS", b"X-EXPS="))

#: Keywords of one server, and parameters of one keyword, that are remembered.
MOST: Final = 128

#: Never shown: they would let a client say who it is, change roles, or send bytes that nobody frames.
NEVER: Final = re.compile(rb"XCLIENT|XFORWARD|XPROXY.*|XSESSIONPARAMS|XSHADOW.*|XEXCH50|X-LINK2STATE|TURN|ATRN")
#: Between Exchange servers only; shown to the Internet they invite attempts and confuse.
EXCHANGE: Final = frozenset((b"X-EXPS", b"X-EXPS=", b"X-ANONYMOUSTLS", b"XRDST", b"X-ADAT"))


@dataclass(frozen=True, slots=True)
class Showing:
    """What a service shows.

    Attributes:
        hide: keywords the operator does not want shown, upper case.
        keep: keywords shown although they are hidden by default (of EXCHANGE only).
        exchange: everything of EXCHANGE is shown.
        max_message_bytes: the service's own limit; 0: the servers'.
    """

    hide: frozenset[bytes] = frozenset()
    keep: frozenset[bytes] = frozenset()
    exchange: bool = False
    max_message_bytes: int = 0


def parse_ehlo(reply: Reply) -> dict[bytes, tuple[bytes, ...]]:
    """The capabilities in a positive reply to EHLO. Lines that are no capability are left out."""
    return parse_lines(reply.lines[1:])


def parse_lines(lines: Sequence[bytes]) -> dict[bytes, tuple[bytes, ...]]:
    """The capabilities in these lines, each without code, such as `SIZE 37748736`."""
    found: dict[bytes, tuple[bytes, ...]] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is not None:
            words = (match[2] or match[3] or b"").split()
            keyword = match[1].upper()
            found[keyword] = found.get(keyword, ()) + tuple(words)
    return found


def common(lists: Sequence[Capabilities]) -> dict[bytes, tuple[bytes, ...]]:
    """What is true for every one of these servers, in the order of the first."""
    if not lists:
        return {}
    found: dict[bytes, tuple[bytes, ...]] = {}
    for keyword in lists[0]:
        if all(keyword in other for other in lists):
            values = [other[keyword] for other in lists]
            words = _smallest(values) if keyword == b"SIZE" else _in_all(values)
            if words or keyword not in _AUTHS:
                found[keyword] = words
    if b"CHUNKING" not in found:
        found.pop(b"BINARYMIME", None)  # RFC 3030 section 3: there is no other way to send it
    return found


def either(first: Capabilities, second: Capabilities) -> dict[bytes, tuple[bytes, ...]]:
    """What one server has said at two times: it may show strangers less than those it knows. SIZE is the smaller.

    A server that says something new each time is listened to only so far.
    """
    found = dict(first)
    for keyword, words in second.items():
        had = found.get(keyword)
        if had is None:
            if len(found) < MOST:
                found[keyword] = words
        elif keyword == b"SIZE":
            found[keyword] = _smallest([had, words])
        else:
            known = {word.upper() for word in had}
            found[keyword] = (had + tuple(word for word in words if word.upper() not in known))[:MOST]
    return found


def lines_of(capabilities: Capabilities) -> list[bytes]:
    """One line each, as `parse_lines` reads them."""
    return [
        keyword + b" ".join(words) if keyword.endswith(b"=") else b" ".join((keyword, *words))
        for keyword, words in capabilities.items()
    ]


def shown(known: Capabilities, showing: Showing, *, starttls: bool, auth: bool) -> dict[bytes, tuple[bytes, ...]]:
    """What a client is told.

    Args:
        known: of the server, or `common` of all.
        starttls: we offer it now: there is a certificate and no TLS yet. The servers' own never counts.
        auth: passwords are allowed now. Until TLS they are hidden where it is required, so that no client sends one.
    """
    found = {
        keyword: words
        for keyword, words in known.items()
        if keyword != b"STARTTLS" and _visible(keyword, showing) and (auth or keyword not in _AUTHS)
    }
    if showing.max_message_bytes:
        own = (b"%d" % showing.max_message_bytes,)
        found[b"SIZE"] = _smallest([own, found.get(b"SIZE", ())])
    if b"CHUNKING" not in found:
        found.pop(b"BINARYMIME", None)
    if starttls and b"STARTTLS" not in showing.hide:
        found[b"STARTTLS"] = ()
    return found


def render_ehlo(first_line: bytes, capabilities: Capabilities) -> bytes:
    """The reply to EHLO. `first_line` is the server's or ours, without code; what follows its end is not."""
    lines = [re.sub(rb"[^\x20-\x7e]", b"?", first_line)[:400], *lines_of(capabilities)]
    body = b"".join(b"250-%b\r\n" % line for line in lines[:-1])
    return body + b"250 %b\r\n" % lines[-1]


def _visible(keyword: bytes, showing: Showing) -> bool:
    if NEVER.fullmatch(keyword) or keyword in showing.hide or keyword.rstrip(b"=") in showing.hide:
        return False
    return keyword not in EXCHANGE or showing.exchange or keyword.rstrip(b"=") in showing.keep


def _in_all(values: Sequence[tuple[bytes, ...]]) -> tuple[bytes, ...]:
    """The words of the first that all have, whatever their case (AUTH mechanisms)."""
    others = [{word.upper() for word in value} for value in values[1:]]
    return tuple(word for word in values[0] if all(word.upper() in other for other in others))


def _smallest(values: Iterable[tuple[bytes, ...]]) -> tuple[bytes, ...]:
    """RFC 1870: 0 or nothing means that no fixed limit is told."""
    told = [int(value[0]) for value in values if value and _SIZE.fullmatch(value[0])]
    limits = [limit for limit in told if limit]
    return (b"%d" % min(limits),) if limits else ()
