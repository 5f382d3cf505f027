"""An SMTP client of a test: says what it is told, at any moment, and reads replies one at a time.

Decides: where a reply ends. Refuses to know: what is right; smtplib would be too polite for most tests.
"""

from __future__ import annotations

import socket
import ssl

from tests.support.lone_worker import receive_all

MESSAGE = b"Subject: a test\r\n\r\nHello,\r\n..a dot\r\nbye\r\n"


class Talk:
    """A client that reads replies, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._waiting = b""

    def secure(self, context: ssl.SSLContext, name: str = "lb.test") -> None:
        """TLS from here on."""
        self.sock = context.wrap_socket(self.sock, server_hostname=name)

    def reply(self) -> bytes:
        """The next reply, all its lines."""
        found = b""
        while True:
            while b"\r\n" not in self._waiting:
                data = self.sock.recv(65536)
                if not data:
                    raise EOFError(found + self._waiting)
                self._waiting += data
            line, _, self._waiting = self._waiting.partition(b"\r\n")
            found += line + b"\r\n"
            if line[3:4] != b"-":
                return found

    def say(self, line: bytes) -> bytes:
        """A command and its reply."""
        self.sock.sendall(line + b"\r\n")
        return self.reply()

    def send(self, message: bytes = MESSAGE, sender: bytes = b"a@example.test") -> bytes:
        """One message; the verdict."""
        assert self.say(b"MAIL FROM:<%b>" % sender).startswith(b"250")
        assert self.say(b"RCPT TO:<b@example.test>").startswith(b"250")
        assert self.say(b"DATA").startswith(b"354")
        self.sock.sendall(message + b".\r\n")
        return self.reply()

    def begin(self) -> bytes:
        """Greeting and EHLO; the capabilities."""
        assert self.reply().startswith(b"220 ")
        return self.say(b"EHLO client.test")

    def end(self) -> bytes:
        """Everything up to the end of the connection."""
        found = self._waiting + receive_all(self.sock)
        self._waiting = b""
        return found
