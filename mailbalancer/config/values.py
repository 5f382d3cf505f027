"""What single values may look like: addresses, networks, names, ports, statuses, fingerprints.

Decides: the written form of each and the sentence that an administrator reads when it is something else.
Refuses to know: where the value stands and what it is for. Nothing is looked up: a name is never resolved.

Every function returns the value in the form the program uses, or raises ValueError with that sentence.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import warnings
from datetime import datetime, timedelta

from mailbalancer.config.problems import quoted
from mailbalancer.model import Endpoint, IPNetwork

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_PORT = re.compile(r"[0-9]{1,5}\Z")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\Z")
_SHA256 = re.compile(r"(?:[0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}\Z")
_STATUS = re.compile(r"[1-5][0-9]{2}\Z")
_STATUS_RANGE = re.compile(r"([1-5][0-9]{2})-([1-5][0-9]{2})\Z")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_TARGET = re.compile(r"/[!-~]*\Z")
_MAILBOX = re.compile(r"<?[!-;=?-~]{1,320}>?\Z")
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9=-]{0,63}\Z")
_CAPABILITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}(?: [!-~]+)*\Z")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DATE_OR_WEEKDAY = rf"(?:({'|'.join(WEEKDAYS)})|([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}))"
_MOMENT = re.compile(_DATE_OR_WEEKDAY + r"[ T]([0-9]{2}:[0-9]{2})\Z", re.IGNORECASE)
_ADDRESS_LIKE = re.compile(r"[0-9.]+\Z|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\Z")


def name(text: str) -> str:
    """A name of the operator's: it appears in commands, log lines and metric labels."""
    if not NAME.match(text):
        raise ValueError(
            f"{quoted(text)} cannot be a name: letters, digits, '.', '_' and '-', at most 64, beginning with a letter "
            "or digit"
        )
    return text


def port(text: str) -> int:
    """A port from its decimal digits, 1 to 65535."""
    if not _PORT.match(text) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{quoted(text)} is not a port (1 to 65535)")
    return int(text)


def address(text: str) -> str:
    """An IP address in its canonical form."""
    if "%" in text:
        raise ValueError(
            f"{quoted(text)} has a zone; link-local addresses are not supported, write a global or unique local one"
        )
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address") from None
    mapped = getattr(parsed, "ipv4_mapped", None)
    if mapped is not None:
        raise ValueError(f"{quoted(text)} is an IPv4 address in IPv6 clothes; write {mapped}")
    return str(parsed)


def real_server_address(text: str) -> str:
    """The address of a real server: one machine, by number."""
    if not _ADDRESS_LIKE.match(text) and "%" not in text:
        raise ValueError(
            f"{quoted(text)} is not an IP address; write its IP address: a load balancer must not depend on DNS"
        )
    canonical = address(text)
    parsed = ipaddress.ip_address(canonical)
    if parsed.is_unspecified or parsed.is_multicast or canonical == "255.255.255.255":
        raise ValueError(f"{quoted(text)} is not the address of one machine")
    return canonical


