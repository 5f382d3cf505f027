"""Smoke: the conversation an administrator would have by hand with telnet or swaks, once through the service and once
with each real server, and where the two differ.

Decides: which conversation suits a service, whom it is held with, and what counts as a difference.
Refuses to know: health. The steps are those of the checks, but STARTTLS is tried wherever it is offered, and
certificates are compared, not verified. No mail is ever sent: an envelope ends with RSET, before DATA.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import textwrap
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from mailbalancer.control.checks import dns, http, imap, pop3, smtp, tcp, tls
from mailbalancer.control.checks.conversation import Conversation, Failed, Spoken, shown
from mailbalancer.model import (
    CheckOptions,
    DnsCheck,
    Endpoint,
    Forward,
    HttpCheck,
    ImapCheck,
    Mode,
    Pool,
    Pop3Check,
    Service,
    SmtpCheck,
    TcpCheck,
    TlsCheck,
    Verify,
)

#: How long a server of an unknown protocol may take to greet first.
GREETING_S = 1.0
WIDTH = 120
_ANY_STATUS = tuple(range(100, 600))
_BY_PORT: dict[int, CheckOptions] = {
    25: SmtpCheck(),
    587: SmtpCheck(),
    2525: SmtpCheck(),
    465: SmtpCheck(tls=True),
    110: Pop3Check(),
    995: Pop3Check(tls=True),
    143: ImapCheck(),
    993: ImapCheck(tls=True),
    443: TlsCheck(),
    8443: TlsCheck(),
    80: HttpCheck(statuses=_ANY_STATUS),
    53: DnsCheck(),
}
#: What differs from one minute to the next in a banner: dates (Exchange) and APOP timestamps (RFC 1939 section 7).
_FLEETING = re.compile(
    r"(?:[A-Z][a-z]{2}, )?[0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{5,8}(?: [-+][0-9]{4})?|<[^<>]*@[^<>]*>"
)

Facts = dict[str, str]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation. `facts`: what is compared (banner, capabilities, …). `problem`: empty when it went well."""

    title: str
    endpoint: Endpoint
    lines: tuple[Spoken, ...]
    facts: Mapping[str, str]
    problem: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One pool: the service and its real servers, side by side. `left_out`: real servers not asked, over the limit.

    `note`: why `through` is not the service but the first real server; empty: it is the service.
    """

    route: str
    conversation: str
    through: Dialogue
    direct: tuple[Dialogue, ...]
    left_out: int
    differences: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """What came out, one comparison for each pool of the service."""

    service: str
    comparisons: tuple[Comparison, ...]

    @property
    def went_well(self) -> bool:
        """Whether every conversation reached its end; differences alone are no failure."""
        return not any(talk.problem for each in self.comparisons for talk in (each.through, *each.direct))


async def smoke(service: Service, *, timeout_s: float, limit: int) -> SmokeReport:
    """Hold the conversations of a service.

    Args:
        service: as configured; its first listening address is dialled.
        timeout_s: for each conversation, all of it.
        limit: real servers of each pool that are asked directly, at most.
    """
    comparisons = [await _compare(service, pool, timeout_s, limit) for pool in service.pools()]
    return SmokeReport(service.name, tuple(comparisons))


async def _compare(service: Service, pool: Pool, timeout_s: float, limit: int) -> Comparison:
    options = unverified(options_for(service, pool), server_name(service, pool))
    front = dialled(service.doors[0])
    ours = service.proxy_protocol.send
    note = unreachable_from_here(service)
    asked = pool.members[: max(limit, 1) if note else limit]
    on_client_side, on_server_side = sides(service, options)
    talks = []
    if not note:
        talks.append(_dialogue(f"through {front}", front, header_through(service, front), on_client_side, timeout_s))
    talks += [
        _dialogue(f"{member.real_server} {member.endpoint}", member.endpoint, ours, on_server_side, timeout_s)
        for member in asked
    ]
    if service.l4 is not None and service.l4.protocol == "udp" and not isinstance(options, DnsCheck):
        return _nothing_to_say(pool, front, talks)
    through, *direct = await asyncio.gather(*talks)
    direct = direct or [through]  # of a single real server that stands for the service
    return Comparison(
        route=pool.route,
        conversation=_conversation_name(options),
        through=through,
        direct=tuple(direct),
        left_out=len(pool.members) - len(asked),
        differences=tuple(line for each in direct for line in differences(through, each)),
        note=note,
    )


def unreachable_from_here(service: Service) -> str:
    """Why a connection from the balancer itself says nothing about a service; empty: it can be talked to from here."""
    if service.l4 is None or service.l4.forward not in (Forward.DSR, Forward.TUNNEL):
        return ""
    return (
        f"forward: {service.l4.forward}: the service's address is this machine's own, so from here nothing goes the "
        "way of a client. Real servers are compared with the first one; `mailbalancer status` says what knocks at them "
        "through the service's address have found, and the service itself must be tried from another machine"
    )


def _nothing_to_say(pool: Pool, front: Endpoint, talks: list[Coroutine[Any, Any, Dialogue]]) -> Comparison:
    """Datagrams whose protocol nobody has told us."""
    for talk in talks:
        talk.close()
    note = "udp: what its datagrams mean is known only with `check: dns`, so nothing was said"
    return Comparison(
        pool.route, "udp", Dialogue(f"through {front}", front, (), {}, ""), (), len(pool.members), (), note
    )


# ---------------------------------------------------------------- which conversation


def options_for(service: Service, pool: Pool) -> CheckOptions:
    """The conversation that suits a pool: its check's, or that of a well-known port.

    The check does not tell when it only connects, or asks another port than the members'.
    """
    check = pool.check
    if check.port == 0 and check.options != TcpCheck():
        return check.options
    for port in (service.doors[0].port, *(member.endpoint.port for member in pool.members[:1])):
        if port in _BY_PORT:
            return _BY_PORT[port]
    return TlsCheck() if service.mode is Mode.TLS else TcpCheck()


def sides(service: Service, options: CheckOptions) -> tuple[CheckOptions, CheckOptions]:
    """The conversation with the service and that with its servers: a mail mode may begin with TLS on one side only."""
    if service.mail is None or not isinstance(options, (SmtpCheck, ImapCheck, Pop3Check)):
        return options, options
    client, server = service.client_tls, service.server_tls
    return (
        replace(options, tls=client is not None and client.starttls == "implicit"),
        replace(options, tls=server is not None and server.starttls == "implicit"),
    )


def server_name(service: Service, pool: Pool) -> str:
    """The name that TLS routing must see to reach this pool; empty: the check's own."""
    route = next((route for route in service.routes if route.pool is pool), None)
    if route is None or not route.hosts:
        return ""
    return re.sub(r"\A\*\.", "smoke.", route.hosts[0])


