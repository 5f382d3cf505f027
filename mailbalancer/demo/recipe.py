"""The demo on paper: its ports, the configuration the balancer gets, and the lines that say what to try.

Decides: three mail servers behind `smtp`, their mailboxes (`mailbox_recipe`), three RPC stand-ins behind `rpc-mapper`,
`rpc-cas` and `rpc-ab` with one persistence group, and the web part of `web_recipe`; times short enough that a person
who kills a server sees it leave and return.
Refuses to know: sockets, processes, and whether anything runs. Facts in, text out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mailbalancer.demo import mailbox_recipe, web_recipe
from mailbalancer.demo.authority import Papers, papers
from mailbalancer.demo.ports import NAMES, RPC_SERVICES, Ports

CHECK_INTERVAL_S = 2
RAMP_S = 30
RETURN_S = 20
_PACE = f"interval_s: {CHECK_INTERVAL_S}, timeout_s: 2, rise: 2, fall: 2"


def configuration(ports: Ports, folder: str, workers: int) -> str:
    """The balancer's YAML file. `folder` takes the control socket and the state, and has the certificates."""
    made = papers(Path(folder))
    lines = [*_head(ports, folder, workers), *web_recipe.certificates(made), "services:", *_smtp_service(ports, made)]
    lines += mailbox_recipe.services(ports, made, RAMP_S, _PACE)
    lines += [*_rpc_services(ports), *web_recipe.service(ports, made, folder, _PACE)]
    return "\n".join([*lines, ""])


def _head(ports: Ports, folder: str, workers: int) -> Iterator[str]:
    yield "# Written by `mailbalancer demo`."
    yield "version: 1"
    yield f"workers: {workers}"
    yield f"control_socket: {folder}/control.sock"
    yield f"state_file: {folder}/state.json"
    yield f"admin: {{listen: 127.0.0.1:{ports.page}, tokens_file: {folder}/tokens}}"
    yield "stop_timeout_s: 1"
    yield "user: ''  # stay who started the demo"
    yield "real_servers:"
    for name in NAMES:
        yield f"  {name}: 127.0.0.1"


def _smtp_service(ports: Ports, made: Papers) -> Iterator[str]:
    verify = f"{{ca: {made.authority}}}"
    yield "  smtp:"
    yield "    mode: smtp"
    yield "    hostname: mail.demo"
    yield f"    listen: 127.0.0.1:{ports.smtp}"
    yield "    client_tls: {certificate: web, starttls: offer}"
    yield f"    server_tls: {{starttls: require, verify: {verify}}}"
    yield "    schedule: least_connections"
    yield f"    ramp_s: {RAMP_S}"
    envelope = "mail_from: check@mail.demo, rcpt_to: you@mail.demo"
    yield f"    check: {{type: smtp, starttls: true, verify: {verify}, {envelope}, {_PACE}}}"
    yield f"    real_servers: {_members(ports.mail_servers)}"


def _rpc_services(ports: Ports) -> Iterator[str]:
    for index, service in enumerate(RPC_SERVICES):
        yield f"  {service}:"
        yield "    mode: tcp"
        yield f"    listen: 127.0.0.1:{ports.rpc[service]}"
        yield "    persist: {by: source, group: cas, timeout_s: 3600}"
        yield f"    ramp_s: {RAMP_S}"
        yield f"    check: {{type: tcp, {_PACE}}}"
        yield f"    real_servers: {_members({name: own[index] for name, own in ports.rpc_servers.items()})}"


