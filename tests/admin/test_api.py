"""The door of a real balancer: who gets in, what is said, and what a change leaves behind."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailbalancer.admin.tokens import Role
from tests.admin.door import Door, open_door
from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer, run_cli
from tests.support.program import Refused as RefusedCommand
from tests.support.tools import require
from tests.support.waiting import eventually


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as door:
        door.make_tokens()
        yield door


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Door]:
    """Without any token."""
    with open_door(tmp_path) as door:
        yield door


OPERATIONS = ("/status", "/services", "/real-servers", "/sessions", "/persistence", "/certificates", "/profiles")
MORE = ("/events", "/statistics", "/config", "/config/history", "/config/schema", "/openapi.json", "/services/smtp")


# ---------------------------------------------------------------- access


def test_without_a_token_loopback_reads_and_nothing_writes(bare: Door) -> None:
    assert {bare.ask("GET", f"/api/v1{path}").status for path in (*OPERATIONS, *MORE)} == {200}
    assert bare.ask("GET", "/metrics").status == 200
    before = bare.file
    described = bare.get("/openapi.json")["paths"]
    for path, methods in described.items():
        for method in methods:
            if method != "get":
                place = re.sub(r"\{\w+\}", "1", path)
                assert bare.ask(method.upper(), place, {}, If_Match="*").status == 403, (method, path)
    assert bare.file == before
    assert bare.get("/services")["services"][0]["ready"] == 2


def test_every_operation_asks_for_its_role(door: Door) -> None:
    needed = {}
    for path, methods in door.get("/openapi.json")["paths"].items():
        for method, described in methods.items():
            needed[(method.upper(), re.sub(r"\{\w+\}", "1", path))] = Role(described["description"].split("`")[1])
    for (method, path), role in needed.items():
        for has in Role:
            answer = door.ask(method, path, {} if method != "GET" else None, token=door.secrets[has])
            assert (answer.status == 403) == (not has.covers(role)), (method, path, has, answer)


def test_the_metrics_role_sees_metrics_and_nothing_else(door: Door) -> None:
    secret = door.secrets[Role.METRICS]
    assert door.ask("GET", "/metrics", token=secret).status == 200
    assert {door.ask("GET", f"/api/v1{path}", token=secret).status for path in (*OPERATIONS, *MORE)} == {403}
    assert door.ask("GET", "/metrics", Authorization="none").status == 401


def test_a_rebound_name_gets_nothing(door: Door) -> None:
    for path in ("/", "/metrics", "/api/v1/services", "/api/v1/visit"):
        assert door.ask("GET", path, Host=f"evil.example:{door.port}").status == 403
    assert door.ask("GET", "/api/v1/services", Host="mail-lb.example.com").status == 200


def log_in(door: Door, role: Role) -> tuple[str, str]:
    """The cookie and the CSRF token of a visit."""
    answer = door.ask("POST", "/api/v1/visit", {"token": door.secrets[role]}, token="")
    assert answer.status == 200, answer
    cookie = answer.headers["Set-Cookie"]
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict"))
    return cookie.split(";")[0], answer.json["csrf"]


def test_a_visit_of_the_page_can_change_only_with_its_own_script(door: Door) -> None:
    cookie, csrf = log_in(door, Role.OPERATE)
    token, door.token = door.token, ""
    drain = "/api/v1/real-servers/ex1/drain"
    assert door.ask("GET", "/api/v1/visit", Cookie=cookie).json["csrf"] == csrf
    assert door.ask("POST", drain, {}, Cookie=cookie).status == 403
    assert door.ask("POST", drain, {}, Cookie=cookie, X_CSRF_Token="x").status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"):
        sent = {"Cookie": cookie, "X_CSRF_Token": csrf, "Content_Type": kind}
        assert door.ask("POST", drain, raw=b"{}", **sent).status == 415
    evil = {"Cookie": cookie, "X_CSRF_Token": csrf, "Origin": "http://evil.example"}
    assert door.ask("POST", drain, {}, **evil).status == 403
    assert {s["admin"] for s in door.balancer.service("smtp")["pools"][0]["real_servers"]} == {"enabled"}
    assert door.ask("POST", drain, {}, Cookie=cookie, X_CSRF_Token=csrf).status == 200
    assert door.balancer.real_server("smtp", "ex1")["admin"] == "draining"
    assert door.ask("DELETE", "/api/v1/visit", Cookie=cookie, X_CSRF_Token=csrf).status == 200
    assert door.ask("GET", "/api/v1/services", Cookie=cookie).status == 401
    door.token = token


def test_guessing_tokens_is_slowed_down(door: Door) -> None:
    statuses = [door.ask("POST", "/api/v1/visit", {"token": f"mb_{n}"}, token="").status for n in range(20)]
    assert statuses[0] == 401
    assert statuses.count(429) >= 10
    right = {"token": door.secrets[Role.READ]}
    assert door.ask("POST", "/api/v1/visit", right, token="").status == 429, "not even the right one, for a while"
    assert door.ask("GET", "/api/v1/services").status == 200, "a program that has its token goes on"


def test_a_revoked_token_is_out_at_once(door: Door) -> None:
    cookie, _ = log_in(door, Role.READ)
    assert run_cli("token", "list", "--file", str(door.folder / "tokens")).stdout.count("a-read") == 1
    assert door.balancer.cli("token", "revoke", "a-read").returncode == 0
    assert door.ask("GET", "/api/v1/services", token="", Cookie=cookie).status == 401
    assert door.ask("GET", "/api/v1/services", token=door.secrets[Role.READ]).status == 401
    made = door.balancer.cli("token", "create", "new", "--role", "read")
    assert door.ask("GET", "/api/v1/services", token=made.stdout.strip()).status == 200


def test_every_answer_is_safe_for_a_browser(door: Door) -> None:
    for path in ("/", "/app.js", "/app.css", "/api/v1/services", "/nothing", "/api/v1/services/none", "/metrics"):
        headers = door.ask("GET", path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers


def test_secrets_never_come_back(door: Door) -> None:
    everything = b"".join(door.ask("GET", f"/api/v1{path}").body for path in (*OPERATIONS, *MORE, "/audit"))
    everything += door.ask("GET", "/metrics").body + door.balancer.log_text().encode()
    hashes = re.findall(r"sha256:(\w+)", (door.folder / "tokens").read_text())
    for secret in (*door.secrets.values(), *hashes):
        assert secret.encode() not in everything


# ---------------------------------------------------------------- operating


def test_an_action_is_announced_done_and_written_down(door: Door) -> None:
    plan = door.get("/real-servers/ex2/plan?action=drain")
    assert re.fullmatch(r"drain ex2 from 2 services: 0 sessions, ends by \d\d:\d\d UTC", plan["says"])
    done = door.ask("POST", "/api/v1/real-servers/ex2/drain", {"service": "smtp"}, token=door.secrets[Role.OPERATE])
    assert done.json["before"] == {"smtp": "enabled"}
    assert door.balancer.real_server("smtp", "ex2")["admin"] == "draining"
    assert door.balancer.real_server("pop", "ex2")["admin"] == "enabled"
    assert door.get("/real-servers/ex1/plan?action=drain")["warnings"] == [
        "smtp: no other real server is ready, new sessions will be refused"
    ]
    entry = door.get("/audit")["entries"][-1]
    assert (entry["who"], entry["role"], entry["from"], entry["outcome"]) == (
        "a-operate",
        "operate",
        "127.0.0.1",
        "done",
    )
    assert "enabled" in entry["before"]
    assert "draining" in entry["after"]
    assert "audit who=a-operate" in door.balancer.log_text()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/real-servers/none/drain", {}, 404),
        ("POST", "/real-servers/ex1/drain", {"service": "none"}, 404),
        ("POST", "/real-servers/ex1/drain", {"servise": "smtp"}, 400),
        ("POST", "/real-servers/ex1/drain", {"service": 1}, 400),
        ("POST", "/real-servers/ex1/drain", [], 400),
        ("GET", "/services/none", None, 404),
        ("GET", "/services/..%2f..%2fetc", None, 400),
        ("GET", "/sessions?limit=0", None, 400),
        ("GET", "/sessions?limit=+1_0", None, 400),
        ("GET", "/sessions?limit=1&limit=2", None, 400),
        ("GET", "/sessions?service=none", None, 400),
        ("GET", "/config/history/0", None, 400),
        ("GET", "/config/history/99", None, 404),
        ("PATCH", "/services", None, 405),
        ("PUT", "/config/services/smtp", {"settings": {}}, 428),
    ],
)
def test_what_is_not_described_is_refused_in_words(door: Door, method: str, path: str, body: Any, status: int) -> None:
    answer = door.ask(method, f"/api/v1{path}", body)
    assert answer.status == status, answer
    assert answer.json["error"]


def test_broken_bodies_are_refused(door: Door) -> None:
    kind = {"Content_Type": "application/json"}
    for raw in (b"{", b"\xff", b"[" * 100_000, b'{"service": "' + b"x" * 3_000_000 + b'"}'):
        answer = door.ask("POST", "/api/v1/real-servers/ex1/drain", raw=raw, **kind)
        assert answer.status in (400, 413), answer
    assert door.balancer.real_server("smtp", "ex1")["admin"] == "enabled"


# ---------------------------------------------------------------- the configuration


def test_a_change_is_applied_and_written_back_with_its_comments(door: Door) -> None:
    before = door.file
    comments = re.findall(r"#.*", before)
    path = "/api/v1/config/services/smtp/real-servers/ex1/weight"
    answer = door.ask("PUT", path, {"weight": 3}, If_Match=door.etag())
    assert answer.status == 200, answer
    assert answer.json["changes"] == ["service smtp, real server ex1: weight 1 -> 3"]
    assert door.balancer.real_server("smtp", "ex1")["weight"] == 3
    assert re.findall(r"#.*", door.file) == comments
    wanted = yaml.safe_load(before)
    wanted["services"]["smtp"]["real_servers"]["ex1"] = {"port": 9, "weight": 3}
    assert yaml.safe_load(door.file) == wanted
    assert answer.headers["ETag"] == door.etag()


def test_a_service_comes_and_goes(door: Door) -> None:
    port = free_port()
    settings = {"mode": "tcp", "listen": f"127.0.0.1:{port}", "check": {"type": "none"}, "real_servers": {"ex1": 9}}
    before = door.file
    looked = door.ask("PUT", "/api/v1/config/services/new?dry_run=true", {"settings": settings}, If_Match="*")
    assert looked.json["applied"] is False
    assert f"+    listen: 127.0.0.1:{port}" in looked.json["diff"]
    assert door.file == before
    assert door.ask("PUT", "/api/v1/config/services/new", {"settings": settings}, If_Match="*").status == 200
    assert door.balancer.service("new")["listen"] == [f"127.0.0.1:{port}"]
    assert door.get("/config/services/new")["settings"] == settings
    assert door.ask("DELETE", "/api/v1/config/services/new", If_Match=door.etag()).status == 200
    assert door.file == before
    assert door.ask("DELETE", "/api/v1/config/services/new", If_Match="*").status == 404


def test_a_wrong_change_changes_nothing_and_names_every_problem(door: Door) -> None:
    before, version = door.file, door.balancer.status()["config_version"]
    for settings in ({"mode": "tcp"}, {"mode": "nonsense"}, {"mode": "tcp", "listen": "x", "real_servers": ["none"]}):
        answer = door.ask("PUT", "/api/v1/config/services/bad", {"settings": settings}, If_Match="*")
        assert answer.status == 422
        assert answer.json["problems"]
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {"mode": "tcp", "listen": listen, "real_servers": {"ex1": 9}}
        answer = door.ask("PUT", "/api/v1/config/services/bad", {"settings": settings}, If_Match="*")
    assert answer.status == 409
    assert listen in answer.json["error"]
    assert door.file == before
    assert door.balancer.status()["config_version"] - version <= 2, "taken back"
    assert [s["name"] for s in door.balancer.status()["services"]] == ["smtp", "pop"]


def test_of_two_writers_at_once_one_is_told(door: Door) -> None:
    etag = door.etag()

    def write(weight: int) -> int:
        return door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": weight}, If_Match=etag).status

    with ThreadPoolExecutor(2) as both:
        assert sorted(both.map(write, [5, 6])) == [200, 412]


def test_history_keeps_what_ran_and_leads_back(door: Door) -> None:
    original = door.file
    for weight in (2, 3):
        door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": weight}, If_Match="*")
    door.balancer.config_file.write_text(door.file + "# by hand\n")
    assert door.get("/config")["pending"]
    door.balancer.command("reload")
    rows = door.get("/config/history")["history"]
    assert [(row["number"], row["who"]) for row in rows] == [(4, "file"), (3, "a-admin"), (2, "a-admin"), (1, "file")]
    assert "weight: 3" in door.get("/config/history/3")["diff"]
    assert door.ask("POST", "/api/v1/config/history/1/rollback", If_Match=door.etag()).status == 200
    assert door.file == original
    rows = door.get("/config/history")["history"]
    assert rows[0]["what"] == "back to configuration 1"
    assert door.balancer.stop() == 0
    door.balancer.start()
    eventually(lambda: door.ask("GET", "/").status == 200, what="the door is open again")
    assert door.get("/config/history")["history"] == rows
    assert "weight: 3" in door.get("/config/history/3")["diff"]


def test_a_profile_is_looked_at_and_applied(door: Door) -> None:
    settings = {"vip": "127.0.0.9", "real_servers": ["ex1", "ex2"]}
    names = [profile["profile"] for profile in door.get("/profiles")["profiles"]]
    assert {"exchange-2019", "smtp-relay"} <= set(names)
    shown = door.get("/profiles/exchange-2019")
    assert "profile: exchange-2019" in shown["text"]
    assert shown["checklist"]
    apply = "/api/v1/profiles/dns/apply?dry_run=true"
    looked = door.ask("POST", apply, {"name": "names", "settings": settings}, If_Match="*")
    assert looked.status == 200, looked
    assert "+    profile: dns" in looked.json["diff"]
    wrong = {"name": "names", "settings": {**settings, "vip": "nowhere"}}
    assert door.ask("POST", apply, wrong, If_Match="*").status == 422
    assert door.ask("POST", apply.replace("dns", "none"), {"name": "x", "settings": {}}, If_Match="*").status == 404


def test_maintenance_is_announced_begun_and_ended(door: Door) -> None:
    plan = door.get("/real-servers/ex1/plan?action=maintenance")
    assert plan["says"].startswith("drain ex1 from 2 services: 0 sessions, ends by ")
    assert plan["says"].endswith("; closed once it is empty, until it is brought back")
    begun = door.ask("POST", "/api/v1/real-servers/ex1/maintenance", {"until": "23:59"})
    assert (begun.status, begun.json["before"]) == (200, {"smtp": "enabled", "pop": "enabled"})
    eventually(lambda: door.get("/maintenance")["active"][0]["says"].startswith("ex1 is empty: safe to reboot; comes"))
    refused = door.ask("POST", "/api/v1/real-servers/ex2/maintenance", {})
    assert (refused.status, "ex2 is needed" in refused.json["error"]) == (409, True)
    assert door.ask("POST", "/api/v1/real-servers/exx/maintenance", {}).status == 404
    assert door.ask("POST", "/api/v1/real-servers/ex1/maintenance", {"until": "soon"}).status == 409
    assert door.ask("POST", "/api/v1/real-servers/ex1/maintenance/stop").status == 200
    eventually(lambda: door.balancer.real_server("smtp", "ex1")["admin"] == "enabled")
    events = [event["text"] for event in door.get("/events?limit=500")["events"]]
    assert any(text.startswith("maintenance of ex1 begins (a-admin) until ") for text in events)
    assert any("maintenance_start" in entry["what"] for entry in door.get("/audit")["entries"])


def test_windows_are_planned_in_the_file(door: Door) -> None:
    window = {"real_server": "ex1", "from": "sunday 01:00", "until": "sunday 03:00"}
    added = door.ask("POST", "/api/v1/config/maintenance/windows", window, If_Match=door.etag())
    assert added.status == 200, added
    assert "# mail comes in here" in door.file
    assert door.get("/maintenance")["windows"][0]["says"] == "ex1 every Sunday 01:00 to Sunday 03:00"
    once = {"real_server": "ex2", "from": "2099-11-28 22:00", "until": "2099-11-28 21:00"}
    wrong = door.ask("POST", "/api/v1/config/maintenance/windows", once, If_Match=door.etag())
    assert (wrong.status, "is not after" in wrong.json["problems"][0]) == (422, True)
    path = "/api/v1/config/maintenance/windows/{}"
    assert door.ask("DELETE", path.format(2), If_Match=door.etag()).status == 404
    assert door.ask("DELETE", path.format(1), If_Match=door.etag()).status == 200
    assert door.get("/maintenance")["windows"] == []


def test_a_hundred_changes_leave_file_and_state_equal(door: Door) -> None:
    comments = re.findall(r"#.*", door.file)
    for number in range(1, 101):
        name, weight = f"ex{1 + number % 2}", number % 7 + 1
        path = f"/api/v1/config/services/smtp/real-servers/{name}/weight"
        assert door.ask("PUT", path, {"weight": weight}, If_Match=door.etag()).status == 200
        written = yaml.safe_load(door.file)["services"]["smtp"]["real_servers"][name]["weight"]
        assert written == weight == door.balancer.real_server("smtp", name)["weight"]
    assert re.findall(r"#.*", door.file) == comments
    assert len(door.get("/config/history")["history"]) == 50


# ---------------------------------------------------------------- what stays true of the supervisor


def test_the_door_starts_no_thread(door: Door) -> None:
    for path in (*OPERATIONS, *MORE):
        door.get(path)
    door.ask("PUT", "/api/v1/config/real-servers/ex1/weight", {"weight": 2}, If_Match="*")
    status = Path(f"/proc/{door.balancer.pid}/status").read_text()
    assert re.search(r"^Threads:\s+1$", status, re.MULTILINE)


def test_a_door_that_cannot_be_opened_is_said_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        file = tmp_path / "mailbalancer.yaml"
        file.write_text(
            f"admin: {{listen: '127.0.0.1:{taken.getsockname()[1]}'}}\nworkers: 1\nuser: ''\nstate_file: ''\n"
            f"control_socket: {tmp_path}/c\nreal_servers: {{a: 127.0.0.1}}\n"
            f"services: {{s: {{mode: tcp, listen: '127.0.0.1:{free_port()}', real_servers: {{a: 9}}}}}}\n"
        )
        said = run_cli("run", "-c", str(file))
    assert said.returncode == 1
    assert "admin.listen" in said.stderr


def test_metrics_pass_promtool(door: Door) -> None:
    promtool = require("promtool")
    answer = door.ask("GET", "/metrics", token=door.secrets[Role.METRICS])
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    said = subprocess.run([promtool, "check", "metrics"], input=answer.body, capture_output=True, check=False)
    assert (said.returncode, said.stdout + said.stderr) == (0, b"")
    assert b'mailbalancer_real_server_ready{service="smtp",route="",real_server="ex1"} 1' in answer.body


def test_the_live_feed_tells_what_happens(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as viewer:
        viewer.sendall(
            b"GET /api/v1/live?service=smtp HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Authorization: Bearer " + door.token.encode() + b"\r\n\r\n"
        )
        stream = viewer.makefile("rb")

        def told() -> dict[str, Any]:
            while True:
                line = stream.readline()
                assert line
                if line.startswith(b"data: "):
                    return json.loads(line[6:])  # type: ignore[no-any-return]

        first = told()
        assert [service["name"] for service in first["services"]] == ["smtp", "pop"]
        assert first["service"]["pools"][0]["real_servers"][0]["state"] == "not checked"
        door.ask("POST", "/api/v1/real-servers/ex1/drain", {})
        eventually(lambda: told()["service"]["pools"][0]["real_servers"][0]["admin"] == "draining", what="it is told")
    assert door.balancer.stop() == 0, "a viewer does not hold up the end"


def test_a_reload_moves_the_door_and_closes_it(door: Door) -> None:
    old, door.port = door.port, free_port()
    door.balancer.reload(door.file.replace(str(old), str(door.port)))
    eventually(lambda: door.ask("GET", "/").status == 200, what="the door has moved")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=5)
    taken = socket.create_server(("127.0.0.1", 0))
    with taken:
        door.balancer.reload(door.file.replace(str(door.port), str(taken.getsockname()[1])))
        assert door.ask("GET", "/").status == 200, "what cannot be had leaves the door where it was"
        assert "the door stays as it was" in door.balancer.log_text()


def test_tls_with_certificates_of_visitors(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours = authority.issue("127.0.0.1")
    visitor = authority.issue("jane", for_clients=True)
    curl = require("curl")
    config = """\
