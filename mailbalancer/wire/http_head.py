"""The head of an HTTP/1.1 message: read strictly, and handed on in untouched slices.

Decides: where a head ends, whether every byte of it follows the grammar, which host is asked for, and which status
answers what does not. Whatever two parsers could read differently is refused: what a balancer and the server behind it
understand differently is how one user's request ends up in another's answer.
Refuses to know: bodies (`http_body`), what the fields it picks mean beyond Host, sockets, time.

How: one possessive pattern validates the whole head, a second one picks only the fields somebody acts on; everything
else is never split, and goes to the other side as the slice of bytes it came in. Nothing backtracks. Clients that load
a page, and servers that answer them, send the same fields again and again: those that came twice are remembered, byte
for byte, with what was found in them and what callers have made of it, and only the first line is judged anew.

Grammar: RFC 9112 (messages), RFC 9110 section 5 (fields), RFC 3986 (authority). Stricter than them in:
no obs-fold, no bare LF or CR, no control byte or NUL, no space around a field name, HTTP/1.0 and 1.1 only, request
targets of visible ASCII, exactly one Host (HTTP/1.0 may go without), an absolute target must name the same host.
Looser in nothing; one empty line before a request is skipped (RFC 9112 section 2.2: old clients send it after a POST).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from mailbalancer.wire.recurring import Recurring

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
#: Any field value, surrounding blanks included: visible ASCII, blank, tab, and obs-text (RFC 9110 section 5.5).
_VALUE: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
_FIELDS: Final = rb"(?:%b++:%b\r\n)*+\r\n" % (_TOKEN, _VALUE)

_REQUEST: Final = re.compile(rb"(%b++) ([\x21-\x7e]++) HTTP/1\.([01])\r\n%b" % (_TOKEN, _FIELDS))
_RESPONSE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: (%b))?\r\n%b" % (_VALUE, _FIELDS))

# The beginning of a first line, for judging it before its end is there.
_BEGUN_VERSION: Final = rb"(?:H(?:T(?:T(?:P(?:/(?:1(?:\.[01]?)?)?)?)?)?)?)?"
_REQUEST_BEGUN: Final = re.compile(rb"(%b*+)(?: ([\x21-\x7e]*+)(?: %b)?)?" % (_TOKEN, _BEGUN_VERSION))
_RESPONSE_BEGUN: Final = re.compile(
    rb"%b(?:(?<=1\.[01]) (?:[1-5][0-9]{0,2})?(?:(?<= [1-5][0-9][0-9]) %b)?)?" % (_BEGUN_VERSION, _VALUE)
)
#: A byte no head may hold, wherever it stands. A CR at the very end is not judged: its LF may be under way.
_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])|(?<!\r)\n")
_FIELD_LINE: Final = re.compile(rb"%b++:%b" % (_TOKEN, _VALUE))
TOKEN: Final = re.compile(rb"%b++" % _TOKEN)

_LABEL: Final = rb"[0-9A-Za-z_-]++"
_NAME: Final = rb"%b(?:\.%b)*+\.?|\[[0-9A-Fa-f:.]{2,45}\]" % (_LABEL, _LABEL)
_PORT: Final = rb"[0-9]{1,5}"
AUTHORITY: Final = re.compile(rb"(%b)(?::(%b))?" % (_NAME, _PORT))
#: First lines whose meaning does not depend on the fields, nor theirs on it.
_PLAIN_REQUEST_LINE: Final = re.compile(rb"(%b++) (/[\x21\x22\x24-\x7e]*+) HTTP/1\.1" % _TOKEN)
_PLAIN_RESPONSE_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: (%b))?" % _VALUE)
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]*+)([/?].*)?", re.IGNORECASE)

# A server that hands its fields on as CGI variables reads Content_Length as Content-Length. So the names that frame a
# message and those that say who the client is are picked in both spellings: the first are refused, the others are
# treated as the field they could be taken for, which drops them unless the peer is trusted.
_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
_IDENTITY: Final = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-port"))

_HEAD_NAMES: Final = ("content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "upgrade")
#: Fields of a request that are picked in every service.
REQUEST_NAMES: Final = (
    *_HEAD_NAMES,
    *("host", "expect", "te", "http2-settings", "authorization", "proxy-authorization", "forwarded"),
    *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"),
)
#: Fields of a response that are picked in every service.
RESPONSE_NAMES: Final = (*_HEAD_NAMES, "www-authenticate", "proxy-authenticate", "persistent-auth", "proxy-support")


class BadMessage(ValueError):
    """An HTTP message that is not passed on; the connection it came over is closed after the answer.

    Attributes:
        status: what the client is answered: 400, 414, 417 or 431 for a request, 502 for a response.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a head may wait in memory.

    A Kerberos ticket of a user in many groups makes an Authorization value of up to 64 kB: Windows caps tickets at
    48,000 bytes (MaxTokenSize), which base64 turns into 64,000, and http.sys can be told to read fields of 65,534
    (MaxFieldLength). The rest is room for the other fields.
    """

    head_bytes: int = 73728
    target_bytes: int = 16384  # http.sys reads no more than that by default (MaxRequestBytes)
    fields: int = 256


_MAX_METHOD_BYTES: Final = 64
#: Names of hosts are few, and judged once.
_HOSTS_KNOWN: Final = 1024

Picked = tuple[bytes, int, int]

_MADE_AT_MOST: Final = 16


class Fields:
    """The fields of a head, for all heads that have the same, byte for byte.

    Attributes:
        values, picked, authority, host: as in the head; `picked` for a first line of `line_end` bytes.
    """

    __slots__ = ("_made", "authority", "host", "line_end", "picked", "values")

    def __init__(
        self, values: dict[bytes, list[bytes]], picked: list[Picked], line_end: int, authority: bytes, host: str
    ) -> None:
        self.values = values
        self.picked = picked
        self.line_end = line_end
        self.authority = authority
        self.host = host
        self._made: dict[Hashable, Any] = {}

    def picked_after(self, line_end: int) -> list[Picked]:
        """Where they are behind another first line."""
        by = line_end - self.line_end
        return [(name, start + by, end + by) for name, start, end in self.picked] if by else self.picked

    def made(self, key: Hashable) -> Any:
        """What a caller has kept under this key; None: nothing."""
        return self._made.get(key)

    def keep(self, key: Hashable, made: Any) -> None:
        """Keep what follows from these fields and `key` alone."""
        if len(self._made) >= _MADE_AT_MOST:
            self._made.clear()
        self._made[key] = made


@dataclass(slots=True)
class Head:
    """What requests and responses share.

    Attributes:
        raw: the head's bytes, with the empty line that ends it.
        length: bytes to take from the input; for a request that followed an empty line two more than `raw` has.
        minor: 0 or 1, of HTTP/1.x.
        values: lower-case name to the values, blanks stripped, one per field line; only picked names.
        picked: name, start and end in `raw` (with CRLF) of every picked field line, in order.
        fields: the same for other heads with these fields, after a plain first line of HTTP/1.1; None: not remembered.
    """

    raw: bytes
    length: int
    minor: int
    values: dict[bytes, list[bytes]]
    picked: list[Picked]
    fields: Fields | None = field(compare=False, repr=False)

    def without(self, cuts: Iterable[tuple[int, int]], added: bytes = b"") -> bytes:
        """The head without the field lines at `cuts` (in order), and with the field lines `added` at its end."""
        raw = self.raw
        pieces = []
        kept_from = 0
        for start, end in cuts:
            pieces.append(raw[kept_from:start])
            kept_from = end
        pieces += (raw[kept_from:-2], added, b"\r\n")
        return b"".join(pieces)

    def lines_named(self, names: Collection[bytes]) -> list[tuple[int, int]]:
        """Start and end of every field line with one of these lower-case names, picked or not (reads every line)."""
        first = self.raw.index(b"\r\n") + 2
        lines = []
        for match in _FIELD_LINE.finditer(self.raw, first):
            if match[0][: match[0].index(b":")].lower() in names:
                lines.append((match.start(), match.end() + 2))
        return lines


@dataclass(slots=True)
class RequestHead(Head):
    """One request head.

    Attributes:
        authority: Host as sent (or the absolute target's authority without one); empty only for HTTP/1.0.
        host: the name in it for routing: lower-case, without port, brackets and final dot.
        path: where the path begins that was asked for, query included; "*" for OPTIONS *, empty for CONNECT.
    """

    method: bytes
    target: bytes
    authority: bytes
    host: str
    path: bytes


@dataclass(slots=True)
class ResponseHead(Head):
    """One response head."""

    status: int
    reason: bytes


class RequestReader:
    """Reads the request heads of one service.

    Args:
        extra: further field names to pick, because the service persists by them, sets or removes them.
    """

    def __init__(self, extra: Iterable[str] = (), limits: Limits = Limits()) -> None:
        self._pick = _picker((*REQUEST_NAMES, *extra))
        self._limits = limits
        self._memory: Recurring[Fields] = Recurring()

    def read(self, data: bytes | bytearray, seen: int = 0) -> RequestHead | None:
        """The request head at the start of `data`; None when more bytes are needed.

        Args:
            seen: how much of `data` was there when the last call gave None; it is not judged again.

        Raises:
            BadMessage: with the status to answer. A head that goes wrong is refused at the byte that shows it where
                that is in its first line or forbidden everywhere, else at its end.
        """
        blank = 2 if data.startswith(b"\r\n") else 0
        end = data.find(b"\r\n\r\n", max(seen - 3, 0))
        if end < 0 or end + 4 - blank > self._limits.head_bytes:
            self._judge_unfinished(data, blank, seen)
            return None
        raw = bytes(data[blank : end + 4])
        line_end = raw.index(b"\r\n")
        block = raw[line_end:]
        fields = self._memory.get(block)
        plain = _PLAIN_REQUEST_LINE.fullmatch(raw, 0, line_end) if fields is not None else None
        if fields is not None and plain is not None:
            method, target = plain.groups()
            if len(target) <= self._limits.target_bytes and len(method) <= _MAX_METHOD_BYTES and method != b"CONNECT":
                picked = fields.picked_after(line_end)
                authority, host = fields.authority, fields.host
                return RequestHead(
                    raw, end + 4, 1, fields.values, picked, fields, method, target, authority, host, target
                )
        match = _REQUEST.fullmatch(raw)
        if match is None or raw.count(b"\r\n") > self._limits.fields + 2:
            raise self._refusal(raw)
        method, target, minor = match.groups()
        if len(target) > self._limits.target_bytes or len(method) > _MAX_METHOD_BYTES:
            raise self._refusal(raw)
        values, picked = _pick_fields(self._pick, raw, 400)
        authority, path = _address(method, target, minor, values.get(b"host"))
        host = _host_name(authority)
        fields = None
        if minor == b"1" and target[0] == 0x2F and method != b"CONNECT" and self._memory.comes_again(block):
            fields = Fields(values, picked, line_end, authority, host)
            self._memory.keep(block, fields)
        return RequestHead(raw, end + 4, minor[0] & 1, values, picked, fields, method, target, authority, host, path)

    def _judge_unfinished(self, data: bytes | bytearray, blank: int, seen: int) -> None:
        """Judge a head whose end is not there, or lies beyond the limit."""
        if len(data) < 2 and b"\r\n".startswith(data):
            return
        limit = blank + self._limits.head_bytes
        line = _first_line(data, blank, seen, limit)
        if line is not None:
            self._judge_line(*line)
        forbidden = _FORBIDDEN.search(data, max(seen - 1, blank), min(len(data), limit + 1))
        if forbidden is not None:
            raise BadMessage(400, _forbidden_words(forbidden[0]))
        if len(data) > limit:
            raise BadMessage(431, f"request head of more than {self._limits.head_bytes} bytes")

    def _judge_line(self, line: bytes, ended: bool) -> None:
        """Judge the request line as far as it is there."""
        begun = _REQUEST_BEGUN.match(line)
        method, target = (begun[1], begun[2] or b"") if begun else (b"", b"")
        if len(method) > _MAX_METHOD_BYTES:
            raise BadMessage(400, f"method of more than {_MAX_METHOD_BYTES} bytes: {method[:40]!r}…")
        if len(target) > self._limits.target_bytes:
            raise BadMessage(414, f"request target of more than {self._limits.target_bytes} bytes")
        rest = line[begun.end() :] if begun else line
        if rest not in (b"", b"\r") or (ended and not _REQUEST.fullmatch(line + b"\r\n\r\n")):
            raise BadMessage(400, _line_words(line))

    def _refusal(self, raw: bytes) -> BadMessage:
        """What is wrong with a complete head the pattern does not match."""
        try:
            self._judge_line(raw[: raw.index(b"\r\n")], ended=True)
        except BadMessage as bad:
            return bad
        if raw.count(b"\r\n") > self._limits.fields + 2 and _REQUEST.fullmatch(raw):
            return BadMessage(431, f"request with more than {self._limits.fields} header fields")
        return BadMessage(400, _field_words(raw))


class ResponseReader:
    """Reads the response heads of one service's servers; every refusal is answered to the client with 502."""

    def __init__(self, extra: Iterable[str] = (), limits: Limits = Limits()) -> None:
        self._pick = _picker((*RESPONSE_NAMES, *extra))
        self._limits = limits
        self._memory: Recurring[Fields] = Recurring()

    def read(self, data: bytes | bytearray, seen: int = 0) -> ResponseHead | None:
        """The response head at the start of `data`; None when more bytes are needed. See `RequestReader.read`."""
        end = data.find(b"\r\n\r\n", max(seen - 3, 0))
        if end < 0 or end + 4 > self._limits.head_bytes:
            self._judge_unfinished(data, seen)
            return None
        raw = bytes(data[: end + 4])
        line_end = raw.index(b"\r\n")
        block = raw[line_end:]
        fields = self._memory.get(block)
        plain = _PLAIN_RESPONSE_LINE.fullmatch(raw, 0, line_end)
        if fields is not None and plain is not None:
            picked = fields.picked_after(line_end)
            return ResponseHead(raw, end + 4, 1, fields.values, picked, fields, int(plain[1]), plain[2] or b"")
        match = _RESPONSE.fullmatch(raw)
        if match is None:
            raise BadMessage(502, f"the server's response: {_field_words(raw)}")
        if raw.count(b"\r\n") > self._limits.fields + 2:
            raise BadMessage(502, f"the server's response has more than {self._limits.fields} header fields")
        minor, status, reason = match.groups()
        values, picked = _pick_fields(self._pick, raw, 502)
        fields = self._memory.came(block, Fields(values, picked, line_end, b"", "")) if plain is not None else None
        return ResponseHead(raw, end + 4, minor[0] & 1, values, picked, fields, int(status), reason or b"")

    def _judge_unfinished(self, data: bytes | bytearray, seen: int) -> None:
        limit = self._limits.head_bytes
        line = _first_line(data, 0, seen, limit)
        if line is not None:
            _judge_status_line(*line)
        forbidden = _FORBIDDEN.search(data, max(seen - 1, 0), min(len(data), limit + 1))
        if forbidden is not None:
            raise BadMessage(502, f"the server's response: {_forbidden_words(forbidden[0])}")
        if len(data) > limit:
            raise BadMessage(502, f"the server's response head has more than {limit} bytes")


def _judge_status_line(line: bytes, ended: bool) -> None:
    begun = _RESPONSE_BEGUN.match(line)
    rest = line[begun.end() :] if begun else line
    if rest not in (b"", b"\r") or (ended and not _RESPONSE.fullmatch(line + b"\r\n\r\n")):
        raise BadMessage(502, f"the server's response does not begin with an HTTP/1.x status line: {line[:60]!r}")


def _first_line(data: bytes | bytearray, start: int, seen: int, limit: int) -> tuple[bytes, bool] | None:
    """The first line as far as it is there, and whether it ended; None when an earlier call has judged all of it."""
    end = data.find(b"\r\n", start, limit)
    if 0 <= end <= seen - 2:
        return None
    return bytes(data[start : end if end >= 0 else limit]), end >= 0


# --- picking ---------------------------------------------------------------------------------------------------------


def _picker(names: Iterable[str]) -> re.Pattern[bytes]:
    """The pattern that finds the field lines with these names in a validated head."""
    spelled = []
    for name in dict.fromkeys(name.lower().encode("ascii") for name in names):
        if not TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not a header field name")
        pattern = re.escape(name)
        spelled.append(pattern.replace(rb"\-", b"[-_]") if name in _FRAMING | _IDENTITY else pattern)
    return re.compile(rb"\r\n(%b):[ \t]*+([^\r]*+)" % b"|".join(spelled), re.IGNORECASE)


def _pick_fields(pick: re.Pattern[bytes], raw: bytes, status: int) -> tuple[dict[bytes, list[bytes]], list[Picked]]:
    values: dict[bytes, list[bytes]] = {}
    picked: list[Picked] = []
    for match in pick.finditer(raw):
        name = match[1].lower()
        if b"_" in name:
            name = _meant(name, status)
        if name in values:
            values[name].append(match[2].rstrip(b" \t"))
        else:
            values[name] = [match[2].rstrip(b" \t")]
        picked.append((name, match.start() + 2, match.end() + 2))
    return values, picked


def _meant(name: bytes, status: int) -> bytes:
    """The field that a name with an underscore may be taken for by the server behind."""
    hyphened = name.replace(b"_", b"-")
    if hyphened in _FRAMING:
        raise BadMessage(status, f"field {name.decode()!r}: some servers read it as {hyphened.decode()!r}")
    return hyphened if hyphened in _IDENTITY else name


# --- who is asked ----------------------------------------------------------------------------------------------------


def _address(method: bytes, target: bytes, minor: bytes, hosts: list[bytes] | None) -> tuple[bytes, bytes]:
    """The authority and the path a request asks for (RFC 9112 section 3.2)."""
    if hosts is None:
        if minor == b"1":
            raise BadMessage(400, "request without Host (RFC 9112 section 3.2)")
        authority = b""
    elif len(hosts) > 1:
        raise BadMessage(400, f"request with {len(hosts)} Host fields")
    else:
        authority = _checked_authority(hosts[0])
    if target[0] == 0x2F and method != b"CONNECT":  # a path
        if b"#" in target:
            raise BadMessage(400, "request target with a fragment (#), which never leaves a browser")
        return authority, target
    return _unusual_target(method, target, authority)


def _unusual_target(method: bytes, target: bytes, authority: bytes) -> tuple[bytes, bytes]:
    """The forms other than a path: `*`, `host:port` of CONNECT, and a whole URL."""
    if target == b"*" and method == b"OPTIONS":
        return authority, target
    if method == b"CONNECT":
        if b":" not in target.rpartition(b"]")[2]:
            raise BadMessage(400, "CONNECT needs host:port")
        return _same_authority(_checked_authority(target), authority), b""
    url = _ABSOLUTE.fullmatch(target)
    if url is None or b"#" in target:
        raise BadMessage(400, f"request target {target[:60]!r} is neither a path nor a URL")
    path = url[2] or b"/"
    return _same_authority(_checked_authority(url[1]), authority), path if path.startswith(b"/") else b"/" + path


def _same_authority(named: bytes, host: bytes) -> bytes:
    if host and named.lower() != host.lower():
        raise BadMessage(400, f"request target names {named[:60]!r}, Host names {host[:60]!r}")
    return named


@lru_cache(_HOSTS_KNOWN)
def _checked_authority(authority: bytes) -> bytes:
    match = AUTHORITY.fullmatch(authority)
    if match is None or len(authority) > 262 or (match[2] is not None and int(match[2]) > 65535):
        raise BadMessage(400, f"{authority[:60]!r} is not a host name with an optional port")
    return authority


@lru_cache(_HOSTS_KNOWN)
def _host_name(authority: bytes) -> str:
    name = authority.decode("ascii").lower()
    if name.startswith("["):
        return name[1 : name.index("]")]
    return name.partition(":")[0].removesuffix(".")


# --- words for refusals ----------------------------------------------------------------------------------------------


def _line_words(line: bytes) -> str:
    if line.startswith(b"\x16\x03"):
        return "a TLS handshake on a plain HTTP port"
    if line.startswith(b"PRI * HTTP/2"):
        return "HTTP/2 without TLS; only HTTP/1.1 is spoken here"
    if re.fullmatch(rb"\S+ \S+", line) and not line.endswith(b"\r"):
        return f"HTTP/0.9 request line: {line[:60]!r}"
    return f"not an HTTP/1.x request line: {line[:60]!r}"


def _forbidden_words(byte: bytes) -> str:
    names = {b"\r": "a CR without LF", b"\n": "an LF without CR", b"\0": "a NUL byte"}
    return f"{names.get(byte, f'the control byte 0x{byte.hex()}')} in the head"


def _field_words(raw: bytes) -> str:
    forbidden = _FORBIDDEN.search(raw)
    if forbidden is not None:
        return _forbidden_words(forbidden[0])
    first, *lines = raw[:-4].split(b"\r\n")
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            return f"folded field line (obs-fold): {line[:60]!r}"
        if not _FIELD_LINE.fullmatch(line):
            return f"not a header field: {line[:60]!r}"
    return f"not an HTTP/1.x first line: {first[:60]!r}"
