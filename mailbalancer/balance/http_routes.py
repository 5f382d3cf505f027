"""Which route of an `http` service a request belongs to.

Decides: by host, then by path. An exact host comes before a wildcard one, that before none; among the routes of the
same host the longest path wins, and a route without paths takes the rest. Paths are compared without regard to case,
as Exchange does, and by whole segments: `/owa` is the beginning of `/owa`, `/owa/` and `/owa/auth`, not of `/owaxyz`.
Refuses to know: what a route does.

A path can be written in ways that a server reads differently from how it looks: `/owa/../ecp`, `/%65cp`,
`/owa\\..\\ecp`, `/ow%2561`. A route that denies `/ecp`, or sends it to servers of its own, must not be passed by in
this way, and we cannot know how the server behind reads it. So the path is also looked up as a lenient server would
read it, decoded once, twice and three times; when these do not all lead to the same route the request is refused. What
is forwarded is the path as it came.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

Found = TypeVar("Found")

#: What has to be there for a path to mean something else than it looks like.
_AMBIGUOUS: Final = re.compile(rb"%|\\|//|/\.|;")
_ESCAPE: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_PARAMETERS: Final = re.compile(rb";[^/]*+")
_DECODED_AT_MOST: Final = 3
#: Answers remembered; mail clients ask for few paths, many times.
REMEMBERED: Final = 2048
_LONGEST_REMEMBERED: Final = 256


class Ambiguous(ValueError):
    """A path that servers may read in two ways, of which each would take another route."""


class Rule(NamedTuple, Generic[Found]):
    """Requests for one of `hosts` (empty: any) under one of `paths` (empty: any) are `found`'s."""

    hosts: tuple[str, ...]
    paths: tuple[str, ...]
    found: Found


class Routes(Generic[Found]):
    """The routes of one service.

    Args:
        otherwise: what a request gets that no rule is for.
    """

    def __init__(self, rules: Sequence[Rule[Found]], otherwise: Found) -> None:
        self._otherwise = otherwise
        self._by_host: dict[str, list[tuple[bytes, Found]]] = {}
        self._looks_at_paths = any(rule.paths for rule in rules)
        for rule in rules:
            for host in rule.hosts or ("",):
                places = self._by_host.setdefault(host, [])
                places += [(path.lower().rstrip("/").encode(), rule.found) for path in rule.paths or ("",)]
        for places in self._by_host.values():
            places.sort(key=lambda place: -len(place[0]))
        self._remembered: dict[tuple[str, bytes], Found] = {}

    def find(self, host: str, path: bytes) -> Found:
        """The route for a request.

        Args:
            host: lower-case, without port.
            path: as in the request, with its query.

        Raises:
            Ambiguous: see above.
        """
        if not self._by_host:
            return self._otherwise
        key = (host, path.partition(b"?")[0] if self._looks_at_paths else b"")
        found = self._remembered.get(key)
        if found is None:
            found = self._look_up(host, key[1])
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            if len(key[1]) <= _LONGEST_REMEMBERED:
                self._remembered[key] = found
        return found

    def _look_up(self, host: str, path: bytes) -> Found:
        found = self._match(host, path.lower())
        if not self._looks_at_paths or not _AMBIGUOUS.search(path):
            return found
        asked = path
        for _ in range(_DECODED_AT_MOST + 1):
            slashes = path.lower().replace(b"\\", b"/")
            if not (self._match(host, slashes) is self._match(host, _as_lenient_servers_read(slashes)) is found):
                raise Ambiguous(f"path {asked[:80]!r} can be read as another one, which belongs to another route")
            path = _ESCAPE.sub(lambda escape: bytes((int(escape[1], 16),)), path)
        return found

    def _match(self, host: str, path: bytes) -> Found:
        for name in (host, f"*.{host.partition('.')[2]}", ""):
            for beginning, found in self._by_host.get(name, ()):
                if not beginning or (
                    path.startswith(beginning) and path[len(beginning) : len(beginning) + 1] in (b"", b"/")
                ):
                    return found
        return self._otherwise


def _as_lenient_servers_read(path: bytes) -> bytes:
    """Without parameters, empty segments and dot segments (RFC 3986 section 5.2.4)."""
    segments: list[bytes] = []
    for segment in _PARAMETERS.sub(b"", path).split(b"/"):
        if segment == b"..":
            del segments[-1:]
        elif segment not in (b"", b"."):
            segments.append(segment)
    return b"/" + b"/".join(segments)
