"""Mode `smtp` in the real program: real Postfix, Dovecot and aiosmtpd behind, real clients in front.

What is claimed is read where it counts: in the log and the mailboxes of the servers, and in what the clients say.
"""

from __future__ import annotations

import email.message
import hashlib
import re
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography.hazmat.primitives import hashes

from tests.support.certs import Authority, Issued
from tests.support.mail_servers import SmtpServer
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Dovecot, Postfix
from tests.support.smtp_client import MESSAGE, Talk
from tests.support.swaks import deliver, swaks
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live

HOST = "mail.example.com"
CHECK = {"type": "smtp", "interval_s": 0.5, "timeout_s": 5, "rise": 1, "fall": 1}
OUTER = ("none", "offer", "require", "implicit")
INNER = ("none", "opportunistic", "require", "implicit")


def smtp(port: int, behind: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An `smtp` service on a port of 127.0.0.1."""
    base = {"mode": "smtp", "listen": f"127.0.0.1:{port}", "hostname": HOST, "real_servers": behind, "check": CHECK}
    return {**base, "ramp_s": 0, **more}


def config(services: dict[str, Any], *servers: str, certificate: Issued | None = None, **more: Any) -> dict[str, Any]:
    """A configuration; every real server is on 127.0.0.1."""
    own = {"certificates": {"mail": str(certificate.pem)}} if certificate is not None else {}
    return {"real_servers": dict.fromkeys(servers, "127.0.0.1"), "services": services, **own, **more}


def talk(port: int, source: str = "127.0.0.1") -> Talk:
    """A client that says exactly what it is told."""
    return Talk(socket.create_connection(("127.0.0.1", port), 20, (source, 0)))


def of_messages(balancer: Balancer, service: str) -> list[str]:
    """The lines in the log about messages of one service."""
    return [line for line in balancer.log_text().splitlines() if f" message service={service} " in line]


def of_sessions(balancer: Balancer, service: str) -> list[str]:
    return [line for line in balancer.log_text().splitlines() if f" session service={service} " in line]


# ---------------------------------------------------------------- TLS on both sides, in every pairing


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    names = [f"{outer}-{inner}" for outer in OUTER for inner in INNER]
    names += ["wrong-name", "strange-authority", "pinned", "wrong-pin", "xclient", "proxied", "submission"]
    return dict(zip(names, free_ports(len(names)), strict=True))


@pytest.fixture(scope="module")
def bridge(
    mx1: Postfix,
    store1: Dovecot,
    authority: Authority,
    certificate: Issued,
    ports: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Balancer]:
    """One balancer with a service for each pairing of TLS with clients and TLS with Postfix."""
    known = {"ca": str(authority.file), "name": HOST}
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    pin = certificate.certificate.fingerprint(hashes.SHA256()).hex()
    services = {}
    for outer in OUTER:
        for inner in INNER:
            more: dict[str, Any] = {}
            if outer != "none":
                more["client_tls"] = {"certificate": "mail", "starttls": outer}
            if inner != "none":
                more["server_tls"] = {"starttls": inner, "verify": known}
            behind = mx1.tls_port if inner == "implicit" else mx1.port
            check = {**CHECK, "tls": inner == "implicit", "verify": known}
            services[f"{outer}-{inner}"] = smtp(ports[f"{outer}-{inner}"], {"mx1": behind}, **more, check=check)
    for name, verify in {
        "wrong-name": {"ca": str(authority.file), "name": "elsewhere.example.com"},
        "strange-authority": {"ca": str(stranger.file), "name": HOST},
        "pinned": {"pin": pin},
        "wrong-pin": {"pin": pin[::-1]},
    }.items():
        tls = {"starttls": "require", "verify": verify}
        services[name] = smtp(ports[name], {"mx1": mx1.port}, server_tls=tls)
    services["xclient"] = smtp(ports["xclient"], {"mx1": mx1.port}, client_address="xclient")
    services["proxied"] = smtp(ports["proxied"], {"mx1": mx1.proxied_port}, proxy_protocol={"send": "v2"})
    services["submission"] = smtp(
        ports["submission"],
        {"store1": store1.submission_port},
        client_tls={"certificate": "mail", "starttls": "require"},
        server_tls={"starttls": "require", "verify": known},
        client_address="xclient",
    )
    with Balancer(
        config(services, "mx1", "store1", certificate=certificate), tmp_path_factory.mktemp("bridge")
    ) as running:
        yield running


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("outer", OUTER)
def test_tls_on_both_sides(
    bridge: Balancer, mx1: Postfix, authority: Authority, ports: dict[str, int], outer: str, inner: str
) -> None:
    trusted = ["--tls-verify", "--tls-ca-path", str(authority.file), "--tls-sni", HOST]
    options = {"none": [], "implicit": ["--tlsc", *trusted]}.get(outer, ["--tls", *trusted])
    said = deliver(ports[f"{outer}-{inner}"], *options)
    assert ("TLS started with cipher" in said) == (outer != "none")
    assert f"CN={HOST}" in said or outer == "none"
    assert re.search(rf"220 {HOST} ESMTP", said)
    queued = re.search(r"queued as (\w+)", said)
    assert queued, "the verdict is Postfix's own"
    conversation = eventually(lambda: conversation_of(mx1, queued[1]))
    assert ("TLS connection established from" in conversation) == (inner != "none"), conversation
    line = eventually(lambda: of_messages(bridge, f"{outer}-{inner}"))[0]
    assert ("client_tls=TLSv1.3:" in line) == (outer != "none"), line
    assert ("server_tls=TLSv1.3:" in line) == (inner != "none"), line


def conversation_of(server: Postfix, queued: str) -> str | None:
    """What Postfix has logged about the connection on which it took a message, up to there."""
    log = server.log_text()
    taken = re.search(rf"smtpd\[(\d+)\]: {queued}: client=", log)
    if taken is None:
        return None
    own = [line for line in log[: taken.end()].splitlines() if f"smtpd[{taken[1]}]" in line]
    begun = max(at for at, line in enumerate(own) if "]: connect from" in line)
    return "\n".join(own[begun:])


@pytest.mark.parametrize("outer", ["offer", "require"])
def test_only_require_refuses_mail_in_clear(bridge: Balancer, ports: dict[str, int], outer: str) -> None:
    done = swaks(ports[f"{outer}-require"])
    assert done.returncode == (0 if outer == "offer" else 23), done.stdout
    assert ("530 5.7.0 Must issue a STARTTLS command first" in done.stdout) == (outer == "require")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("wrong-name", "elsewhere.example.com"), ("strange-authority", "does not trust"), ("wrong-pin", "pin")],
)
def test_a_server_that_is_not_who_it_should_be_gets_no_mail(
    bridge: Balancer, ports: dict[str, int], name: str, reason: str
) -> None:
    done = swaks(ports[name])
    assert done.returncode != 0
    assert "454 4.7.0" in done.stdout or "421 4.3.2" in done.stdout, done.stdout
    assert reason in eventually(lambda: of_sessions(bridge, name))[-1]


def test_a_pinned_certificate_is_trusted(bridge: Balancer, ports: dict[str, int]) -> None:
    assert "queued as" in deliver(ports["pinned"])


def test_openssl_begins_tls_and_sees_the_certificate_of_the_service(
    bridge: Balancer, authority: Authority, ports: dict[str, int]
) -> None:
    for name, options in {"offer-require": ["-starttls", "smtp"], "implicit-require": []}.items():
        with subprocess.Popen(
            [
                *(require("openssl"), "s_client", "-connect", f"127.0.0.1:{ports[name]}", *options, "-quiet", "-crlf"),
                *(
                    "-CAfile",
                    str(authority.file),
                    "-verify_return_error",
                    "-verify_hostname",
                    HOST,
                    "-servername",
                    HOST,
                ),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        ) as openssl:
            assert openssl.stdin is not None
            assert openssl.stdout is not None
            if name.startswith("implicit"):
                assert openssl.stdout.readline() == f"220 {HOST} ESMTP\n"
            openssl.stdin.write("EHLO client.example.org\n")
            inside = ["250-"]
            while inside[-1] and inside[-1][3:4] in "-":
                inside.append(openssl.stdout.readline())
            assert inside[1] == f"250-{HOST}\n"
            assert "250-PIPELINING\n" in inside
            assert not [line for line in inside if "STARTTLS" in line]
            openssl.stdin.write("QUIT\n")
            assert openssl.stdout.readline() == "221 2.0.0 Bye\n"


def test_curl_sends_mail_under_starttls(
    bridge: Balancer, authority: Authority, ports: dict[str, int], tmp_path: Path
) -> None:
    mail = tmp_path / "mail"
    mail.write_bytes(b"Subject: from curl\r\n\r\nhello\r\n.\r\n..\r\n")
    done = subprocess.run(
        [
            *(require("curl"), "-sv", "--max-time", "20", "--ssl-reqd", "--cacert", str(authority.file)),
            *("--mail-from", "me@example.org", "--mail-rcpt", "you@example.com", "--upload-file", str(mail)),
            *("--resolve", f"{HOST}:{ports['require-require']}:127.0.0.1", f"smtp://{HOST}:{ports['require-require']}"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "queued as" in done.stderr


def test_telnet_is_served_line_by_line(bridge: Balancer, ports: dict[str, int]) -> None:
    with subprocess.Popen(
        [require("telnet"), "127.0.0.1", str(ports["none-require"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as telnet:
        assert telnet.stdin is not None
        assert telnet.stdout is not None
        while not (line := telnet.stdout.readline()).startswith("220 "):
            assert line, "telnet ended"
        assert line == f"220 {HOST} ESMTP\n"
        for said, answer in {"HELO me": "250 ", "NOOP": "250 ", "GARBAGE": "50", "QUIT": "221 "}.items():
            telnet.stdin.write(f"{said}\n")
            telnet.stdin.flush()
            assert telnet.stdout.readline().startswith(answer), said
        telnet.wait(10)


# ---------------------------------------------------------------- passwords


@pytest.mark.parametrize("kind", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_passwords_are_checked_by_the_server(
    bridge: Balancer, store1: Dovecot, authority: Authority, ports: dict[str, int], kind: str
) -> None:
    before = len(store1.logins("submission"))
    options = ["--tls", "--tls-verify", "--tls-ca-path", str(authority.file), "--tls-sni", HOST, "--auth", kind]
    said = deliver(ports["submission"], *options, "-au", "joe", "-ap", store1.PASSWORD, source="127.0.0.31")
    assert "235 " in said
    eventually(lambda: len(store1.logins("submission")) > before)
    assert store1.logins("submission")[before:] == ["127.0.0.31"], "XCLIENT has told Dovecot who it is"
    wrong = swaks(ports["submission"], *options, "-au", "joe", "-ap", "wrong")
    assert wrong.returncode == 28
    assert "535 " in wrong.stdout


def test_no_password_in_clear(bridge: Balancer, store1: Dovecot, ports: dict[str, int]) -> None:
    with smtplib.SMTP("127.0.0.1", ports["submission"], timeout=10) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH PLAIN AGpvZQBjb3JyZWN0")[0] in (530, 538)


# ---------------------------------------------------------------- who the client is


@pytest.mark.parametrize(
    ("name", "source", "seen"),
    [
        ("none-none", "127.0.0.41", "127.0.0.1"),
        ("xclient", "127.0.0.42", "127.0.0.42"),
        ("proxied", "127.0.0.43", "127.0.0.43"),
    ],
)
def test_postfix_knows_the_client(
    bridge: Balancer, mx1: Postfix, ports: dict[str, int], name: str, source: str, seen: str
) -> None:
    before = len(mx1.clients())
    deliver(ports[name], source=source)
    eventually(lambda: len(mx1.clients()) > before)
    assert mx1.clients()[before:] == [seen]


@pytest.mark.parametrize("command", ["XCLIENT ADDR=127.0.0.99", "XFORWARD ADDR=127.0.0.99", "XPROXY SID=1 IP=1.2.3.4"])
def test_clients_do_not_say_who_they_are(bridge: Balancer, mx1: Postfix, ports: dict[str, int], command: str) -> None:
    """Also in front of a Postfix that would believe it."""
    client = talk(ports["xclient"])
    assert b"XCLIENT" not in client.begin().upper()
    assert client.say(command.encode()).startswith(b"550 5.7.0 ")
    before = len(mx1.clients())
    assert client.say(b"MAIL FROM:<a@example.org>").startswith(b"250")
    assert client.say(b"RCPT TO:<b@example.com>").startswith(b"250")
    eventually(lambda: len(mx1.clients()) > before)
    assert mx1.clients()[before:] == ["127.0.0.1"]
    client.sock.close()


# ---------------------------------------------------------------- messages of all kinds


class Kept:
    """aiosmtpd's handler: keeps digests and envelopes of what it accepts."""

    def __init__(self) -> None:
        self.digests: list[str] = []
        self.recipients: list[str] = []
        self.options: list[str] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """aiosmtpd's hook."""
        self.digests.append(hashlib.sha256(envelope.original_content or b"").hexdigest())
        self.recipients += envelope.rcpt_tos
        self.options += envelope.mail_options
        return "250 2.0.0 kept"


class Aiosmtpd(Controller):
    """aiosmtpd on a free port, with SMTPUTF8 and room for large messages."""

    def __init__(self, **more: Any) -> None:
        self.kept = Kept()
        super().__init__(
            self.kept, "127.0.0.1", free_port(), enable_SMTPUTF8=True, data_size_limit=80 * 1024 * 1024, **more
        )


@pytest.fixture(scope="module")
def kept() -> Iterator[Aiosmtpd]:
    server = Aiosmtpd()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def plain(
    kept: Aiosmtpd,
    mx1: Postfix,
    authority: Authority,
    certificate: Issued,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Services in front of aiosmtpd and of Postfix; their ports, by name."""
    names = ("kept", "kept-tls", "mx1")
    own = dict(zip(names, free_ports(3), strict=True))
    tls = {"client_tls": {"certificate": "mail", "starttls": "implicit"}}
    services = {
        "kept": smtp(own["kept"], {"kept": kept.port}),
        "kept-tls": smtp(own["kept-tls"], {"kept": kept.port}, **tls),
        "mx1": smtp(own["mx1"], {"mx1": mx1.port}),
    }
    with Balancer(
        config(services, "kept", "mx1", certificate=certificate), tmp_path_factory.mktemp("plain")
    ) as running:
        yield {**own, "balancer": running}


def large_message(size: int) -> bytes:
    """Lines of many lengths, some of them dots."""
    block = b"".join(
        hashlib.sha512(number.to_bytes(2, "big")).hexdigest().encode()[: number % 120] * 7 + b"\r\n.dot\r\n"
        for number in range(500)
    )
    return b"Subject: large\r\n\r\n" + block * (size // len(block) + 1)


@pytest.mark.parametrize("name", ["kept", "kept-tls"])
def test_fifty_megabytes_arrive_byte_for_byte(
    plain: dict[str, Any], kept: Aiosmtpd, authority: Authority, name: str
) -> None:
    message = large_message(50_000_000)
    before = len(kept.kept.digests)
    memory = [_resident(pid) for pid in plain["balancer"].worker_pids]
    if name == "kept":
        client: smtplib.SMTP = smtplib.SMTP("127.0.0.1", plain[name], timeout=60)
    else:
        context = authority.client_context()
        context.check_hostname = False
        client = smtplib.SMTP_SSL("127.0.0.1", plain[name], timeout=60, context=context)
    with client:
        client.ehlo()
        client.mail("a@example.org")
        client.rcpt("b@example.com")
        assert client.data(message) == (250, b"2.0.0 kept")
    assert kept.kept.digests[before:] == [hashlib.sha256(message).hexdigest()]
    grown = [_resident(pid) - old for pid, old in zip(plain["balancer"].worker_pids, memory, strict=True)]
    assert max(grown) < 16 * 1024 * 1024, "a message never stands in memory"


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_message_that_is_declared_too_large_is_refused_by_the_server(plain: dict[str, Any], mx1: Postfix) -> None:
    client = talk(plain["mx1"])
    assert b"SIZE %d" % mx1.LARGEST in client.begin()
    assert client.say(b"MAIL FROM:<a@example.org> SIZE=90000000").startswith(b"552 5.3.4 ")


def test_chunks_reach_postfix(plain: dict[str, Any], mx1: Postfix) -> None:
    """BDAT (RFC 3030), pipelined, with what would end DATA inside."""
    client = talk(plain["mx1"])
    assert b"CHUNKING" in client.begin()
    first, last = b"Subject: chunks\r\n\r\none\r\n.\r\nQUIT\r\n", b"two\r\n"
    client.sock.sendall(
        b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.com>\r\n"
        + b"BDAT %d\r\n%b" % (len(first), first)
        + b"BDAT %d LAST\r\n%b" % (len(last), last)
    )
    answers = [client.reply() for _ in range(4)]
    assert [answer[:3] for answer in answers] == [b"250"] * 4, answers
    queued = re.search(rb"queued as (\w+)", answers[3])
    assert queued
    eventually(lambda: f"{queued[1].decode()}: removed" in mx1.log_text())
    assert client.say(b"QUIT").startswith(b"221")


def test_a_pipelined_group_is_answered_in_order(plain: dict[str, Any]) -> None:
    client = talk(plain["mx1"])
    client.begin()
    client.sock.sendall(
        b"MAIL FROM:<a@example.org>\r\nRCPT TO:<no@elsewhere.example>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
    )
    assert [client.reply()[:3] for _ in range(4)] == [b"250", b"554", b"250", b"354"]
    client.sock.sendall(MESSAGE + b".\r\nRSET\r\nNOOP\r\nQUIT\r\n")
    assert [client.reply()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"221"]
    assert client.end() == b""


def test_addresses_beyond_ascii_pass(plain: dict[str, Any], kept: Aiosmtpd) -> None:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = "jörg@example.org", "grüße@example.com", "Grüße"
    message.set_content("Schöne Grüße")
    with smtplib.SMTP("127.0.0.1", plain["kept"], timeout=10) as client:
        client.ehlo()
        assert client.has_extn("smtputf8")
        assert client.send_message(message) == {}
    assert kept.kept.recipients[-1] == "grüße@example.com"
    assert "SMTPUTF8" in kept.kept.options


# ---------------------------------------------------------------- servers of different minds

EXCHANGE = ("SIZE 37748736", "PIPELINING", "DSN", "ENHANCEDSTATUSCODES", "X-ANONYMOUSTLS", "AUTH NTLM")
EXCHANGE += ("X-EXPS GSSAPI NTLM", "8BITMIME", "BINARYMIME", "CHUNKING", "XRDST")


def three(tmp_path: Path, port: int, servers: list[SmtpServer], **more: Any) -> Balancer:
    behind = {server.name: server.port for server in servers}
    one = smtp(port, behind, **{"schedule": "round_robin", **more})
    return Balancer(config({"mx": one}, *behind, workers=1), tmp_path)


@pytest.fixture
def servers() -> Iterator[list[SmtpServer]]:
    with SmtpServer("mx1") as mx1, SmtpServer("mx2") as mx2, SmtpServer("mx3") as mx3:
        yield [mx1, mx2, mx3]


def checked(balancer: Balancer, servers: list[SmtpServer]) -> None:
    """Every server has had its first check, so that no fault of a test meets one."""
    for server in servers:
        eventually(lambda name=server.name: balancer.real_server("mx", name)["check"], what="checked")


def test_clients_see_one_list_whatever_server_they_meet(servers: list[SmtpServer], tmp_path: Path) -> None:
    port = free_port()
    servers[0].capabilities = EXCHANGE
    servers[1].capabilities = tuple(word for word in EXCHANGE if word != "CHUNKING")
    servers[2].capabilities = ("SIZE 10000000", "PIPELINING", "8BITMIME", "CHUNKING", "ENHANCEDSTATUSCODES")
    with three(tmp_path, port, servers) as balancer:
        lists = []
        for _ in range(9):
            client = talk(port)
            lists.append(client.begin())
            client.say(b"QUIT")
        assert len(set(lists[3:])) == 1, "after each server has spoken once"
        words = {line[4:].decode() for line in lists[-1].splitlines()[1:]}
        assert {"SIZE 10000000", "PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"} <= words
        assert not [word for word in words if word.startswith(("X", "CHUNKING", "BINARYMIME", "DSN", "AUTH"))]
        balancer.stop()


def test_x_exps_is_for_exchange_servers_alone(tmp_path: Path) -> None:
    with SmtpServer("ex1") as ex1:
        ex1.capabilities = EXCHANGE
        own = free_ports(2)
        services = {
            "internet": smtp(own[0], {"ex1": ex1.port}),
            "exchange": smtp(own[1], {"ex1": ex1.port}, exchange_to_exchange=True),
        }
        with Balancer(config(services, "ex1"), tmp_path):
            assert [b"X-EXPS" in talk(port).begin() for port in own] == [False, True]


@pytest.mark.parametrize("verb", ["GREETING", "EHLO", "MAIL"])
@pytest.mark.parametrize("answer", [b"421 4.3.2 Service not active\r\n", b"421 4.7.0 Try again\r\n"])
def test_two_of_three_refuse_and_no_client_notices(
    servers: list[SmtpServer], tmp_path: Path, verb: str, answer: bytes
) -> None:
    port = free_port()
    with three(tmp_path, port, servers, check={**CHECK, "interval_s": 60}, schedule="round_robin") as balancer:
        checked(balancer, servers)
        for server in servers[:2]:
            server.answers[verb] = answer
        for _ in range(9):
            client = talk(port)
            client.begin()
            assert client.send() == b"250 2.0.0 mx3 has it\r\n"
            assert client.say(b"QUIT").startswith(b"221")
        assert len(servers[2].messages) == 9
        inactive = answer.startswith(b"421 4.3.2")
        for name in ("mx1", "mx2"):
            seen = eventually(lambda name=name: out(balancer, name), what=f"{name} takes nobody new")
            assert seen["maintenance"] == inactive
            said = str(balancer.status()["events"])
            assert name in said
            assert ("Service not active" in said) == inactive
        assert balancer.real_server("mx", "mx3")["availability"] == "ready"


def out(balancer: Balancer, name: str) -> dict[str, Any] | None:
    found = balancer.real_server("mx", name)
    return found if found["availability"] != "ready" else None


def test_maintenance_and_back_pressure_are_seen_with_their_reason_and_undone_by_the_check(
    servers: list[SmtpServer], tmp_path: Path
) -> None:
    port = free_port()
    mx1, mx2, _ = servers
    with three(tmp_path, port, servers) as balancer:
        checked(balancer, servers)
        mx1.answers["EHLO"] = b"421 4.3.2 Component is inactive\r\n"
        mx2.answers["MAIL"] = b"452 4.3.1 Insufficient system resources\r\n"
        for _ in range(6):
            client = talk(port)
            client.begin()
            assert client.send() == b"250 2.0.0 mx3 has it\r\n"
        eventually(lambda: balancer.real_server("mx", "mx1")["maintenance"], what="mx1 drains")
        shown = balancer.cli("status").stdout
        assert "maintenance" in shown
        said = str(balancer.status()["events"])
        assert "Component is inactive" in said
        assert "Insufficient system resources" in said
        mx1.answers.clear()
        mx2.answers.clear()
        eventually(lambda: is_well(balancer, "mx1") and is_well(balancer, "mx2"), what="the check has undone it")


def is_well(balancer: Balancer, name: str) -> bool:
    found = balancer.real_server("mx", name)
    return found["availability"] == "ready" and not found["maintenance"] and not found["back_pressure"]


def test_a_drain_moves_sessions_between_messages_unseen(servers: list[SmtpServer], tmp_path: Path) -> None:
    port = free_port()
    with three(tmp_path, port, servers[:2]) as balancer:
        clients = [talk(port) for _ in range(6)]
        for client in clients:
            client.begin()
            assert client.send().startswith(b"250 ")
        assert len(servers[0].messages) == 3
        balancer.command("drain", real_server="mx1")
        eventually(lambda: balancer.real_server("mx", "mx1")["availability"] != "ready")
        for client in clients:
            assert client.send() == b"250 2.0.0 mx2 has it\r\n"
        assert balancer.real_server("mx", "mx1")["sessions"] == 0
        assert balancer.real_server("mx", "mx2")["sessions"] == 6
        assert len(servers[0].messages) == 3


def test_nobody_left_is_said_with_421(servers: list[SmtpServer], tmp_path: Path) -> None:
    port = free_port()
    mx1 = servers[0]
    with three(tmp_path, port, [mx1]) as balancer:
        mx1.stop()
        eventually(lambda: balancer.real_server("mx", "mx1")["up"] is False)
        assert talk(port).end() == b"421 4.3.2 No mail server is available now, try again later\r\n"


# ---------------------------------------------------------------- policy at the door


def test_policy_answers_with_its_codes(tmp_path: Path) -> None:
    domains = tmp_path / "domains"
    domains.write_text("example.com  # ours\n*.branch.example.com\n")
    policy = {
        "recipient_domains": ["other.example"],
        "recipient_domains_file": str(domains),
        "relay_clients": ["127.0.0.51"],
        "senders_deny": ["spam.example"],
        "max_message_bytes": 10_000,
        "recipients_per_source_minute": 8,
        "connections_per_source": 3,
    }
    port = free_port()
    with SmtpServer("mx1") as mx1, Balancer(config({"mx": smtp(port, {"mx1": mx1.port}, policy=policy)}, "mx1"), tmp_path) as balancer:  # fmt: skip  # noqa: E501
        client = talk(port)
        assert b"SIZE 10000\r\n" in client.begin()
        assert client.say(b"MAIL FROM:<x@spam.example>").startswith(b"550 5.7.1 ")
        assert client.say(b"MAIL FROM:<x@example.org> SIZE=10001").startswith(b"552 5.3.4 ")
        assert client.say(b"MAIL FROM:<x@example.org>").startswith(b"250 ")
        for domain, code in {
            b"example.com": b"250 ",
            b"a.branch.example.com": b"250 ",
            b"other.example": b"250 ",
            b"elsewhere.example": b"550 5.7.1 ",
            b"b.a.branch.example.com": b"550 5.7.1 ",
        }.items():
            assert client.say(b"RCPT TO:<you@%b>" % domain).startswith(code), domain
        codes = {client.say(b"RCPT TO:<you@example.com>")[:9] for _ in range(9)}
        assert codes == {b"250 2.1.5", b"452 4.5.3"}
        printer = talk(port, "127.0.0.51")
        printer.begin()
        printer.say(b"MAIL FROM:<printer@example.org>")
        assert printer.say(b"RCPT TO:<you@elsewhere.example>").startswith(b"250 ")
        others = [talk(port) for _ in range(2)]
        assert [other.reply()[:4] for other in others] == [b"220 ", b"220 "]
        assert talk(port).reply().startswith(b"421 4.7.0 ")
        for word in ("sender_denied", "recipient_denied", "recipient_rate", "too_big", "too_many_connections"):
            eventually(lambda word=word: word in balancer.log_text(), what=word)
        assert "elsewhere.example" not in balancer.log_text(), "addresses are logged only if asked for"
        assert not [message for message in mx1.messages if b"spam" in message.mail]


def test_a_body_above_the_limit_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    port = free_port()
    one = {"policy": {"max_message_bytes": 10_000}}
    with SmtpServer("mx1") as mx1, Balancer(config({"mx": smtp(port, {"mx1": mx1.port}, **one)}, "mx1"), tmp_path):
        client = talk(port)
        client.begin()
        assert client.send(b"x" * 900 + b"\r\n") == b"250 2.0.0 mx1 has it\r\n"
        assert client.send((b"x" * 900 + b"\r\n") * 20).startswith(b"552 5.3.4 ")
        assert len(mx1.messages) == 1


# ---------------------------------------------------------------- source classes


@pytest.mark.parametrize("when_full", ["refuse", "spill"])
def test_classes_leave_from_their_address_and_the_limit_is_counted(tmp_path: Path, when_full: str) -> None:
    port = free_port()
    source = {
        "classes": [
            {"name": "relay", "clients": ["127.0.1.0/24"], "address": ["127.0.2.6", "127.0.2.16"]},
            {"name": "internet", "clients": "any", "address": "127.0.2.7"},
        ],
        "per_source_limit": 20,
        "when_full": when_full,
    }
    with SmtpServer("mx1") as mx1, Balancer(config({"mx": smtp(port, {"mx1": mx1.port}, source=source)}, "mx1"), tmp_path) as balancer:  # fmt: skip  # noqa: E501
        eventually(lambda: balancer.real_server("mx", "mx1")["check"])
        strangers = [talk(port, "127.0.0.9") for _ in range(17)]
        assert all(client.begin().startswith(b"250") for client in strangers)
        assert "internet from 127.0.2.7 to mx1: 17/20" in balancer.cli("status").stdout
        printers = [talk(port, f"127.0.1.{1 + at % 5}") for at in range(40)]
        assert all(client.begin().startswith(b"250") for client in printers)
        sessions = {one["address"]: one["sessions"] for one in balancer.service("mx")["sources"]}
        assert sessions == {"127.0.2.6": 20, "127.0.2.16": 20, "127.0.2.7": 17}
        seen = sorted(peer for peer, _ in mx1.peers if peer.startswith("127.0.2."))
        assert seen == ["127.0.2.16"] * 20 + ["127.0.2.6"] * 20 + ["127.0.2.7"] * 17
        assert talk(port, "127.0.1.1").reply().startswith(b"421 4.3.2 ")
        assert printers[0].send() == b"250 2.0.0 mx1 has it\r\n"
        line = eventually(lambda: of_messages(balancer, "mx"))[-1]
        assert " class=relay " in line
        printers[0].say(b"QUIT")
        assert eventually(lambda: talk(port, "127.0.1.9").reply()).startswith(b"220 ")


def test_a_class_at_its_limit_waits_for_a_place(tmp_path: Path) -> None:
    """`when_full: queue`, with a percentage: a tenth of the 19 connections that the server has left is one."""
    port = free_port()
    source = {
        "classes": [{"name": "internet", "clients": "any", "address": "127.0.2.7"}],
        "per_source_limit": {"percent": 10, "connections": 20},
        "when_full": "queue",
    }
    one = smtp(port, {"mx1": 0}, source=source, queue={"size": 10, "timeout_s": 30})
    with SmtpServer("mx1") as mx1:
        one["real_servers"] = {"mx1": mx1.port}
        with Balancer(config({"mx": one}, "mx1"), tmp_path) as balancer:
            eventually(lambda: balancer.real_server("mx", "mx1")["check"])
            first = talk(port)
            first.begin()
            assert "internet from 127.0.2.7 to mx1: 1/1" in balancer.cli("status").stdout
            second = talk(port)
            eventually(lambda: balancer.service("mx")["queued"] == 1)
            first.say(b"QUIT")
            second.begin()
            assert second.send() == b"250 2.0.0 mx1 has it\r\n"
            assert balancer.service("mx")["queued"] == 0


# ---------------------------------------------------------------- and for the operator


def test_smoke_shows_the_tls_of_both_sides(bridge: Balancer) -> None:
    shown = bridge.cli("smoke", "offer-require")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert f"220 {HOST} ESMTP" in shown.stdout
    assert "220 mx1.example.com ESMTP Postfix" in shown.stdout
    assert shown.stdout.count("TLSv1.3") >= 2
    assert "TLS_AES" in shown.stdout
    assert "mail.example.com" in shown.stdout


@pytest.mark.parametrize("name", ["implicit-none", "none-implicit", "implicit-require"])
def test_smoke_knows_on_which_side_tls_comes_first(bridge: Balancer, name: str) -> None:
    shown = bridge.cli("smoke", name)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "TLSv1.3" in shown.stdout


def test_an_old_protocol_is_refused(bridge: Balancer, ports: dict[str, int]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", ports["implicit-none"]), 10) as raw, pytest.raises(OSError):  # noqa: PT011
        context.wrap_socket(raw)
