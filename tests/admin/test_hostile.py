"""What strangers send, and what another site makes a browser send: none of it is a way in."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.admin.tokens import Role
from tests.admin.door import Door, open_door
from tests.support.browser import Browser
from tests.support.ports import free_port
from tests.support.servers import Connection, Echo, Named, Server
from tests.support.waiting import eventually
from tests.support.web import Web

EVIL = "<img src=x onerror=document.title='hacked'>"
#: Shorter than a label may be, for where a name belongs.
EVIL_NAME = "<svg/onload=document.title='hacked'>.example"
CONFIG = """\
version: 1
workers: 1
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
real_servers: {{ex1: 127.0.0.1}}
services:
  smtp:
    mode: smtp
    listen: 127.0.0.1:{smtp}
    client_tls: {{starttls: none}}
    server_tls: {{starttls: none}}
    check: {{type: smtp, interval_s: 1, timeout_s: 1}}
    real_servers: {{ex1: {mx}}}
  tls:
    mode: tls
    listen: 127.0.0.1:{pop}
    check: {{type: none}}
    real_servers: {{ex1: {echo}}}
  web:
    mode: http
    listen: 127.0.0.1:{web}
    check: {{type: http, interval_s: 1, timeout_s: 1, path: /}}
    real_servers: {{ex1: {behind}}}
"""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with ExitStack() as stack:
        mx = stack.enter_context(Named("421", banner=f"554 {EVIL}"))
        echo = stack.enter_context(Echo("echo"))
        behind = stack.enter_context(Web(EVIL))
        ports = {"mx": mx.port, "echo": echo.port, "behind": behind.port, "web": free_port()}
        door = stack.enter_context(open_door(tmp_path, CONFIG, **ports))
        door.make_tokens()
        yield door


def port_of(door: Door, service: str) -> int:
    return int(door.get(f"/services/{service}")["listen"][0].rpartition(":")[2])


def client_hello(name: str) -> bytes:
    """A ClientHello that asks for any bytes as a name."""
    placeholder = ("a" * 60 + ".example")[-len(name) :]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=placeholder)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    hello = outgoing.read()
    assert hello.count(placeholder.encode()) == 1
    return hello.replace(placeholder.encode(), name.encode())


@contextmanager
def strangers(door: Door) -> Iterator[None]:
    """Every way a stranger has to leave words behind, with the connections kept open."""
    said = {
        "smtp": f"EHLO {EVIL}\r\nMAIL FROM:<{EVIL}@example.com>\r\n{EVIL}\r\n".encode(),
        "tls": client_hello(EVIL_NAME),
        "web": f"GET /{EVIL.replace(' ', '')} HTTP/1.1\r\nHost: {EVIL_NAME}\r\nUser-Agent: {EVIL}\r\n\r\n".encode(),
    }
    said_again = {"web": f"GET / HTTP/1.1\r\nHost: a.example\r\nUser-Agent: {EVIL}\r\nX-Forwarded-For: {EVIL}\r\n\r\n"}
    with ExitStack() as stack:
        for service, words in [*said.items(), *((name, text.encode()) for name, text in said_again.items())]:
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(door, service)), timeout=10))
            client.sendall(words)
            client.settimeout(1.0)
            try:
                client.recv(4096)
            except OSError:
                continue
        yield


@pytest.mark.live
def test_words_of_strangers_never_run_on_the_page(door: Door) -> None:
    """HELO, SNI, User-Agent, Host, path, a server's banner, a token that is none, a name in a refused change."""
    with strangers(door), Browser() as browser:
        door.ask("GET", "/api/v1/services", User_Agent=EVIL, Authorization=f"Bearer {EVIL}")
        door.ask("POST", "/api/v1/persistence/clear", {"group": EVIL, "key": EVIL})
        door.ask("PUT", "/api/v1/config", {"text": f'services: {{"{EVIL}": 1}}'}, If_Match="*")
        door.ask("PUT", "/api/v1/config", {"text": door.file + f"# {EVIL}\n"}, If_Match="*")
        eventually(lambda: EVIL in str(door.get("/services/smtp")), what="the banner is told")
        browser.size(1280, 900)
        browser.open(f"http://127.0.0.1:{door.port}/")
        browser.type("#token", door.secrets[Role.ADMIN])
        browser.click("Log in")
        browser.sees("Overview", "smtp")
        seen = ""
        for name in (
            "",
            "service/smtp",
            "service/tls",
            "service/web",
            "real-servers",
            "events",
            "configuration",
            "audit",
        ):
            browser.run(f'location.hash = "#/{name}"')
            eventually(lambda: browser.run('document.querySelector("main h1") !== null'))
            seen += browser.sees("mailbalancer")
            seen += str(browser.run("document.body.innerText"))
            foreign = 'document.querySelectorAll("main img:not(.way), main script, [onload], [onerror]").length'
            assert browser.run(foreign) == 0, name
        browser.run('location.hash = "#/service/smtp"')
        browser.sees("<img src=x onerror")
        assert browser.run("document.title") == "mailbalancer"
        assert "<img src=x" in seen


FORM = """<!doctype html><title>evil</title><form id=f method=post enctype="{kind}" action="{to}"><input name='{name}'
value='{value}'></form><script>document.getElementById("f").submit()</script>"""
SCRIPT = """<!doctype html><title>evil</title><script>
const sent = [];
for (const kind of ["text/plain", "application/x-www-form-urlencoded", "application/json"])
  for (const mode of ["no-cors", "cors"])
    sent.push(fetch("{to}",
      {{method: "POST", mode, credentials: "include", headers: {{"Content-Type": kind}}, body: "{{}}"}})
      .then((answer) => answer.text()).then((text) => text.length, () => -1));
sent.push(fetch("{read}", {{credentials: "include"}}).then((a) => a.text()).then((text) => text.length, () => -1));
Promise.all(sent).then((lengths) => {{ document.title = "done " + lengths.filter((n) => n > 0).length; }});
</script>"""


