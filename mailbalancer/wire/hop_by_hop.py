"""What of a head is meant for the next hop only, and therefore ends here.

Decides: what Connection says (close, keep-alive, upgrade, and which other fields it names), and which field lines are
not passed on. Fields the two ends rely on cannot be named away by Connection: a client that could strip Authorization,
Cookie or Host from its own request on the way could make the server see a different request than we judged.
Refuses to know: bodies, sockets, what is added instead.

Facts: RFC 9110 section 7.6.1 (Connection) and 7.8 (Upgrade), RFC 9112 section 9.3 (persistence).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mailbalancer.wire.http_head import TOKEN, BadMessage, Head

_CONNECTION: Final = b"connection"
#: Never passed on. Transfer-Encoding is one of this kind, but stays: the chunks are passed on as they are.
_ALWAYS: Final = frozenset((_CONNECTION, b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"http2-settings"))
#: Options that are no field names, or name a field that is in `_ALWAYS`.
_OPTIONS: Final = _ALWAYS | {b"close"}

#: Fields a Connection cannot name away: framing, routing, authentication, identity, content, persistence.
PROTECTED: Final = frozenset(
    (
        *(b"host", b"content-length", b"transfer-encoding", b"trailer", b"expect", b"date", b"via"),
        *(b"authorization", b"proxy-authorization", b"www-authenticate", b"proxy-authenticate", b"persistent-auth"),
        *(b"cookie", b"set-cookie", b"origin", b"referer", b"user-agent", b"x-anchormailbox", b"x-real-ip"),
        *(b"content-type", b"content-encoding", b"content-range", b"content-disposition", b"content-location"),
        *(b"content-security-policy", b"strict-transport-security", b"x-frame-options", b"x-content-type-options"),
        *(b"cache-control", b"vary", b"etag", b"expires", b"location", b"range", b"accept", b"accept-encoding"),
        *(b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port"),
    )
)

#: Protocols a connection may be upgraded to. h2c is none: behind it requests would go by unseen.
UPGRADES: Final = frozenset((b"websocket",))


@dataclass(frozen=True, slots=True)
class Connection:
    """What a message says about its connection.

    Attributes:
        persistent: the sender is willing to go on after this message (RFC 9112 section 9.3).
        upgrade: the protocol of `UPGRADES` asked for or switched to, lower-case; empty for none.
        named: further field names that end here; without those that are protected.
    """

    persistent: bool
    upgrade: bytes = b""
    named: frozenset[bytes] = frozenset()


_GOES_ON: Final = Connection(persistent=True)
_ENDS: Final = Connection(persistent=False)


def read_connection(head: Head, status: int = 400) -> Connection:
    """Read the Connection and Upgrade fields of a head.

    Raises:
        BadMessage: with `status`, when Connection holds something that is no token.
    """
    values = head.values.get(_CONNECTION)
    if values is None:
        return _GOES_ON if head.minor else _ENDS
    words = _words(values, status)
    persistent = b"close" not in words and (head.minor == 1 or b"keep-alive" in words)
    upgrade = _upgrade(head) if b"upgrade" in words else b""
    named = words - _OPTIONS - PROTECTED
    if not upgrade and not named:
        return _GOES_ON if persistent else _ENDS
    return Connection(persistent, upgrade, named)


def cuts(head: Head, connection: Connection, dropped: frozenset[bytes] = frozenset()) -> list[tuple[int, int]]:
    """The field lines that end here, for `Head.without`: hop-by-hop ones, those Connection named, and picked `dropped`.

    Connection and Upgrade are cut for an upgrade, too: `upgrade_fields` writes them again, saying only that.
    """
    lines = [(start, end) for name, start, end in head.picked if name in _ALWAYS or name in dropped]
    if connection.named:
        lines = sorted({*lines, *head.lines_named(connection.named)})
    return lines


def upgrade_fields(connection: Connection) -> bytes:
    """The field lines that ask for, or confirm, the upgrade on the next hop; empty when there is none."""
    return b"Connection: upgrade\r\nUpgrade: %b\r\n" % connection.upgrade if connection.upgrade else b""


def _words(values: list[bytes], status: int) -> frozenset[bytes]:
    """The lower-case members of a list of tokens over several field lines; empty members count for nothing."""
    words = set()
    for value in values:
        for member in value.lower().split(b","):
            word = member.strip(b" \t")
            if word and not TOKEN.fullmatch(word):
                raise BadMessage(status, f"Connection names {word[:60]!r}, which is no header field name")
            words.add(word)
    words.discard(b"")
    return frozenset(words)


def _upgrade(head: Head) -> bytes:
    """The one protocol of Upgrade, if it is one we let pass."""
    values = head.values.get(b"upgrade", [])
    protocol = values[0].lower() if len(values) == 1 else b""
    return protocol if protocol in UPGRADES and head.minor == 1 else b""
