"""Small real mail servers to stand behind a balancer: each does as it is told, and remembers what it was sent.

Decides: how the server's side of a mail dialogue behaves in a test: what is answered to a command, when it dies.
Refuses to know: the balancer. Messages end at CRLF.CRLF and nowhere else; what else was received is `received`.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.servers import Connection, Server

#: Instead of an answer: the connection ends there, in order or with a reset.
CLOSE, RESET = b"<close>", b"<reset>"
CAPABILITIES = ("PIPELINING", "SIZE 37748736", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN", "CHUNKING")


@dataclass(slots=True)
class Message:
    """A message that was answered 250."""

    mail: bytes
    recipients: list[bytes]
    data: bytes


@dataclass(slots=True)
class Conversation:
    """What one connection said, command by command."""

    connection: Connection
    commands: list[bytes] = field(default_factory=list)
    secured: bool = False
    xclient: bytes = b""
    mail: bytes = b""
    recipients: list[bytes] = field(default_factory=list)
    chunks: bytes = b""
    waiting: bytearray = field(default_factory=bytearray)


class Gone(Exception):
    """The connection is over."""


class SmtpServer(Server):
    """An SMTP server.

    Attributes:
        answers: instead of the usual answer to a verb (`GREETING` and `.` count as verbs); may be a function.
        capabilities: lines of EHLO.
        messages: every message accepted, in order.
        conversations: every connection.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
    ) -> None:
        super().__init__(name, host, port)
        self.answers: dict[str, bytes | Callable[[Conversation], bytes]] = {}
        self.capabilities: tuple[str, ...] = CAPABILITIES
        self.messages: list[Message] = []
        self.conversations: list[Conversation] = []
        self.proxied = False
        self.proxy_headers: list[bytes] = []
        self.injected = b""  # sent in clear, in the same segment as the answer to STARTTLS
        self.resumed: list[bool] = []  # of each handshake
        self._tls = tls
        self._implicit = implicit
        self.lock = threading.Lock()

    @property
    def commands(self) -> list[bytes]:
        """Every command of every connection."""
        return [command for conversation in self.conversations for command in conversation.commands]

    def serve(self, connection: Connection) -> None:
        conversation = Conversation(connection)
        self.conversations.append(conversation)
        try:
            if self.proxied:
                self.proxy_headers.append(self._line(conversation))
            if self._implicit:
                self._secure(conversation)
            self._answer(conversation, "GREETING", f"220 {self.name}.test ESMTP\r\n".encode())
            while True:
                self._obey(conversation, self._line(conversation))
        except Gone:
            pass

    def _line(self, conversation: Conversation) -> bytes:
        waiting = conversation.waiting
        while (end := waiting.find(b"\r\n")) < 0:
            self._more(conversation)
        line = bytes(waiting[:end])
        del waiting[: end + 2]
        return line

    def _more(self, conversation: Conversation) -> None:
        data = conversation.connection.read()
        if not data:
            raise Gone
        conversation.waiting += data

    def _answer(self, conversation: Conversation, verb: str, usual: bytes) -> bytes:
        answer = self.answers.get(verb, usual)
        if callable(answer):
            answer = answer(conversation) or usual
        if answer == RESET:
            conversation.connection.reset()
            raise Gone
        if answer == CLOSE:
            raise Gone
        conversation.connection.socket.sendall(answer)
        if answer.startswith(b"421"):
            raise Gone
        return answer

    def _obey(self, conversation: Conversation, line: bytes) -> None:
        conversation.commands.append(line)
        verb = line.split(b" ")[0].upper().decode("latin-1")
        match verb:
            case "EHLO":
                self._answer(conversation, verb, self._ehlo(conversation))
            case "MAIL":
                if self._answer(conversation, verb, b"250 2.1.0 OK\r\n").startswith(b"2"):
                    conversation.mail, conversation.recipients = line, []
            case "RCPT":
                if self._answer(conversation, verb, b"250 2.1.5 OK\r\n").startswith(b"2"):
                    conversation.recipients.append(line)
            case "DATA":
                if self._answer(conversation, verb, b"354 Go ahead\r\n").startswith(b"354"):
                    self._take(conversation, self._data(conversation))
            case "BDAT":
                self._bdat(conversation, line)
            case "RSET":
                conversation.mail, conversation.recipients, conversation.chunks = b"", [], b""
                self._answer(conversation, verb, b"250 2.0.0 OK\r\n")
            case "STARTTLS":
                self._starttls(conversation)
            case "XCLIENT":
                conversation.xclient += line
                self._answer(conversation, verb, f"220 {self.name}.test ESMTP\r\n".encode())
            case "AUTH":
                self._answer(conversation, verb, b"235 2.7.0 Authenticated\r\n")
            case "QUIT":
                self._answer(conversation, verb, b"221 2.0.0 Bye\r\n")
                raise Gone
            case "HELO" | "NOOP" | "VRFY":
                self._answer(conversation, verb, f"250 {self.name}.test\r\n".encode())
            case _:
                self._answer(conversation, verb, b"502 5.5.2 Unknown\r\n")

    def _ehlo(self, conversation: Conversation) -> bytes:
        words = [f"{self.name}.test", *self.capabilities]
        if self._tls is not None and not conversation.secured:
            words.append("STARTTLS")
        return "".join(f"250{' ' if at == len(words) - 1 else '-'}{word}\r\n" for at, word in enumerate(words)).encode()

    def _data(self, conversation: Conversation) -> bytes:
        """The message, dots as they came, by the strict rule: CRLF.CRLF, where the CRLF of DATA is the first."""
        waiting = conversation.waiting
        while not waiting.startswith(b".\r\n"):
            end = waiting.find(b"\r\n.\r\n")
            if end >= 0:
                data = bytes(waiting[: end + 2])
                del waiting[: end + 5]
                return data
            self._more(conversation)
        del waiting[:3]
        return b""

    def _bdat(self, conversation: Conversation, line: bytes) -> None:
        words = line.split()
        while len(conversation.waiting) < int(words[1]):
            self._more(conversation)
        conversation.chunks += conversation.waiting[: int(words[1])]
        del conversation.waiting[: int(words[1])]
        if len(words) > 2:
            data, conversation.chunks = conversation.chunks, b""
            self._take(conversation, data)
        else:
            self._answer(conversation, "BDAT", b"250 2.0.0 OK\r\n")

    def _take(self, conversation: Conversation, data: bytes) -> None:
        message = Message(conversation.mail, list(conversation.recipients), data)
        answer = self.answers.get(".", b"")
        if not answer or (isinstance(answer, bytes) and answer.startswith(b"2")):
            with self.lock:
                self.messages.append(message)
        self._answer(conversation, ".", f"250 2.0.0 {self.name} has it\r\n".encode())

    def _starttls(self, conversation: Conversation) -> None:
        if self._tls is None:
            self._answer(conversation, "STARTTLS", b"502 5.5.1 No TLS\r\n")
            return
        answer = self.answers.get("STARTTLS", b"220 2.0.0 Go on\r\n")
        assert isinstance(answer, bytes)
        conversation.connection.socket.sendall(answer + self.injected)
        if answer.startswith(b"220"):
            self._secure(conversation)

    def _secure(self, conversation: Conversation) -> None:
        assert self._tls is not None
        connection = conversation.connection
        connection.socket = tls = self._tls.wrap_socket(connection.socket, server_side=True)
        self.resumed.append(bool(tls.session_reused))
        conversation.secured = True
        conversation.waiting.clear()


