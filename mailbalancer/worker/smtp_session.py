"""Mode `smtp`: a client's session with whichever server takes it, command by command.

Decides: where the bytes of either side go, when a side is not read, and when another server is asked without the client
noticing: at 421 (and at 452 4.3.1, where another is ready) as long as nothing binds the session, and at the first
command after a message when its server takes no new sessions any more.
Refuses to know: which command is allowed when, and in which order replies are due (`wire.smtp_dialogue`); where a
message ends (`wire.smtp_data`); who may send what to whom (`balance.mail_policy`).

No message is ever accepted here. A 2xx that a client gets for its message is the server's own reply, passed on. When
the server is lost before that reply, the client gets 421 whether or not the final dot was sent: the server may have the
message then, and the client will send it again (RFC 1047: a duplicate is the lesser evil); the balancer never does.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mailbalancer.balance.mail_policy import Mailbox, Objection
from mailbalancer.ipc.board import Count
from mailbalancer.log import one_line
from mailbalancer.model import Endpoint
from mailbalancer.wire import proxy_header
from mailbalancer.wire.mail_lines import BadLine, LineFault, Lines
from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_bdat import ChunkBody, parse_bdat
from mailbalancer.wire.smtp_command import (
    MAX_AUTH_BYTES,
    MAX_COMMAND_BYTES,
    BadCommand,
    Command,
    Path,
    parse,
    parse_mail,
    parse_rcpt,
    parse_whole,
)
from mailbalancer.wire.smtp_data import BareNewlines, DataBody
from mailbalancer.wire.smtp_dialogue import Dialogue, Expect, OutOfStep
from mailbalancer.wire.smtp_opening import Failed, Opening, Ready, Secure, Send, Step
from mailbalancer.wire.smtp_reply import BadReply, Replies, Reply
from mailbalancer.wire.smtp_xclient import Client
from mailbalancer.worker.engine import Engine
from mailbalancer.worker.mail_service import MailService
from mailbalancer.worker.mail_session import MailSession, Say, Stage, tls_facts
from mailbalancer.worker.smtp_message import Message

if TYPE_CHECKING:
    from mailbalancer.worker.reverse_names import ReverseNames

# Looking a member of an enum up costs more than what is done with it here.
_SHAKING, _DELAYED, _SEEKING, _OPENING, _TALKING, _RELAYING, _CLOSING, _OVER = Stage
_GREETING, _COMMAND, _LATER, _REPLY, _AUTH_LINE, _DATA, _CHUNK, _TLS, _RELAY, _END = Expect
_MESSAGES: Final = int(Count.MESSAGES)
_MESSAGES_REFUSED: Final = int(Count.MESSAGES_REFUSED)

#: A server may think about a message for this long (RFC 5321 section 4.5.3.2.6), whatever the idle timeout.
VERDICT_S: Final = 600.0
#: Commands without a message, recipients not counted, after which a client is sent away.
FRUITLESS: Final = 200

_SENTENCES: Final = {
    Say.NO_SERVER: Answer.NO_SERVER.render(),
    Say.STOPPING: Answer.STOPPING.render(),
    Say.DENIED: Answer.DENIED.render(),
    Say.TOO_MANY_CONNECTIONS: Answer.TOO_MANY_CONNECTIONS.render(),
    Say.SERVER_LOST: Answer.SERVER_LOST.render(),
    Say.IDLE: Answer.IDLE.render(),
    Say.TLS_UNAVAILABLE: Answer.TLS_UNAVAILABLE.render(),
}
_ANSWERS: Final = {
    Objection.SENDER: Answer.SENDER_DENIED,
    Objection.RECIPIENT: Answer.RECIPIENT_DENIED,
    Objection.TOO_BIG: Answer.TOO_BIG,
    Objection.MESSAGE_RATE: Answer.TOO_MANY_MESSAGES,
    Objection.RECIPIENT_RATE: Answer.TOO_MANY_RECIPIENTS,
}
_HELLOS: Final = (b"EHLO", b"HELO")
#: A client that ends its half now waits for answers to what it has said.
_ANSWERED: Final = (_COMMAND, _LATER, _REPLY, _END)
#: What the client says now is for later, or for nobody.
_DEAF: Final = (_LATER, _END)
_MOVES_AT: Final = (b"MAIL", b"RSET")
#: Replies by which a server may say that it wants no more of us.
_UNWILLING: Final = (421, 452)


class SmtpSession(MailSession):
    """One client."""

    __slots__ = (
        "_asks_name",
        "_body",
        "_chunk",
        "_dialogue",
        "_half_closed",
        "_held",
        "_is_last",
        "_lines",
        "_message",
        "_name",
        "_opening",
        "_parting",
        "_replay",
        "_replies",
        "_sent",
        "_shakes",
        "_swallows",
        "_waits",
    )

    def __init__(
        self, engine: Engine, service: MailService, endpoint: Endpoint, client: socket.socket, address: str, port: int
    ) -> None:
        self._dialogue = Dialogue(service.rules, secured=service.client_starttls == "implicit")
        self._lines = Lines(MAX_AUTH_BYTES)
        self._replies: Replies  # of the server at hand, from its greeting on
        self._opening: Opening | None = None
        self._asks_name = False
        self._name = ""  # of the client, NO_NAME or NOT_NOW, once it is known
        self._replay: tuple[Command, ...] = ()
        self._body: DataBody | None = None
        self._chunk: ChunkBody | None = None
        self._is_last = False  # the chunk under way is the last of its message
        self._swallows: Answer | None = None  # there is no server any more: the client is told when its message ends
        self._held: tuple[Command, Answer] | None = None  # a refusal that is held back
        self._parting = ""  # why the last refusal closes, for the log
        self._shakes = False  # our 220 to STARTTLS must be on its way before the handshake begins
        self._waits = False  # the client is not read
        self._half_closed = False  # the client says nothing more, and waits for what is under way
        self._message: Message | None = None  # on its way to the server
        self._sent: deque[Message] = deque()  # sent to the end; the server has not said what becomes of them
        super().__init__(engine, service, endpoint, client, address, port)

    def sentence(self, say: Say) -> bytes:
        return _SENTENCES[say]

    @property
    def interrupts(self) -> bool:
        return self._body is not None or self._chunk is not None

    def idle_limit_s(self) -> float:
        limit = self.service.config.idle_timeout_s
        return max(limit, VERDICT_S) if self._sent else limit

    # ------------------------------------------------------------ the first words with a server

    def begin_opening(self) -> None:
        service, mail, dialogue = self.service, self.service.mail, self._dialogue
        self._replies = Replies()
        if not self.greeted and mail.client_address != "xclient":
            self._opening = Opening(service.first_plan)
            return
        client = None
        if mail.client_address == "xclient":
            if service.names is not None and not self._knows_name(service.names):
                return
            reached = self.reached()
            client = Client(self.address, self.port, self._name, reached.host, reached.port)
        says_hello = any(command.verb in _HELLOS for command in self._replay)
        helo = None if says_hello else dialogue.helo
        self._opening = Opening(replace(service.first_plan, client=client, helo=helo))

    def _seek_first(self) -> None:
        if self.service.names is not None:  # while the connection is made
            self._asks_name = True
            self.service.names.ask(self.address, self._named)
        super()._seek_first()

    def _knows_name(self, names: ReverseNames) -> bool:
        """Whether the client's name is there. False: the server is not heard until it is."""
        assert self.link is not None
        if not self._asks_name:
            self._asks_name = True
            names.ask(self.address, self._named)
        if not self._name:
            self.link.pause()
        return bool(self._name)

    def _named(self, name: str) -> None:
        self._name = name
        if self.stage is _OPENING and self._opening is None and self.link is not None:
            self.link.resume()
            self.begin_opening()

    def server_secured(self) -> None:
        assert self._opening is not None
        self._do(self._opening.secured())

    def _do(self, step: Step) -> None:
        match step:
            case Send(data):
                self.tell_server(data)
            case Secure():
                if self._replies.clean:
                    self.secure_server()
                else:
                    self.pass_over("sent more behind its answer to STARTTLS", tls=True)
            case Ready():
                self._server_is_ready(step)
            case Failed(reason, reply):
                self._server_failed(reason, reply)

    def _server_failed(self, reason: str, reply: Reply | None) -> None:
        text = f"{reason} {reply.words()}" if reply is not None else reason
        self.pass_over(text, kind=_remark_of(reply), tls="STARTTLS" in reason)

    def _server_is_ready(self, ready: Ready) -> None:
        self._opening = None
        if ready.capabilities:
            assert self.target is not None
            self.service.learn(self.target.name, ready.capabilities)
        self.opened()
        if not self.greeted:
            self._greet()
        elif self._replay:
            replay, self._replay = self._replay, ()
            self.tell_server(b"".join(command.raw for command in replay))

    def _greet(self) -> None:
        if self.client.has_input():
            self._spoke_out_of_turn()
            return
        self.greeted = True
        self._dialogue.greeted()
        self.tell_client(self.service.greeting)

    # ------------------------------------------------------------ another server

    def _ask_another(self, commands: tuple[Command, ...], why: str, kind: str = "failure") -> None:
        """The client waits for answers that any server can give: it never learns that this one would not."""
        self._replay = commands
        self._look_away()
        self.pass_over(why, kind=kind)

    def _asks_another(self, reply: Reply) -> bool:
        """The server wants no more of us. True: another one is asked, and the client is told nothing."""
        target, kind = self.target, _remark_of(reply)
        assert target is not None
        commands = self._dialogue.replay()
        if commands and self.service.has_another(self):
            self._ask_another(commands, f"answered {commands[0].verb.decode()} with {reply.words()}", kind)
            return True
        if kind != "failure" or commands:
            self.service.remark(target, kind, reply.words())
        return False

    def _move(self, command: Command) -> None:
        """Its server takes no new sessions any more, and nothing binds this one to it."""
        assert self.target is not None
        self._replay = (command,)
        self._look_away()
        if self.tell_server(b"QUIT\r\n"):
            self.vouch()
            self.stage = _SEEKING
            self.give_up()
            self.seek()

    # ------------------------------------------------------------ bytes of the client

    def from_client(self, data: bytes) -> None:
        if self.stage is not _TALKING:
            self._from_client_untimely(data)
            return
        if self._lines.held:
            self._lines.feed(data)
        elif self._body is not None:
            self._pass_body(data)
        elif self._chunk is not None:
            self._pass_chunk(data)
        elif not self._take_whole(data):
            self._lines.feed(data)
        link = self.link
        if self._lines.held or self._held is not None or self._shakes or link is None or link.blocked:
            self._go_on()  # otherwise there is nothing to go on with, and no reason to look away from the client

    def _from_client_untimely(self, data: bytes) -> None:
        """There is no server to listen yet, or not any more, or all there is to know is known."""
        if not self.greeted:
            self._spoke_early(data)
        elif self.stage is _RELAYING:
            self.tell_server(data)
            self._regulate()
        else:
            self._lines.feed(data)

    def _take_whole(self, data: bytes) -> bool:
        """The short way for what most clients send most of the time: one command, whole and alone, with nothing of
        theirs waiting. False: nothing has happened, and the long way through `_go_on` decides."""
        dialogue = self._dialogue
        if dialogue.expects is not _COMMAND or not self._may_go_on():
            return False
        command = parse_whole(data)
        if command is None:
            return False
        if dialogue.fruitless <= FRUITLESS or not self._is_too_much():
            self._command(command)
        return True

    def _go_on(self) -> None:
        """Everything the client has said that can be dealt with now."""
        while self._lines.held and self.stage == _TALKING and self._may_go_on() and self._step():
            pass
        if self.stage == _TALKING:
            self._regulate()
            if self._half_closed and self._has_had_its_answers():
                self.end("client_closed")

    def _may_go_on(self) -> bool:
        if self._swallows is not None:
            return True
        return self._held is None and self.link is not None and not self.link.blocked and not self._dialogue.full

    def _step(self) -> bool:
        """The next thing the client has said. False: nothing is there that could be read now."""
        expects = self._dialogue.expects
        if self._body is not None or self._chunk is not None:
            return self._step_in_message()
        if expects is _COMMAND:
            return self._read_command()
        if expects is _AUTH_LINE:
            return self._read_auth_line()
        if self._lines.held and expects is _REPLY:
            self._spoke_out_of_turn()
        return False

    def _step_in_message(self) -> bool:
        data = self._lines.take()
        if not data:
            return False
        if self._body is not None:
            self._pass_body(data)
        else:
            self._pass_chunk(data)
        return True

    def _has_had_its_answers(self) -> bool:
        """The client has ended its half, and nothing more will be said to it."""
        expects = self._dialogue.expects
        return self._dialogue.idle or expects not in _ANSWERED

    def _regulate(self) -> None:
        """Read the client only while what it says can go somewhere."""
        link = self.link
        waits = self._held is not None or self._shakes or self._half_closed
        if link is not None and (link.blocked or (self._lines.held and not self._listens())):
            waits = True
        if waits is not self._waits:
            self._waits = waits
            if waits:
                self.client.pause()
            else:
                self.client.resume()

    def _look_away(self) -> None:
        """Until there is a server again."""
        self._waits = True
        self.client.pause()

    def _listens(self) -> bool:
        """Whether what the client says now is for now."""
        return not self._dialogue.full and self._dialogue.expects not in _DEAF

    def _spoke_early(self, data: bytes) -> None:
        if proxy_header.looks_like(data):
            self.last_failure = "a PROXY header from a client that is not in proxy_protocol.accept_from"
        self._spoke_out_of_turn()

    def _spoke_out_of_turn(self) -> None:
        answer = self._dialogue.spoke_early()
        self.dismiss(answer.render(), answer.name.lower())

    def client_ended(self) -> None:
        expects = self._dialogue.expects
        if self._swallows is None and expects in _ANSWERED:
            self._half_closed = True
            self._go_on()
        else:
            self.end("client_closed")

    def went_through(self) -> None:
        self.active_at = self._engine.reactor.now
        if self.link is not None and not self.client.blocked:
            self.link.resume()
            if self._shakes:
                self._shakes = False
                self.shake_hands()
                return
        if self.stage == _RELAYING:
            self._regulate()
        self._go_on()

    # ------------------------------------------------------------ commands

    def _read_command(self) -> bool:
        try:
            line = self._lines.next()
            if line is None:
                return False
            if self._is_too_much():
                return False
            command = parse(line)
        except BadLine as error:
            self._refuse_line(Answer.LINE_TOO_LONG if error.fault is LineFault.TOO_LONG else Answer.BAD_BYTES)
            return False
        except BadCommand as error:
            self._refuse_line(error.answer)
            return True
        if len(line) > MAX_COMMAND_BYTES - 2 and command.verb not in (b"AUTH", b"X-EXPS"):
            self._refuse_line(Answer.LINE_TOO_LONG)
            return False
        self._command(command)
        return True

    def _is_too_much(self) -> bool:
        """Whether this was one command too many without a message; the client has been sent away then."""
        fruitless = self._dialogue.fruitless
        if fruitless <= FRUITLESS or (self._message is not None and fruitless - self._message.recipients <= FRUITLESS):
            return False
        self.dismiss(Answer.TOO_MANY_COMMANDS.render(), "too_many_commands")
        return True

    def _refuse_line(self, answer: Answer) -> None:
        self._parting = answer.name.lower()
        self._dialogue.refuse_line(answer)
        self._answer()

    def _read_auth_line(self) -> bool:
        try:
            line = self._lines.next()
        except BadLine as error:
            answer = Answer.LINE_TOO_LONG if error.fault is LineFault.TOO_LONG else Answer.BAD_BYTES
            self.dismiss(answer.render(), answer.name.lower())
            return False
        if line is not None:
            self.tell_server(self._dialogue.auth_line(line))
        return line is not None

    def _command(self, command: Command) -> None:
        dialogue = self._dialogue
        verb = command.verb
        if verb == b"MAIL" and self._engine.stopping and dialogue.may_move:
            self.dismiss(self.sentence(Say.STOPPING), "stopped")
            return
        if verb in self.service.judged and (refusal := self._refusal(command)) is not None:
            self._refuse(command, refusal)
            return
        moves = verb in _MOVES_AT and self.service.is_leaving(self) and dialogue.may_move and dialogue.helo is not None
        if not dialogue.take(command):
            self._answer()
        elif moves:
            self._move(command)
        else:
            self._pass_on(command)

    def _pass_on(self, command: Command) -> None:
        verb = command.verb
        if verb == b"MAIL":
            self._begin_message(command)
        elif verb == b"RCPT" and self._message is not None:
            self._message.recipients += 1
            if self.service.mail.smtp.log_addresses:
                self._message.names_recipient(command.argument.decode("utf-8", "replace"))
        elif verb == b"BDAT":
            self._begin_chunk(command)
        self.tell_server(command.raw)

    def _refuse(self, command: Command, answer: Answer) -> None:
        tarpit_s = self.service.policy.config.tarpit_s
        if not tarpit_s:
            self._parting = answer.name.lower()
            self._dialogue.refuse(command, answer)
            self._answer()
        else:
            self._held = (command, answer)
            self.wait_until(self._engine.reactor.now + tarpit_s)

    def talking_due(self, now: float) -> None:
        if self._held is None:
            super().talking_due(now)
            return
        (command, answer), self._held = self._held, None
        self.wait_until(self.active_at + self.idle_limit_s())
        self._dialogue.refuse(command, answer)
        self._answer()
        self._go_on()

    def _answer(self) -> None:
        """Own answers that are due now."""
        due = self._dialogue.due()
        if due is None:
            return
        if due.closes:
            self.dismiss(due.data, self._parting or "refused")
        elif self.tell_client(due.data) and self._dialogue.expects is _TLS:
            self._begin_tls()

    def _begin_tls(self) -> None:
        if self._lines.held:
            self.last_failure = "the client sent more behind STARTTLS"
            self.end("starttls_injection", reset=True)
        elif self.client.blocked:
            self._shakes = True
        else:
            self.shake_hands()

    def client_secured(self) -> None:
        self._lines = Lines(MAX_AUTH_BYTES)
        self._dialogue.tls_established()
        self._regulate()

    # ------------------------------------------------------------ policy

    def _refusal(self, command: Command) -> Answer | None:
        """What this service's policy says to a command, where the dialogue would let it pass."""
        dialogue = self._dialogue
        if dialogue.helo is None or not (dialogue.secured or self.service.client_starttls != "require"):
            return None
        try:
            if command.verb == b"MAIL":
                found = self._object_to_sender(command)
            elif command.verb == b"RCPT":
                found = self._object_to_recipient(command)
            elif command.verb == b"BDAT":
                found = self._object_to_chunk(command)
            else:
                return None
        except BadCommand as error:
            return error.answer
        if found is None:
            return None
        self._log_objection(found, command)
        return _ANSWERS[found]

    def _object_to_sender(self, command: Command) -> Objection | None:
        policy = self.service.policy
        if policy.reads_senders:
            path = parse_mail(command)
            found = policy.sender(_mailbox(path), path.size)
            if found is not None:
                return found
        return policy.message_rate(self.address, self._engine.reactor.now)

    def _object_to_recipient(self, command: Command) -> Objection | None:
        policy = self.service.policy
        if policy.reads_recipients:
            mailbox = _mailbox(parse_rcpt(command))
            found = policy.recipient(mailbox, self.address, authenticated=self._dialogue.authenticated)
            if found is not None:
                return found
        return policy.recipient_rate(self.address, self._engine.reactor.now)

    def _object_to_chunk(self, command: Command) -> Objection | None:
        limit = self.service.policy.config.max_message_bytes
        if limit and self._dialogue.chunk_bytes + parse_bdat(command).size > limit:
            return Objection.TOO_BIG
        return None

    def _log_objection(self, objection: Objection, command: Command) -> None:
        log, smtp = self._engine.log, self.service.mail.smtp
        fields = {"service": self.service.name, "client": str(Endpoint(self.address, self.port))}
        if smtp.log_addresses:
            fields["command"] = one_line(command.line.decode("utf-8", "replace")[:200])
        reply = _ANSWERS[objection].render().decode("ascii").rstrip("\r\n")
        log.info("refused", reason=objection.value, reply=reply, **fields)

    # ------------------------------------------------------------ the message

    def _begin_message(self, command: Command) -> None:
        sender = command.argument.decode("utf-8", "replace") if self.service.mail.smtp.log_addresses else None
        self._message = Message(self._engine.reactor.now, sender)

    def _begin_data(self) -> None:
        """The server has said 354."""
        policy = self.service.bare_newlines
        if policy is BareNewlines.REJECT and self._dialogue.authenticated:
            policy = BareNewlines.NORMALISE  # a user's own program may be old; nobody else's message can be split by it
        self._body = DataBody(policy, self.service.policy.config.max_message_bytes)
        if self._message is not None:
            self._message.data_at = self._engine.reactor.now

    def _pass_body(self, data: bytes) -> None:
        body = self._body
        assert body is not None
        fed = body.feed(data)
        if body.refused is not None and self._swallows is None:
            self._swallows = body.refused
            self.give_up()
        if self._swallows is None and fed.pieces:
            self.tell_server(fed.pieces[0] if len(fed.pieces) == 1 else b"".join(fed.pieces))
        if body.done:
            self._end_body(body)
        if fed.taken < len(data):
            self._lines.feed(memoryview(data)[fed.taken :])

    def _end_body(self, body: DataBody) -> None:
        self._body = None
        message = self._message
        if message is not None:
            message.size, message.strays = body.size, body.strays
        if self._swallows is not None:
            self._lose_message(self._swallows)
        else:
            self._await_verdict()
            self._dialogue.data_ended()

    def _await_verdict(self) -> None:
        """A client may begin its next message before it knows what became of this one."""
        if self._message is not None:
            self._message.sent_at = self._engine.reactor.now
            self._sent.append(self._message)
            self._message = None

    def _begin_chunk(self, command: Command) -> None:
        chunk = parse_bdat(command)
        now, message = self._engine.reactor.now, self._message
        if message is not None:
            message.data_at = message.data_at or now
            message.size += chunk.size
        if chunk.size:
            self._chunk, self._is_last = ChunkBody(chunk), chunk.last
        elif chunk.last:
            self._await_verdict()

    def _pass_chunk(self, data: bytes) -> None:
        chunk = self._chunk
        assert chunk is not None
        taken = chunk.take(len(data))
        if self._swallows is None:
            self.tell_server(memoryview(data)[:taken])
        if chunk.done:
            self._chunk = None
            if self._swallows is not None:
                self._lose_message(self._swallows)
            else:
                if self._is_last:
                    self._await_verdict()
                self._dialogue.chunk_ended()
        if taken < len(data):
            self._lines.feed(memoryview(data)[taken:])

    def _lose_message(self, answer: Answer) -> None:
        """The client has sent its message to the end, and no server has it."""
        text = answer.render()
        self._log_message(text.decode("ascii").rstrip("\r\n"), accepted=False)
        self.dismiss(text, answer.name.lower())

    def _log_message(self, verdict: str, *, accepted: bool) -> None:
        """The fate of a message is known."""
        message = self._sent.popleft() if self._sent else self._message
        if message is self._message:
            self._message = None
        engine, target = self._engine, self.target
        if message is None or target is None:
            return
        engine.ints[engine.cell(target.slot, _MESSAGES if accepted else _MESSAGES_REFUSED)] += 1
        if not engine.log.says("info"):
            return
        helo, classes = self._dialogue.helo, self.service.classes
        one = classes.of(self.address) if classes is not None else None
        fields = {"class": one.name} if one is not None else {}
        engine.log.info(
            "message",
            service=self.service.name,
            client=str(Endpoint(self.address, self.port)),
            server=target.name,
            **fields,
            helo=one_line(helo.argument.decode("utf-8", "replace")) if helo is not None else None,
            client_tls=tls_facts(self.client),
            server_tls=tls_facts(self.link),
            **message.line(verdict, engine.reactor.now),
        )

    def about_to_end(self, reason: str) -> None:
        while self._sent:
            self._log_message(reason, accepted=False)
        if self._message is not None and self._message.data_at:
            if self._body is not None:
                self._message.size = self._body.size
            self._log_message(reason, accepted=False)

    # ------------------------------------------------------------ bytes of the server

    def from_server(self, data: bytes) -> None:
        if self.stage is _RELAYING:
            self.tell_client(data)
            return
        reply = self._replies.only(data)
        if reply is not None:
            if self._opening is None:
                self._take_reply(reply)
            else:
                self._do(self._opening.reply(reply))
        elif not self._hear_all(data):
            return
        if self._lines.held or self._waits or self._half_closed:
            self._go_on()

    def _hear_all(self, data: bytes) -> bool:
        """Whatever replies these bytes complete. False: they were none."""
        self._replies.feed(data)
        link = self.link
        try:
            while self.link is link and (reply := self._replies.next()) is not None:
                if self._opening is None:
                    self._take_reply(reply)
                else:
                    self._do(self._opening.reply(reply))
        except BadReply as error:
            self._confused(str(error))
            return False
        return True

    def _take_reply(self, reply: Reply) -> None:
        if reply.code in _UNWILLING and (reply.code == 421 or reply.overloaded) and self._asks_another(reply):
            return
        dialogue = self._dialogue
        try:
            relay = dialogue.reply(reply)
        except OutOfStep as error:
            self._confused(str(error))
            return
        verb = relay.command.verb if relay.command is not None else b""
        data = reply.raw
        if relay.ends_message:
            self._end_message(reply)
        elif reply.code < 400:
            data = self._learn(verb, reply)
        if not self.tell_client(data):
            return
        if relay.closes:
            self._close_after(verb)
        elif dialogue.expects is _RELAY:
            self._begin_relay()
        else:
            self._answer()

    def _close_after(self, verb: bytes) -> None:
        """The server's last reply is passed on."""
        if verb == b"QUIT" and not self.client.blocked:
            self.end("client_quit")
        else:
            self.dismiss(b"", "client_quit" if verb == b"QUIT" else "server_closed")

    def _learn(self, verb: bytes, reply: Reply) -> bytes:
        """What follows from a reply that is no refusal; returns what the client is told."""
        if verb == b"RCPT":
            message = self._sent[0] if self._sent else self._message
            if message is not None:
                message.accepted += 1
        elif verb in (b"MAIL", b"QUIT") or reply.code == 235:
            self.vouch()
        elif reply.code == 354:
            self._begin_data()
        elif verb == b"EHLO":
            return self._show_capabilities(reply)
        return reply.raw

    def _show_capabilities(self, reply: Reply) -> bytes:
        service, dialogue, target = self.service, self._dialogue, self.target
        assert target is not None
        starttls = service.client_starttls in ("offer", "require") and not dialogue.secured
        auth = dialogue.secured or service.client_starttls not in ("offer", "require")
        return service.hello(target.name, reply.lines[1:], starttls=starttls, auth=auth)

    def _end_message(self, reply: Reply) -> None:
        """The server's verdict."""
        self._body = None
        self._log_message(reply.words() if self._engine.log.says("info") else "", accepted=reply.positive)
        if reply.positive:
            self.passed_over += self.tried
            self.tried = ()

    def _begin_relay(self) -> None:
        """What follows is a handshake between Exchange servers."""
        self.stage = _RELAYING
        self.vouch()
        if self.tell_client(self._replies.take()):
            self.tell_server(self._lines.take())

    def _confused(self, reason: str) -> None:
        """Nothing that this server says can be believed any more."""
        assert self.target is not None
        if self.stage == _OPENING:
            self.pass_over(reason)
            return
        self.last_failure = f"{self.target.name}: {reason}"
        self.about_to_end("server_confused")
        self.dismiss(Answer.SERVER_CONFUSED.render(), "server_confused")

    def server_ended(self, why: str) -> None:
        dialogue = self._dialogue
        assert self.target is not None
        self.last_failure = f"{self.target.name}: {why}"
        if self.stage == _RELAYING:
            self.end("server_closed", reset=self.client.blocked)
            return
        commands = dialogue.replay() or ()
        if any(command.verb != b"QUIT" for command in commands) and self.service.has_another(self):
            self._ask_another(commands, why)
            return
        answer = dialogue.server_lost()
        if self._body is not None or self._chunk is not None:
            self._swallows = answer
            self.give_up()
            return
        self.about_to_end("server_lost")
        self.dismiss(answer.render(), "client_quit" if answer is Answer.GOODBYE else "server_lost")


def _mailbox(path: Path) -> Mailbox:
    return Mailbox(path.local.decode("utf-8", "replace"), path.domain, path.routed)


def _remark_of(reply: Reply | None) -> str:
    """What a refusal says about the server itself."""
    if reply is None:
        return "failure"
    if reply.inactive:
        return "maintenance"
    return "back_pressure" if reply.overloaded else "failure"
