"""When somebody must be told that a certificate expires: 30, 14, 7 and 1 days before, and once it has.

Decides: that each of these is said once for each certificate, and that a certificate that is met late is told about
once, not once for every day that was missed. A renewed certificate has another fingerprint and starts afresh.
Refuses to know: the clock, the files, and who listens. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

WARN_DAYS = (30, 14, 7, 1)
#: What stands in `said` for a certificate whose expiry has been told.
EXPIRED = 0
_NEVER = max(WARN_DAYS) + 1


@dataclass(frozen=True, slots=True)
class Dated:
    """A certificate and its end. `name` is what the operator calls it, `sha256` tells it from its successor."""

    name: str
    sha256: str
    not_after: datetime


def due(certificates: Iterable[Dated], now: datetime, said: Mapping[str, int]) -> tuple[list[str], dict[str, int]]:
    """What must be said now.

    Args:
        said: the smallest number of days already told, by fingerprint; what the last call returned, empty at first.

    Returns:
        The sentences, and `said` for the next call (without certificates that are gone).
    """
    sentences: list[str] = []
    told: dict[str, int] = {}
    for certificate in certificates:
        before = min(said.get(certificate.sha256, _NEVER), told.get(certificate.sha256, _NEVER))
        reached = _reached(certificate.not_after - now)
        if reached < before:
            sentences.append(_sentence(certificate, now))
        if min(reached, before) < _NEVER:
            told[certificate.sha256] = min(reached, before)
    return sentences, told


def _reached(left: timedelta) -> int:
    """The smallest warning whose time has come."""
    if left <= timedelta(0):
        return EXPIRED
    return min((days for days in WARN_DAYS if left <= timedelta(days=days)), default=_NEVER)


def _sentence(certificate: Dated, now: datetime) -> str:
    left = certificate.not_after - now
    until = f"{certificate.not_after:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta(0):
        return f"certificate '{certificate.name}' has expired ({until}); clients refuse it: replace it now"
    days = -(-left // timedelta(days=1))
    ends = "within a day" if days == 1 else f"in {days} days"
    return f"certificate '{certificate.name}' expires {ends} ({until}); renew it and reload"
