"""nginx behind `tcp` and `tls` services: routes by name, and http and https checks that verify or say why not."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certs import Authority
from tests.support.ports import free_port, free_ports
from tests.support.program import Balancer
from tests.support.real_servers import Nginx
from tests.support.tools import require
from tests.support.waiting import eventually

pytestmark = pytest.mark.live


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [require("curl"), "--silent", "--show-error", "--max-time", "10", "--noproxy", "*"]
    return subprocess.run(
        [*command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False
    )


def https(authority: Authority, port: int, name: str) -> subprocess.CompletedProcess[str]:
    """One verified request for `https://NAME/` that goes to `port` of 127.0.0.1."""
    return curl("--cacert", str(authority.file), "--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}/")


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return dict(zip(("http", "routed"), free_ports(2), strict=True))


@pytest.fixture(scope="module")
def balancer(
    web1: Nginx, web2: Nginx, authority: Authority, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancer]:
    check = {"type": "https", "interval_s": 1, "rise": 1, "fall": 1}

    def verified(name: str) -> dict[str, Any]:
        return {**check, "verify": {"ca": str(authority.file), "name": name}}

    services = {
        "web": {
            "mode": "tcp",
            "listen": f"127.0.0.1:{ports['http']}",
            "schedule": "round_robin",
            "real_servers": {"web1": web1.http_port, "web2": web2.http_port},
            "check": {"type": "http", "interval_s": 1, "rise": 1, "fall": 1, "body": "^web[12] "},
        },
        "routed": {
            "mode": "tls",
            "listen": f"127.0.0.1:{ports['routed']}",
            "unknown_sni": "refuse",
            "routes": {
                "one": {
                    "host": "mail.example.com",
                    "real_servers": {"web1": web1.https_port},
                    "check": verified("mail.example.com"),
                },
                "two": {
                    "host": "*.example.com",
                    "real_servers": {"web2": web2.https_port},
                    "check": verified("web2.example.com"),
                },
            },
        },
    }
    config = {"real_servers": {"web1": "127.0.0.1", "web2": "127.0.0.1"}, "services": services}
    with Balancer(config, tmp_path_factory.mktemp("balancer")) as running:
        for service, server, route in (
            ("web", "web1", ""),
            ("web", "web2", ""),
            ("routed", "web1", "one"),
            ("routed", "web2", "two"),
        ):
            up = eventually(lambda s=service, n=server, r=route: running.real_server(s, n, r)["check"])
            assert up["verdict"] == "up", up
        yield running


def test_requests_are_shared(balancer: Balancer, ports: dict[str, int]) -> None:
    answers = [curl(f"http://127.0.0.1:{ports['http']}/").stdout.split()[0] for _ in range(8)]
    assert set(answers) == {"web1", "web2"}


def test_names_have_their_routes(balancer: Balancer, authority: Authority, ports: dict[str, int]) -> None:
    assert https(authority, ports["routed"], "mail.example.com").stdout == "web1 mail.example.com\n"
    assert https(authority, ports["routed"], "web2.example.com").stdout == "web2 web2.example.com\n"
    wrong_name = https(authority, ports["routed"], "web3.example.com")  # routed, and shown web2's certificate
    assert wrong_name.returncode == 60, wrong_name
    nobody = https(authority, ports["routed"], "a.b.example.com")
    assert nobody.returncode == 35, nobody
    assert "unrecognized name" in nobody.stderr


def test_smoke_goes_through_each_route(balancer: Balancer) -> None:
    shown = balancer.cli("smoke", "routed")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "mail.example.com" in shown.stdout


def one_service(server: Nginx, port: int, **check: Any) -> dict[str, Any]:
    service = {
        "mode": "tcp",
        "listen": f"127.0.0.1:{free_port()}",
        "real_servers": {server.name: port},
        "check": {"interval_s": 1, "timeout_s": 5, "rise": 1, "fall": 1, **check},
    }
    return {"real_servers": {server.name: "127.0.0.1"}, "services": {"web": service}}


def checked(balancer: Balancer) -> dict[str, Any] | None:
    """The only real server, once it has been checked."""
    (server,) = balancer.service("web")["pools"][0]["real_servers"]
    return server if server["check"] else None


def judged(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """The only real server after its first check, and what `status` prints about it."""
    with Balancer(config, folder) as balancer:
        server = eventually(lambda: checked(balancer), what="checked")
        return server, " ".join(balancer.cli("status").stdout.split())


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [
        (("elsewhere.example.com",), 90, ["mail.example.com", "elsewhere.example.com"]),
        (("mail.example.com",), -3, ["expired"]),
    ],
)
def test_a_certificate_that_must_not_be_trusted_is_down_and_named(
    authority: Authority, tmp_path: Path, names: tuple[str, ...], days: float, words: list[str]
) -> None:
    with Nginx("bad", authority.issue(*names, days=days)) as bad:
        verify = {"ca": str(authority.file), "name": "mail.example.com"}
        server, shown = judged(one_service(bad, bad.https_port, type="https", verify=verify), tmp_path)
    assert server["up"] is False
    for word in words:
        assert word in server["check"]["reason"]
        assert word in server["last_flip"]["reason"]
        assert word in shown


def test_a_strange_authority_is_down_and_named(web1: Nginx, tmp_path: Path) -> None:
    server, shown = judged(one_service(web1, web1.https_port, type="https"), tmp_path)
    assert server["up"] is False
    assert "authorit" in server["check"]["reason"], server["check"]
    assert "authorit" in shown


def test_verification_can_be_switched_off_by_a_word(web1: Nginx, tmp_path: Path) -> None:
    server, _ = judged(one_service(web1, web1.https_port, type="https", verify="none"), tmp_path)
    assert server["up"] is True


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"type": "http", "path": "/broken"}, ["500"]),
        ({"type": "http", "body": "no such words"}, ["no such words"]),
        ({"type": "https", "verify": "none"}, ["TLS"]),
    ],
)
def test_a_wrong_answer_is_down_and_says_why(
    web1: Nginx, tmp_path: Path, check: dict[str, Any], words: list[str]
) -> None:
    server, shown = judged(one_service(web1, web1.http_port, **check), tmp_path)
    assert server["up"] is False
    for word in words:
        assert word in server["check"]["reason"], server["check"]
        assert word in shown


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nginx_is_told_the_client_and_checked_behind_the_header(
    authority: Authority, web1: Nginx, tmp_path: Path, scheme: str, version: str
) -> None:
    behind = web1.proxied_http_port if scheme == "http" else web1.proxied_https_port
    trusted = {"verify": {"ca": str(authority.file), "name": "mail.example.com"}} if scheme == "https" else {}
    config = one_service(web1, behind, type=scheme, **trusted)
    config["services"]["web"]["proxy_protocol"] = {"send": version}
    port = int(config["services"]["web"]["listen"].rpartition(":")[2])
    before = web1.log_text().count("broken header")
    with Balancer(config, tmp_path) as balancer:
        server = eventually(lambda: checked(balancer), what="checked")
        assert server["up"] is True, server["check"]
        url = f"{scheme}://mail.example.com:{port}/"
        resolved = ["--resolve", f"mail.example.com:{port}:127.0.0.1", "--cacert", str(authority.file)]
        assert curl("--interface", "127.0.0.55", *resolved, url).stdout == "127.0.0.55\n"
    assert web1.log_text().count("broken header") == before
