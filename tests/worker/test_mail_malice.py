"""Mail services between people who mean harm: servers that say anything, clients that send anything.

What holds whatever they do: every client is answered or closed, nobody is told that a message was taken which was not,
memory stays bounded, no counter is left behind, and no fault of ours is in the log.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mailbalancer.ipc.board import Count
from mailbalancer.model import ClientTls, Mail, Mode, Schedule, ServerTls, Service, Verify
from tests.support.certs import Authority, Issued
from tests.support.lone_worker import LoneWorker, front, receive_all, service
from tests.support.mail_servers import ImapServer, LineServer, Pop3Server, SmtpServer
from tests.support.servers import Connection, Server
from tests.support.smtp_client import MESSAGE
from tests.support.waiting import eventually

#: Sessions of the random client; an environment variable makes it an hour.
ROUNDS = int(os.environ.get("MAILBALANCER_MALICE_ROUNDS", "150"))
MEGABYTE = 1 << 20
WELL = {Mode.SMTP: b"220 ", Mode.IMAP: b"* OK ", Mode.POP3: b"+OK "}
KINDS: dict[Mode, type[SmtpServer] | type[LineServer]] = {
    Mode.SMTP: SmtpServer,
    Mode.IMAP: ImapServer,
    Mode.POP3: Pop3Server,
}


@pytest.fixture
def worker() -> Iterator[LoneWorker]:
    with LoneWorker() as worker:
        yield worker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue("lb.test", "127.0.0.1")


class Villain(Server):
    """Sends what it is given, again and again if it is told to, and otherwise only reads.

    Args:
        first: sent at once.
        then: sent after the first words that it hears.
        endless: what is sent last is sent for as long as anybody reads it, at most 64 MiB.
    """

    def __init__(self, first: bytes, then: bytes = b"", *, endless: bool = False) -> None:
        super().__init__("villain")
        self.first, self.then, self.endless = first, then, endless

    def serve(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            connection.socket.sendall(self.first)
            if self.then:
                connection.read()
                connection.socket.sendall(self.then)
            last = self.then or self.first
            while self.endless and len(last) < 64 * MEGABYTE:
                connection.socket.sendall(last)
        while connection.read(keep=False):
            pass


def mail(mode: Mode, *servers: Server, tls: ServerTls | None = None, **options: object) -> Service:
    return service(
        "mx",
        *servers,
        mode=mode,
        mail=Mail("lb.test", greeting_timeout_s=1.0, login_timeout_s=5.0),
        pool={"schedule": Schedule.PRIORITY},
        server_tls=tls,
        idle_timeout_s=5.0,
        **options,  # type: ignore[arg-type]
    )


def resident(worker: LoneWorker) -> int:
    return int(Path(f"/proc/{worker.pid}/statm").read_text().split()[1]) * 4096


LINE = b"x" * 1022 + b"\r\n"
GREETINGS: dict[Mode, dict[str, bytes]] = {
    Mode.SMTP: {
        "ten megabytes in one line": b"220 " + b"x" * (10 * MEGABYTE),
        "a reply without end": b"220-hello\r\n" * 1000,
        "lines as long as they may be": b"220-" + b"x" * 990 + b"\r\n",
        "another code in the middle": b"220-one\r\n250 two\r\n",
        "NUL": b"220 mx\0.test\r\n",
        "a bare CR": b"220 mx\r250 OK\r\n",
        "a bare LF": b"220 mx\n",
        "no code": b"hello\r\n",
        "a code that is none": b"199 mx\r\n",
        "digits of another script": "٢٢٠ mx\r\n".encode(),
        "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
        "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
        "silence": b"",
        "354": b"354 go on\r\n",
    },
    Mode.IMAP: {
        "ten megabytes in one line": b"* OK " + b"x" * (10 * MEGABYTE),
        "a literal": b"* OK {100000000}\r\n",
        "a tag": b"a OK hello\r\n",
        "NUL": b"* OK he\0llo\r\n",
        "a bare CR": b"* OK he\rllo\r\n",
        "preauthenticated": b"* PREAUTH hello\r\n",
        "BYE": b"* BYE no\r\n",
        "a continuation": b"+ go on\r\n",
        "POP3": b"+OK hello\r\n",
    },
    Mode.POP3: {
        "ten megabytes in one line": b"+OK " + b"x" * (10 * MEGABYTE),
        "NUL": b"+OK he\0llo\r\n",
        "a bare CR": b"+OK he\rllo\r\n",
        "IMAP": b"* OK hello\r\n",
        "an error": b"-ERR no\r\n",
        "a dot": b".\r\n",
    },
}


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode, names in GREETINGS.items() for name in names], ids=str
)
def test_a_greeting_that_is_none_is_passed_over(worker: LoneWorker, mode: Mode, name: str) -> None:
    greeting = GREETINGS[mode][name]
    with Villain(greeting, endless=len(greeting) > 100) as villain, KINDS[mode]("good") as good:
        worker.configure(mail(mode, villain, good))
        before = resident(worker)
        for _ in range(3):
            client = worker.connect("mx")
            assert client.recv(4, socket.MSG_WAITALL).startswith(WELL[mode][:4])
            client.close()
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        worker.eventually_counts(0, Count.SESSIONS, "mx", "villain")
        assert resident(worker) - before < 8 * MEGABYTE


#: By mode: what the villain says at first, what the client says to it, and what the villain says then.
ANSWERS: dict[Mode, tuple[bytes, bytes, dict[str, bytes]]] = {
    Mode.SMTP: (
        b"220 v ESMTP\r\n",
        b"EHLO me.test\r\n",
        {
            "a list without end": b"250-SIZE 1\r\n" * 1000,
            "ten megabytes in one line": b"250 " + b"x" * (10 * MEGABYTE),
            "replies to nothing": b"250 one\r\n" * 1000,
            "a size of a thousand digits": b"250-v\r\n250 SIZE " + b"9" * 900 + b"\r\n250 surplus\r\n",
            "capabilities of bytes": b"250-v\r\n250 \x80\xff\x1b[2J\r\n",
            "354": b"354 go on\r\n",
            "334": b"334 go on\r\n",
            "a bare CR": b"250 v\r250 SIZE 1\r\n",
        },
    ),
    Mode.IMAP: (
        b"* OK hello\r\n",
        b"a LOGIN joe secret\r\n",
        {
            "lines without end": b"* OK still here\r\n" * 1000,
            "a literal": b"* LIST {1000000000}\r\n",
            "an answer to another": b"b OK done\r\n",
            "continuations": b"+ \r\n+ \r\n",
            "ten megabytes in one line": b"* " + b"x" * (10 * MEGABYTE),
            "BYE": b"* BYE now\r\n",
        },
    ),
    Mode.POP3: (
        b"+OK hello\r\n",
        b"CAPA\r\n",
        {
            "a list without end": b"+OK\r\n" + b"X\r\n" * 1000,
            "ten megabytes in one line": b"+OK\r\n" + b"X" * (10 * MEGABYTE),
            "answers to nothing": b"+OK\r\n.\r\n" + b"+OK\r\n" * 1000,
            "a continuation": b"+ go on\r\n",
        },
    ),
}


@pytest.mark.parametrize(
    ("mode", "name"), [(mode, name) for mode, (_, _, names) in ANSWERS.items() for name in names], ids=str
)
def test_a_client_is_answered_or_closed_whatever_its_server_says(worker: LoneWorker, mode: Mode, name: str) -> None:
    first, said, answers = ANSWERS[mode]
    with Villain(first, answers[name], endless=len(answers[name]) > 5000) as villain:
        worker.configure(mail(mode, villain))
        before = resident(worker)
        client = worker.connect("mx")
        client.recv(4)
        client.sendall(said)
        eventually(lambda: gone_or_answered(client), 15.0, "an answer or the end")
        assert resident(worker) - before < 8 * MEGABYTE
        client.close()
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        assert worker.count(Count.MESSAGES, "mx", "villain") == 0


def gone_or_answered(client: socket.socket) -> bool:
    client.settimeout(0.2)
    with contextlib.suppress(TimeoutError, ConnectionError):
        client.recv(65536)
        return True
    return False


@pytest.mark.parametrize(
    "answer", [b"250 taken\r\n", b"354 go\r\n250 taken\r\n", b"250-a\r\n250 taken\r\n", b"199 x\r\n"]
)
@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA"])
def test_an_eager_server_is_never_believed(worker: LoneWorker, answer: bytes, at: str) -> None:
    """Positive replies of every kind, before the message has ended."""
    with SmtpServer("eager") as eager:
        eager.answers[at] = answer
        worker.configure(mail(Mode.SMTP, eager))
        client = worker.connect("mx")
        client.settimeout(20)
        client.recv(100)
        for command in (b"EHLO me.test", b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"DATA"):
            with contextlib.suppress(OSError):
                client.sendall(command + b"\r\n")
                client.recv(4096)
        with contextlib.suppress(OSError):
            client.sendall(b"Subject: half a message\r\n")
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        assert worker.count(Count.MESSAGES, "mx", "eager") == 0
        assert not eager.messages


@pytest.mark.parametrize("mode", WELL)
@pytest.mark.parametrize("what", ["clear text", "nothing", "half a hello", "an alert", "a hello and clear text"])
def test_a_handshake_that_is_none(worker: LoneWorker, authority: Authority, mode: Mode, what: str) -> None:
    """Behind its consent to STARTTLS a server says anything but TLS: the next one is asked, in time."""
    bytes_of = {
        "clear text": b"220 hello again\r\n",
        "nothing": b"",
        "half a hello": b"\x16\x03\x03\x00\x7a\x02\x00",
        "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
        "a hello and clear text": b"\x16\x03\x03\x00\x04\x02\x00\x00\x00220 hello\r\n",
    }
    consent = {
        Mode.SMTP: (b"220 v\r\n", b"250-v\r\n250 STARTTLS\r\n", b"220 go\r\n"),
        Mode.IMAP: (b"* OK [CAPABILITY STARTTLS] v\r\n", b"", b""),
        Mode.POP3: (b"+OK v\r\n", b"+OK\r\n", b""),
    }[mode]
    with HalfSecret(mode, consent, bytes_of[what]) as villain:
        verify = Verify("ca", str(authority.file))
        worker.configure(mail(mode, villain, tls=ServerTls(verify, "require")))
        client = worker.connect("mx")
        client.settimeout(20)
        refusal = {Mode.SMTP: b"4", Mode.IMAP: b"* BYE ", Mode.POP3: b"-ERR "}[mode]
        assert receive_all(client).startswith(refusal)
        worker.eventually_counts(0, Count.SESSIONS, "mx")


class HalfSecret(Server):
    """Agrees to STARTTLS, in whatever way the protocol has, and then says something of its own."""

    def __init__(self, mode: Mode, says: tuple[bytes, ...], instead: bytes) -> None:
        super().__init__("villain")
        self.mode, self.says, self.instead = mode, says, instead

    def serve(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            connection.socket.sendall(self.says[0])
            while data := connection.read():
                if self.mode is Mode.IMAP and b"STARTTLS" in data:
                    connection.socket.sendall(data.split(b" ", 1)[0] + b" OK go\r\n")
                elif b"EHLO" in data or b"STLS" in data:
                    connection.socket.sendall(self.says[1])
                elif b"STARTTLS" in data:
                    connection.socket.sendall(self.says[2])
                else:
                    connection.socket.sendall(self.instead)


# ---------------------------------------------------------------- clients

WORDS: dict[Mode, list[bytes]] = {
    Mode.SMTP: [
        *(b"EHLO me.test", b"HELO x", b"MAIL FROM:<a@x.test>", b"RCPT TO:<b@x.test>", b"DATA", b"RSET", b"NOOP"),
        *(b"QUIT", b"STARTTLS", b"AUTH PLAIN AGEAYg==", b"AUTH LOGIN", b"BDAT 10", b"BDAT 10 LAST", b"BDAT 0 LAST"),
        *(b"BDAT 99999999999999999999", b"BDAT -1 LAST", b"XCLIENT ADDR=1.2.3.4", b"GET / HTTP/1.1", b"VRFY a"),
        *(b"MAIL FROM:<" + b"a" * 2000 + b">", b".", b"..", b"", b"\x00", b"\xff\xfe", b"X-EXPS GSSAPI", b"EXPN x"),
        *(b"X-ANONYMOUSTLS", b"MAIL FROM:<> BODY=BINARYMIME", b"ETRN x", b"TURN", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2"),
    ],
    Mode.IMAP: [
        *(b"a CAPABILITY", b"b LOGIN joe secret", b"c STARTTLS", b"d LOGOUT", b"e NOOP", b"f ID NIL", b"g LOGIN {3}"),
        *(b"joe", b"h LOGIN {3+}", b"i AUTHENTICATE PLAIN", b"AGEAYg==", b"*", b"j ID (x-originating-ip 1.2.3.4)"),
        *(b"k LOGIN {99999999999}", b"l LOGIN {8000}", b"", b"\x00", b"m APPEND INBOX {100000000+}", b"n STARTTLS now"),
        *(b"* OK", b"+ go", b"o SELECT INBOX", b"p IDLE", b"DONE", b"GET / HTTP/1.1", b'q LOGIN "a\\"b" "c'),
    ],
    Mode.POP3: [
        *(b"CAPA", b"USER joe", b"PASS secret", b"STLS", b"QUIT", b"NOOP", b"AUTH PLAIN", b"AGEAYg==", b"APOP joe x"),
        *(b"AUTH", b"XCLIENT ADDR=1.2.3.4", b"RETR 1", b"", b"\x00", b"USER " + b"x" * 5000, b"LANG", b"UTF8", b"+OK"),
        *(b"GET / HTTP/1.1", b"*", b"STLS now"),
    ],
}
ENDS = [b"\r\n"] * 12 + [b"\n", b"\r", b"", b"\r\n\r\n", b"\0\r\n"]
BODIES = [
    MESSAGE + b".\r\n",
    b"x\r\n.\r\n",
    b"x\n.\n",
    b"x\r.\r",
    b"0123456789",
    os.urandom(200),
    b"x" * 5000,
    b".\r\n",
]


def random_client(worker: LoneWorker, mode: Mode, dice: random.Random, context: ssl.SSLContext | None) -> None:
    """One client that says anything in any pieces, at times inside TLS, and leaves in one of several ways."""
    sock = worker.connect("mx")
    sock.settimeout(0.02)
    said = b"".join(
        dice.choice(WORDS[mode]) + dice.choice(ENDS) if dice.random() < 0.85 else dice.choice(BODIES)
        for _ in range(dice.randint(1, 14))
    )
    with contextlib.suppress(OSError):
        if dice.random() < 0.8:
            sock.settimeout(5)
            sock.recv(1000)
        if context is not None and dice.random() < 0.3:
            sock.sendall({Mode.SMTP: b"STARTTLS\r\n", Mode.IMAP: b"s STARTTLS\r\n", Mode.POP3: b"STLS\r\n"}[mode])
            sock.recv(1000)
            sock = context.wrap_socket(sock, server_hostname="lb.test")
        sock.settimeout(0.02)
        while said:
            piece, said = said[: (cut := dice.randint(1, 40))], said[cut:]
            sock.sendall(piece)
            if dice.random() < 0.3:
                with contextlib.suppress(TimeoutError):
                    sock.recv(65536)
    how = dice.random()
    with contextlib.suppress(OSError):
        if how < 0.3:
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(5)
            receive_all(sock)
        elif how < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@pytest.mark.parametrize("inner", ["none", "require"])
@pytest.mark.parametrize("mode", WELL)
def test_clients_that_send_anything(
    worker: LoneWorker, authority: Authority, issued: Issued, mode: Mode, inner: str
) -> None:
    seed = int(os.environ.get("MAILBALANCER_MALICE_SEED", "0")) or random.randrange(1 << 30)
    dice = random.Random(seed)
    tls = issued.server_context() if inner == "require" else None
    good: SmtpServer | LineServer
    with KINDS[mode]("good", tls=tls) as good:
        server_tls = ServerTls(Verify("ca", str(authority.file)), inner) if tls is not None else None
        one = mail(mode, good, tls=server_tls, client_tls=ClientTls(("mail",), "offer"))
        worker.configure(one, fronts={"mx": front("mx", issued)})
        context = authority.client_context()
        run = [partial_client(worker, mode, random.Random(dice.random()), context) for _ in range(ROUNDS)]
        in_parallel(run, 8)
        worker.eventually_counts(0, Count.SESSIONS, "mx")
        assert worker.count(Count.SESSIONS, "mx", "good") == 0, f"seed {seed}"
        if isinstance(good, SmtpServer):
            assert worker.count(Count.MESSAGES, "mx", "good") <= len(good.messages), f"seed {seed}"
        client = worker.connect("mx")
        assert client.recv(4, socket.MSG_WAITALL) == WELL[mode][:4], f"seed {seed}"
        client.close()


def partial_client(worker: LoneWorker, mode: Mode, dice: random.Random, context: ssl.SSLContext) -> Callable[[], None]:
    return lambda: random_client(worker, mode, dice, context)


def in_parallel(jobs: list[Callable[[], None]], at_once: int) -> None:
    waiting = iter(jobs)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            job()

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a client hangs"