@contextmanager
def evil_site(page: str) -> Iterator[int]:
    """A site of somebody else's, that answers everything with one page."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    client.settimeout(0.5)  # a browser opens connections that it may not need
                    client.recv(65536)
                    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\n"
                    client.sendall(f"{head}Connection: close\r\n\r\n{page}".encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture
def visitor(door: Door) -> Iterator[Browser]:
    """Somebody who is logged in, and then follows a link."""
    with Browser() as browser:
        browser.open(f"http://127.0.0.1:{door.port}/")
        browser.type("#token", door.secrets[Role.ADMIN])
        browser.click("Log in")
        browser.sees("Overview", "smtp")
        yield browser
        browser.errors.clear()  # that the browser refuses is what is wanted


def states(door: Door) -> set[str]:
    return {
        server["admin"]
        for service in door.balancer.status()["services"]
        for pool in service["pools"]
        for server in pool["real_servers"]
    }


@pytest.mark.live
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_form_of_another_site_drains_nothing(door: Door, visitor: Browser, kind: str) -> None:
    """The other site has our address and another port: for cookies that is the same site (RFC 6265 section 8.5)."""
    to = f"http://127.0.0.1:{door.port}/api/v1/real-servers/ex1/drain"
    page = FORM.format(kind=kind, to=to, name='{"service": "", "x": "', value='"}')
    with evil_site(page) as port:
        visitor.open(f"http://127.0.0.1:{port}/")
        visitor.sees('"error"')
    assert states(door) == {"enabled"}


@pytest.mark.live
def test_a_script_of_another_site_drains_nothing_and_reads_nothing(door: Door, visitor: Browser) -> None:
    here = f"http://127.0.0.1:{door.port}/api/v1"
    page = SCRIPT.format(to=f"{here}/real-servers/ex1/drain", read=f"{here}/visit")
    with evil_site(page) as port:
        visitor.open(f"http://127.0.0.1:{port}/")
        eventually(lambda: str(visitor.run("document.title")).startswith("done"), what="the script has tried")
        assert visitor.run("document.title") == "done 0"
    assert states(door) == {"enabled"}


@pytest.mark.live
def test_the_page_cannot_be_put_into_a_frame(door: Door, visitor: Browser) -> None:
    with evil_site(f'<!doctype html><title>evil</title><iframe src="http://127.0.0.1:{door.port}/"></iframe>') as port:
        visitor.open(f"http://127.0.0.1:{port}/")
        eventually(lambda: visitor.run("document.readyState") == "complete", what="the page is there")
        inside = "(() => { try { return document.querySelector('iframe').contentDocument; } catch { return 'x'; } })()"
        assert visitor.run(f"{inside} === null")


def test_a_check_asks_its_real_server_and_nobody_else(tmp_path: Path) -> None:
    """No address in a path or a redirect leads a check elsewhere, and only an administrator may write one."""
    with socket.create_server(("127.0.0.1", 0)) as canary, Redirecting(canary.getsockname()[1]) as behind:
        elsewhere = f"127.0.0.1:{canary.getsockname()[1]}"
        ports = {"mx": 9, "echo": 9, "behind": behind.port, "web": free_port()}
        with open_door(tmp_path, CONFIG, **ports) as door:
            door.make_tokens()
            for path in ("/", f"//{elsewhere}/", f"/@{elsewhere}", f"/http://{elsewhere}/"):
                answer = put_check(door, {"type": "http", "interval_s": 1, "timeout_s": 1, "path": path})
                assert answer.status == 200, answer
                eventually(lambda: behind.was_asked(path), what=f"{path} was asked of the real server")  # noqa: B023
            for path in (f"http://{elsewhere}/", "x", "/a\r\nHost: b", "/a b"):
                answer = put_check(door, {"type": "http", "interval_s": 1, "timeout_s": 1, "path": path})
                assert answer.status == 422, (path, answer)
            refused = put_check(door, {"type": "http", "path": "/"}, token=door.secrets[Role.OPERATE])
            assert refused.status == 403
            looked = door.ask("POST", "/api/v1/config/check", {"text": "x"}, token=door.secrets[Role.OPERATE])
            assert looked.status == 403, "it would say which files there are on this machine"
        canary.settimeout(0)
        with pytest.raises(BlockingIOError):
            canary.accept()


class Redirecting(Server):
    """Sends everybody on to another port."""

    def __init__(self, to: int) -> None:
        super().__init__("redirecting")
        self._to = to

    def serve(self, connection: Connection) -> None:
        while data := connection.read():
            if data.endswith(b"\r\n\r\n"):
                where = f"Location: http://127.0.0.1:{self._to}/\r\nContent-Length: 0\r\n"
                connection.socket.sendall(f"HTTP/1.1 302 Found\r\n{where}Connection: close\r\n\r\n".encode())
                return

    def was_asked(self, path: str) -> bool:
        return any(one.received.startswith(f"GET {path} HTTP/1.1\r\n".encode()) for one in self.connections)


def put_check(door: Door, check: dict[str, Any], **options: Any) -> Any:
    settings = {**door.get("/config/services/web")["settings"], "check": check}
    return door.ask("PUT", "/api/v1/config/services/web", {"settings": settings}, If_Match="*", **options)
