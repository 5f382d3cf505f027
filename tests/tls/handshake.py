"""Both ends of one TLS connection over a socket pair, and certificates as the configuration lists them."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path
from typing import Protocol

from mailbalancer.model import Certificate
from mailbalancer.tls.material import Material, read_material
from tests.support.certs import Issued


def listed(issued: Issued, name: str = "mail", ocsp_file: Path | None = None) -> Certificate:
    return Certificate(name, str(issued.chain), str(issued.key), str(ocsp_file or ""))


def material(issued: Issued, name: str = "mail") -> Material:
    return read_material(listed(issued, name))


class Handshake:
    """Both ends of one connection after a handshake, or the errors that they had instead."""

    def __init__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._pair = socket.socketpair()
        for end in self._pair:
            end.settimeout(10)
        self.server_error: OSError | None = None
        self.client_error: OSError | None = None
        self.server: ssl.SSLSocket | None = None
        self.client: ssl.SSLSocket | None = None
        thread = threading.Thread(target=self._serve, args=(server,))
        thread.start()
        try:
            self.client = client.wrap_socket(self._pair[1], server_hostname=name, session=session)
            self.answer = self.client.recv(1)  # with TLS 1.3 the server's tickets and its refusal come by now
        except OSError as error:
            self.client_error = error
            self._pair[1].close()
        thread.join()

    def _serve(self, context: ssl.SSLContext) -> None:
        try:
            self.server = context.wrap_socket(self._pair[0], server_side=True)
            self.server.sendall(b"x")
        except OSError as error:
            self.server_error = error
            self._pair[0].close()

    @property
    def shown(self) -> bytes:
        """The certificate that the client saw, DER."""
        assert self.client is not None, self.client_error
        return self.client.getpeercert(binary_form=True) or b""

    def close(self) -> None:
        for end in (self.server, self.client, *self._pair):
            if end is not None:
                end.close()


class Shake(Protocol):
    """Makes a handshake; its sockets are closed when the test ends."""

    def __call__(
        self,
        server: ssl.SSLContext,
        client: ssl.SSLContext,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Handshake: ...
