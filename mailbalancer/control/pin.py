"""Pinning: the certificate that a real server shows, and the setting that accepts it and no other.

Decides: how the server is asked (as the service asks it: implicit TLS or STARTTLS, with the PROXY header and the name
that the service sends).
Refuses to know: configuration files and what becomes of the facts. A certificate that was only looked at is not trusted
for that: the administrator compares what is shown with what he finds on the server.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from mailbalancer.control.checks.run import look
from mailbalancer.errors import MailbalancerError
from mailbalancer.model import (
    Check,
    CheckOptions,
    Endpoint,
    ImapCheck,
    Member,
    Mode,
    Pop3Check,
    ServerTls,
    Service,
    SmtpCheck,
    TlsCheck,
)
from mailbalancer.tls.certificate import Certificate, today
from mailbalancer.tls.verify import pins


@dataclass(frozen=True, slots=True)
class Shown:
    """What a real server of a service shows, and what is accepted of that service's servers so far.

    Attributes:
        others: the service's other real servers, whose certificates must be among the pins as well.
        pinned: fingerprints that are pinned already.
    """

    service: str
    real_server: str
    endpoint: Endpoint
    certificate: Certificate
    others: tuple[str, ...]
    pinned: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """As JSON can say it."""
        seen = self.certificate
        return {
            "service": self.service,
            "real_server": self.real_server,
            "endpoint": str(self.endpoint),
            "names": list(seen.names),
            "issuer": seen.issuer,
            "not_before": f"{seen.not_before:%Y-%m-%dT%H:%M:%SZ}",
            "not_after": f"{seen.not_after:%Y-%m-%dT%H:%M:%SZ}",
            "days_left": seen.days_left(today()),
            "sha256": seen.sha256,
            "pinned": list(self.pinned),
            "others": list(self.others),
        }


async def shown(service: Service, real_server: str, timeout_s: float) -> Shown:
    """Look at the certificate of a real server.

    Raises:
        MailbalancerError: there is no such real server, TLS is not spoken to it, or it shows no certificate.
    """
    member, tls = _member(service, real_server), service.server_tls
    if tls is None or tls.starttls == "none":
        raise MailbalancerError(
            f"{service.name} speaks no TLS to its real servers", f"add server_tls to services.{service.name} first"
        )
    check = Check(timeout_s=timeout_s, proxy_header=service.proxy_protocol.send, options=_options(service, tls))
    seen = await look(check, member.endpoint, asyncio.get_running_loop().time() + timeout_s)
    if isinstance(seen, str):
        raise MailbalancerError(
            f"no certificate of {real_server} ({member.endpoint}) could be seen: {seen}",
            f"`mailbalancer smoke {service.name}` shows the whole conversation",
        )
    names = dict.fromkeys(member.real_server for pool in service.pools() for member in pool.members)
    others = tuple(name for name in names if name != real_server)
    already = pins(tls.verify) if tls.verify.kind == "pin" else ()
    return Shown(service.name, real_server, member.endpoint, seen, others, already)


def _member(service: Service, real_server: str) -> Member:
    members = {member.real_server: member for pool in service.pools() for member in reversed(pool.members)}
    if real_server not in members:
        raise MailbalancerError(
            f"{service.name} has no real server {real_server!r}", f"it has: {', '.join(sorted(members))}"
        )
    return members[real_server]


def _options(service: Service, tls: ServerTls) -> CheckOptions:
    """The conversation that ends at the handshake."""
    if tls.starttls != "implicit":
        match service.mode:
            case Mode.SMTP:
                return SmtpCheck(starttls=True, verify=tls.verify)
            case Mode.IMAP:
                return ImapCheck(starttls=True, verify=tls.verify)
            case Mode.POP3:
                return Pop3Check(starttls=True, verify=tls.verify)
    return TlsCheck(verify=tls.verify)
