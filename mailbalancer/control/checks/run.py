"""Runs one check: one deadline around one conversation, and a verdict whatever happens.

Decides: which conversation belongs to which check, that every failure becomes a `Result` with a sentence for an
administrator, and what is said about a certificate's dates.
Refuses to know: rise and fall, and what follows from a verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.checks import dns, http, imap, pop3, smtp, tcp, tls
from mailbalancer.control.checks.conversation import (
    OWN_FAULTS,
    CertificateRefused,
    CertificateSeen,
    Conversation,
    Failed,
)
from mailbalancer.model import (
    Check,
    CheckOptions,
    DnsCheck,
    Endpoint,
    HttpCheck,
    ImapCheck,
    Pop3Check,
    SmtpCheck,
    TcpCheck,
    TlsCheck,
    Verify,
)
from mailbalancer.tls.certificate import Certificate, today
from mailbalancer.tls.verify import why_refused

_CONVERSATIONS: dict[type[CheckOptions], Callable[[Any, Conversation], Awaitable[str]]] = {
    TcpCheck: tcp.converse,
    TlsCheck: tls.converse,
    HttpCheck: http.converse,
    SmtpCheck: smtp.converse,
    ImapCheck: imap.converse,
    Pop3Check: pop3.converse,
    DnsCheck: dns.converse,
}
_WARN_DAYS = TlsCheck().warn_days


async def run_check(check: Check, endpoint: Endpoint) -> Result:
    """Ask the server once how it is. `check.timeout_s` bounds everything, from connect to farewell.

    Never raises but CancelledError. `Result.detail` may hold `banner`, `status`, `rcode`, `cert_days`, `cert_sha256`
    and `fault: balancer` when this machine and not the server was at fault (out of descriptors, ports or memory).
    """
    if check.type == "none":
        return Result(Verdict.UP, "not checked")
    loop = asyncio.get_running_loop()
    target = Endpoint(endpoint.host, check.port) if check.port else endpoint
    started_at = loop.time()
    deadline_at = started_at + check.timeout_s
    talk = _conversation(check, target)
    leave_until = started_at
    try:
        result, refused = await _verdict(check, talk, deadline_at)
        result = replace(result, took_s=loop.time() - started_at)
        leave_until = deadline_at
    finally:
        await talk.leave(leave_until)
    if refused is None:
        return result
    return replace(result, reason=await _explain(refused, check, target, deadline_at))


def _conversation(check: Check, target: Endpoint, *, look_only: bool = False) -> Conversation:
    return Conversation(target, proxy_header=check.proxy_header, look_only=look_only)


async def _verdict(check: Check, talk: Conversation, deadline_at: float) -> tuple[Result, CertificateRefused | None]:
    refused: CertificateRefused | None = None
    try:
        async with asyncio.timeout_at(deadline_at):
            reason = await _CONVERSATIONS[type(check.options)](check.options, talk)
        verdict, reason = _judge_dates(check.options, talk, reason)
    except TimeoutError:
        verdict, reason = Verdict.DOWN, talk.timed_out(check.timeout_s)
    except Failed as failure:
        verdict, reason = failure.verdict, failure.reason
        refused = failure if isinstance(failure, CertificateRefused) else None
    except OSError as error:
        verdict, reason = Verdict.DOWN, talk.broken(error)
        if error.errno in OWN_FAULTS:
            talk.detail["fault"] = "balancer"
    except Exception as error:  # a fault of ours must neither end the supervisor nor look like health
        verdict, reason = Verdict.DOWN, f"the check itself failed: {type(error).__name__}: {error}"
    return Result(verdict, reason, detail=dict(talk.detail)), refused


def _judge_dates(options: CheckOptions, talk: Conversation, reason: str) -> tuple[Verdict, str]:
    """An expired certificate is down where dates are verified; otherwise it is told, as one that soon will expire.

    A pin states that exactly this certificate is right: sessions believe it to its end and beyond, so checks do too.
    """
    if talk.certificate is None:
        return Verdict.UP, reason
    now = today()
    talk.detail["cert_days"] = talk.certificate.days_left(now)
    talk.detail["cert_sha256"] = talk.certificate.sha256
    expiry = talk.certificate.expiry(now, options.warn_days if isinstance(options, TlsCheck) else _WARN_DAYS)
    if not talk.certificate.valid_at(now) and _verify(options).kind not in ("pin", "none"):
        return Verdict.DOWN, expiry
    return Verdict.UP, f"{reason}; {expiry}" if expiry else reason


def _verify(options: CheckOptions) -> Verify:
    return Verify(kind="none") if isinstance(options, (TcpCheck, DnsCheck)) else options.verify


async def look(check: Check, target: Endpoint, deadline_at: float) -> Certificate | str:
    """The certificate that a server shows, or why none could be seen.

    A conversation that goes as far as the handshake, unverified, looks, and leaves. What it sees is only told, never
    trusted.

    Args:
        deadline_at: on the event loop's clock.
    """
    talk = _conversation(check, target, look_only=True)
    leave_until, reason = 0.0, "it shows no certificate"
    try:
        async with asyncio.timeout_at(deadline_at):
            await _CONVERSATIONS[type(check.options)](check.options, talk)
    except CertificateSeen:
        leave_until, reason = deadline_at, "its certificate cannot be read"
    except TimeoutError:
        reason = talk.timed_out(check.timeout_s)
    except Failed as failure:
        reason = failure.reason
    except OSError as error:
        reason = talk.broken(error)
    finally:
        await talk.leave(leave_until)
    return talk.certificate or reason


async def _explain(refused: CertificateRefused, check: Check, target: Endpoint, deadline_at: float) -> str:
    """Why the certificate was refused, by its names and dates: OpenSSL keeps a refused certificate to itself."""
    seen = await look(check, target, deadline_at)
    if isinstance(seen, str):
        return refused.reason
    verify = _verify(check.options)
    return why_refused(refused.code, seen, verify, target, today()) or refused.reason