def unverified(options: CheckOptions, name: str) -> CheckOptions:
    """The same conversation without verification of certificates, which are looked at here and not trusted."""
    if isinstance(options, (TcpCheck, DnsCheck)):
        return options
    return replace(options, verify=Verify(kind="none", name=name or options.verify.name))


def dialled(listen: Endpoint) -> Endpoint:
    """Where to dial a listening address: a wildcard is reached on loopback."""
    if not ipaddress.ip_address(listen.host).is_unspecified:
        return listen
    return Endpoint("::1" if listen.is_ipv6 else "127.0.0.1", listen.port)


def header_through(service: Service, front: Endpoint) -> str:
    """Version of the PROXY header that the service wants from us; empty: none.

    Dialling an address of its own, a machine comes from that address.
    """
    us = ipaddress.ip_address(front.host)
    return "v2" if any(us in network for network in service.proxy_protocol.accept_from) else ""


def _conversation_name(options: CheckOptions) -> str:
    name = type(options).__name__.removesuffix("Check").lower()
    return f"{name} in TLS" if getattr(options, "tls", False) else name


# ---------------------------------------------------------------- holding it


async def _dialogue(title: str, endpoint: Endpoint, header: str, options: CheckOptions, timeout_s: float) -> Dialogue:
    lines: list[Spoken] = []
    facts: Facts = {}
    talk = Conversation(endpoint, proxy_header=header, transcript=lines)
    deadline_at = asyncio.get_running_loop().time() + timeout_s
    problem = ""
    try:
        async with asyncio.timeout_at(deadline_at):
            await _converse(options, talk, facts)
    except TimeoutError:
        problem = talk.timed_out(timeout_s)
    except Failed as failure:
        problem = failure.reason
    except OSError as error:
        problem = talk.broken(error)
    finally:
        await talk.leave(deadline_at)
    facts |= {name: str(value) for name, value in talk.detail.items() if name not in facts and name != "capabilities"}
    if talk.certificate is not None:
        seen = talk.certificate
        facts["certificate"] = f"for {seen}, until {seen.not_after:%Y-%m-%d}, sha256 {seen.sha256[:16]}…"
    return Dialogue(title, endpoint, tuple(lines), facts, problem)


