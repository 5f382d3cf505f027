"""One route of an `http` service, made ready for use: what is done to its requests and answers.

Decides: which fields are added and left out, and what a request says about its client, by the kinds of persistence of
this route.
Refuses to know: which requests are its own (`balance.http_routes`), who gets them (`http_service`), sockets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from mailbalancer import model
from mailbalancer.balance import http_keys
from mailbalancer.balance.admit import AddressLists
from mailbalancer.balance.http_cookie import NONCE_BYTES, SEALED_CHARACTERS, Seal
from mailbalancer.model import HeaderEdits
from mailbalancer.wire.forwarded import IDENTITY_FIELDS
from mailbalancer.worker.service import ServicePool

#: Between our part of a prefixed cookie and the server's own.
SEPARATOR: Final = b"~"
COOKIE_NAME: Final = "mbsession"


class Returning(NamedTuple):
    """What a request says about its client: the real server that a cookie of ours stands for, or a key of a table.

    `sets_cookie`: a cookie of ours was looked for, and should be there the next time.
    """

    server: str = ""
    key: str = ""
    sets_cookie: bool = False


STRANGER: Final = Returning()


class Route:
    """One route, or the service itself, made ready for use.

    Attributes:
        answers: no server is asked.
        request_fields, response_fields: complete field lines to add.
        request_drop, response_drop: lower-case names of the fields to leave out.
        cookie: name of the cookie that we set, or put our mark into; empty: none.
        prefixes: whether that is a cookie of the server's.
        learns: name of the server's cookie to be remembered; empty: none.
        reads_cookies: whether cookies of the server are marked or remembered.
        looks_at_source: whether where a request comes from says who its client is.
    """

    def __init__(
        self, service: model.Service, config: model.Route | None, pool: ServicePool, secrets: Mapping[str, list[bytes]]
    ) -> None:
        http = service.http
        assert http is not None
        own = (config.http if config else None) or model.HttpRoute()
        self.name = config.name if config else ""
        self.pool = pool
        self.idle_timeout_s = own.idle_timeout_s or service.idle_timeout_s
        self.lists = AddressLists(own.allow, own.deny) if own.allow or own.deny else None
        self.redirect = own.redirect
        self.respond = own.respond
        self.answers = bool(own.redirect or own.respond or not pool.targets)
        hsts = (("Strict-Transport-Security", f"max-age={http.hsts_s}"),) if http.hsts_s and service.client_tls else ()
        self.own_fields, _ = _edits(HeaderEdits(hsts))
        self.request_fields, drop = _edits(http.request_headers, own.request_headers)
        self.request_drop = IDENTITY_FIELDS | drop
        self.response_fields, self.response_drop = _edits(
            HeaderEdits(hsts), http.response_headers, own.response_headers
        )
        self._persist(service, pool.config.persist, secrets)

    def _persist(
        self, service: model.Service, persist: model.Persist | None, secrets: Mapping[str, list[bytes]]
    ) -> None:
        self.finders: tuple[http_keys.Finder | None, ...] = ()  # None: by a cookie of ours
        self.cookie = self.learns = b""
        self.prefixes = False
        self.seal: Seal | None = None
        self.cookie_fields = b""
        self.looks_at_source = self.reads_cookies = False
        if persist is None:
            return
        kinds = persist.kinds
        name = (persist.cookie or COOKIE_NAME).encode()
        if "cookie" in kinds or "cookie_prefix" in kinds:
            self.seal = Seal(secrets[persist.key_file], persist.group, list(self.pool.targets))
            self.cookie = name
            self.prefixes = "cookie_prefix" in kinds
            secure = b"; Secure" if service.client_tls is not None else b""
            self.cookie_fields = b"; Path=/; HttpOnly; SameSite=%b%b\r\n" % (
                (persist.same_site or "lax").title().encode(),
                secure,
            )
        if "server_cookie" in kinds:
            self.learns = name
        self.looks_at_source = "source" in kinds
        self.reads_cookies = self.prefixes or bool(self.learns)
        self.finders = tuple(None if kind in ("cookie", "cookie_prefix") else _finder(persist, kind) for kind in kinds)

    def recognise(self, source: str, host: str, path: bytes, values: http_keys.Values) -> Returning:
        """Who the client is to persistence, by the first kind that finds something."""
        looked = False
        for find in self.finders:
            if find is None:
                looked = True
                server = self._by_cookie(values)
                if server:
                    return Returning(server, "", True)
            else:
                key = find(http_keys.Asked(source, host, path, values))
                if key:
                    return Returning("", key, looked)
        return Returning("", "", looked)

    def _by_cookie(self, values: http_keys.Values) -> str:
        fields = values.get(b"cookie")
        if fields is None or self.seal is None:
            return ""
        value = http_keys.cookie_value(fields, self.cookie)
        if self.prefixes:
            value, separator, _ = value.partition(SEPARATOR)
            if not separator:
                return ""
        return self.seal.open(value)

    def set_cookie(self, server: str) -> bytes:
        """The field line that brings a client back to this server."""
        assert self.seal is not None
        return b"Set-Cookie: %b=%b%b" % (self.cookie, self.mark(server), self.cookie_fields)

    def mark(self, server: str) -> bytes:
        """The sealed name of a server, new each time."""
        assert self.seal is not None
        return self.seal.seal(server, os.urandom(NONCE_BYTES))

    def unmarked(self, fields: list[bytes]) -> bytes | None:
        """The Cookie line for the server behind, with our part of its cookie taken out; None: there was none."""
        begins = self.cookie + b"="
        at = SEALED_CHARACTERS + len(begins)
        changed = False
        pairs = []
        for pair in b";".join(fields).split(b";"):
            plain = pair.strip(b" \t")
            if plain.startswith(begins) and plain[at : at + 1] == SEPARATOR:
                plain = begins + plain[at + 1 :]
                changed = True
            pairs.append(plain)
        return b"Cookie: %b\r\n" % b"; ".join(pairs) if changed else None


def _finder(persist: model.Persist, kind: str) -> http_keys.Finder:
    return http_keys.finder(kind, persist.field, persist.parameter, persist.cookie or COOKIE_NAME)


def _edits(*edits: HeaderEdits) -> tuple[bytes, frozenset[bytes]]:
    """The lines to add and the names to leave out; what a route says comes after, and instead of, the service's."""
    lines: dict[bytes, bytes] = {}
    dropped: set[bytes] = set()
    for edit in edits:
        for name in edit.remove:
            lines.pop(name.lower().encode(), None)
            dropped.add(name.lower().encode())
        for name, value in edit.set:
            key = name.lower().encode()
            lines[key] = b"%b: %b\r\n" % (name.encode("ascii"), value.encode("latin-1"))
            dropped.add(key)
    return b"".join(lines.values()), frozenset(dropped)
