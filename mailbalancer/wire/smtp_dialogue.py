"""One SMTP session as the balancer sees it, with a client on one side and a real server on the other.

Decides: which command goes on to the server and which is answered here, in which order replies and own answers reach
the client (RFC 2920), when the client has to wait, and what binds a session to its server.
Refuses to know: bytes, sockets and TLS (the worker), addresses and rates (the worker's policy says `refuse`), and what
capabilities are shown (`smtp_capabilities`).

How a worker drives it:

    greeted()                     the real server has said 220 and so have we
    take(command) -> bool         True: pass `command.raw` on. False: answered here. Either way look at `due()`
    refuse(command, answer)       the same for a command that the worker's policy refuses; keeps the order
    reply(reply) -> Relay         the server's next reply and its command; pass it on, then look at `due()`
    due() -> Due | None           own answers whose turn it is: send them; close when it says so
    expects                       what the next bytes of the client are, see `Expect`

Only DATA, BDAT and AUTH leave the lines: `data_ended`, `chunk_ended`, `auth_line` say that they came back. A message is
accepted by the server's 2xx and by nothing else: `reply` refuses a positive reply that comes before the end of what it
answers, and `smtp_answers` has no 250.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_bdat import parse_bdat
from mailbalancer.wire.smtp_command import BadCommand, Command
from mailbalancer.wire.smtp_reply import Reply

#: Commands a client may have under way. The worker reads no further while `full`.
MAX_OUTSTANDING: Final = 128

_HELLOS: Final = frozenset((b"EHLO", b"HELO"))
#: AUTH, and Exchange's own word for it among Exchange servers.
_AUTHS: Final = frozenset((b"AUTH", b"X-EXPS"))
#: RFC 2920 section 3.1, RFC 3207, RFC 4954: nothing may follow in the same group, for the reply decides what it means.
#: Commands behind a hello mean the same whatever its reply is; scripts send them in one go, and Postfix obeys.
_ENDS_GROUP: Final = _AUTHS | {b"DATA", b"STARTTLS", b"X-ANONYMOUSTLS"}
_NEEDS_HELO: Final = _AUTHS | {b"MAIL", b"RCPT", b"DATA", b"BDAT"}
#: RFC 3207 section 4, and what is as harmless.
_BEFORE_TLS: Final = _HELLOS | {b"STARTTLS", b"NOOP", b"RSET", b"HELP", b"QUIT"}
#: Understood well enough to be said again to another server when the first one fails.
_REPEATABLE: Final = _HELLOS | {b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"VRFY", b"QUIT"}
#: Only between Exchange servers. XEXCH50 is followed by bytes that nobody frames any more.
_EXCHANGE: Final = frozenset((b"X-EXPS", b"X-ANONYMOUSTLS"))
#: Never a browser's, a forwarder's or ours to answer: only TLS and the order of things can stand in their way.
_ORDINARY: Final = _HELLOS | {b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"QUIT"}
_NEVER: Final = {
    b"XEXCH50": Answer.UNKNOWN_COMMAND,
    b"TURN": Answer.NOT_IMPLEMENTED,  # the two sides would change roles
    b"ATRN": Answer.NOT_IMPLEMENTED,
}


class Expect(Enum):
    """What the next bytes of the client are."""

    GREETING = "silence until our greeting"  # bytes now: `spoke_early`
    COMMAND = "a command line"
    LATER = "a command line, when the hello before it is answered"  # leave it where it is until then
    REPLY = "silence until our reply"  # bytes now: `spoke_early`
    AUTH_LINE = "a line of an AUTH exchange"
    DATA = "a message up to CRLF.CRLF"
    CHUNK = "the bytes of a BDAT chunk"
    TLS = "a TLS handshake"  # bytes read before it: close both sides (RFC 3207 section 4.2, STARTTLS injection)
    RELAY = "bytes of a protocol that is not ours"  # Exchange's X-ANONYMOUSTLS: relay both ways, nothing left to see
    END = "nothing more"  # do not read; close when the last reply is passed on


# Looking a member of an enum up costs more than what is done with it here.
_GREETING, _COMMAND, _LATER, _REPLY, _AUTH_LINE, _DATA, _CHUNK, _TLS, _RELAY, _END = Expect
#: What follows a command that was passed on, where it is not a command.
_AFTER: Final = {
    **dict.fromkeys(_ENDS_GROUP, _REPLY),
    **dict.fromkeys(_HELLOS, _LATER),
    b"QUIT": _END,
}
#: The client waits for a reply of the server.
_WAITING: Final = (_REPLY, _LATER)


class OutOfStep(ValueError):
    """The server's reply cannot belong to what it was asked. Nothing it says can be believed: close both sides."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What this service allows.

    Attributes:
        starttls: we offer STARTTLS (and are not under TLS from the start).
        tls_required: no mail and no password without TLS.
        auth_needs_tls: AUTH only under TLS.
        exchange: Exchange servers talk to each other through us: X-EXPS and X-ANONYMOUSTLS go through.
    """

    starttls: bool = False
    tls_required: bool = False
    auth_needs_tls: bool = True
    exchange: bool = False


@dataclass(slots=True)
class Relay:
    """A server's reply that is the client's. `command` is None for a 421 nobody asked for.

    `ends_message`: it is the server's verdict on a message (after the final dot, or BDAT LAST).
    `closes`: the connection ends once it is passed on.
    """

    reply: Reply
    command: Command | None
    ends_message: bool
    closes: bool


class Due(NamedTuple):
    """Own answers to send now; `closes`: and then close."""

    data: bytes
    closes: bool


@dataclass(slots=True)
class _Own:
    """A command under way that is answered here, when its turn comes."""

    command: Command
    answer: Answer
    text: str
    closes: bool


#: The end of a message, which is no command but has a reply.
_FINAL_DOT: Final = Command(b".\r\n", b".", b"")


class Dialogue:
    """The state of one session.

    Attributes:
        expects: what the next bytes of the client are.
        helo: the client's last accepted EHLO or HELO, to be said again to another server.
        secured: the client is under TLS.
        authenticated: the server has accepted an AUTH on this connection.
        in_transaction: the server has accepted MAIL.
        recipients: RCPT commands the server accepted in this transaction.
        chunk_bytes: announced by BDAT in this transaction.
        messages: accepted by the server.
        fruitless: commands since the last accepted message, for a limit.
    """

    __slots__ = (
        "_rules",
        "_under_way",
        "_unknown_used",
        "authenticated",
        "chunk_bytes",
        "expects",
        "fruitless",
        "helo",
        "in_transaction",
        "messages",
        "recipients",
        "secured",
    )

    def __init__(self, rules: Rules, *, secured: bool = False) -> None:
        """`secured`: under TLS from the first byte (port 465)."""
        self._rules = rules
        self._under_way: deque[Command | _Own] = deque()
        self._unknown_used = False
        self.expects = _GREETING
        self.helo: Command | None = None
        self.secured = secured
        self.authenticated = self.in_transaction = False
        self.recipients = self.chunk_bytes = self.messages = self.fruitless = 0

    # ------------------------------------------------------------ the client

    def greeted(self) -> None:
        """The greeting is sent: the client may speak."""
        self.expects = _COMMAND

    def spoke_early(self) -> Answer:
        """Bytes came while `expects` is GREETING or REPLY: send this and close both sides."""
        answer = Answer.EARLY_TALKER if self.expects is _GREETING else Answer.UNSYNCHRONISED
        self._end()
        return answer

    @property
    def full(self) -> bool:
        """Enough is under way: read no further command."""
        return len(self._under_way) >= MAX_OUTSTANDING

    def take(self, command: Command) -> bool:
        """The client's next command. True: pass it on to the server; False: it is answered here (see `due`)."""
        assert self.expects is _COMMAND
        answer = self._ruling(command)
        if answer is not None:
            self.refuse(command, answer)
            return False
        verb = command.verb
        self.fruitless += 1
        self._under_way.append(command)
        self.expects = _AFTER.get(verb, _COMMAND)
        if verb == b"BDAT":
            chunk = parse_bdat(command)
            self.chunk_bytes += chunk.size
            self.expects = _CHUNK if chunk.size else _COMMAND
        return True

    def refuse(self, command: Command, answer: Answer, text: str = "") -> None:
        """Answer a command here instead of passing it on. `text` replaces the answer's words."""
        self.fruitless += 1
        # the chunk comes all the same, and must not be read as commands
        closes = answer.closes or command.verb == b"BDAT"
        self._under_way.append(_Own(command, answer, text, closes))
        if closes:
            self.expects = _END
        elif answer is Answer.TLS_READY:
            self.expects = _REPLY

    def refuse_line(self, answer: Answer) -> None:
        """The same for a line that is no command at all."""
        self.refuse(Command(b"", b"", b""), answer)

    def auth_line(self, line: bytes) -> bytes:
        """A line of the client within AUTH: the bytes to pass on. Nothing in it is looked at, and nothing is logged."""
        assert self.expects is _AUTH_LINE
        self.expects = _REPLY
        return line + b"\r\n"

    def data_ended(self) -> None:
        """The final dot went to the server: its verdict is outstanding, and the client may go on."""
        assert self.expects is _DATA
        self._under_way.append(_FINAL_DOT)
        self.expects = _COMMAND

    def chunk_ended(self) -> None:
        """The last byte of a BDAT chunk went to the server."""
        assert self.expects is _CHUNK
        self.expects = _COMMAND

    def tls_established(self) -> None:
        """The client's handshake is complete: everything it said before is forgotten (RFC 3207 section 4.2)."""
        self.secured = True
        self.helo = None
        self.expects = _COMMAND

    # ------------------------------------------------------------ the server

    def reply(self, reply: Reply) -> Relay:
        """The server's next reply. Pass it on to the client, but for EHLO, whose capabilities are ours to say.

        Before it is passed in, a worker that would rather ask another server looks at `replay`.

        Raises:
            OutOfStep: it cannot be the reply to what comes next in order.
        """
        code, expects = reply.code, self.expects
        if code < 400 and (expects is _DATA or expects is _CHUNK) and self._unfinished():
            raise OutOfStep(f"server said {reply.words()!r} before the message was sent to its end")
        if not self._under_way:
            return self._unasked(reply)
        command = self._under_way[0]
        if isinstance(command, _Own):
            raise OutOfStep(f"server said {reply.words()!r} when nothing was asked")
        verb = command.verb
        if 300 <= code < 400 or verb == b"DATA":
            self._check_fits(verb, reply)
        if code != 334:
            self._under_way.popleft()
        ends_message = command is _FINAL_DOT or (verb == b"BDAT" and parse_bdat(command).last)
        self._learn(command, ends_message, code)
        if expects is _REPLY or expects is _LATER:
            self._go_on(verb, reply)
        closes = code == 421 or verb == b"QUIT"
        if closes:
            self._end()
        return Relay(reply, command, ends_message, closes)

    def due(self) -> Due | None:
        """Own answers that have nothing of the server's in front of them any more."""
        if not self._under_way or not isinstance(self._under_way[0], _Own):
            return None
        data = bytearray()
        while self._under_way and isinstance(own := self._under_way[0], _Own):
            self._under_way.popleft()
            data += own.answer.render(own.text)
            if own.closes:
                self._end()
                return Due(bytes(data), True)
            if own.answer is Answer.TLS_READY:
                self.expects = _TLS
        return Due(bytes(data), False) if data else None

    def server_lost(self) -> Answer:
        """The server's connection ended and no other can take over: send this and close.

        What was sent to its final dot may or may not be with the server; the client will try again.
        """
        waiting = [command.verb for command in self._with_the_server()]
        self._end()
        return Answer.GOODBYE if waiting == [b"QUIT"] else Answer.SERVER_LOST

    # ------------------------------------------------------------ moving to another server

    @property
    def idle(self) -> bool:
        """Nothing is under way in either direction."""
        return not self._under_way and self.expects is _COMMAND

    @property
    def binding(self) -> str:
        """What ties the session to its server, in a word for the log; empty: nothing."""
        if self.authenticated:
            return "authenticated"
        if self._unknown_used:
            return "extension"
        if self.expects not in (_COMMAND, _GREETING):
            return "waiting" if self.expects in _WAITING else "message"
        if self._under_way:
            return "replies outstanding"
        return "transaction" if self.in_transaction else ""

    @property
    def may_move(self) -> bool:
        """The next command may go to another server, which is told `helo` first. (XCLIENT is said to it anew, too.)"""
        return not self.binding

    def replay(self) -> tuple[Command, ...] | None:
        """The commands under way, when another server can be asked them unseen; None when it cannot.

        It can while the client has been told nothing that only the first server knows: no sender accepted, no password,
        and no byte of a message sent. Connect, say `helo` (unless one of these is a hello), then these.
        """
        bound = self.authenticated or self._unknown_used or self.in_transaction
        if bound or self.expects not in (_COMMAND, *_WAITING, _END):
            return None
        outstanding = tuple(self._with_the_server())
        return outstanding if all(command.verb in _REPEATABLE for command in outstanding) else None

    def _with_the_server(self) -> Iterator[Command]:
        return (command for command in self._under_way if not isinstance(command, _Own))

    # ------------------------------------------------------------ rules

    def _ruling(self, command: Command) -> Answer | None:
        """The answer of our own that this command gets; None: the server answers."""
        verb = command.verb
        if verb not in _ORDINARY and (answer := self._extraordinary(command)) is not None:
            return answer
        if not self.secured and (missing := self._missing_tls(verb)) is not None:
            return missing
        if verb in _NEEDS_HELO and self.helo is None:
            return Answer.SEND_HELO
        return _bad_chunk(command) if verb == b"BDAT" else None

    def _extraordinary(self, command: Command) -> Answer | None:
        verb = command.verb
        if command.is_http:
            return Answer.FOREIGN_PROTOCOL
        if command.impersonates:
            return Answer.XCLIENT_REFUSED
        if verb in _EXCHANGE and not self._rules.exchange:
            return Answer.UNKNOWN_COMMAND
        if verb in _NEVER:
            return _NEVER[verb]
        return self._starttls(command) if verb == b"STARTTLS" else None

    def _missing_tls(self, verb: bytes) -> Answer | None:
        if self._rules.tls_required and verb not in _BEFORE_TLS:
            return Answer.TLS_REQUIRED
        if self._rules.auth_needs_tls and verb == b"AUTH":
            return Answer.AUTH_NEEDS_TLS
        return None

    def _starttls(self, command: Command) -> Answer:
        if self.secured:
            return Answer.TLS_ALREADY
        if not self._rules.starttls:
            return Answer.NOT_IMPLEMENTED
        if command.argument:
            return Answer.BAD_ARGUMENTS
        if self.authenticated:
            return Answer.ALREADY_AUTHENTICATED
        if self.in_transaction or any(command.verb == b"MAIL" for command in self._with_the_server()):
            return Answer.IN_TRANSACTION
        return Answer.TLS_READY

    # ------------------------------------------------------------ replies

    def _unfinished(self) -> bool:
        """The next reply would be to a message, or a chunk of one, that is still being sent."""
        if self.expects is _DATA:
            return True
        return self.expects is _CHUNK and len(self._under_way) == 1

    def _unasked(self, reply: Reply) -> Relay:
        """A server may say 421 at any time, and break off a message with an error."""
        if reply.code != 421 and self.expects is not _DATA:
            raise OutOfStep(f"server said {reply.words()!r} when nothing was asked")
        broke_off = self.expects is _DATA
        self._end()
        return Relay(reply, None, broke_off, True)

    @staticmethod
    def _check_fits(verb: bytes, reply: Reply) -> None:
        if 300 <= reply.code < 400:
            fits = (reply.code == 354 and verb == b"DATA") or (reply.code == 334 and verb in _AUTHS)
        else:
            fits = not (verb == b"DATA" and reply.positive)
        if not fits:
            raise OutOfStep(f"server said {reply.words()!r} to {verb.decode()}")

    def _learn(self, command: Command, ends_message: bool, code: int) -> None:
        """What the reply makes true."""
        verb, positive = command.verb, code < 300
        if ends_message:
            self.messages += positive
            self.fruitless = 0 if positive else self.fruitless
            self._transaction(False)
        elif verb == b"RCPT":
            self.recipients += positive
        elif verb in _HELLOS or verb == b"RSET":
            if positive:
                self._transaction(False)
                self.helo = command if verb in _HELLOS else self.helo
        elif verb == b"MAIL":
            self._transaction(positive or self.in_transaction)
        elif verb in _AUTHS:
            self.authenticated |= code == 235
        elif verb not in _REPEATABLE and verb != b"BDAT" and positive:
            self._unknown_used |= verb not in (b"HELP", b"EXPN", b"ETRN")

    def _transaction(self, is_open: bool) -> None:
        if is_open is not self.in_transaction:
            self.recipients = self.chunk_bytes = 0
            self.in_transaction = is_open

    def _go_on(self, verb: bytes, reply: Reply) -> None:
        """What the client, which was waiting, may say now."""
        if reply.code == 354:
            self.expects = _DATA
        elif reply.code == 334:
            self.expects = _AUTH_LINE
        elif verb == b"X-ANONYMOUSTLS" and reply.code == 220:
            self.expects = _RELAY
        elif verb in _AFTER:
            self.expects = _COMMAND

    def _end(self) -> None:
        self._under_way.clear()
        self.expects = _END


def _bad_chunk(command: Command) -> Answer | None:
    try:
        parse_bdat(command)
    except BadCommand as error:
        return error.answer
    return None
