"""A name server of a test: answers over UDP and TCP as it is told, on a free port of 127.0.0.1.

Decides: what is asked for and not told is NXDOMAIN. Refuses to know: who asks, and why.
"""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

#: Instead of an answer.
SILENCE, SERVFAIL = "silence", "SERVFAIL"


class NameServer:
    """Records by (name, type): `{("5.0.0.127.in-addr.arpa.", "PTR"): ["mail.example.com."]}`, SILENCE or SERVFAIL.

    Attributes:
        asked: every question, as (name, type).
        truncates: over UDP every answer is cut off, so that it must be asked for over TCP.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str] | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.truncates = False
        while True:
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind(("127.0.0.1", 0))
            self.port = int(self._udp.getsockname()[1])
            self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self._tcp.bind(("127.0.0.1", self.port))
            except OSError:  # taken over TCP: another one
                self._udp.close()
                self._tcp.close()
                continue
            self._tcp.listen(16)
            break
        self._threads = [threading.Thread(target=serve, daemon=True) for serve in (self._over_udp, self._over_tcp)]

    def pointer(self, address: str, *names: str) -> None:
        """The reverse names of an address."""
        self.records[".".join(reversed(address.split("."))) + ".in-addr.arpa.", "PTR"] = list(names)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in (self._udp, self._tcp):
            with_shutdown(sock)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _over_udp(self) -> None:
        while True:
            try:
                data, peer = self._udp.recvfrom(65535)
                answer = self._answer(data, cut=self.truncates) if data else b""
                if answer:
                    self._udp.sendto(answer, peer)
            except OSError:
                return
            if not data:
                return

    def _over_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                data = lines.read(int.from_bytes(lines.read(2), "big"))
                answer = self._answer(data, cut=False)
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def _answer(self, data: bytes, *, cut: bool) -> bytes:
        """The message for this question; empty: none is given."""
        query = dns.message.from_wire(data)
        (question,) = query.question
        asked = question.name.to_text().lower(), question.rdtype.name
        self.asked.append(asked)
        found = self.records.get(asked)
        if found == SILENCE:
            return b""
        response = dns.message.make_response(query, recursion_available=True)
        if found == SERVFAIL:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif cut:
            response.flags |= dns.flags.TC
        elif isinstance(found, list):
            response.answer += [dns.rrset.from_text(question.name, 300, "IN", asked[1], *found)] if found else []
        else:
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()


def with_shutdown(sock: socket.socket) -> None:
    """Whoever waits in recvfrom or accept on it, in another thread, wakes up."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        if sock.type == socket.SOCK_DGRAM:  # not connected, but awake all the same
            return
