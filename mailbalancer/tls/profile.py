"""How we speak TLS to clients: Mozilla's intermediate profile, and what it takes to put it into a context.

TLS 1.2 and 1.3, ephemeral elliptic-curve key exchange only, no compression, no renegotiation, session tickets. The
client's order of ciphers is honoured: every one on the list is good, and a phone knows best which one it has in
hardware. (wiki.mozilla.org/Security/Server_Side_TLS)

Decides: versions, ciphers, groups, options; that a key never touches a disk on its way into OpenSSL.
Refuses to know: services, names, and where certificates come from.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from mailbalancer.tls import openssl

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
#: For TLS 1.2. Those of 1.3 cannot be chosen in Python, and all of OpenSSL's are in the profile.
CIPHERS = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    )
)
GROUPS = "X25519:P-256:P-384"
#: Where the list cannot be set: the one group that every client has. Others cost a round trip more, not the handshake.
_ONE_GROUP = "prime256v1"
_ALWAYS = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_SINGLE_ECDH_USE
#: A peer that vanishes without close_notify may have sent less than it meant to: that must be seen.
_NEVER = ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET | getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def configure(context: ssl.SSLContext, min_version: str = "1.2") -> None:
    """Put the profile into a server's context. Connections that exist already are not touched by it."""
    context.minimum_version = VERSIONS[min_version]
    context.set_ciphers(CIPHERS)
    context.options = (context.options | _ALWAYS) & ~_NEVER
    try:
        openssl.set_groups(context, GROUPS)
    except openssl.Impossible:
        context.set_ecdh_curve(_ONE_GROUP)


def load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context its certificate, issuers and key, PEM in one piece.

    Raises:
        ssl.SSLError: OpenSSL does not take them.
    """
    with _memory_file(pem) as path:
        context.load_cert_chain(path, password=_no_password)


def _no_password() -> str:
    """Instead of a question on the terminal, which would stop everything."""
    raise ssl.SSLError("the key is encrypted")


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """A path that leads to these bytes, in memory only, for this process only."""
    descriptor = os.memfd_create("mailbalancer-tls", os.MFD_CLOEXEC)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