class LineServer(Server):
    """What an IMAP and a POP3 server have in common: lines in, scripted answers out, TLS in between.

    Attributes:
        answers: instead of the usual answer to a command word (`GREETING` counts as one).
        lines: every line of every connection, until the login.
        injected: sent in clear, in the same segment as the answer to STARTTLS or STLS.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
    ) -> None:
        super().__init__(name, host, port)
        self.answers: dict[str, bytes] = {}
        self.lines: list[bytes] = []
        self.injected = b""
        self.secured: list[bool] = []
        self._tls = tls
        self._implicit = implicit

    def greeting(self) -> bytes:
        """What is said first."""
        raise NotImplementedError

    def answer(self, line: bytes, secured: bool) -> bytes:
        """The usual answer to a line."""
        raise NotImplementedError

    def word(self, line: bytes) -> str:
        """The command of a line."""
        raise NotImplementedError

    def serve(self, connection: Connection) -> None:
        waiting = bytearray()
        secured = False
        if self._implicit:
            assert self._tls is not None
            connection.socket, secured = self._tls.wrap_socket(connection.socket, server_side=True), True
        said = self.answers.get("GREETING", self.greeting())
        while said not in (CLOSE, RESET):
            connection.socket.sendall(said)
            while (end := waiting.find(b"\r\n")) < 0:
                data = connection.read()
                if not data:
                    return
                waiting += data
            line = bytes(waiting[:end])
            del waiting[: end + 2]
            self.lines.append(line)
            word = self.word(line)
            said = self.answers.get(word, self.answer(line, secured))
            if word in ("STARTTLS", "STLS") and self._tls is not None and word not in self.answers:
                connection.socket.sendall(said + self.injected)
                connection.socket = self._tls.wrap_socket(connection.socket, server_side=True)
                secured, said = True, b""
            elif word in ("LOGIN", "PASS") and said != CLOSE:
                self.secured.append(secured)
                connection.socket.sendall(said)
                self._echo(connection, bytes(waiting))
                return
        if said == RESET:
            connection.reset()

    def _echo(self, connection: Connection, first: bytes) -> None:
        """Logged in: what comes goes back."""
        if first:
            connection.socket.sendall(first)
        while data := connection.read(keep=False):
            connection.socket.sendall(data)


class ImapServer(LineServer):
    """An IMAP server that echoes after LOGIN."""

    def greeting(self) -> bytes:
        starttls = " STARTTLS" if self._tls is not None and not self._implicit else ""
        return f"* OK [CAPABILITY IMAP4rev1 ID{starttls} AUTH=PLAIN] {self.name} ready\r\n".encode()

    def word(self, line: bytes) -> str:
        return line.partition(b" ")[2].partition(b" ")[0].upper().decode("ascii", "replace")

    def answer(self, line: bytes, secured: bool) -> bytes:
        tag, word = line.split(b" ")[0], self.word(line)
        if word == "CAPABILITY":
            return b"* CAPABILITY IMAP4rev1 ID AUTH=PLAIN\r\n%b OK done\r\n" % tag
        if word == "LOGOUT":
            return b"* BYE\r\n%b OK done\r\n" % tag
        return b"%b OK %b\r\n" % (tag, self.name.encode())


class Pop3Server(LineServer):
    """A POP3 server that echoes after PASS."""

    def greeting(self) -> bytes:
        return f"+OK {self.name} ready <1.2@{self.name}>\r\n".encode()

    def word(self, line: bytes) -> str:
        return line.partition(b" ")[0].upper().decode("ascii", "replace")

    def answer(self, line: bytes, secured: bool) -> bytes:
        if self.word(line) == "CAPA":
            return b"+OK\r\nUSER\r\nSASL PLAIN\r\nUIDL\r\n.\r\n"
        return b"+OK %b\r\n" % self.name.encode()
