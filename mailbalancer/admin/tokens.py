"""Tokens: who may come in, and what for. Only their hashes are kept.

Decides: the roles, what a token looks like, the format of the tokens file, and when the file is read again.
Refuses to know: HTTP, and what each role is needed for.

A token is 32 random bytes, so its SHA-256 is as good as any slow hash: there is nothing to guess, and checking one
never holds up the program. The file has one line per token:

    NAME ROLE sha256:HEX YYYY-MM-DD
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mailbalancer.admin import files
from mailbalancer.errors import MailbalancerError

PREFIX = "mb_"
MAX_BYTES = 256 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")
_HASH = re.compile(r"sha256:([0-9a-f]{64})\Z")
_HEAD = "# Tokens of mailbalancer's API and page, hashed. Change with `mailbalancer token create|revoke`.\n"


class Role(StrEnum):
    """What a token is good for. Each one may also do what those before it may."""

    METRICS = "metrics"  # /metrics and nothing else
    READ = "read"
    OPERATE = "operate"  # drain, disable, enable, clear persistence, reload
    ADMIN = "admin"  # change the configuration

    def covers(self, needed: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the file. `digest` is the SHA-256 of the token, in hexadecimal."""

    name: str
    role: Role
    digest: str
    created: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.role} sha256:{self.digest} {self.created}".rstrip()


def digest(secret: str) -> str:
    """What the file keeps of a token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse(text: str, name: str) -> list[Token]:
    """The tokens in a file.

    Raises:
        MailbalancerError: a line that is none; nobody is let in by half a file.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r") or line.startswith("#"):
            continue
        token = _parsed(line.rstrip("\r").split(" "))
        if token is None:
            raise MailbalancerError(
                f"{name}:{number}: this is no token", "write it with `mailbalancer token create`, or remove the line"
            )
        tokens.append(token)
    return tokens


def _parsed(words: list[str]) -> Token | None:
    if not 3 <= len(words) <= 4 or not _NAME.match(words[0]) or words[1] not in list(Role):
        return None
    found = _HASH.match(words[2])
    return Token(words[0], Role(words[1]), found[1], "".join(words[3:])) if found else None


def create(path: Path, name: str, role: Role, today: str, owner: tuple[int, int] | None = None) -> str:
    """Add a token to the file and return it: this is the only time it can be seen.

    Args:
        owner: user and group id of a file that is made here.

    Raises:
        MailbalancerError: the name is taken or cannot be one, or the file cannot be read or written.
    """
    if not _NAME.match(name):
        raise MailbalancerError(
            f"{name!r} cannot name a token", "use letters, digits and . _ @ -, beginning with a letter or digit"
        )
    tokens = _read(path)
    if any(token.name == name for token in tokens):
        raise MailbalancerError(f"{path} has a token {name!r} already", f"`mailbalancer token revoke {name}` first")
    secret = PREFIX + secrets.token_urlsafe(32)
    _write(path, [*tokens, Token(name, role, digest(secret), today)], owner)
    return secret


def revoke(path: Path, name: str) -> None:
    """Remove a token; it is refused from then on.

    Raises:
        MailbalancerError: there is no such token, or the file cannot be read or written.
    """
    tokens = _read(path)
    left = [token for token in tokens if token.name != name]
    if len(left) == len(tokens):
        known = ", ".join(token.name for token in tokens) or "none"
        raise MailbalancerError(f"{path} has no token {name!r}", f"there are: {known}")
    _write(path, left, None)


def listed(path: Path) -> list[Token]:
    """What is in the file; nothing when there is none.

    Raises:
        MailbalancerError: it cannot be read, or not all of it is tokens.
    """
    return _read(path)


def _read(path: Path) -> list[Token]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MailbalancerError(
            f"tokens file {path} cannot be read: {error.strerror}", "give the user that runs mailbalancer that right"
        ) from error
    if len(content) > MAX_BYTES:
        raise MailbalancerError(f"tokens file {path} is larger than {MAX_BYTES // 1024} KiB", "check `tokens_file`")
    return parse(content.decode("utf-8", "replace"), str(path))


def _write(path: Path, tokens: list[Token], owner: tuple[int, int] | None) -> None:
    files.replace(path, (_HEAD + "".join(f"{token}\n" for token in tokens)).encode(), 0o600, owner)


class TokensFile:
    """The file as the running program sees it: a token made or revoked counts from the next request on."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._seen: tuple[int, int, int] | None = None
        self._by_digest: dict[str, Token] = {}
        self._broken: MailbalancerError | None = None

    def find(self, secret: str) -> Token | None:
        """Whose token this is.

        Raises:
            MailbalancerError: the file cannot be used; nobody is let in.
        """
        return self.with_digest(digest(secret))

    def with_digest(self, hashed: str) -> Token | None:
        """The same by the token's hash: whether it is still in the file."""
        self._look()
        return self._by_digest.get(hashed)

    def is_empty(self) -> bool:
        """Whether no token is configured at all, so that loopback may read."""
        self._look()
        return not self._by_digest

    def _look(self) -> None:
        if self._path is None:
            return
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
        except FileNotFoundError:
            seen = (0, 0, 0)
        except OSError:
            seen = None
        if seen is None or seen != self._seen:
            self._seen = seen
            self._load()
        if self._broken is not None:
            raise self._broken

    def _load(self) -> None:
        assert self._path is not None
        try:
            self._by_digest = {token.digest: token for token in _read(self._path)}
            self._broken = None
        except MailbalancerError as error:
            self._by_digest = {}
            self._broken = error
