"""One session, as the dialogue it is: `C` client, `S` server, and what the balancer makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_command import parse
from mailbalancer.wire.smtp_dialogue import MAX_OUTSTANDING, Dialogue, Expect, OutOfStep, Relay, Rules
from mailbalancer.wire.smtp_reply import Replies, Reply


def reply(data: bytes) -> Reply:
    replies = Replies()
    replies.feed(data + b"\r\n")
    (found,) = list(replies)
    return found


class Table:
    """A dialogue and both its peers: what reached whom."""

    def __init__(self, rules: Rules | None = None, *, secured: bool = False, greeted: bool = True) -> None:
        self.dialogue = Dialogue(rules or Rules(auth_needs_tls=False), secured=secured)
        self.to_server: list[bytes] = []
        self.to_client: list[bytes] = []
        self.closed = False
        if greeted:
            self.dialogue.greeted()

    def client(self, *lines: bytes) -> Table:
        for line in lines:
            if self.dialogue.take(parse(line)):
                self.to_server.append(line)
            self.flush()
        return self

    def server(self, *lines: bytes) -> Relay:
        for line in lines:
            relay = self.dialogue.reply(reply(line))
            self.to_client.append(line)
            self.closed |= relay.closes
            self.flush()
        return relay

    def flush(self) -> None:
        if not self.closed and (due := self.dialogue.due()) is not None:
            self.to_client += due.data.split(b"\r\n")[:-1]
            self.closed |= due.closes

    def hello(self) -> Table:
        self.client(b"EHLO c.example")
        self.server(b"250 mx")
        return self

    def message(self) -> Table:
        """Up to 354."""
        self.client(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA")
        self.server(b"250 2.1.0 ok", b"250 2.1.5 ok", b"354 go")
        return self


def test_a_message_with_pipelining() -> None:
    table = Table().hello().message()
    assert table.dialogue.expects is Expect.DATA
    assert table.dialogue.recipients == 1
    table.dialogue.data_ended()
    table.client(b"MAIL FROM:<x@y>")
    assert table.dialogue.messages == 0
    relay = table.server(b"250 2.0.0 queued")
    assert relay.ends_message
    assert table.dialogue.messages == 1
    assert table.server(b"250 ok").command == parse(b"MAIL FROM:<x@y>")
    assert table.dialogue.in_transaction
    assert table.dialogue.recipients == 0


def test_own_answers_wait_for_their_turn() -> None:
    table = Table().hello().client(b"MAIL FROM:<a@b>")
    table.dialogue.refuse(parse(b"RCPT TO:<c@d>"), Answer.RECIPIENT_DENIED, "not <c@d>")
    table.flush()
    table.client(b"RCPT TO:<e@f>")
    assert table.to_client[1:] == []
    table.server(b"250 sender")
    assert table.to_client[1:] == [b"250 sender", b"550 5.7.1 not <c@d>"]
    table.server(b"250 recipient")
    assert table.dialogue.recipients == 1


def test_a_server_that_answers_no_message_gives_no_250() -> None:
    table = Table().hello().message()
    table.dialogue.data_ended()
    assert table.dialogue.server_lost() is Answer.SERVER_LOST
    assert table.dialogue.messages == 0
    assert table.dialogue.expects is Expect.END


@pytest.mark.parametrize("line", [b"250 2.0.0 queued", b"354 again", b"220 mx"])
def test_a_positive_reply_in_the_middle_of_a_message(line: bytes) -> None:
    table = Table().hello().message()
    with pytest.raises(OutOfStep):
        table.server(line)
    assert table.dialogue.messages == 0


@pytest.mark.parametrize("line", [b"552 5.3.4 too big", b"421 4.3.2 stopping", b"451 4.3.0 no"])
def test_a_server_breaks_a_message_off(line: bytes) -> None:
    relay = Table().hello().message().server(line)
    assert relay.closes
    assert relay.ends_message


def test_nothing_was_asked() -> None:
    with pytest.raises(OutOfStep):
        Table().hello().server(b"250 surprise")
    relay = Table().hello().server(b"421 4.4.2 timeout")
    assert relay == Relay(reply(b"421 4.4.2 timeout"), None, False, True)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (b"MAIL FROM:<a@b>", b"354 go"),
        (b"RCPT TO:<a@b>", b"334 xx"),
        (b"DATA", b"250 done"),
        (b"DATA", b"334 xx"),
        (b"AUTH PLAIN", b"354 go"),
        (b"NOOP", b"354 go"),
        (b"XSTUFF", b"354 send it"),
        (b"EHLO again", b"354 go"),
    ],
)
def test_replies_that_do_not_fit(command: bytes, line: bytes) -> None:
    with pytest.raises(OutOfStep):
        Table().hello().client(command).server(line)


def test_the_final_dot_is_not_answered_with_354() -> None:
    table = Table().hello().message()
    table.dialogue.data_ended()
    with pytest.raises(OutOfStep):
        table.server(b"354 more")


# --- silence ---------------------------------------------------------------------------------------------------------


def test_speaking_before_the_greeting() -> None:
    dialogue = Dialogue(Rules())
    assert dialogue.expects is Expect.GREETING
    assert dialogue.spoke_early() is Answer.EARLY_TALKER
    assert dialogue.expects is Expect.END


@pytest.mark.parametrize("command", [b"DATA", b"AUTH LOGIN", b"X-EXPS GSSAPI", b"X-ANONYMOUSTLS"])
def test_nothing_may_follow_in_the_same_group(command: bytes) -> None:
    table = Table(Rules(auth_needs_tls=False, exchange=True)).hello().client(command)
    assert table.dialogue.expects is Expect.REPLY
    assert table.dialogue.spoke_early() is Answer.UNSYNCHRONISED


@pytest.mark.parametrize("hello", [b"EHLO x", b"HELO x"])
@pytest.mark.parametrize("reply", [b"250 me", b"500 5.5.1 what"])
def test_what_follows_a_hello_waits_for_its_answer(hello: bytes, reply: bytes) -> None:
    table = Table().client(hello)
    assert table.dialogue.expects is Expect.LATER
    assert table.dialogue.binding == "waiting"
    assert [command.line for command in table.dialogue.replay() or ()] == [hello]
    table.server(reply)
    assert table.dialogue.expects is Expect.COMMAND


def test_refused_data_leads_back_to_commands() -> None:
    table = Table().hello().client(b"DATA")
    table.server(b"503 5.5.1 no recipients")
    assert table.dialogue.expects is Expect.COMMAND


def test_only_so_many_commands_at_once() -> None:
    table = Table().hello()
    for _ in range(MAX_OUTSTANDING):
        assert not table.dialogue.full
        table.client(b"NOOP")
    assert table.dialogue.full
    table.server(b"250 ok")
    assert not table.dialogue.full


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "answer", "closes"),
    [
        (b"GET / HTTP/1.1", Answer.FOREIGN_PROTOCOL, True),
        (b"CONNECT x:25 HTTP/1.0", Answer.FOREIGN_PROTOCOL, True),
        (b"XCLIENT ADDR=10.0.0.1", Answer.XCLIENT_REFUSED, False),
        (b"XFORWARD NAME=x", Answer.XCLIENT_REFUSED, False),
        (b"XPROXYTO x", Answer.XCLIENT_REFUSED, False),
        (b"X-EXPS GSSAPI", Answer.UNKNOWN_COMMAND, False),
        (b"X-ANONYMOUSTLS", Answer.UNKNOWN_COMMAND, False),
        (b"XEXCH50 1 2", Answer.UNKNOWN_COMMAND, False),
        (b"ATRN example.com", Answer.NOT_IMPLEMENTED, False),
        (b"STARTTLS", Answer.NOT_IMPLEMENTED, False),
        (b"BDAT x", Answer.BAD_CHUNK, True),
    ],
)
def test_answered_here(line: bytes, answer: Answer, closes: bool) -> None:
    table = Table().hello().client(line)
    assert table.to_server == [b"EHLO c.example"]
    assert table.to_client[1:] == [answer.render()[:-2]]
    assert table.closed == closes


@pytest.mark.parametrize("line", [b"MAIL FROM:<a@b>", b"RCPT TO:<a@b>", b"DATA", b"AUTH PLAIN x"])
def test_hello_first(line: bytes) -> None:
    table = Table().client(line)
    assert table.to_server == []
    assert table.to_client == [Answer.SEND_HELO.render()[:-2]]


def test_a_chunk_behind_a_refused_bdat_is_not_read_as_commands() -> None:
    table = Table().client(b"BDAT 20 LAST")
    assert table.closed
    assert table.dialogue.expects is Expect.END


def test_unknown_commands_pass() -> None:
    table = Table().hello().client(b"XSTUFF 1", b"VRFY x", b"ETRN y", b"HELP")
    assert table.to_server[1:] == [b"XSTUFF 1", b"VRFY x", b"ETRN y", b"HELP"]


# --- TLS -------------------------------------------------------------------------------------------------------------

REQUIRED = Rules(starttls=True, tls_required=True)


@pytest.mark.parametrize("line", [b"MAIL FROM:<a@b>", b"AUTH PLAIN x", b"DATA", b"VRFY x", b"XSTUFF", b"BDAT 5"])
def test_tls_required(line: bytes) -> None:
    table = Table(REQUIRED).hello().client(line)
    assert table.to_server == [b"EHLO c.example"]
    assert table.to_client[1:] == [Answer.TLS_REQUIRED.render()[:-2]]


def test_starttls_forgets_everything() -> None:
    table = Table(REQUIRED).hello().client(b"STARTTLS")
    assert table.to_client[-1] == Answer.TLS_READY.render()[:-2]
    assert table.dialogue.expects is Expect.TLS
    table.dialogue.tls_established()
    table.client(b"MAIL FROM:<a@b>")
    assert table.to_client[-1] == Answer.SEND_HELO.render()[:-2]
    table.hello().client(b"MAIL FROM:<a@b>", b"STARTTLS")
    table.server(b"250 ok")
    assert table.to_client[-1] == Answer.TLS_ALREADY.render()[:-2]


def test_starttls_waits_for_the_replies_before_it() -> None:
    table = Table(Rules(starttls=True)).hello().client(b"NOOP", b"STARTTLS")
    assert table.dialogue.expects is Expect.REPLY
    assert table.dialogue.due() is None
    table.server(b"250 ok")
    assert table.dialogue.expects is Expect.TLS


@pytest.mark.parametrize(
    ("before", "line", "answer"),
    [
        ([], b"STARTTLS now", Answer.BAD_ARGUMENTS),
        ([(b"MAIL FROM:<a@b>", b"250 ok")], b"STARTTLS", Answer.IN_TRANSACTION),
        ([(b"AUTH PLAIN x", b"235 ok")], b"STARTTLS", Answer.ALREADY_AUTHENTICATED),
    ],
)
def test_starttls_refused(before: list[tuple[bytes, bytes]], line: bytes, answer: Answer) -> None:
    table = Table(Rules(starttls=True, auth_needs_tls=False)).hello()
    for command, said in before:
        table.client(command).server(said)
    assert table.client(line).to_client[-1] == answer.render()[:-2]
    assert table.dialogue.expects is Expect.COMMAND


def test_bytes_behind_starttls_are_out_of_step() -> None:
    dialogue = Table(Rules(starttls=True)).hello().dialogue
    assert not dialogue.take(parse(b"STARTTLS"))
    assert dialogue.expects is Expect.REPLY
    assert dialogue.spoke_early() is Answer.UNSYNCHRONISED


def test_auth_needs_tls() -> None:
    table = Table(Rules(starttls=True)).hello().client(b"AUTH PLAIN x")
    assert table.to_client[-1] == Answer.AUTH_NEEDS_TLS.render()[:-2]
    assert Table(Rules(), secured=True).hello().client(b"AUTH PLAIN x").to_server[-1] == b"AUTH PLAIN x"


# --- AUTH ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [b"AUTH LOGIN", b"X-EXPS NTLM"])
def test_auth_exchange(verb: bytes) -> None:
    table = Table(Rules(auth_needs_tls=False, exchange=True)).hello().client(verb)
    table.server(b"334 VXNlcm5hbWU6")
    assert table.dialogue.expects is Expect.AUTH_LINE
    assert table.dialogue.auth_line(b"*") == b"*\r\n"
    assert table.dialogue.expects is Expect.REPLY
    table.server(b"334 more")
    table.dialogue.auth_line(b"x" * 12000)
    table.server(b"235 2.7.0 ok")
    assert table.dialogue.authenticated
    assert table.dialogue.expects is Expect.COMMAND
    assert table.dialogue.binding == "authenticated"


def test_auth_fails() -> None:
    table = Table().hello().client(b"AUTH PLAIN x")
    table.server(b"535 5.7.8 no")
    assert not table.dialogue.authenticated
    assert table.dialogue.may_move


def test_anonymous_tls_between_exchange_servers_becomes_a_relay() -> None:
    table = Table(Rules(exchange=True)).hello().client(b"X-ANONYMOUSTLS")
    table.server(b"220 2.0.0 ready")
    assert table.dialogue.expects is Expect.RELAY
    assert not table.dialogue.may_move


# --- BDAT ------------------------------------------------------------------------------------------------------------


def test_chunks_with_pipelining() -> None:
    table = Table().hello().client(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"BDAT 10")
    assert table.dialogue.expects is Expect.CHUNK
    table.dialogue.chunk_ended()
    table.client(b"BDAT 0 LAST")
    assert table.dialogue.expects is Expect.COMMAND
    assert table.dialogue.chunk_bytes == 10
    table.server(b"250 ok", b"250 ok", b"250 10 octets")
    assert table.dialogue.messages == 0
    assert table.server(b"250 queued").ends_message
    assert table.dialogue.messages == 1
    assert not table.dialogue.in_transaction


def test_no_250_for_half_a_chunk() -> None:
    table = Table().hello().client(b"MAIL FROM:<a@b>")
    table.server(b"250 ok")
    table.client(b"BDAT 10 LAST")
    with pytest.raises(OutOfStep):
        table.server(b"250 queued")


def test_a_chunk_refused_early_is_still_read() -> None:
    table = Table().hello().client(b"BDAT 10 LAST")
    table.server(b"503 5.5.1 no")
    assert table.dialogue.expects is Expect.CHUNK
    table.dialogue.chunk_ended()
    assert table.dialogue.expects is Expect.COMMAND


# --- the end, and moving ---------------------------------------------------------------------------------------------


def test_quit() -> None:
    table = Table().hello().client(b"QUIT")
    assert table.dialogue.expects is Expect.END
    assert table.dialogue.server_lost() is Answer.GOODBYE
    assert Table().hello().client(b"QUIT").server(b"221 bye").closes


def test_421_ends_it() -> None:
    table = Table().hello().client(b"MAIL FROM:<a@b>")
    assert table.server(b"421 4.3.2 inactive").closes
    assert table.dialogue.expects is Expect.END


@pytest.mark.parametrize(
    ("exchanges", "binding"),
    [
        ([], ""),
        ([(b"NOOP", b"250 ok"), (b"HELP", b"214 x"), (b"RSET", b"250 ok")], ""),
        ([(b"MAIL FROM:<a@b>", b"250 ok")], "transaction"),
        ([(b"MAIL FROM:<a@b>", b"550 no")], ""),
        ([(b"MAIL FROM:<a@b>", b"250 ok"), (b"RSET", b"250 ok")], ""),
        ([(b"MAIL FROM:<a@b>", b"250 ok"), (b"EHLO x", b"250 ok")], ""),
        ([(b"XSTUFF", b"250 ok")], "extension"),
        ([(b"XSTUFF", b"500 no")], ""),
        ([(b"MAIL FROM:<a@b>", b"250 ok"), (b"DATA", b"354 go")], "message"),
    ],
)
def test_what_binds(exchanges: list[tuple[bytes, bytes]], binding: str) -> None:
    table = Table().hello()
    for command, said in exchanges:
        table.client(command).server(said)
    assert table.dialogue.binding == binding
    assert table.dialogue.may_move == (not binding)


def test_after_a_message_it_may_move() -> None:
    table = Table().hello().message()
    table.dialogue.data_ended()
    assert table.dialogue.binding == "replies outstanding"
    table.server(b"250 queued")
    assert table.dialogue.may_move
    assert table.dialogue.idle
    assert table.dialogue.helo == parse(b"EHLO c.example")


@pytest.mark.parametrize(
    "commands",
    [
        [b"EHLO c.example"],
        [b"MAIL FROM:<a@b>"],
        [b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA"],
        [b"RSET", b"QUIT"],
        [],
    ],
)
def test_replay_elsewhere(commands: list[bytes]) -> None:
    table = Table().hello().client(*commands)
    assert table.dialogue.replay() == tuple(map(parse, commands))


def test_no_replay_once_a_server_has_taken_something() -> None:
    table = Table().hello().client(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>")
    table.server(b"250 ok")
    assert table.dialogue.replay() is None, "the sender is known to be accepted"
    table = Table().hello().message()
    assert table.dialogue.replay() is None
    table.dialogue.data_ended()
    assert table.dialogue.replay() is None, "never a message twice"
    assert Table().hello().client(b"BDAT 0 LAST").dialogue.replay() is None
    assert Table().hello().client(b"AUTH PLAIN x").dialogue.replay() is None


def test_commands_without_mail_are_counted() -> None:
    table = Table().hello()
    for _ in range(5):
        table.client(b"NOOP").server(b"250 ok")
        table.client(b"XCLIENT x")
    assert table.dialogue.fruitless == 11
    table.message().dialogue.data_ended()
    table.server(b"250 queued")
    assert table.dialogue.fruitless == 0


CLIENT_LINES = [
    *(b"EHLO x", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", b"DATA", b"BDAT 5", b"BDAT 5 LAST", b"BDAT 0 LAST", b"RSET"),
    *(b"NOOP", b"AUTH PLAIN", b"STARTTLS", b"XCLIENT x", b"XSTUFF", b"QUIT", b"BDAT x"),
]
SERVER_LINES = [
    b"250 ok",
    b"354 go",
    b"334 x",
    b"235 in",
    b"221 bye",
    b"450 later",
    b"550 no",
    b"421 4.3.2 gone",
    b"220 mx",
]
BODY_ENDED = b""


@given(st.lists(st.sampled_from([*CLIENT_LINES, *SERVER_LINES, BODY_ENDED]), max_size=40))
def test_no_message_is_accepted_that_the_server_has_not_got(steps: list[bytes]) -> None:
    table = Table(Rules(starttls=True, auth_needs_tls=False)).hello()
    dialogue, complete = table.dialogue, 0
    for step in steps:
        assert dialogue.messages <= complete
        if step in SERVER_LINES and not table.closed:
            try:
                relay = table.server(step)
            except OutOfStep:
                return
            assert not (relay.ends_message and relay.reply.positive) or dialogue.messages <= complete
        elif step in CLIENT_LINES and dialogue.expects is Expect.COMMAND:
            table.client(step)
            complete += step == b"BDAT 0 LAST" and table.to_server[-1] == step
        elif step == BODY_ENDED and dialogue.expects is Expect.DATA:
            dialogue.data_ended()
            complete += 1
        elif step == BODY_ENDED and dialogue.expects is Expect.CHUNK:
            dialogue.chunk_ended()
            complete += table.to_server[-1] == b"BDAT 5 LAST"
        elif dialogue.expects is Expect.TLS:
            dialogue.tls_established()
            assert dialogue.helo is None
            assert not dialogue.in_transaction
