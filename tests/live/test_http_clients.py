"""Clients that people have: curl, openssl and a browser, through an http service with TLS on both sides."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.demo.test_demo import RunningDemo
from tests.support.apache import Apache
from tests.support.certs import Authority, Issued
from tests.support.ports import free_port
from tests.support.program import Balancer
from tests.support.tools import require

pytestmark = pytest.mark.live

NAME, OTHER = "mail.example.com", "webmail.example.com"
LARGE_BYTES = 256 * 1024 * 1024
REQUEST = f"GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"


class Front:
    """A balancer with two certificates in front of two Apaches."""

    def __init__(self, balancer: Balancer, port: int, authority: Authority) -> None:
        self.balancer, self.port, self._authority = balancer, port, authority

    def curl(self, *arguments: str) -> str:
        """What curl prints about verified requests."""
        command = [require("curl"), "-sS", "--max-time", "60", "--noproxy", "*", "--cacert", str(self._authority.file)]
        command += ["--resolve", f"{NAME}:{self.port}:127.0.0.1", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=70, check=True).stdout

    def url(self, path: str = "/") -> str:
        return f"https://{NAME}:{self.port}{path}"

    def openssl(self, *arguments: str, name: str = NAME) -> str:
        """What `openssl s_client` prints about one request."""
        command = [require("openssl"), "s_client", "-connect", f"127.0.0.1:{self.port}", "-servername", name]
        command += ["-CAfile", str(self._authority.file), "-ign_eof", *arguments]
        done = subprocess.run(command, input=REQUEST, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def front(authority: Authority, certificate: Issued, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "mail.ocsp").write_bytes(authority.answer(certificate))
    port = free_port()
    with Apache("web1", certificate, LARGE_BYTES) as web1, Apache("web2", certificate, LARGE_BYTES) as web2:
        verify = {"ca": str(authority.file), "name": NAME}
        service: dict[str, Any] = {
            "mode": "http",
            "listen": f"127.0.0.1:{port}",
            "client_tls": {"certificate": ["mail", "other"]},
            "server_tls": {"verify": verify},
            "persist": {"by": "cookie", "key_file": str(folder / "keys")},
            "check": "none",
            "real_servers": {"web1": web1.https_port, "web2": web2.https_port},
        }
        mail = {"chain": str(certificate.chain), "key": str(certificate.key), "ocsp": str(folder / "mail.ocsp")}
        config = {
            "certificates": {"mail": mail, "other": str(authority.issue(OTHER).pem)},
            "real_servers": {"web1": "127.0.0.1", "web2": "127.0.0.1"},
            "services": {"web": service},
        }
        with Balancer(config, folder) as balancer:
            yield Front(balancer, port, authority)


# ------------------------------------------------------------ curl


def test_curl_keeps_its_connection_and_its_server(front: Front, tmp_path: Path) -> None:
    jar = str(tmp_path / "jar")
    said = front.curl("-c", jar, "-b", jar, "-w", "%{num_connects} %{http_version}\n", *[front.url()] * 3)
    answers = re.findall(r"(web[12]) \n([01]) 1\.1", said)
    assert [connects for _, connects in answers] == ["1", "0", "0"]
    again = [front.curl("-b", jar, front.url()).split()[0] for _ in range(6)]
    assert {name for name, _ in answers} == set(again)
    cookie = Path(jar).read_text()
    assert "#HttpOnly_" in cookie
    assert not re.search(r"web1|web2|127\.0\.0\.1:", cookie)


def test_curl_waits_for_100_before_it_sends(front: Front) -> None:
    said = front.curl("-v", "-H", "Expect: 100-continue", "-d", "x" * 2000, "--stderr", "-", front.url())
    assert "HTTP/1.1 100 Continue" in said
    assert "HTTP/1.1 200 OK" in said


def test_curl_sends_chunks_without_saying_how_many(front: Front, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(5_000_000))
    chunked = ["-H", "Transfer-Encoding: chunked", "-H", "Expect:", "--data-binary", f"@{body}"]
    status, uploaded = front.curl(*chunked, "-w", "%{http_code} %{size_upload}", front.url()).split()[-2:]
    assert status == "200"
    assert int(uploaded) > 5_000_000  # with the chunks' sizes


def test_large_bodies_both_ways_in_bounded_memory(front: Front, tmp_path: Path) -> None:
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(LARGE_BYTES)
    before = resident_kib(front.balancer)
    said = front.curl(
        "-T", str(body), "-X", "POST", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", front.url("/index.html")
    )
    assert said == f"200 {LARGE_BYTES}"
    said = front.curl("-o", "/dev/null", "-w", "%{http_code} %{size_download}", front.url("/large"))
    assert said == f"200 {LARGE_BYTES}"
    assert resident_kib(front.balancer) - before < 16 * 1024


def resident_kib(balancer: Balancer) -> int:
    """Memory of the fattest worker."""
    found = []
    for pid in balancer.worker_pids:
        status = Path(f"/proc/{pid}/status").read_text()
        found.append(int(status.partition("VmHWM:")[2].split()[0]))
    return max(found)


# ------------------------------------------------------------ openssl


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_versions(front: Front, version: str) -> None:
    said = front.openssl(f"-tls{version.replace('.', '_')}")
    assert f"New, TLSv{version}" in said
    assert "Verify return code: 0 (ok)" in said
    assert "HTTP/1.1 200 OK" in said


def test_older_versions_are_refused(front: Front) -> None:
    said = front.openssl("-tls1_1", "-cipher", "ALL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in said


@pytest.mark.parametrize(("name", "shown"), [(NAME, NAME), (OTHER, OTHER), ("elsewhere.example.com", NAME)])
def test_certificate_by_name(front: Front, name: str, shown: str) -> None:
    assert re.search(rf"subject=CN ?= ?{re.escape(shown)}", front.openssl(name=name))


def test_protocols(front: Front) -> None:
    assert "ALPN protocol: http/1.1" in front.openssl("-alpn", "h2,http/1.1")


def test_an_answer_of_the_issuer_is_stapled(front: Front) -> None:
    assert "OCSP Response Status: successful" in front.openssl("-status")
    assert "OCSP response: no response sent" in front.openssl("-status", name=OTHER)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_sessions_are_resumed_on_every_worker_and_after_a_reload(front: Front, tmp_path: Path, version: str) -> None:
    session = str(tmp_path / "session")
    front.openssl(version, "-sess_out", session)
    for round_ in range(2):
        for _ in range(8):  # two workers: chances are 1 in 128 that all land on one
            assert "Reused, TLSv1." in front.openssl(version, "-sess_in", session)
        if not round_:
            text = front.balancer.config_file.read_text()
            front.balancer.reload(text + "\n# changed\n")


# ------------------------------------------------------------ a browser


def test_a_browser_stays_on_one_server_of_the_demo() -> None:
    chromium = require("chromium")
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp") as folder, RunningDemo(Path(folder)) as demo:
        demo.ready()
        url = demo.wait_for(r"(https://127\.0\.0\.1:[0-9]+)/owa/").group(1)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--ignore-certificate-errors", "--virtual-time-budget=10000", f"--user-data-dir={folder}/profile"]
        flags += ["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
        done = subprocess.run(
            [chromium, *flags, "--dump-dom", f"{url}/"], capture_output=True, text=True, timeout=60, check=False
        )
    page = done.stdout
    title = re.search(r"<title>(ex[123])</title>", page)
    again = re.search(r'<b id="again">([^<]*)</b>', page)
    assert title, done.stderr[-2000:]
    assert again, page
    assert again.group(1).split() == [title.group(1)] * 5
