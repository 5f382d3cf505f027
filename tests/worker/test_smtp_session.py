"""Mode `smtp` through a real worker: judged by what the servers behind received, and by what the client was told."""

from __future__ import annotations

import hashlib
import ipaddress
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.ipc.board import Availability, Count
from mailbalancer.ipc.messages import Remark
from mailbalancer.model import Mail, MailPolicy, Mode, ProxyProtocol, Schedule, Service, Smtp
from mailbalancer.worker.stream import RECORD_BYTES
from tests.support.lone_worker import Door, LoneWorker, member, reset, service
from tests.support.mail_servers import CLOSE, RESET, SmtpServer
from tests.support.servers import Recorder
from tests.support.smtp_client import MESSAGE, Talk
from tests.support.waiting import eventually

HOST = "lb.example.test"


def smtp(
    *servers: Any, mail: dict[str, Any] | None = None, smtp: dict[str, Any] | None = None, **options: Any
) -> Service:
    """An `smtp` service named mx."""
    own = Mail(HOST, smtp=Smtp(**(smtp or {})), **(mail or {}))
    return service("mx", *servers, mode=Mode.SMTP, mail=own, **options)


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


def talk(worker: LoneWorker) -> Talk:
    return Talk(worker.connect("mx"))


def test_a_message_goes_through_and_is_accepted_by_the_server_itself(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        assert client.reply() == b"220 lb.example.test ESMTP\r\n"
        assert client.say(b"EHLO client.test").startswith(b"250-lb.example.test\r\n")
        assert client.send() == b"250 2.0.0 mx1 has it\r\n"
        assert client.say(b"QUIT").startswith(b"221")
        assert client.end() == b""
        assert [m.data for m in mx1.messages] == [MESSAGE]
        lines = eventually(lambda: [line for line in worker.log_lines() if line["message"] == "message"])
        assert (lines[0]["server"], lines[0]["size"], lines[0]["recipients"]) == ("mx1", len(MESSAGE), 1)
        assert worker.session_lines()[0]["end"] == "client_quit"


# ---------------------------------------------------------------- server first, and the next server

FIRST = {"schedule": Schedule.PRIORITY}


def two(mx1: SmtpServer, mx2: SmtpServer, **options: Any) -> Service:
    """mx1 before mx2."""
    return smtp(member(mx1), member(mx2, priority=1), pool=FIRST, **options)


@pytest.mark.parametrize(
    "greeting",
    [b"421 4.3.2 Service not active\r\n", b"554 5.7.1 No\r\n", CLOSE, RESET, b"SSH-2.0-x\r\n", b"220-a\r\n250 b\r\n"],
)
def test_a_server_that_does_not_greet_is_passed_over_unseen(worker: LoneWorker, greeting: bytes) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        mx1.answers["GREETING"] = greeting
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        assert client.send() == b"250 2.0.0 mx2 has it\r\n"
        assert worker.count(Count.SESSIONS, "mx", "mx1") == 0
        assert worker.count(Count.CONNECT_OK, "mx", "mx1") == 0
        assert worker.count(Count.RETRIED, "mx", "mx1") == 1
        inactive = greeting.startswith(b"421 4.3.2")
        assert worker.count(Count.CONNECT_FAILED, "mx", "mx1") == (0 if inactive else 1)
        if greeting is RESET:
            return  # it may come before the connection is seen to stand: then it only counts as a connect that failed
        remark = worker.message(Remark)
        assert (remark.real_server, remark.kind) == ("mx1", "maintenance" if inactive else "failure")
        assert remark.reason


def test_a_silent_server_is_passed_over_in_time(worker: LoneWorker) -> None:
    with Recorder("mx1") as silent, SmtpServer("mx2") as mx2:
        worker.configure(two(silent, mx2, mail={"greeting_timeout_s": 0.3}))  # type: ignore[arg-type]
        client = talk(worker)
        assert client.begin()
        client.say(b"QUIT")
        line = worker.session_lines()[0]
        assert (line["server"], line["failure"]) == ("mx2", "mx1: was not ready within 0.3 s")


@pytest.mark.parametrize("verb", ["EHLO", "MAIL"])
@pytest.mark.parametrize("how", [b"421 4.3.2 Service not active\r\n", b"421 4.7.0 Busy\r\n", CLOSE, RESET])
def test_two_of_three_refuse_and_the_client_sees_nothing(worker: LoneWorker, verb: str, how: bytes) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2, SmtpServer("mx3") as mx3:
        for server in (mx1, mx2):
            server.answers[verb] = how
        worker.configure(smtp(mx1, mx2, mx3, pool={"schedule": Schedule.ROUND_ROBIN}))
        for _ in range(6):
            client = talk(worker)
            assert client.begin().startswith(b"250")
            assert client.send() == b"250 2.0.0 mx3 has it\r\n"
            assert client.say(b"QUIT").startswith(b"221")
        assert len(mx3.messages) == 6
        for name in ("mx1", "mx2"):
            remark = worker.message(Remark, lambda m, name=name: m.real_server == name)
            assert remark.kind == ("maintenance" if b"4.3.2" in how else "failure")
            assert worker.count(Count.CONNECT_OK, "mx", name) == 0
            assert (worker.count(Count.CONNECT_FAILED, "mx", name) > 0) == (b"4.3.2" not in how)


def test_pipelined_commands_are_asked_again_in_order(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        mx1.answers["MAIL"] = b"421 4.3.2 No\r\n"
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        client.sock.sendall(b"MAIL FROM:<a@x.test>\r\nXCLIENT ADDR=1.2.3.4\r\nRCPT TO:<b@x.test>\r\nDATA\r\n")
        codes = [client.reply()[:3] for _ in range(4)]
        assert codes == [b"250", b"550", b"250", b"354"]
        client.sock.sendall(MESSAGE + b".\r\n")
        assert client.reply() == b"250 2.0.0 mx2 has it\r\n"
        assert mx2.commands[:2] == [b"EHLO client.test", b"MAIL FROM:<a@x.test>"]


def test_back_pressure_goes_elsewhere_where_somebody_is_ready(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        for server in (mx1, mx2):
            server.answers["MAIL"] = b"452 4.3.1 Insufficient system resources\r\n"
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        # nobody is left: the client is told in the server's own words, and may go on
        assert client.say(b"MAIL FROM:<a@x.test>") == b"452 4.3.1 Insufficient system resources\r\n"
        assert client.say(b"NOOP").startswith(b"250")
        assert {m.kind for m in worker.said(Remark)} == {"back_pressure"}
        assert {m.real_server for m in worker.said(Remark)} == {"mx1", "mx2"}
        del mx2.answers["MAIL"]
        other = talk(worker)
        other.begin()
        assert other.send() == b"250 2.0.0 mx2 has it\r\n"


def test_without_a_server_the_client_is_told(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        mx1.answers["GREETING"] = b"421 4.3.2 No\r\n"
        worker.configure(smtp(mx1))
        client = talk(worker)
        assert client.end().startswith(b"421 4.3.2 ")
        line = worker.session_lines()[0]
        assert (line["end"], line["tried"]) == ("no_server", "mx1")
        worker.eventually_counts(0, Count.SESSIONS, "mx")


def test_a_session_leaves_a_draining_server_between_messages(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        assert client.send().endswith(b"mx1 has it\r\n")
        worker.make_available(worker.slot("mx", "mx1"), Availability.RETURNING)
        assert client.send().endswith(b"mx2 has it\r\n")
        assert mx1.commands[-1] == b"QUIT"
        assert mx2.commands[0] == b"EHLO client.test"
        worker.eventually_counts(0, Count.SESSIONS, "mx", "mx1")
        assert worker.count(Count.SESSIONS, "mx", "mx2") == 1


def test_a_session_that_has_logged_in_stays_where_it_is(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        assert client.say(b"AUTH PLAIN AGEAYg==").startswith(b"235")
        worker.make_available(worker.slot("mx", "mx1"), Availability.RETURNING)
        assert client.send().endswith(b"mx1 has it\r\n")
        assert b"AUTH PLAIN AGEAYg==" in mx1.commands
        assert not mx2.commands


# ---------------------------------------------------------------- servers that die


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("verb", ["RCPT", "DATA", ".", "RSET"])
def test_a_server_that_dies_in_a_transaction_accepts_nothing(worker: LoneWorker, verb: str, how: bytes) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        mx1.answers[verb] = how
        worker.configure(two(mx1, mx2))
        client = talk(worker)
        client.begin()
        commands = [b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"RSET" if verb == "RSET" else b"DATA"]
        replies = []
        for command in commands:
            replies.append(client.say(command))
            if not replies[-1].startswith((b"2", b"3")):
                break
        else:
            if verb == ".":
                client.sock.sendall(MESSAGE + b".\r\n")
                replies.append(client.reply())
        assert replies[-1].startswith(b"421 4.4.2 ")
        assert client.end() == b""
        assert not mx1.messages
        assert not mx2.messages
        assert not [command for command in mx2.commands if command.startswith(b"MAIL")]


def test_a_server_that_dies_in_the_middle_of_a_message(worker: LoneWorker) -> None:
    with Door("mx1") as door, SmtpServer("mx2") as mx2:
        worker.configure(two(door, mx2))  # type: ignore[arg-type]
        client = talk(worker)
        with door.accept() as server:
            server.sendall(b"220 mx1\r\n")
            client.reply()
            for command, reply in ((b"EHLO c", b"250 mx1"), (b"MAIL FROM:<>", b"250 OK"), (b"DATA", b"354 go")):
                client.sock.sendall(command + b"\r\n")
                assert server.recv(100)
                server.sendall(reply + b"\r\n")
                client.reply()
            client.sock.sendall(b"half a mess")
            assert server.recv(100) == b"half a mess"
            reset(server)
        worker.eventually_counts(0, Count.SESSIONS, "mx", "mx1")
        client.sock.sendall(b"age\r\n" * 100_000)
        client.sock.sendall(b".\r\n")
        assert client.reply().startswith(b"421 4.4.2 ")
        assert client.end() == b""
        assert not mx2.messages
        assert worker.count(Count.MESSAGES_REFUSED, "mx", "mx1") == 1


def test_an_answer_before_the_end_of_a_message_is_not_believed(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        mx1.answers["DATA"] = b"354 Go on\r\n250 2.0.0 I have it\r\n"
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        client.say(b"MAIL FROM:<a@x.test>")
        client.say(b"RCPT TO:<b@x.test>")
        client.sock.sendall(b"DATA\r\n")
        told = client.end()
        assert told.startswith(b"354 ")
        assert b"\r\n421 4.3.0" in told
        assert b"\r\n2" not in told


def test_a_client_that_leaves_in_the_middle_of_a_message_sends_nothing(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        client.say(b"MAIL FROM:<a@x.test>")
        client.say(b"RCPT TO:<b@x.test>")
        client.say(b"DATA")
        client.sock.sendall(b"half a message\r\n")
        client.sock.close()
        assert worker.session_lines()[0]["end"] in ("client_closed", "client_reset")
        # an orderly end would do for most servers; a reset is understood by all of them
        assert eventually(lambda: mx1.conversations[0].connection.ended) == "reset"
        assert not mx1.messages


def test_a_client_that_ends_its_half_gets_the_replies_it_waits_for(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        client.say(b"MAIL FROM:<a@x.test>")
        client.say(b"RCPT TO:<b@x.test>")
        client.say(b"DATA")
        client.sock.sendall(MESSAGE + b".\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.end() == b"250 2.0.0 mx1 has it\r\n"


# ---------------------------------------------------------------- what clients say


def test_who_speaks_before_the_greeting_is_cut_off(worker: LoneWorker) -> None:
    with Recorder("mx1") as silent:
        worker.configure(smtp(silent))
        client = talk(worker)
        client.sock.sendall(b"EHLO client.test\r\n")
        assert client.end().startswith(b"521 5.5.1 ")
        spoof = talk(worker)
        spoof.sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\nEHLO client.test\r\n")
        assert spoof.end().startswith(b"521 5.5.1 ")
        assert [line for line in worker.session_lines(2) if "PROXY header" in line.get("failure", "")]
        assert not any(connection.received for connection in silent.connections)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"GET / HTTP/1.1", b"521 5.5.1"),
        (b"XCLIENT ADDR=192.0.2.1", b"550 5.7.0"),
        (b"XFORWARD ADDR=192.0.2.1", b"550 5.7.0"),
        (b"XPROXYFROM SID=1", b"550 5.7.0"),
        (b"MAIL FROM:<a@x.test>", b"503 5.5.1"),
        (b"NOOP \nMAIL", b"500 5.5.2"),
        (b"NOOP \0", b"500 5.5.2"),
        (b"X" * 20_000, b"500 5.5.2"),
        (b"NOOP " + b"X" * 3000, b"500 5.5.2"),
        (b"STARTTLS", b"502 5.5.1"),
        (b"BDAT +5 LAST", b"503 5.5.1"),
    ],
)
def test_what_is_not_passed_on(worker: LoneWorker, line: bytes, code: bytes) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.reply()
        assert client.say(line).startswith(code)
        client.sock.close()
        eventually(lambda: mx1.conversations[0].connection.ended)
        assert not mx1.conversations[0].connection.received


@pytest.mark.parametrize("hello", [b"EHLO", b"HELO"])
@pytest.mark.parametrize("closes", [True, False])
def test_a_script_says_everything_at_once_behind_its_hello(worker: LoneWorker, hello: bytes, closes: bool) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.reply()
        client.sock.sendall(hello + b" me.test\r\nMAIL FROM:<a@x.test>\r\nRSET\r\n" + hello + b" you.test\r\nQUIT\r\n")
        if closes:
            client.sock.shutdown(socket.SHUT_WR)
        assert [client.reply()[:3] for _ in range(5)] == [b"250", b"250", b"250", b"250", b"221"]
        assert client.end() == b""
        said = b"%b me.test,MAIL FROM:<a@x.test>,RSET,%b you.test,QUIT" % (hello, hello)
        assert b",".join(mx1.commands) == said
        assert worker.session_lines()[0]["end"] == "client_quit"


def test_a_hello_that_is_replayed_keeps_what_was_said_behind_it(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        mx1.answers["EHLO"] = b"421 4.3.2 maintenance\r\n"
        worker.configure(smtp(mx1, mx2, pool={"schedule": Schedule.PRIORITY}))
        client = talk(worker)
        client.reply()
        client.sock.sendall(b"EHLO me.test\r\nMAIL FROM:<a@x.test>\r\nQUIT\r\n")
        assert [client.reply()[:3] for _ in range(3)] == [b"250", b"250", b"221"]
        assert mx2.commands[-2:] == [b"MAIL FROM:<a@x.test>", b"QUIT"]


def fill(sock: socket.socket) -> None:
    """Commands, until no more of them fit."""
    for _ in range(2000):
        try:
            sock.send(b"NOOP\r\n" * 10_000)
        except BlockingIOError:
            return
    pytest.fail("100 MB were taken")


def test_a_flood_behind_a_hello_stays_in_the_kernel(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        held = threading.Event()
        mx1.answers["EHLO"] = lambda _: b"" if held.wait(20) else RESET
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.reply()
        try:
            client.sock.setblocking(False)
            client.sock.send(b"EHLO me.test\r\n")
            fill(client.sock)
            assert worker.list_sessions().sessions[0]["bytes_in"] < 1_000_000
        finally:
            held.set()
        client.sock.settimeout(20)
        assert client.reply().startswith(b"250")
        client.sock.close()


def test_nothing_may_follow_data_before_354(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        client.sock.sendall(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nDATA\r\n" + MESSAGE + b".\r\n")
        told = client.end()
        assert b"554 5.5.0 " in told
        assert b"354" not in told
        assert not mx1.messages


def test_one_list_of_capabilities_for_the_service(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2:
        mx1.capabilities = ("SIZE 1000", "CHUNKING", "BINARYMIME", "X-EXPS GSSAPI", "AUTH PLAIN LOGIN", "XCLIENT ADDR")
        mx2.capabilities = ("SIZE 500", "AUTH PLAIN", "8BITMIME", "X-EXPS GSSAPI")
        worker.configure(smtp(mx1, mx2, pool={"schedule": Schedule.ROUND_ROBIN}))
        for _ in range(2):
            client = talk(worker)
            client.begin()
            client.say(b"QUIT")
        for _ in range(2):
            client = talk(worker)
            assert client.begin() == b"250-lb.example.test\r\n250-SIZE 500\r\n250 AUTH PLAIN\r\n"
            client.say(b"QUIT")


def test_stated_capabilities_are_shown_as_they_are(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, smtp={"capabilities": ("PIPELINING", "SIZE 42")}, mail={"hide": ("pipelining",)}))
        assert talk(worker).begin() == b"250-lb.example.test\r\n250 SIZE 42\r\n"


# ---------------------------------------------------------------- messages of every size and kind


def test_fifty_megabytes_arrive_as_they_were_sent(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        rng = random.Random(4)
        line = [rng.randbytes(57).hex().encode() + b"\r\n" for _ in range(997)]
        message = b"".join(rng.choice(line) for _ in range(50 * 1024 * 1024 // len(line[0])))
        assert client.send(message).startswith(b"250")
        assert hashlib.sha256(mx1.messages[0].data).digest() == hashlib.sha256(message).digest()


def test_chunks_are_counted_and_not_looked_at(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        binary = bytes(range(256)) * 40 + b"\r\n.\r\nMAIL FROM:<evil@x.test>\r\n\n.\n"
        client.sock.sendall(
            b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\nBDAT %d\r\n%bBDAT 0 LAST\r\nNOOP\r\n"
            % (len(binary), binary)
        )
        assert [client.reply()[:3] for _ in range(5)] == [b"250"] * 5
        assert [m.data for m in mx1.messages] == [binary]
        assert [c.split()[0] for c in mx1.commands] == [b"EHLO", b"MAIL", b"RCPT", b"BDAT", b"BDAT", b"NOOP"]


STRAYS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n",
    b"\r\n.\0\r\n", b"\r\n.\r\r\n", b"\n\r\n.\n\r\n",
]  # fmt: skip
EVIL = b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<evil@x.test>\r\nDATA\r\nevil\r\n.\r\n"


@pytest.mark.parametrize("policy", ["reject", "normalise"])
@pytest.mark.parametrize("stray", STRAYS)
def test_no_end_of_data_but_one_at_every_cut(worker: LoneWorker, stray: bytes, policy: str) -> None:
    """Every family, cut at every byte in the neighbourhood into two segments, through the real worker."""
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, smtp={"bare_newlines": policy}))
        text = b"first" + stray + EVIL[:-3]
        for cut in range(4, 5 + len(stray) + 3):
            client = talk(worker)
            client.begin()
            client.say(b"MAIL FROM:<a@x.test>")
            client.say(b"RCPT TO:<b@x.test>")
            client.say(b"DATA")
            client.sock.sendall(text[:cut])
            worker.after_beats(1)
            client.sock.sendall(text[cut:] + b"\r\n.\r\n")
            verdict = client.reply()
            if policy == "reject":
                assert verdict.startswith(b"550 5.5.2 ")
            else:
                assert verdict.startswith(b"250 ")
                client.say(b"QUIT")
            assert client.end() == b""
        eventually(lambda: all(c.connection.ended for c in mx1.conversations))
        assert {c.connection.ended for c in mx1.conversations} == {"reset" if policy == "reject" else "closed"}
        assert [c for c in mx1.commands if b"evil" in c.lower()] == []
        for message in mx1.messages:
            assert policy == "normalise"
            assert b"evil" in message.data
            bare = message.data.replace(b"\r\n", b"")
            assert not set(bare) & set(b"\r\n\0")


def test_no_end_of_data_but_one_at_the_edge_of_our_buffer(worker: LoneWorker) -> None:
    """The same families where one read of the worker ends and the next begins, at every byte of them."""
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, buffer_bytes=RECORD_BYTES, smtp={"bare_newlines": "normalise"}))
        for stray in STRAYS:
            for before in range(len(stray) + 1):
                client = talk(worker)
                client.begin()
                client.say(b"MAIL FROM:<a@x.test>")
                client.say(b"RCPT TO:<b@x.test>")
                client.say(b"DATA")
                padding = (b"x" * 998 + b"\r\n") * (RECORD_BYTES // 1000) + b"y" * (RECORD_BYTES % 1000 - before)
                client.sock.sendall(padding + stray + EVIL[:-3] + b"\r\n.\r\n")
                assert client.reply().startswith(b"250 ")
                client.sock.close()
        assert [c for c in mx1.commands if b"evil" in c.lower()] == []
        assert len(mx1.messages) == sum(len(stray) + 1 for stray in STRAYS)
        assert all(b"evil" in message.data for message in mx1.messages)


# ---------------------------------------------------------------- policy


def policy(worker: LoneWorker, server: SmtpServer, **settings: Any) -> None:
    worker.configure(smtp(server, smtp={"policy": MailPolicy(**settings)}))


def test_only_permitted_domains(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        policy(worker, mx1, recipient_domains=frozenset({"example.test", "*.sub.test"}))
        client = talk(worker)
        client.begin()
        client.say(b"MAIL FROM:<a@x.test>")
        for good in (b"b@EXAMPLE.test", b"b@a.sub.test", b"postmaster"):
            assert client.say(b"RCPT TO:<%b>" % good).startswith(b"250")
        for bad in (b"b@other.test", b"b@sub.test", b"b@x.a.sub.test", b"b%other.test@example.test", b"b@[192.0.2.1]"):
            assert client.say(b"RCPT TO:<%b>" % bad).startswith(b"550 5.7.1 ")
        assert len([c for c in mx1.commands if c.startswith(b"RCPT")]) == 3
        refused = [line for line in worker.log_lines() if line["message"] == "refused"]
        assert {line["reason"] for line in refused} == {"recipient_denied"}
        assert {line["reply"] for line in refused} == {"550 5.7.1 Relay access denied"}
        assert "other.test" not in worker.raw_log()


def test_senders_and_sizes(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        policy(worker, mx1, senders_deny=frozenset({"bad@x.test", "*.spam.test"}), max_message_bytes=1000)
        client = talk(worker)
        assert b"SIZE 1000\r\n" in client.begin()
        assert client.say(b"MAIL FROM:<bad@x.test>").startswith(b"550 5.7.1 ")
        assert client.say(b"MAIL FROM:<a@a.spam.test>").startswith(b"550 5.7.1 ")
        assert client.say(b"MAIL FROM:<a@x.test> SIZE=1001").startswith(b"552 5.3.4 ")
        assert client.send(b"x" * 998 + b"\r\n").startswith(b"250")
        assert client.send(b"x" * 1000 + b"\r\n").startswith(b"552 5.3.4 ")
        assert client.end() == b""
        assert len(mx1.messages) == 1


def test_rates_of_one_source(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        policy(worker, mx1, messages_per_source_minute=2, recipients_per_source_minute=3, connections_per_source=2)
        client, second = talk(worker), talk(worker)
        client.begin()
        second.begin()
        third = talk(worker)
        assert third.end().startswith(b"421 4.7.0 ")
        assert client.send().startswith(b"250")
        assert client.send().startswith(b"250")
        assert client.say(b"MAIL FROM:<a@x.test>").startswith(b"450 4.7.1 ")
        second.sock.close()
        worker.session_lines(2)
        fourth = talk(worker)
        fourth.begin()


def test_who_does_not_wait_for_a_delayed_greeting_never_reaches_a_server(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        policy(worker, mx1, greeting_delay_s=0.3, tarpit_s=0.1, senders_deny=frozenset({"x.test"}))
        hasty = talk(worker)
        hasty.sock.sendall(b"HELO hasty\r\n")
        assert hasty.end().startswith(b"521 5.5.1 ")
        assert not mx1.connections
        patient = talk(worker)
        patient.begin()
        assert patient.say(b"MAIL FROM:<a@x.test>").startswith(b"550 5.7.1 ")
        assert patient.say(b"NOOP").startswith(b"250")


def test_lists_of_clients(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, deny=(ipaddress.ip_network("127.0.0.1"),)))
        assert talk(worker).end().startswith(b"554 5.7.1 ")
        assert not mx1.connections


# ---------------------------------------------------------------- who the client is


def test_servers_are_told_who_the_client_is(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        mx1.capabilities = (*mx1.capabilities, "XCLIENT NAME ADDR PORT DESTADDR DESTPORT")
        mx1.proxied = True
        worker.configure(smtp(mx1, mail={"client_address": "xclient"}, proxy_protocol=ProxyProtocol(send="v1")))
        client = talk(worker)
        assert b"XCLIENT" not in client.begin()
        port = client.sock.getsockname()[1]
        assert mx1.proxy_headers[0].startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 %d " % port)
        assert b"PORT=%d " % port in mx1.conversations[0].xclient
        assert mx1.conversations[0].xclient.endswith(b"ADDR=127.0.0.1")
        assert mx1.commands[-1] == b"EHLO client.test"


def test_a_server_that_would_take_us_for_the_client_is_not_used(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, mail={"client_address": "xclient"}))
        assert talk(worker).end().startswith(b"421 4.3.2 ")
        assert "XCLIENT" in worker.session_lines()[0]["failure"]


def test_a_proxy_names_the_client(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, proxy_protocol=ProxyProtocol(accept_from=(ipaddress.ip_network("127.0.0.0/8"),))))
        client = talk(worker)
        client.sock.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n")
        client.begin()
        assert worker.list_sessions().sessions[0]["client"] == "192.0.2.7:4711"
        client.say(b"QUIT")


# ---------------------------------------------------------------- time and memory


def test_a_silent_client_is_told_and_closed(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1, idle_timeout_s=0.5))
        client = talk(worker)
        client.begin()
        assert client.end().startswith(b"421 4.4.2 ")
        assert worker.session_lines()[0]["end"] == "idle_timeout"


def test_a_slow_server_stops_the_client_and_memory_stays_flat(worker: LoneWorker) -> None:
    with Door("mx1") as door:
        worker.configure(smtp(door))
        client = talk(worker)
        with door.accept() as server:
            server.sendall(b"220 mx1\r\n")
            client.reply()
            for command, reply in ((b"EHLO c", b"250 mx1"), (b"MAIL FROM:<>", b"250 OK"), (b"DATA", b"354 go")):
                client.sock.sendall(command + b"\r\n")
                assert server.recv(100)
                server.sendall(reply + b"\r\n")
                client.reply()
            before = memory_kb(worker.pid)
            client.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.sock.sendall((b"x" * 998 + b"\r\n") * 100_000)
            assert memory_kb(worker.pid) - before < 2048


def memory_kb(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()
    return int(fields[0])


def test_a_stopping_worker_takes_no_further_message(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client, idle = talk(worker), talk(worker)
        client.begin()
        idle.begin()
        assert client.send().startswith(b"250")
        worker.stop(1.0)
        worker.after_beats(2)
        assert client.say(b"MAIL FROM:<a@x.test>").startswith(b"421 4.3.2 ")
        assert client.end() == b""
        assert idle.end().startswith(b"421 4.3.2 ")
        eventually(worker.ended)


# ---------------------------------------------------------------- Exchange servers among themselves


def test_what_follows_x_anonymoustls_is_relayed_unseen(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        mx1.capabilities = ("X-ANONYMOUSTLS", "X-EXPS GSSAPI NTLM")
        mx1.answers["X-ANONYMOUSTLS"] = b"220 2.0.0 Go on\r\n"
        mx1.answers["\x16\x03\x01"] = b"\x16\x03\x03 hello\r\n"
        worker.configure(smtp(mx1, smtp={"exchange": True}))
        client = talk(worker)
        assert b"X-ANONYMOUSTLS" in client.begin()
        assert client.say(b"X-ANONYMOUSTLS").startswith(b"220")
        client.sock.sendall(b"\x16\x03\x01 \0\n\r\n")
        assert client.sock.recv(100) == b"\x16\x03\x03 hello\r\n"
        assert worker.list_sessions().sessions[0]["state"] == "relaying"


def test_towards_the_internet_there_is_no_x_anonymoustls(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        mx1.capabilities = ("X-ANONYMOUSTLS", "X-EXPS GSSAPI NTLM", "XRDST")
        worker.configure(smtp(mx1))
        client = talk(worker)
        assert client.begin() == b"250 lb.example.test\r\n"
        assert client.say(b"X-ANONYMOUSTLS").startswith(b"500 5.5.1 ")
        assert client.say(b"X-EXPS GSSAPI").startswith(b"500 5.5.1 ")


def test_the_next_message_may_begin_before_the_verdict(worker: LoneWorker) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        envelope = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@x.test>\r\n"
        client.sock.sendall(b"".join(envelope + b"BDAT %d LAST\r\n" % size + b"x" * size for size in (10, 20, 30)))
        assert [client.reply()[:3] for _ in range(9)] == [b"250"] * 9
        client.say(b"MAIL FROM:<a@x.test>")
        client.say(b"RCPT TO:<b@x.test>")
        client.say(b"DATA")
        client.sock.sendall(b"y" * 40 + b"\r\n.\r\nMAIL FROM:<c@x.test>\r\nRCPT TO:<d@x.test>\r\n")
        assert [client.reply()[:3] for _ in range(3)] == [b"250"] * 3
        assert client.say(b"QUIT").startswith(b"221")
        worker.session_lines()
        lines = [line for line in worker.log_lines() if line["message"] == "message"]
        assert [(line["size"], line["recipients"], line["accepted"]) for line in lines] == [
            (10, 1, 1),
            (20, 1, 1),
            (30, 1, 1),
            (42, 1, 1),
        ]
        assert len(mx1.messages) == worker.count(Count.MESSAGES, "mx", "mx1") == 4


@pytest.mark.parametrize("line", [b"NOOP", b"\x80", b"XYZZY"])
def test_commands_without_end_and_without_mail(worker: LoneWorker, line: bytes) -> None:
    with SmtpServer("mx1") as mx1:
        worker.configure(smtp(mx1))
        client = talk(worker)
        client.begin()
        client.sock.sendall((line + b"\r\n") * 1000)
        assert b"\r\n421 4.7.0 Too many commands" in client.end()
        assert worker.session_lines()[0]["end"] == "too_many_commands"
