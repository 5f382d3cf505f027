"""What an administrator changes while clients come without a pause: not one of them is to notice."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import hashes

from mailbalancer.admin import tokens
from mailbalancer.admin.tokens import Role
from tests.admin.door import Door
from tests.support.callers import Callers
from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.servers import Echo
from tests.support.waiting import eventually
from tests.support.web import Web

pytestmark = pytest.mark.live

NAME = "mail.example.com"
WEB = """\
version: 1
workers: 2
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
certificates: {{mail: certs/mail.pem}}   # renewed every 90 days
real_servers: {{web1: 127.0.0.1}}
services:
  web:
    mode: http
    listen: 127.0.0.1:{front}
    client_tls: {{certificate: mail{more}}}
    check: none
    real_servers: {{web1: {web}}}
"""
ECHO = """\
version: 1
# changed by many hands
workers: 2
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
real_servers:
  ex1: 127.0.0.1   # rack one
  # rack two
  ex2: {{address: 127.0.0.1, weight: 2}}
services:
  # everybody's
  echo:
    mode: tcp
    listen: 127.0.0.1:{front}   # vip
    check: {{type: none}}
    ramp_s: 0
    real_servers:
      ex1: {ex1}
      ex2: {{port: {ex2}}}   # the new one
# the end
"""


@contextmanager
def opened(folder: Path, text: str, **words: Any) -> Iterator[tuple[Door, int]]:
    """A balancer with an administrator's token, and the port of its service."""
    door_port, front = free_port(), free_port()
    with Balancer(text.format(door=door_port, front=front, **words), folder) as balancer:
        door = Door(door_port, balancer, folder)
        door.token = tokens.create(folder / "tokens", "jane", Role.ADMIN, "2026-01-01")
        yield door, front


def fingerprint(issued: Issued) -> str:
    return issued.certificate.fingerprint(hashes.SHA256()).hex()