async def _converse(options: CheckOptions, talk: Conversation, facts: Facts) -> None:
    match options:
        case SmtpCheck():
            await _smtp(options, talk, facts)
        case ImapCheck():
            await _imap(options, talk, facts)
        case Pop3Check():
            await _pop3(options, talk, facts)
        case HttpCheck():
            await http.converse(options, talk)
        case TlsCheck():
            await tls.converse(options, talk)
        case DnsCheck():
            await dns.converse(options, talk)
        case TcpCheck():
            await _tcp(options, talk, facts)


async def _smtp(options: SmtpCheck, talk: Conversation, facts: Facts) -> None:
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    await smtp.greet(talk)
    capabilities = await smtp.hello(talk, options.helo)
    facts["capabilities"] = ", ".join(capabilities)
    if not options.tls and _offers(capabilities, "STARTTLS", facts):
        await smtp.start_tls(talk, capabilities, options.verify)
        facts["capabilities in TLS"] = ", ".join(await smtp.hello(talk, options.helo))
    if options.mail_from or options.rcpt_to:
        await smtp.try_envelope(talk, options.mail_from, options.rcpt_to)


async def _imap(options: ImapCheck, talk: Conversation, facts: Facts) -> None:
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    await imap.greet(talk)
    capabilities = await imap.list_capabilities(talk)
    facts["capabilities"] = ", ".join(capabilities)
    if not options.tls and _offers(capabilities, "STARTTLS", facts):
        await imap.start_tls(talk, capabilities, options.verify)
        facts["capabilities in TLS"] = ", ".join(await imap.list_capabilities(talk))


async def _pop3(options: Pop3Check, talk: Conversation, facts: Facts) -> None:
    await talk.connect()
    if options.tls:
        await talk.start_tls(options.verify)
    await pop3.greet(talk)
    capabilities = await pop3.list_capabilities(talk) or ()
    facts["capabilities"] = ", ".join(capabilities)
    if not options.tls and _offers(capabilities, "STLS", facts):
        await pop3.start_tls(talk, capabilities, options.verify)
        facts["capabilities in TLS"] = ", ".join(await pop3.list_capabilities(talk) or ())


async def _tcp(options: TcpCheck, talk: Conversation, facts: Facts) -> None:
    if options != TcpCheck():
        await tcp.converse(options, talk)
        return
    await talk.connect()
    try:
        async with asyncio.timeout(GREETING_S):
            greeting = await talk.read("greeting")
    except TimeoutError:
        facts["greeting"] = "the server waits for the client to speak"
        talk.note("*", f"no greeting within {GREETING_S:g} s")
        return
    facts["greeting"] = shown(greeting) if greeting else "the server closed the connection"
    talk.note("<" if greeting else "*", facts["greeting"])


def _offers(capabilities: tuple[str, ...], command: str, facts: Facts) -> bool:
    offered = command in (words.upper() for words in capabilities)
    facts[command] = "offered" if offered else "not offered"
    return offered


# ---------------------------------------------------------------- comparing


def differences(through: Dialogue, direct: Dialogue) -> list[str]:
    """Where a real server, asked directly, is not what the service shows; one sentence each."""
    found = []
    if direct.problem != through.problem:
        found.append(
            f"{direct.title}: {direct.problem or 'went well'}; {through.title}: {through.problem or 'went well'}"
        )
    for name in sorted({*through.facts, *direct.facts}):
        ours, theirs = through.facts.get(name), direct.facts.get(name)
        if ours is None or theirs is None:
            continue  # one of them did not get that far, which is said above
        if name.startswith("capabilities"):
            found += _difference_of_lists(direct.title, name, ours, theirs)
        elif lasting(ours) != lasting(theirs):
            where = "through the service" if through.title.startswith("through ") else f"at {through.title}"
            found.append(f"{direct.title}: {name} is '{theirs}', {where} '{ours}'")
    return found


