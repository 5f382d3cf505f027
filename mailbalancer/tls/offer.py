"""What one service shows its clients: certificates by name, protocols, and whether it asks for theirs.

Decides: how certificates are replaced while handshakes run, and what is fixed for a connection when.
Refuses to know: sockets, files and which worker this is. Certificates come as validated `Material`.

A connection begins with the front context, which holds no certificate: it has the keys of the session tickets
(`context_pool`), the versions, groups and options, and whether a client's certificate is asked for. When the client has
said whom it wants (or nobody: OpenSSL calls then too) it is switched to the context of one certificate, which also has
the ciphers of TLS 1.2, the application protocols, the authorities for client certificates and the OCSP answer. A new
configuration makes new certificate contexts and swaps them in at once; connections keep what they were switched to.
To load a new pair into a context that is in use would look simpler, but a certificate with another type of key (RSA,
then ECDSA) would not replace the old one there: OpenSSL keeps one of each type and would show both.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence

from mailbalancer.model import ClientTls, Mode
from mailbalancer.tls import openssl, profile
from mailbalancer.tls.material import CertificateError, Material
from mailbalancer.tls.names import Names

#: What we speak, by the names of RFC 7301's registry; `smtp` is not in it, but what Postfix and others use.
PROTOCOLS: dict[Mode, tuple[str, ...]] = {
    Mode.HTTP: ("http/1.1",),
    Mode.SMTP: ("smtp",),
    Mode.IMAP: ("imap",),
    Mode.POP3: ("pop3",),
}


class ClientSocket(ssl.SSLSocket):
    """A client's connection. After the handshake it knows what was asked for and what was shown.

    Attributes:
        asked_name: the SNI of the client, as it came; empty: none.
        shown: the name of the certificate; empty: none was chosen yet.
    """

    asked_name: str = ""
    shown: str = ""


def owner_name(service: str, client_authorities: str = "", must_show: bool = False) -> str:
    """The owner of a place in the pool: other client authorities must not resume the sessions that others let in, nor
    may those who came without a certificate once one must be shown."""
    digest = hashlib.sha256(client_authorities.encode()).hexdigest() if client_authorities else ""
    return f"{service}\0{digest}{'!' if must_show else ''}"


class Offer:
    """Lives in a worker as long as its service.

    Args:
        front: a blank server context, best one from the pool. It belongs to this offer from now on.
    """

    def __init__(self, front: ssl.SSLContext) -> None:
        self._front = front
        self._certificates: Names[_Shown] | None = None
        front.sslsocket_class = ClientSocket
        front.sni_callback = self._switch

    @property
    def context(self) -> ssl.SSLContext:
        """For `wrap_socket(…, server_side=True)`. The same object for ever."""
        return self._front

    def show(
        self,
        tls: ClientTls,
        materials: Sequence[Material],
        protocols: Sequence[str] = (),
        client_authorities: str = "",
    ) -> None:
        """Show these from the next handshake on. All of it or, when it raises, nothing.

        Args:
            materials: at least one; the first is the default.
            protocols: for ALPN, see PROTOCOLS; empty: no protocol is agreed on.
            client_authorities: PEM; clients may show a certificate of one of these, and must not show another. Whether
                they may show none, `tls.client_must_show` says.

        Raises:
            CertificateError: OpenSSL does not take a certificate or the authorities.
        """
        made = [(self._shown(tls, material, protocols, client_authorities), material.names) for material in materials]
        certificates = Names(made)
        profile.configure(self._front, tls.min_version)
        asked = ssl.CERT_REQUIRED if tls.client_must_show else ssl.CERT_OPTIONAL
        self._front.verify_mode = asked if client_authorities else ssl.CERT_NONE
        self._certificates = certificates

    def _shown(self, tls: ClientTls, material: Material, protocols: Sequence[str], client_authorities: str) -> _Shown:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        profile.configure(context, tls.min_version)
        try:
            profile.load_pair(context, material.pem)
            if client_authorities:
                context.load_verify_locations(cadata=client_authorities)
        except ssl.SSLError as error:
            words = (error.reason or str(error)).replace("_", " ").lower()
            raise CertificateError(
                f"OpenSSL refuses certificate '{material.name}' or the authorities for clients: {words}", "", ""
            ) from error
        _agree_on(context, protocols)
        _staple(context, material)
        return _Shown(context, material.name, material.seen.sha256)

    def _switch(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _front: ssl.SSLContext) -> None:
        """Called by OpenSSL in the middle of the handshake; an exception here would end it without a word."""
        if self._certificates is None:
            return
        shown = self._certificates.choose(name)
        connection.context = shown.context
        if isinstance(connection, ClientSocket):
            connection.asked_name = name or ""
            connection.shown = shown.name


class _Shown:
    """One certificate as OpenSSL has it."""

    __slots__ = ("context", "name", "sha256")

    def __init__(self, context: ssl.SSLContext, name: str, sha256: str) -> None:
        self.context = context
        self.name = name
        self.sha256 = sha256


def _agree_on(context: ssl.SSLContext, protocols: Sequence[str]) -> None:
    """Python alone would go on with a client that offers only others, as if it had offered none."""
    if not protocols:
        return
    try:
        openssl.insist_on_protocols(context, tuple(protocols))
    except openssl.Impossible:
        context.set_alpn_protocols(protocols)


def _staple(context: ssl.SSLContext, material: Material) -> None:
    if material.staple is None:
        return
    try:
        openssl.staple(context, material.staple.answer, material.staple.until.timestamp())
    except openssl.Impossible:  # said when the material was read
        return