def test_certificates_change_and_no_handshake_fails(tmp_path: Path, authority: Authority) -> None:
    """RSA and ECDSA in turn, in whole handshakes; each client also gets its page."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "mail.pem").write_bytes(authority.issue(NAME).pem.read_bytes())
    renewed = [authority.issue(NAME, rsa_bits=2048 if number % 2 else 0) for number in range(2)]
    with Web("web1") as web, opened(tmp_path, WEB, web=web.port, more="") as (door, front):

        def call() -> str:
            context = authority.client_context()
            with (
                socket.create_connection(("127.0.0.1", front), timeout=20) as plain,
                context.wrap_socket(plain, server_hostname=NAME) as client,
            ):
                client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
                answer = client.makefile("rb").read()
                assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
                der = client.getpeercert(binary_form=True)
                assert der is not None
                digest = hashes.Hash(hashes.SHA256())
                digest.update(der)
                return digest.finalize().hex()

        with Callers(call) as callers:
            for number in range(10):
                issued = renewed[number % 2]
                body = {"pem": issued.chain.read_text(), "key": issued.key.read_text()}
                answer = door.ask("PUT", "/api/v1/certificates/mail", body)
                assert answer.status == 200, answer
                assert call() == fingerprint(issued)
                callers.more(4)
        assert callers.failures == []
        assert {fingerprint(issued) for issued in renewed} <= set(callers.answers)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_other_authorities_of_clients_count_after_a_reload(
    tmp_path: Path, authority: Authority, version: ssl.TLSVersion
) -> None:
    """The file has the same name and another content. A client of before does not get in by resuming, either."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "mail.pem").write_bytes(authority.issue(NAME).pem.read_bytes())
    staff = []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        staff.append(Authority(tmp_path / name, name))
    authorities = tmp_path / "staff.pem"
    authorities.write_bytes(staff[0].file.read_bytes())
    contexts = [authority.client_context() for _ in staff]
    for context, one in zip(contexts, staff, strict=True):
        member = one.issue("a member", for_clients=True)
        context.load_cert_chain(member.chain, member.key)
        context.minimum_version = context.maximum_version = version
    more = f", client_ca: {authorities}, client_certificate: required"
    with Web("web1") as web, opened(tmp_path, WEB, web=web.port, more=more) as (door, front):

        def enters(context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
            try:
                with (
                    socket.create_connection(("127.0.0.1", front), timeout=20) as plain,
                    context.wrap_socket(plain, server_hostname=NAME, session=session) as client,
                ):
                    client.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n".encode())
                    entered = client.makefile("rb").read().startswith(b"HTTP/1.1 200")
                    assert not entered or client.session_reused == (session is not None)
                    return client.session if entered else None
            except OSError:
                return None

        session = enters(contexts[0])
        assert session is not None
        assert enters(contexts[0], session) is not None, "it can be resumed"
        assert enters(contexts[1]) is None
        authorities.write_bytes(staff[1].file.read_bytes())
        door.balancer.reload()
        assert enters(contexts[1]) is not None
        assert enters(contexts[0]) is None
        assert enters(contexts[0], session) is None


def a_change(number: int, extra: int) -> tuple[str, str, Any, dict[str, Any]]:
    """Method, path and body of a change, and what the file then says of `echo` and the others."""
    here = "/api/v1/config"
    weight = number % 9 + 1
    match number % 5:
        case 0:
            return "PUT", f"{here}/services/echo/real-servers/ex1/weight", {"weight": weight}, {"ex1": weight}
        case 1:
            return "PUT", f"{here}/services/echo/real-servers/ex2/weight", {"weight": weight}, {"ex2": weight}
        case 2:
            settings = {"mode": "tcp", "listen": f"127.0.0.1:{extra}", "check": "none", "real_servers": {"ex1": 9}}
            return "PUT", f"{here}/services/more", {"settings": settings}, {"services": ["echo", "more"]}
        case 3:
            return "PUT", f"{here}/services/more/real-servers/ex2", {"settings": 9}, {"more": ["ex1", "ex2"]}
    return "DELETE", f"{here}/services/more", None, {"services": ["echo"]}


def agrees(told: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether the balancer's state is what the change wanted."""
    services = {one["name"]: one["pools"][0]["real_servers"] for one in told["services"]}
    weights = {one["name"]: one["weight"] for one in services["echo"]}
    found = {**weights, "services": list(services), "more": [one["name"] for one in services.get("more", [])]}
    return all(found[key] == value for key, value in wanted.items())


def written(text: str) -> dict[str, Any]:
    """The same facts as the file has them."""
    services = yaml.safe_load(text)["services"]
    members = services["echo"]["real_servers"]
    weights = {name: one.get("weight") for name, one in members.items() if isinstance(one, dict)}
    more = services.get("more", {}).get("real_servers", {})
    return {**weights, "services": list(services), "more": list(more)}


def test_a_hundred_changes_and_no_connection_fails(tmp_path: Path) -> None:
    with (
        Echo("ex1") as ex1,
        Echo("ex2") as ex2,
        opened(tmp_path, ECHO, ex1=ex1.port, ex2=ex2.port) as (door, front),
    ):
        comments = re.findall(r"#.*", door.file)

        def call() -> str:
            with socket.create_connection(("127.0.0.1", front), timeout=20) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert client.makefile("rb").read() == b"hello"
            return "hello"

        extra = free_port()
        lasting = socket.create_connection(("127.0.0.1", front), timeout=20)
        with lasting, Callers(call) as callers:
            etag = door.etag()
            for number in range(100):
                method, path, body, wanted = a_change(number, extra)
                answer = door.ask(method, path, body, If_Match=etag)
                assert answer.status == 200, (number, answer)
                etag = answer.headers["ETag"]
                assert agrees(door.balancer.status(), wanted), number
                assert {key: written(door.file)[key] for key in wanted} == wanted, number
                callers.more(2)
            lasting.sendall(b"still here")
            assert lasting.recv(100) == b"still here"
        assert callers.failures == []
        assert len(callers.answers) >= 200
        assert re.findall(r"#.*", door.file) == comments
        assert len(door.get("/config/history")["history"]) == 50
        sessions = "the sessions have ended"
        eventually(lambda: door.balancer.service("echo")["sessions"] == 0, what=sessions)


def test_many_hands_at_once_leave_one_truth(tmp_path: Path) -> None:
    """Eight administrators change, reload, drain and bring certificates at the same time, and one looks on."""

    def hand(door: Door, number: int) -> list[int]:
        name, statuses = f"ex{number % 2 + 1}", []
        for turn in range(6):
            weight = {"weight": number + turn + 1}
            made = {"names": [f"n{number}.example.com"], "key": "ecdsa-p256"}
            wait = ("POST", f"/api/v1/real-servers/{name}/{'drain' if turn % 2 else 'enable'}", {})
            change = ("PUT", f"/api/v1/config/services/echo/real-servers/{name}/weight", weight)
            bring = ("POST", f"/api/v1/certificates/n{number}/self-signed", made)
            reload = ("POST", "/api/v1/reload", None)
            for method, path, body in (change, wait, bring, reload)[: 4 if turn == 0 else 2]:
                tag = "*" if turn % 2 else door.etag()
                statuses.append(door.ask(method, path, body, If_Match=tag).status)
        return statuses

    with (
        Echo("ex1") as ex1,
        Echo("ex2") as ex2,
        opened(tmp_path, ECHO, ex1=ex1.port, ex2=ex2.port) as (door, _front),
        ThreadPoolExecutor(9) as hands,
    ):
        comments = re.findall(r"#.*", door.file)
        asked = [hands.submit(hand, door, number) for number in range(8)]
        looked = [door.ask("GET", f"/api/v1{path}").status for path in ("/config", "/status", "/certificates") * 5]
        statuses = {status for one in asked for status in one.result()}
        assert set(looked) == {200}
        assert statuses <= {200, 412}, "somebody who has not seen the newest file is told so"
        for name in ("ex1", "ex2"):
            assert written(door.file)[name] == door.balancer.real_server("echo", name)["weight"]
        assert re.findall(r"#.*", door.file) == comments
        names = {f"n{number}" for number in range(8)}
        assert set(yaml.safe_load(door.file)["certificates"]) == names
        assert {one["name"] for one in door.get("/certificates")["certificates"]} == names
        assert {path.name for path in (tmp_path / "certs").iterdir()} == {f"{name}.pem" for name in names}
        assert door.get("/config")["pending"] is False