def split_port(text: str) -> tuple[str, str]:
    """Host and port texts of `10.0.1.100:25`, `[2001:db8::1]:25`, `*:25` or `:25`."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise ValueError(f'{quoted(text)} is not an address and port; write "[2001:db8::1]:25" in quotes')
        return host, rest[1:]
    host, colon, digits = text.rpartition(":")
    if not colon:
        raise ValueError(f"{quoted(text)} has no port; write {text}:25 with the port of the service")
    if ":" in host:
        raise ValueError(f'{quoted(text)}: put an IPv6 address in brackets and quotes: "[{host}]:{digits}"')
    return host, digits


def listen(text: str) -> tuple[Endpoint, ...]:
    """The addresses that one `listen` entry means; `*:25` and `:25` mean every IPv4 and every IPv6 address."""
    host, digits = split_port(text)
    number = port(digits)
    if host in ("", "*"):
        return (Endpoint("0.0.0.0", number), Endpoint("::", number))
    return (Endpoint(_listen_address(host), number),)


def listen_range(text: str) -> tuple[str, int, int]:
    """Address and first and last port of a layer 4 entry: `10.0.1.101:53` or `10.0.1.101:5000-5010`."""
    host, digits = split_port(text)
    if host in ("", "*"):
        raise ValueError(
            f"{quoted(text)}: the kernel forwards for an address of its own; write it in front of the port"
        )
    first, dash, last = digits.partition("-")
    begin, end = port(first), port(last if dash else first)
    if end < begin:
        raise ValueError(f"{quoted(text)}: the range of ports ends before it begins")
    return _listen_address(host), begin, end


def _listen_address(host: str) -> str:
    if not _ADDRESS_LIKE.match(host) and "%" not in host:
        raise ValueError(f"{quoted(host)} is not an IP address; write the address to listen on, or * for all")
    return address(host)


def endpoint(text: str) -> Endpoint:
    """One address and port, no wildcard word."""
    host, digits = split_port(text)
    return Endpoint(address(host), port(digits))


def network(text: str) -> IPNetwork:
    """A network; an address alone is that one host."""
    if "%" in text:
        raise ValueError(f"{quoted(text)} has a zone; link-local networks are not supported")
    try:
        return ipaddress.ip_network(text, strict=True)
    except ValueError:
        pass
    try:
        right = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not a network such as 10.1.20.0/24 or 2001:db8::/32") from None
    host = text.partition("/")[0]
    raise ValueError(f"{quoted(text)} is a host with a mask; write {right} for the network or {host} for the host")


def host_name(text: str) -> str:
    """A DNS name in lower case."""
    labels = text.removesuffix(".").split(".")
    if not text.isascii():
        raise ValueError(f"{quoted(text)} is not ASCII; write the xn-- form of the name")
    if len(text) > 253 or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"{quoted(text)} is not a host name such as mail.example.com")
    return text.removesuffix(".").lower()


def host_pattern(text: str) -> str:
    """A DNS name, or `*.example.com` for one label in front of it."""
    if text.startswith("*."):
        return "*." + host_name(text[2:])
    if "*" in text:
        raise ValueError(f"{quoted(text)}: a * stands only for the whole first label: *.example.com")
    return host_name(text)


def dns_name(text: str) -> str:
    """A name to ask a DNS server for; `.` is the root."""
    return "." if text == "." else host_name(text)


def statuses(entry: str | int) -> tuple[int, ...]:
    """The HTTP statuses that one entry means: 200, or `200-299`."""
    text = str(entry)
    if _STATUS.match(text):
        return (int(text),)
    found = _STATUS_RANGE.match(text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(f"{quoted(entry)} is not an HTTP status such as 200 or a range such as 200-299")
    return tuple(range(int(found[1]), int(found[2]) + 1))


def sha256(text: str) -> str:
    """A SHA-256 fingerprint as 64 lower-case hexadecimal digits; colons may be written."""
    if not _SHA256.match(text):
        raise ValueError(f"{quoted(text)} is not a SHA-256 fingerprint (64 hexadecimal digits)")
    return text.replace(":", "").lower()


def pattern(text: str) -> str:
    """A regular expression that compiles."""
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of what `[[` may mean one day
            re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{quoted(text)} is not a regular expression: {error}") from None
    return text


def method(text: str) -> str:
    """An HTTP method (RFC 9110, section 9.1: a token)."""
    if not _TOKEN.match(text):
        raise ValueError(f"{quoted(text)} is not an HTTP method such as GET")
    return text


_MAIL_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}\Z")
_WEB_ADDRESS = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?(?:/[!-~]*)?\Z")


def mail_address(text: str) -> str:
    """`name@example.com`: what stands between the angle brackets of an envelope."""
    if not _MAIL_ADDRESS.match(text):
        raise ValueError(f"{quoted(text)} is not a mail address such as postmaster@example.com")
    return text


def web_address(text: str) -> str:
    """`https://host/path`, without a user in it."""
    if not _WEB_ADDRESS.match(text):
        raise ValueError(f"{quoted(text)} is not a web address such as https://chat.example.com/hook")
    return text


def target(text: str) -> str:
    """The path of a request, as it stands in the request line."""
    if not _TARGET.match(text):
        raise ValueError(f"{quoted(text)} is not a path: it begins with / and has no spaces (write %20)")
    return text


def moment(text: str) -> datetime:
    """When a maintenance window begins or ends: `2026-11-28 22:00`, or every week as `sunday 01:00` (then in the first
    week of 2001, which began on a Monday)."""
    match = _MOMENT.match(text)
    if match is not None:
        weekday, date, clock = match.groups()
        with contextlib.suppress(ValueError):
            at = datetime.strptime(f"{date or '2001-01-01'} {clock}", "%Y-%m-%d %H:%M")  # noqa: DTZ007 local time is meant
            return at + timedelta(days=WEEKDAYS.index(weekday.lower())) if weekday else at
    raise ValueError(f"{quoted(text)} is not a time such as 2026-11-28 22:00, or sunday 01:00 for every week")


def mailbox(text: str) -> str:
    """An address for MAIL FROM or RCPT TO; `<>` is the null sender."""
    if text == "<>":
        return text
    if not _MAILBOX.match(text) or "@" not in text or text.startswith("<") != text.endswith(">"):
        raise ValueError(f"{quoted(text)} is not a mail address such as check@example.com (or <> for none)")
    return text.strip("<>")


def keyword(text: str) -> str:
    """A capability's keyword, in upper case."""
    if not _KEYWORD.match(text):
        raise ValueError(f"{quoted(text)} is not the keyword of a capability such as CHUNKING")
    return text.upper()


def capability(text: str) -> str:
    """A line of an EHLO reply without its code, such as `SIZE 37748736`."""
    if not _CAPABILITY.match(text):
        raise ValueError(f"{quoted(text)} is not a capability such as SIZE 37748736")
    return text


def sender_pattern(text: str) -> str:
    """Senders: `user@example.com`, `example.com`, `*.example.com` or `<>`, in lower case."""
    if text == "<>":
        return text
    if "@" in text.removeprefix("@"):
        return mailbox(text).lower()
    return host_pattern(text.removeprefix("@"))


def banner(text: str) -> str:
    """What stands behind the host name in a greeting: printable ASCII, in one line."""
    if not text.isascii() or not text.isprintable():
        raise ValueError(f"{quoted(text)} cannot stand in a greeting: printable ASCII only")
    return text


def helo(text: str) -> str:
    """What EHLO says: a host name, or an address literal such as [192.0.2.1] (RFC 5321, section 4.1.3)."""
    if text.startswith("[") and text.endswith("]"):
        address(text[1:-1].removeprefix("IPv6:"))
        return text
    return host_name(text)


def user(text: str) -> str:
    """A system user; empty to stay who we are."""
    if text and not re.match(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?\Z", text):
        raise ValueError(f"{quoted(text)} is not a user name")
    return text


def file_path(text: str) -> str:
    """A path of a file, not empty, in one line."""
    if not text or not text.isprintable() or len(text) > 4096:
        raise ValueError(f"{quoted(text)} is not the path of a file")
    return text