workers: 1
user: ""
admin: {{listen: "127.0.0.1:{door}", certificate: door, client_ca: {ca}}}
certificates: {{door: {pem}}}
real_servers: {{ex1: 127.0.0.1}}
services: {{smtp: {{mode: tcp, listen: "127.0.0.1:{smtp}", real_servers: {{ex1: 9}}, check: {{type: none}}}}}}
"""
    port = free_port()
    text = config.format(door=port, smtp=free_port(), ca=authority.file, pem=ours.pem)
    with Balancer(text, tmp_path):
        ask = [curl, "-sS", "--cacert", str(authority.file), f"https://127.0.0.1:{port}/api/v1/services"]
        with_one = [*ask, "--cert", str(visitor.chain), "--key", str(visitor.key)]
        said = subprocess.run(with_one, capture_output=True, check=False, timeout=20)
        assert json.loads(said.stdout)["services"][0]["name"] == "smtp", said.stderr
        assert subprocess.run(ask, capture_output=True, check=False, timeout=20).returncode != 0
        plain = [curl, "-sS", f"http://127.0.0.1:{port}/"]
        assert subprocess.run(plain, capture_output=True, check=False, timeout=20).returncode != 0


def test_other_authorities_and_certificates_count_after_a_reload(tmp_path: Path) -> None:
    """Both files change under the same names; whoever was let in before is not let in by a session of then."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    one, two = (Authority(folder) for folder in folders)
    certificate, authorities = tmp_path / "door.pem", tmp_path / "visitors.pem"
    certificate.write_bytes(one.issue("127.0.0.1", rsa_bits=2048).pem.read_bytes())
    authorities.write_bytes(one.file.read_bytes())
    visitors = [each.issue("jane", for_clients=True) for each in (one, two)]
    config = """\
workers: 1
user: ""
admin: {{listen: "127.0.0.1:{door}", certificate: door, client_ca: {ca}}}
certificates: {{door: {pem}}}
real_servers: {{ex1: 127.0.0.1}}
services: {{smtp: {{mode: tcp, listen: "127.0.0.1:{smtp}", real_servers: {{ex1: 9}}, check: {{type: none}}}}}}
"""
    port = free_port()
    with Balancer(config.format(door=port, smtp=free_port(), ca=authorities, pem=certificate), tmp_path) as balancer:
        before = visits(port, one, visitors, ssl.TLSVersion.TLSv1_2) + visits(port, one, visitors)
        assert [got for got, _ in before] == [True, False, True, False]
        certificate.write_bytes(two.issue("127.0.0.1").pem.read_bytes())
        authorities.write_bytes(two.file.read_bytes())
        balancer.command("reload")
        after = visits(port, two, visitors, ssl.TLSVersion.TLSv1_2) + visits(port, two, visitors)
        assert [got for got, _ in after] == [False, True, False, True]
        for version, (_, session) in zip((ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), before[::2], strict=True):
            assert not visit(port, two, visitors[0], version, session)[0]
        authorities.write_text("nothing")
        with pytest.raises(RefusedCommand, match="holds no certificate"):
            balancer.command("reload")
        assert [got for got, _ in visits(port, two, visitors)] == [False, True]


def visits(
    port: int, trusted: Authority, visitors: list[Issued], version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> list[tuple[bool, ssl.SSLSession | None]]:
    return [visit(port, trusted, one, version) for one in visitors]


def visit(
    port: int, trusted: Authority, visitor: Issued, version: ssl.TLSVersion, session: ssl.SSLSession | None = None
) -> tuple[bool, ssl.SSLSession | None]:
    """Whether this visitor is answered, and a session to resume."""
    context = _CONTEXTS.setdefault((id(trusted), id(visitor), version), trusted.client_context())
    if session is not None:  # a session belongs to the context it began in
        context = next(c for (_, who, v), c in _CONTEXTS.items() if (who, v) == (id(visitor), version))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(visitor.chain, visitor.key)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as encrypted,
        ):
            encrypted.sendall(b"GET /api/v1/services HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return encrypted.recv(12) == b"HTTP/1.1 200", encrypted.session
    except OSError:
        return False, None


_CONTEXTS: dict[tuple[int, int, ssl.TLSVersion], ssl.SSLContext] = {}