def _members(ports: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {port}" for name, port in ports.items()) + "}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What the lines are about: where things listen and run, how to call mailbalancer, which tools are installed,
    and the token that opens the page."""

    ports: Ports
    mail_pids: Mapping[str, int]
    command: str
    folder: str
    tools: frozenset[str]
    token: str


def what_to_try(scene: Scene) -> list[str]:
    """The lines the demo prints: a sentence, then indented commands that work as they stand."""
    return [
        f"Three mail servers ({', '.join(NAMES)}), their mailboxes, web and RPC ports run behind the balancer.",
        *_mail_lines(scene),
        *_mailbox_lines(scene),
        *_rpc_lines(scene),
        *web_recipe.to_try(scene.ports, papers(Path(scene.folder)), scene.folder, scene.command),
        *_operator_lines(scene),
        "",
        f"Log, one line per session:  tail -f {shlex.quote(scene.folder)}/mailbalancer.log",
        "Ctrl-C ends everything.",
    ]


def _mail_lines(scene: Scene) -> Iterator[str]:
    port = scene.ports.smtp
    yield ""
    yield "Send a mail; the answer to the message names the server that took it. Send more:"
    if "swaks" not in scene.tools:
        yield "  (swaks is not installed: apt install swaks, or:)"
        yield f"  {_send_with_python(port)}"
    else:
        yield f"  swaks --server 127.0.0.1:{port} --to you@example.com --from me@example.com"
        yield "The same inside TLS, which goes on to the server, verified on both ways:"
        authority = shlex.quote(str(papers(Path(scene.folder)).authority))
        yield f"  swaks --server 127.0.0.1:{port} --to you@example.com --tls --tls-verify --tls-ca-path {authority}"
    yield "Talk to it by hand:"
    yield from _by_hand(scene, f"telnet 127.0.0.1 {port}", _greet_with_python(port))


def _mailbox_lines(scene: Scene) -> Iterator[str]:
    yield from mailbox_recipe.to_try(scene.ports, papers(Path(scene.folder)))
    if "telnet" in scene.tools:
        where, words = mailbox_recipe.by_hand(scene.ports)
        yield f"  telnet {where}  # in clear: {words}"


def _rpc_lines(scene: Scene) -> Iterator[str]:
    yield ""
    yield "One client stays on one server over three ports, as Exchange 2010 needs it (type a line, read who answers):"
    for service, stood_for in RPC_SERVICES.items():
        port = scene.ports.rpc[service]
        note = f"  # {service}, stands for {stood_for}"
        yield from _by_hand(scene, f"telnet 127.0.0.1 {port}{note}", _talk_with_python(port, "hello") + note)
    port = scene.ports.rpc["rpc-mapper"]
    note = "  # another client address"
    other = _talk_with_python(port, "hello", source="127.0.0.2") + note
    yield from _by_hand(scene, f"telnet -b 127.0.0.2 127.0.0.1 {port}{note}", other)


def _operator_lines(scene: Scene) -> Iterator[str]:
    socket_option = f"--socket {shlex.quote(scene.folder + '/control.sock')}"
    yield ""
    yield f"Kill a mail server: it leaves within {3 * CHECK_INTERVAL_S} s, mail goes on,"
    yield f"after {RETURN_S} s it is started again and gets its share back slowly, over {RAMP_S} s:"
    yield f"  kill {scene.mail_pids['ex2']}  # ex2's mail server"
    yield "Do as Exchange does: ex1 goes into maintenance (the same line again: out of it), ex3 under back pressure;"
    yield "mail goes on, and `status` says why they get none or less:"
    yield f"  kill -USR1 {scene.mail_pids['ex1']}  # ex1's mail server: 421 4.3.2"
    yield f"  kill -USR2 {scene.mail_pids['ex3']}  # ex3's mail server: 452 4.3.1"
    yield "Watch, and take a server out gently and in again:"
    for words in (
        "status",
        "top",
        "sessions",
        "persistence list",
        "drain smtp ex3",
        "enable smtp ex3",
        "smoke smtp",
    ):
        yield f"  {scene.command} {words} {socket_option}"
    page = f"http://127.0.0.1:{scene.ports.page}/"
    yield ""
    yield f"The same in a browser: {page}"
    yield f"To change something there, log in with the token {scene.token}"
    yield "The same for a monitoring system:"
    yield f"  curl -sS -H 'Authorization: Bearer {scene.token}' {page}metrics | grep sessions"


def _by_hand(scene: Scene, telnet: str, python: str) -> Sequence[str]:
    if "telnet" in scene.tools:
        return (f"  {telnet}",)
    return ("  (telnet is not installed: apt install telnet, or:)", f"  {python}")


def _send_with_python(port: int) -> str:
    return (
        f"""python3 -c "import smtplib; s = smtplib.SMTP('127.0.0.1', {port}); s.ehlo('me'); """
        """s.mail('me@example.com'); s.rcpt('you@example.com'); print(s.data('Subject: hello\\n\\nhello'))\""""
    )


def _greet_with_python(port: int) -> str:
    """Who speaks before the greeting is refused, so listen first."""
    return (
        f"""python3 -c "import socket; s = socket.create_connection(('127.0.0.1', {port})); """
        """print(s.recv(1000).decode()); s.sendall(b'EHLO me\\r\\n'); print(s.recv(1000).decode())\""""
    )


def _talk_with_python(port: int, line: str, source: str = "") -> str:
    bound = f", source_address=('{source}', 0)" if source else ""
    return (
        f"""python3 -c "import socket; s = socket.create_connection(('127.0.0.1', {port}){bound}); """
        f"""s.sendall(b'{line}\\r\\n'); print(s.recv(1000).decode())\""""
    )
