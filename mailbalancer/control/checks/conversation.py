"""One conversation with one server: connect, speak, listen, and leave politely.

Decides: how much of a server's talk is held (bounded lines, bounded reads), what is said when it is silent or gone,
when a plain connection may become TLS, and how a conversation ends (farewell, TLS close, FIN).
Refuses to know: protocols (one file each beside this one), and deadlines: the caller puts one absolute deadline
around everything, so a server that drips a byte a second runs out of time like one that says nothing.

The bytes are ours from the socket to the line: TLS runs over memory buffers, not over a transport, because only the
owner of the read buffer can see that a server sent something between its consent to STARTTLS and the handshake.
Addresses are IP literals and go straight to connect(2): nothing here resolves names or starts a thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from mailbalancer.balance.health import Verdict
from mailbalancer.log import one_line
from mailbalancer.model import Endpoint, Verify
from mailbalancer.tls import verify as verification
from mailbalancer.tls.certificate import Certificate, read
from mailbalancer.wire.proxy_header import encode_local

#: RFC 5321 allows 512 bytes a reply line, IMAP capability lines are longer; nobody honest comes near this.
LINE_BYTES = 4096
READ_BYTES = 16384
#: How long an answer to the farewell is waited for; the verdict is made already.
FAREWELL_S = 1.0
_FAREWELL_READS = 16
_SHOWN_CHARACTERS = 160

_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset by the server",
    errno.EPIPE: "connection closed by the server",
    errno.ETIMEDOUT: "no answer to the connection attempt",
    errno.EHOSTUNREACH: "no route to the server",
    errno.ENETUNREACH: "no route to the server's network",
    errno.EACCES: "the balancer's own firewall forbids the connection",
    errno.EPERM: "the balancer's own firewall forbids the connection",
}
#: Failures of this machine; they say nothing about the server.
OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

T = TypeVar("T")


class Failed(Exception):
    """The conversation ended without success. `reason` is a sentence for an administrator."""

    def __init__(self, reason: str, verdict: Verdict = Verdict.DOWN) -> None:
        super().__init__(reason)
        self.reason = reason
        self.verdict = verdict


class CertificateRefused(Failed):
    """OpenSSL refused the server's certificate; `code` is its X509_V_ERR number."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


class CertificateSeen(Exception):
    """A conversation that was only to look at the certificate has seen it."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """One line of a transcript, `at_s` after its start. `direction`: ">" we said, "<" the server said, "*" happened."""

    at_s: float
    direction: str
    text: str


def shown(words: str | bytes | bytearray, limit: int = _SHOWN_CHARACTERS) -> str:
    """A server's words made safe for a log line or a terminal, and cut to `limit` characters."""
    text = words if isinstance(words, str) else words.decode("latin-1")
    safe = one_line(text[: limit + 1].rstrip("\r\n "))
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


