"""The persistence cookie: it says which real server a client goes back to, to nobody but us.

Decides: what is in it, and which ones are believed. Encrypted and authenticated (ChaCha20-Poly1305, RFC 8439): nothing
about the server can be read from it, not even the length of its name, two clients of one server have nothing in common,
and an altered one, or one of another group, is no cookie at all.
Refuses to know: requests, responses, and where keys are kept. Randomness comes in as an argument.

A cookie is `base64url(nonce, 12 bytes | digest of the server's name, 16 bytes, sealed | tag, 16 bytes)`: always 59
characters. The digest is keyed with the same secret, so the names of a configuration need not be in it.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
_NAME_BYTES: Final = 16
_TAG_BYTES: Final = 16
#: Characters of a cookie.
SEALED_CHARACTERS: Final = 59
_PADDING: Final = b"="
#: Opened cookies remembered: unsealing costs 3 µs, and a client shows its cookie with every request.
REMEMBERED: Final = 8192


class Seal:
    """Makes and reads the cookies of one persistence group.

    Args:
        secrets: at least one of KEY_BYTES; the first one seals, all of them open.
        group: whose cookies these are; those of another group are not believed.
        servers: names of the real servers that a cookie may stand for.
    """

    def __init__(self, secrets: Sequence[bytes], group: str, servers: Sequence[str]) -> None:
        self._group = group.encode()
        self._ciphers = [ChaCha20Poly1305(_derived(secret, b"seal", self._group)) for secret in secrets]
        self._names = {name: _name_digest(secrets[0], name) for name in servers}
        self._servers = {_name_digest(secret, name): name for secret in secrets for name in servers}
        self._opened: dict[bytes, str] = {}

    def seal(self, server: str, nonce: bytes) -> bytes:
        """A new cookie for this server; `nonce` is random, and never used twice."""
        sealed = nonce + self._ciphers[0].encrypt(nonce, self._names[server], self._group)
        return urlsafe_b64encode(sealed).rstrip(_PADDING)

    def open(self, cookie: bytes) -> str:
        """The server a cookie stands for; empty for one that is not ours, or of a server that is gone."""
        if len(cookie) != SEALED_CHARACTERS:
            return ""
        known = self._opened.get(cookie)
        if known is not None:
            return known
        server = self._unseal(cookie)
        if server:  # forged ones are not worth remembering: there is no end of them
            if len(self._opened) >= REMEMBERED:
                self._opened.clear()
            self._opened[cookie] = server
        return server

    def _unseal(self, cookie: bytes) -> str:
        try:
            sealed = urlsafe_b64decode(cookie + _PADDING)
        except ValueError:
            return ""
        # Python skips what is no base64, and forgives stray bits at the end: one cookie, one spelling
        if urlsafe_b64encode(sealed).rstrip(_PADDING) != cookie:
            return ""
        for cipher in self._ciphers:
            try:
                return self._servers.get(cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], self._group), "")
            except InvalidTag:
                continue
        return ""


def _name_digest(secret: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=_derived(secret, b"name", b""), digest_size=_NAME_BYTES).digest()


def _derived(secret: bytes, purpose: bytes, group: bytes) -> bytes:
    """One key for each purpose and group, so that what is sealed for one means nothing to another."""
    return blake2b(purpose + b"\0" + group, key=secret, digest_size=KEY_BYTES).digest()


def parse_keys(text: str) -> list[bytes]:
    """The keys in a key file: one per line, 64 hexadecimal digits; the first seals, the others only open.

    Raises:
        ValueError: it is no key file; the text says what is wrong.
    """
    keys = []
    for number, line in enumerate(text.split("\n"), 1):
        written = line.strip(" \t\r")
        if not written or written.startswith("#"):
            continue
        try:
            key = bytes.fromhex(written)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES or len(written) != 2 * KEY_BYTES:
            raise ValueError(f"line {number} is not a key of {2 * KEY_BYTES} hexadecimal digits")
        keys.append(key)
    if not keys:
        raise ValueError("there is no key in it")
    return keys