def lasting(text: str) -> str:
    """A server's words without dates and timestamps, which differ every time."""
    return _FLEETING.sub("~", text)


def _difference_of_lists(title: str, name: str, ours: str, theirs: str) -> list[str]:
    through, direct = set(ours.split(", ")), set(theirs.split(", "))
    found = []
    if extra := sorted(through - direct - {""}):
        found.append(f"{title}: {name}: does not offer {', '.join(extra)}, the service does")
    if missing := sorted(direct - through - {""}):
        found.append(f"{title}: {name}: offers {', '.join(missing)}, the service does not")
    return found


# ---------------------------------------------------------------- showing


def render(report: SmokeReport) -> str:
    """The report as plain text for a terminal, two columns, at most WIDTH wide; `|` joins equal lines, `#` others."""
    parts = [part for each in report.comparisons for part in _render_comparison(report.service, each)]
    return "\n".join(parts) + "\n"


def _render_comparison(service: str, each: Comparison) -> list[str]:
    name = f"{service}, route {each.route}" if each.route else service
    out = [f"{name}: {each.conversation} conversation", *textwrap.wrap(each.note, WIDTH)]
    for direct in each.direct:
        out += ["", *_side_by_side(each.through, direct)]
    if each.left_out:
        out += ["", f"{each.left_out} more real servers were not asked"]
    out.append("")
    if each.differences:
        out.append("Differences:")
        for difference in each.differences:
            out += textwrap.wrap(difference, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    else:
        out.append("No differences.")
    return [*out, ""]


def _side_by_side(through: Dialogue, direct: Dialogue) -> list[str]:
    column = (WIDTH - 3) // 2
    rows = [_row(through.title, direct.title, column, " "), "-" * (2 * column + 3)]
    for left, right in _aligned(_blocks(through), _blocks(direct)):
        for ours, theirs in zip_longest(left, right):
            rows += _pair(ours, theirs, column)
    if through.problem or direct.problem:
        ends = zip_longest(textwrap.wrap(_end(through), column), textwrap.wrap(_end(direct), column), fillvalue="")
        rows += [_row(left_end, right_end, column, " ") for left_end, right_end in ends]
    return rows


def _end(talk: Dialogue) -> str:
    return f"FAILED: {talk.problem}" if talk.problem else "ok"


def _blocks(talk: Dialogue) -> list[list[Spoken]]:
    """The lines, cut before each of our questions."""
    blocks: list[list[Spoken]] = [[]]
    for line in talk.lines:
        if line.direction == ">" and any(spoken.direction != ">" for spoken in blocks[-1]):
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def _aligned(left: list[list[Spoken]], right: list[list[Spoken]]) -> Iterator[tuple[list[Spoken], list[Spoken]]]:
    """Pairs of blocks such that the same question stands on the same row; one asked on one side only stands alone."""
    steps = SequenceMatcher(None, _questions(left), _questions(right), autojunk=False).get_opcodes()
    for tag, left_from, left_to, right_from, right_to in steps:
        if tag == "equal":
            yield from zip(left[left_from:left_to], right[right_from:right_to], strict=True)
            continue
        yield from ((block, []) for block in left[left_from:left_to])
        yield from (([], block) for block in right[right_from:right_to])


def _questions(blocks: list[list[Spoken]]) -> list[tuple[str, int]]:
    """What each block asks and for which time: the second EHLO, inside TLS, is not the first."""
    asked: Counter[str] = Counter()
    found = []
    for block in blocks:
        text = block[0].text if block and block[0].direction == ">" else ""
        asked[text] += 1
        found.append((text, asked[text]))
    return found


def _pair(ours: Spoken | None, theirs: Spoken | None, column: int) -> list[str]:
    same = ours and theirs and (lasting(ours.text) == lasting(theirs.text) or "*" in (ours.direction, theirs.direction))
    cells = zip_longest(_cell(ours, column), _cell(theirs, column), fillvalue="")
    return [_row(left, right, column, "|" if same else "#") for left, right in cells]


def _cell(line: Spoken | None, column: int) -> list[str]:
    if line is None:
        return []
    return textwrap.wrap(f"{line.at_s * 1000:6.0f} ms {line.direction} {line.text}", column, subsequent_indent=" " * 12)


def _row(left: str, right: str, column: int, joint: str) -> str:
    return f"{left[:column]:<{column}} {joint} {right[:column]}".rstrip()
