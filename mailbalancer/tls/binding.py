"""The Extended Protection watch: do clients see the certificate that the real server shows?

Windows clients put a hash of the certificate they saw into NTLM and Kerberos (RFC 5929 section 4,
`tls-server-end-point`), and IIS compares it with its own. Behind a balancer that ends TLS this works only when both
show the same certificate; otherwise web mail works and Outlook is asked for passwords for ever.

Decides: match, mismatch or unknown, and the sentence for it. The same key in a renewed certificate is a mismatch: the
hash is over the whole certificate.
Refuses to know: how the certificates were seen. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Binding(StrEnum):
    """How the certificate shown to clients stands to the one of a real server."""

    MATCH = "match"
    MISMATCH = "MISMATCH"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The finding for one real server, with a sentence for the administrator."""

    binding: Binding
    text: str

    @property
    def alarming(self) -> bool:
        return self.binding is Binding.MISMATCH


def compare(real_server: str, served_sha256: str, shown_sha256: str) -> Comparison:
    """Compare what clients are served with what a real server shows.

    Args:
        served_sha256: fingerprint of our certificate for the name under which the server was asked; empty: not known.
        shown_sha256: fingerprint of the server's certificate in its last check; empty: not seen.
    """
    if not served_sha256:
        return Comparison(Binding.UNKNOWN, f"{real_server}: no certificate is served to clients")
    if not shown_sha256:
        return Comparison(Binding.UNKNOWN, f"{real_server}: its certificate has not been seen by a TLS check yet")
    served, shown = served_sha256.lower(), shown_sha256.lower()
    if served == shown:
        return Comparison(Binding.MATCH, f"{real_server} shows the certificate that clients are served")
    return Comparison(
        Binding.MISMATCH,
        f"{real_server} shows another certificate (sha256 {shown[:16]}…) than clients are served "
        f"({served[:16]}…): with Extended Protection, Outlook cannot log in; install the same certificate on both",
    )