class Conversation:
    """A stream or datagram conversation with one endpoint. Every wait names what it waits for in `waiting_for`.

    Args:
        endpoint: whom to talk to.
        proxy_header: version of the PROXY header that goes before anything else on a stream ("v1", "v2"); empty: none.
        look_only: end right after the first TLS handshake, unverified, with CertificateSeen.
        transcript: every line said and heard is added here; None: not recorded.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        proxy_header: str = "",
        look_only: bool = False,
        transcript: list[Spoken] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.certificate: Certificate | None = None
        self.detail: dict[str, str | int | float] = {}
        self.farewell = b""
        self.waiting_for = "connection"
        self._proxy_header = proxy_header
        self._look_only = look_only
        self._transcript = transcript
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._sock: socket.socket | None = None
        self._in = bytearray()
        self._tls: ssl.SSLObject | None = None
        self._from_net = ssl.MemoryBIO()
        self._to_net = ssl.MemoryBIO()

    # ------------------------------------------------------------ beginning

    async def connect(self, *, datagrams: bool = False) -> None:
        """Connect and send the PROXY header, if one is due. The socket is close-on-exec, as Python makes all sockets.

        Raises:
            OSError: the connection could not be made.
        """
        family = socket.AF_INET6 if self.endpoint.is_ipv6 else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
        sock.setblocking(False)
        failure = sock.connect_ex((self.endpoint.host, self.endpoint.port))
        if failure == errno.EINPROGRESS:
            await self._writable(sock)
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))
        if datagrams:
            return
        self.note("*", f"connected to {self.endpoint}")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._proxy_header:
            header = encode_local(self._proxy_header, Endpoint(*sock.getsockname()[:2]), self.endpoint)
            self.note(">", shown(header))
            await self.send(header)

    async def start_tls(self, verify: Verify) -> None:
        """Go on inside TLS, with the server's certificate verified as `verify` says.

        Raises:
            Failed: bytes in plain text came before the handshake (RFC 3207 section 5: they would be taken for
                answers given inside TLS), or the handshake failed, or the certificate is not the pinned one.
            CertificateRefused: verification failed.
            CertificateSeen: the conversation was only to look.
        """
        if self._in:
            raise Failed(f"plain text followed the consent to TLS, before the handshake: '{shown(self._in)}'")
        farewell, self.farewell = self.farewell, b""  # nothing can be said before the handshake is done
        self.waiting_for = "TLS handshake"
        self._tls = self._tls_object(Verify(kind="none", name=verify.name) if self._look_only else verify)
        await self._handshake(self._tls)
        self.farewell = farewell
        self._take_certificate(self._tls, verify)

    def _tls_object(self, verify: Verify) -> ssl.SSLObject:
        name = verification.expected_name(verify, self.endpoint)
        try:
            return verification.context(verify).wrap_bio(self._from_net, self._to_net, server_hostname=name)
        except OSError as error:
            trusted = verify.ca_file or "the system's authorities"
            raise Failed(f"{trusted} cannot be used to verify a certificate: {error.strerror or error}") from error
        except ValueError as error:
            raise Failed(f"'{shown(name)}' cannot be the name in a certificate: {error}") from error

    async def _handshake(self, tls: ssl.SSLObject) -> None:
        try:
            await self._drive(tls.do_handshake)
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(f"certificate refused: {error.verify_message}", error.verify_code) from error
        except ssl.SSLError as error:
            raise Failed(_handshake_words(error)) from error

    def _take_certificate(self, tls: ssl.SSLObject, verify: Verify) -> None:
        der = tls.getpeercert(binary_form=True) or b""
        self.certificate = read(der)
        cipher = tls.cipher()
        agreed = f"{tls.version()}, {cipher[0]}" if cipher else tls.version()
        self.note("*", f"{agreed}, certificate for {self.certificate or 'nobody (unreadable)'}")
        if self._look_only:
            raise CertificateSeen
        if verify.kind == "pin" and (mismatch := verification.pin_mismatch(der, verify)):
            raise Failed(mismatch)

    # ------------------------------------------------------------ speaking and listening

    async def command(self, text: str) -> None:
        """Say one line.

        Raises:
            Failed: the text has characters that cannot be one line of a mail protocol.
        """
        if not (text.isascii() and text.isprintable()):
            raise Failed(f"'{shown(text)}' cannot be sent: only printable ASCII makes a command")
        self.note(">", text)
        await self.send(text.encode("ascii") + b"\r\n")

    async def line(self, what: str) -> str:
        """The next line, without its end, each byte as one character (latin-1), to be `shown` before it is printed.

        Args:
            what: what is waited for, in words that complete "no … within 5 s".

        Raises:
            Failed: the server closed, or the line is longer than LINE_BYTES.
        """
        self.waiting_for = what
        while (end := self._in.find(b"\n", 0, LINE_BYTES)) < 0:
            if len(self._in) >= LINE_BYTES:
                raise Failed(f"{what} has a line of more than {LINE_BYTES} bytes: '{shown(self._in)}'")
            if not await self._more():
                raise self._closed()
        line = bytes(self._in[:end]).removesuffix(b"\r").decode("latin-1")
        del self._in[: end + 1]
        self.note("<", shown(line))
        return line

    async def read(self, what: str) -> bytes:
        """Whatever comes next, at most READ_BYTES; empty when the server has closed."""
        self.waiting_for = what
        if not self._in:
            await self._more()
        data = bytes(self._in)
        self._in.clear()
        return data

    async def send(self, data: bytes) -> None:
        """Send all of it, inside TLS once there is TLS."""
        sock = self._connected()
        tls = self._tls
        if tls is None:
            await self._loop.sock_sendall(sock, data)
        else:
            await self._drive(lambda: tls.write(data))

    def note(self, direction: str, text: str) -> None:
        """Add a line to the transcript."""
        if self._transcript is not None:
            self._transcript.append(Spoken(self._loop.time() - self._started_at, direction, text))

    # ------------------------------------------------------------ ending

    async def leave(self, until: float) -> None:
        """Say the farewell, if there is one to say, wait a moment for the server to close, and close. Never fails.

        A server that is left without QUIT logs an error each time: Exchange wrote thousands a day. With `until`
        (instant of the loop) in the past the farewell is still handed to the kernel, and nothing is waited for.
        """
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout_at(min(until, self._loop.time() + FAREWELL_S)):
                    await self._say_farewell()
        finally:
            self._close()

    async def _say_farewell(self) -> None:
        if self._sock is None or not self.farewell:
            return
        self.note(">", shown(self.farewell))
        await self.send(self.farewell)
        try:
            for _ in range(_FAREWELL_READS):
                if not await self._more():
                    break
        finally:
            for heard in bytes(self._in).splitlines():
                self.note("<", shown(heard))

    def _close(self) -> None:
        """FIN is sent even while a worker, forked in the middle of a check, holds a copy of the socket."""
        if self._sock is None:
            return
        with suppress(OSError):  # ssl.SSLError is one
            if self._tls is not None:
                with suppress(ssl.SSLError):
                    self._tls.unwrap()  # writes close_notify, then wants the server's, which nobody waits for
                self._sock.send(self._to_net.read())
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._sock = None

    # ------------------------------------------------------------ why it failed, in words

    def timed_out(self, timeout_s: float) -> str:
        """The reason when the deadline has passed."""
        if self._in:
            return f"{self.waiting_for} not complete within {timeout_s:g} s, so far '{shown(self._in)}'"
        return f"no {self.waiting_for} within {timeout_s:g} s"

    def broken(self, error: OSError) -> str:
        """The reason when the system reports an error."""
        if isinstance(error, ssl.SSLError):  # its errno is a number of OpenSSL's
            return f"TLS failed: {_tls_words(error)}, no {self.waiting_for}"
        words = _WORDS.get(error.errno or 0) or error.strerror or str(error)
        return words if self.waiting_for == "connection" else f"{words}, no {self.waiting_for}"

    def _closed(self) -> Failed:
        if self._in:
            return Failed(f"connection closed in the middle of the {self.waiting_for}, so far '{shown(self._in)}'")
        return Failed(f"connection closed by the server, no {self.waiting_for}")

    # ------------------------------------------------------------ bytes

    def _connected(self) -> socket.socket:
        if self._sock is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._sock

    async def _writable(self, sock: socket.socket) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(sock, _wake, ready)
        try:
            await ready
        finally:
            self._loop.remove_writer(sock)

    async def _more(self) -> bool:
        """Wait for more bytes; False when the server has closed."""
        tls = self._tls
        if tls is None:
            data = await self._loop.sock_recv(self._connected(), READ_BYTES)
        else:
            try:
                data = await self._drive(lambda: tls.read(READ_BYTES))
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                data = b""
        self._in += data
        return bool(data)

    async def _drive(self, operation: Callable[[], T]) -> T:
        """Run a TLS operation to its end, carrying bytes between its buffers and the socket."""
        sock = self._connected()
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                await self._loop.sock_sendall(sock, self._to_net.read())
                if data := await self._loop.sock_recv(sock, READ_BYTES):
                    self._from_net.write(data)
                else:
                    self._from_net.write_eof()
                continue
            except ssl.SSLError:
                with suppress(OSError):  # the alert that tells the server why
                    sock.send(self._to_net.read())
                raise
            await self._loop.sock_sendall(sock, self._to_net.read())
            return result


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _handshake_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "connection closed by the server during the TLS handshake"
    reason = _tls_words(error)
    if reason in ("wrong version number", "record layer failure"):
        return "the server answers the TLS handshake with something that is not TLS"
    return f"TLS handshake failed: {reason}"


def _tls_words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
