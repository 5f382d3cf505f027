"""Visits: who is logged in to the page.

Decides: how long a visit lasts, that it ends when its token is revoked, and that there is a bounded number of them.
Refuses to know: cookies and HTTP. Kept in memory: a restart of the balancer logs everybody out.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from mailbalancer.admin.tokens import Token, TokensFile

IDLE_S = 3600.0
LONGEST_S = 12 * 3600.0
MOST = 200


@dataclass(slots=True)
class Visit:
    """One person at one browser. `csrf` goes back with every change, from a script that another site cannot read."""

    token: Token
    csrf: str
    began_at: float
    seen_at: float

    def knows(self, csrf: str) -> bool:
        return hmac.compare_digest(self.csrf.encode(), csrf.encode("utf-8", "replace"))


class Visits:
    """By the secret in the cookie."""

    def __init__(self) -> None:
        self._visits: dict[str, Visit] = {}

    def begin(self, token: Token, now: float) -> tuple[str, Visit]:
        """Somebody showed a token; returns the secret for the cookie and the visit."""
        self._end_old(now)
        while len(self._visits) >= MOST:
            del self._visits[min(self._visits, key=lambda secret: self._visits[secret].seen_at)]
        secret = secrets.token_urlsafe(32)
        self._visits[secret] = visit = Visit(token, secrets.token_urlsafe(32), now, now)
        return secret, visit

    def find(self, secret: str, tokens: TokensFile, now: float) -> Visit | None:
        """The visit behind a cookie, unless it is over.

        Raises:
            MailbalancerError: the tokens file cannot be used.
        """
        visit = self._visits.get(secret)
        if visit is None:
            return None
        token = tokens.with_digest(visit.token.digest)
        if token is None or self._is_over(visit, now):
            del self._visits[secret]
            return None
        visit.token, visit.seen_at = token, now
        return visit

    def end(self, secret: str) -> None:
        """Logged out."""
        self._visits.pop(secret, None)

    def _end_old(self, now: float) -> None:
        self._visits = {secret: visit for secret, visit in self._visits.items() if not self._is_over(visit, now)}

    @staticmethod
    def _is_over(visit: Visit, now: float) -> bool:
        return now - visit.seen_at > IDLE_S or now - visit.began_at > LONGEST_S
