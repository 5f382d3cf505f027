"""Defaults that depend on the protocol, each with its reason.

Decides: how long a session of a port may be silent, and which ports speak TLS from the first byte.
Refuses to know: the file.
"""

from __future__ import annotations

SMTP_IDLE_S = 330.0  # Exchange's receive connector closes after 300 s; the server must end a session before we do
MAILBOX_IDLE_S = 1860.0  # IMAP and POP allow 1800 s after login (RFC 2177 tells IDLE to renew before 29 minutes)
HTTPS_IDLE_S = 3700.0  # ActiveSync's heartbeat may be 3540 s; anything shorter drains batteries and delays mail
RPC_IDLE_S = 3600.0  # Outlook's RPC keeps connections for hours; Exchange's own TCP keep-alive is at most 1800 s
OTHER_IDLE_S = 660.0  # twice the longest silence that mail protocols ask for (5 minutes), and a minute

_IDLE_S = {
    25: SMTP_IDLE_S,
    465: SMTP_IDLE_S,
    587: SMTP_IDLE_S,
    2525: SMTP_IDLE_S,
    110: MAILBOX_IDLE_S,
    143: MAILBOX_IDLE_S,
    993: MAILBOX_IDLE_S,
    995: MAILBOX_IDLE_S,
    443: HTTPS_IDLE_S,
    135: RPC_IDLE_S,
    # the static ports that are usually given to RPC Client Access and the address book of Exchange 2010
    59531: RPC_IDLE_S,
    59532: RPC_IDLE_S,
}

#: TLS from the first byte (RFC 8314, section 3): a check of the protocol must shake hands first.
IMPLICIT_TLS_PORTS = frozenset({465, 993, 995})


def idle_timeout_s(port: int) -> float:
    """How long a session on this port may be silent in both directions, when the operator did not say."""
    return _IDLE_S.get(port, OTHER_IDLE_S)
