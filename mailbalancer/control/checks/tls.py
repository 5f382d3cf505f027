"""The `tls` check: handshake, verification, and the days a certificate has left.

Decides: the order of things. The dates themselves are judged for every type alike, in `run`.
Refuses to know: what is spoken inside TLS.
"""

from __future__ import annotations

from mailbalancer.control.checks.conversation import Conversation
from mailbalancer.model import TlsCheck


async def converse(options: TlsCheck, talk: Conversation) -> str:
    """Have the conversation; the result is the reason for `up`. Raises Failed and OSError."""
    await talk.connect()
    await talk.start_tls(options.verify)
    return f"TLS handshake done, certificate for {talk.certificate}" if talk.certificate else "TLS handshake done"
