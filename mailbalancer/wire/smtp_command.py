"""Commands of an SMTP client, as far as a balancer has to understand them (RFC 5321 section 4.1).

Decides: verb and argument of a line, the address and parameters of MAIL and RCPT, and which commands are none: HTTP,
and those by which one mail server tells another who the client is (XCLIENT and its kin), which no client may send.
Refuses to know: what is allowed when (`smtp_dialogue`), and who may send to whom.

The bytes of the line are kept untouched, because they are what is passed on. Policy looks at the parsed form, so an
address that a server could read in another way than we do is refused here rather than interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mailbalancer.wire.smtp_answers import Answer

#: RFC 5321 section 4.5.3.1.4 says 512 with CRLF; SIZE, DSN, AUTH=, SMTPUTF8 each add to MAIL and RCPT (RFC 3461: 500).
MAX_COMMAND_BYTES: Final = 2048
#: RFC 4954 section 4: AUTH with an initial response, and its continuation lines.
MAX_AUTH_BYTES: Final = 12288

_COMMAND: Final = re.compile(rb"([A-Za-z][A-Za-z0-9-]*+)(?: +(.*))?", re.DOTALL)
#: A whole line with nothing in it that `Lines` refuses, read as `_COMMAND` would.
_WHOLE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9-]*+)(?: +([^\x00-\x1f\x7f]*+))?\r\n")
_HTTP: Final = frozenset(
    (b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"PATCH", b"PRI")
)
_IMPERSONATION: Final = re.compile(rb"XCLIENT|XFORWARD|XPROXY.*|XSESSIONPARAMS|XSHADOW.*")

_ATOM: Final = rb"[^\x00-\x20\x7f()<>\[\]:;@\\,\"]++"
_QUOTED: Final = rb'"(?:[^\x00-\x1f\x7f"\\]|\\[^\x00-\x1f\x7f])*+"'
_DOMAIN: Final = rb"(?:[A-Za-z0-9\x80-\xff_](?:[A-Za-z0-9\x80-\xff_.-]*[A-Za-z0-9\x80-\xff_.])?|\[[0-9A-Za-z:.-]++\])"
_ADDRESS: Final = rb"(?P<local>%b|%b)(?:@(?P<domain>%b))?" % (_ATOM, _QUOTED, _DOMAIN)
_ROUTE: Final = rb"(?P<route>@%b(?:,@%b)*+:)?" % (_DOMAIN, _DOMAIN)
_PARAMETERS: Final = rb"(?P<parameters>(?: +[A-Za-z0-9][A-Za-z0-9-]*+(?:=[^\x00-\x20=\x7f]++)?)*+) *"
_PATH: Final = re.compile(rb" *<(?:%b%b)?>%b" % (_ROUTE, _ADDRESS, _PARAMETERS))
# without the brackets, as printers send it and Postfix and Exchange take it
_NAKED_PATH: Final = re.compile(rb" *%b%b" % (_ADDRESS, _PARAMETERS))
_SIZE: Final = re.compile(rb"[0-9]{1,20}")


class BadCommand(ValueError):
    """A command that is answered by us and not passed on."""

    def __init__(self, answer: Answer, reason: str) -> None:
        super().__init__(reason)
        self.answer = answer


@dataclass(slots=True)
class Command:
    """One command line. Nothing of it changes; it is not frozen, because that makes it three times as dear.

    Attributes:
        raw: the bytes as they came, to be passed on.
        verb: in upper case; for MAIL and RCPT without FROM and TO.
        argument: what follows the verb and its blanks, untouched.
    """

    raw: bytes
    verb: bytes
    argument: bytes

    @property
    def line(self) -> bytes:
        """Without CRLF."""
        return self.raw[:-2]

    @property
    def is_http(self) -> bool:
        """A browser, or a web page that makes one speak to port 25: cut it off."""
        return self.verb in _HTTP

    @property
    def impersonates(self) -> bool:
        """Would tell the server behind who the client is. Only the balancer may."""
        return _IMPERSONATION.fullmatch(self.verb) is not None


def parse(line: bytes) -> Command:
    """Verb and argument of a line (without CRLF, from `mail_lines.Lines`).

    Raises:
        BadCommand: the line does not begin with a verb.
    """
    match = _COMMAND.fullmatch(line)
    if match is None:
        raise BadCommand(Answer.BAD_SYNTAX, f"no command: {line[:60]!r}")
    return Command(line + b"\r\n", match[1].upper(), match[2] or b"")


#: What needs no argument and comes with every message.
_BARE: Final = {line: Command(line, line[:4], b"") for line in (b"DATA\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n")}
#: What most other lines begin with, as most clients write it.
_FREQUENT: Final = {word + b" ": word for word in (b"MAIL", b"RCPT", b"EHLO", b"HELO")}
#: Bytes that may stand in a line.
_TEXT: Final = bytes(byte for byte in range(256) if byte >= 0x20 and byte != 0x7F)


def parse_whole(data: bytes) -> Command | None:
    """The command in `data`, where that is one line from end to end: the short way through `Lines` and `parse`.

    None: it is something else, or too long; take the long way, which knows what to answer.
    """
    bare = _BARE.get(data)
    if bare is not None:
        return bare
    if len(data) > MAX_COMMAND_BYTES:
        return None
    verb = _FREQUENT.get(data[:5])
    if verb is not None and data.endswith(b"\r\n") and data.translate(None, _TEXT) == b"\r\n":
        return Command(data, verb, data[5:-2].lstrip(b" "))
    match = _WHOLE.fullmatch(data)
    return Command(data, match[1].upper(), match[2] or b"") if match is not None else None


@dataclass(frozen=True, slots=True)
class Path:
    """The address of a MAIL or RCPT command.

    Attributes:
        local: the local part as written, quotes included; empty for the null sender `<>`.
        domain: lower case; A-labels and U-labels are left as they are; empty for `<>` and `<postmaster>`.
        routed: a source route, or `%` or `!` in the local part: an address that asks to be sent on elsewhere.
        parameters: of ESMTP, names in upper case; an empty value for those without.
    """

    local: bytes
    domain: str
    routed: bool
    parameters: Mapping[bytes, bytes]

    @property
    def is_null(self) -> bool:
        """`<>`: a bounce."""
        return not self.local

    @property
    def size(self) -> int | None:
        """What the client announces with SIZE= (RFC 1870); None: nothing.

        Raises:
            BadCommand: not a number.
        """
        value = self.parameters.get(b"SIZE")
        if value is None:
            return None
        if not _SIZE.fullmatch(value):
            raise BadCommand(Answer.BAD_ARGUMENTS, f"SIZE={value[:40]!r} is no number")
        return int(value)


def parse_mail(command: Command) -> Path:
    """The sender of a MAIL command.

    Raises:
        BadCommand: the address or a parameter is malformed.
    """
    return _path(command, b"FROM:", Answer.BAD_SENDER)


def parse_rcpt(command: Command) -> Path:
    """The recipient of a RCPT command.

    Raises:
        BadCommand: the address or a parameter is malformed, or it is `<>`.
    """
    path = _path(command, b"TO:", Answer.BAD_RECIPIENT)
    if path.is_null:
        raise BadCommand(Answer.BAD_RECIPIENT, "RCPT TO:<>")
    return path


def _path(command: Command, keyword: bytes, answer: Answer) -> Path:
    argument = command.argument
    if argument[: len(keyword)].upper() != keyword:
        raise BadCommand(Answer.BAD_ARGUMENTS, f"{command.verb.decode()} without {keyword.decode()}")
    rest = argument[len(keyword) :]
    match = _PATH.fullmatch(rest) or _NAKED_PATH.fullmatch(rest)
    if match is None:
        raise BadCommand(answer, f"address in {argument[:80]!r}")
    local = match["local"] or b""
    routed = bool(match.groupdict().get("route")) or b"%" in local or b"!" in local
    return Path(local, _domain(match["domain"] or b"", answer), routed, _parameters(match["parameters"]))


def _domain(domain: bytes, answer: Answer) -> str:
    """A domain to compare with: one trailing dot means nothing, two labels must stand on both sides of every other."""
    if domain.endswith(b"."):
        domain = domain[:-1]
    if b".." in domain or domain.startswith(b"."):
        raise BadCommand(answer, f"domain {domain[:80]!r}")
    try:
        text = domain.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadCommand(answer, f"domain {domain[:80]!r} is not UTF-8 (RFC 6531)") from error
    return text.lower()


def _parameters(text: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for word in text.split():
        name, _, value = word.partition(b"=")
        if found.setdefault(name.upper(), value) is not value:
            raise BadCommand(Answer.BAD_ARGUMENTS, f"parameter {name[:40]!r} twice")
    return found
