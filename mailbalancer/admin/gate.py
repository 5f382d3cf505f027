"""The gate: who asks, and whether they may. Every request passes here before anything else looks at it.

Decides: which names the page may be asked for under (a name that an attacker's DNS points here is refused), how a
visitor is known (token, cookie of the page, or loopback while there are no tokens), what a change must bring with it
so that no other site can send it, and that guessing costs time.
Refuses to know: what is asked for; sockets; clocks (`now` comes in).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from mailbalancer.admin.throttle import Throttle
from mailbalancer.admin.tokens import Role, Token, TokensFile
from mailbalancer.admin.visits import Visit, Visits
from mailbalancer.errors import MailbalancerError

COOKIE = "mailbalancer_visit"
CSRF_HEADER = "X-CSRF-Token"
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?\Z")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Refused(MailbalancerError):
    """An answer that is not the one that was asked for. `status` is HTTP's; `headers` go with it."""

    def __init__(self, status: int, message: str, remedy: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Asked:
    """What the gate looks at of a request. `headers` are case-insensitive; `peer` is an IP address."""

    method: str
    headers: Mapping[str, str]
    peer: str
    encrypted: bool = False

    @property
    def changes(self) -> bool:
        return self.method not in _SAFE


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks. `visit` is theirs when they came through the page."""

    name: str
    role: Role
    peer: str
    visit: Visit | None = None


class Gate:
    """Lets visitors in.

    Args:
        hosts: names, or patterns such as `*.example.com`, under which the page may be asked for.
    """

    def __init__(self, tokens: TokensFile, hosts: Sequence[str] = ()) -> None:
        self.visits = Visits()
        self._throttle = Throttle()
        self.follow(tokens, hosts)

    def follow(self, tokens: TokensFile, hosts: Sequence[str]) -> None:
        """These are the settings from now on. Visits stay."""
        self._tokens = tokens
        self._hosts = frozenset(host.lower() for host in hosts)

    def check_host(self, asked: Asked) -> None:
        """Refuse a Host that is not ours, and a page of another site that sends its visitors here.

        Raises:
            Refused: 403.
        """
        host = asked.headers.get("Host", "")
        if not self._is_ours(host):
            raise Refused(403, "this name is not mailbalancer's", "list it under `admin.hosts`, or use the address")
        origin = asked.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise Refused(403, "a page of another site may not ask here")
        if asked.headers.get("Sec-Fetch-Site", "none") == "cross-site" and asked.changes:
            raise Refused(403, "a page of another site may not ask here")

    def _is_ours(self, host: str) -> bool:
        """An address cannot be rebound, so every address is ours."""
        found = _HOST.match(host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower().rstrip(".")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or name in self._hosts or f"*.{name.partition('.')[2]}" in self._hosts
        return True

    def visitor(self, asked: Asked, now: float) -> Visitor:
        """Who this is.

        Raises:
            Refused: 401 nobody we know; 429 wrong too often; 503 the tokens file cannot be used.
        """
        try:
            return self._visitor(asked, now)
        except Refused:
            raise
        except MailbalancerError as error:
            raise Refused(503, error.message, error.remedy) from error

    def _visitor(self, asked: Asked, now: float) -> Visitor:
        scheme, _, secret = asked.headers.get("Authorization", "").partition(" ")
        if scheme:
            token = self.token(secret.strip(" ") if scheme.lower() == "bearer" else "", asked.peer, now)
            return Visitor(token.name, token.role, asked.peer)
        visit = self.visits.find(cookie(asked), self._tokens, now)
        if visit is not None:
            return Visitor(visit.token.name, visit.token.role, asked.peer, visit)
        if self._tokens.is_empty() and _is_loopback(asked.peer):
            return Visitor("loopback", Role.READ, asked.peer)
        challenge = {"WWW-Authenticate": 'Bearer realm="mailbalancer"'}
        raise Refused(401, "a token is needed", "send `Authorization: Bearer TOKEN`, or log in to the page", challenge)

    def token(self, secret: str, peer: str, now: float) -> Token:
        """Whose token this is.

        The right one is let in also where somebody guesses at the same time: a token of 256 bits is not found by
        guessing, and whoever shares an address with a guesser (a NAT device) must not be locked out of a balancer in
        trouble.

        Raises:
            Refused: 401 nobody's, 429 this source was wrong too often.
            MailbalancerError: the tokens file cannot be used.
        """
        token = self._tokens.find(secret)
        if token is None:
            self._slow_down(peer, now)
            self._throttle.failed(peer, now)
            challenge = {"WWW-Authenticate": 'Bearer realm="mailbalancer", error="invalid_token"'}
            raise Refused(401, "this token is not known", "`mailbalancer token list` shows what there is", challenge)
        return token

    def _slow_down(self, peer: str, now: float) -> None:
        wait_s = self._throttle.wait_s(peer, now)
        if wait_s > 0:
            headers = {"Retry-After": str(int(wait_s) + 1)}
            raise Refused(429, "too many wrong tokens from this address", f"wait {wait_s:.0f} s", headers)

    def log_in(self, secret: str, asked: Asked, now: float) -> tuple[str, Visit]:
        """Begin a visit; returns the secret for the cookie and the visit.

        Raises:
            Refused: as `visitor`.
        """
        self._slow_down(asked.peer, now)  # a person can wait
        try:
            return self.visits.begin(self.token(secret, asked.peer, now), now)
        except Refused:
            raise
        except MailbalancerError as error:
            raise Refused(503, error.message, error.remedy) from error


def permit(visitor: Visitor, needed: Role) -> None:
    """Refuse who may not.

    Raises:
        Refused: 403.
    """
    if visitor.role.covers(needed):
        return
    if visitor.name == "loopback":
        remedy = "make a token: `mailbalancer token create NAME --role ROLE`; without one nothing may be changed"
        raise Refused(403, f"this needs a token with the role {needed}", remedy)
    raise Refused(403, f"{visitor.name} has the role {visitor.role}, and this needs {needed}", "use another token")


def check_change(asked: Asked, visit: Visit | None) -> None:
    """Refuse a change that a form, or a page of another site, could have sent.

    Raises:
        Refused: 403 without the visit's CSRF token; 415 a body that is not JSON.
    """
    if not asked.changes:
        return
    kind = asked.headers.get("Content-Type", "").partition(";")[0].strip(" \t").lower()
    has_body = asked.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in asked.headers
    if kind != "application/json" and (kind or has_body):
        raise Refused(415, "the body must be JSON", "send `Content-Type: application/json`")
    if visit is not None and not visit.knows(asked.headers.get(CSRF_HEADER, "")):
        raise Refused(403, f"{CSRF_HEADER} is missing or wrong", "load the page again")


def cookie(asked: Asked) -> str:
    """The secret in the page's cookie; empty when there is none."""
    try:
        found = SimpleCookie(asked.headers.get("Cookie", "")[:4096]).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def set_cookie(secret: str, encrypted: bool) -> str:
    """The Set-Cookie header of a new visit; an empty secret ends it."""
    end = "" if secret else "; Max-Age=0"
    return f"{COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict{'; Secure' if encrypted else ''}{end}"


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
