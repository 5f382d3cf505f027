"""The mailboxes of the demo on paper: three services for mail programs, and the lines that say what to try.

Decides: IMAP and POP3 with STARTTLS, IMAP with TLS from the start, all of them going on under TLS to the same servers.
Refuses to know: sockets, processes, and whether anything runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from mailbalancer.demo.authority import Papers
from mailbalancer.demo.ports import MAILBOX_SERVICES, Ports


def services(ports: Ports, made: Papers, ramp_s: int, pace: str) -> Iterator[str]:
    """Lines of the configuration."""
    verify = f"{{ca: {made.authority}}}"
    for at, (name, mode) in enumerate(MAILBOX_SERVICES.items()):
        starttls = "implicit" if name == "imaps" else "offer"
        index = 1 if mode == "pop3" else 0
        behind = ", ".join(f"{server}: {own[index]}" for server, own in ports.mailbox_servers.items())
        yield f"  {name}:"
        yield f"    mode: {mode}"
        yield "    hostname: mail.demo"
        yield f"    listen: 127.0.0.1:{ports.mailboxes[at]}"
        yield f"    client_tls: {{certificate: web, starttls: {starttls}}}"
        yield f"    server_tls: {{starttls: require, verify: {verify}}}"
        yield "    schedule: round_robin"
        yield f"    ramp_s: {ramp_s}"
        yield f"    check: {{type: {mode}, starttls: true, verify: {verify}, {pace}}}"
        yield f"    real_servers: {{{behind}}}"


def to_try(ports: Ports, made: Papers) -> Iterator[str]:
    """Lines for a shell, and below them what to type there; every name and every password is right."""
    imap, imaps, pop3 = ports.mailboxes
    trust = f"-verify_return_error -CAfile {shlex.quote(str(made.authority))}"
    yield ""
    yield "Read mail, each time from the next server. IMAP, in TLS from the start or after STARTTLS (type the note):"
    yield f"  openssl s_client -quiet -crlf {trust} -connect 127.0.0.1:{imaps}  # a LOGIN me secret, b LOGOUT"
    yield f"  openssl s_client -quiet -crlf {trust} -connect 127.0.0.1:{imap} -starttls imap  # a CAPABILITY, b LOGOUT"
    curl = f"curl -sS --cacert {shlex.quote(str(made.authority))} -u me:secret"
    yield f"  {curl} --ssl-reqd 'imap://127.0.0.1:{imap}/INBOX;MAILINDEX=1'"
    yield "POP3:"
    yield f"  openssl s_client -quiet -crlf {trust} -connect 127.0.0.1:{pop3} -starttls pop3  # USER me, PASS x, QUIT"
    yield f"  {curl} --ssl-reqd pop3://127.0.0.1:{pop3}/1"


def by_hand(ports: Ports) -> tuple[str, str]:
    """For telnet, in clear: arguments for the program and what to type there."""
    return f"127.0.0.1 {ports.mailboxes[2]}", "USER me, PASS x, RETR 1, QUIT"
