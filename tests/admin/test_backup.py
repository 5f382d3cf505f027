from __future__ import annotations

import io
import re
import stat
import tarfile
from pathlib import Path

import pytest

from mailbalancer.admin import backup
from mailbalancer.admin.tokens import Role
from mailbalancer.errors import ConfigError, MailbalancerError
from tests.admin.door import open_door
from tests.support.certs import Authority
from tests.support.program import Balancer, run_cli
from tests.support.servers import Echo


def test_a_backup_brings_back_what_was_drained_and_nobody_s_keys(tmp_path: Path) -> None:
    saved = tmp_path / "saved.tar.gz"
    with open_door(tmp_path) as door:
        door.make_tokens()
        balancer = door.balancer
        balancer.command("drain", real_server="ex2")
        assert balancer.cli("backup", str(saved)).returncode == 0
        again = balancer.cli("backup", str(saved))
        assert (again.returncode, "File exists" in again.stderr) == (1, True)
        refused = balancer.cli("restore", str(saved))
        assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
        elsewhere = run_cli("restore", str(saved), "-c", str(tmp_path / "other.yaml"))
        assert (elsewhere.returncode, "stop it first" in elsewhere.stderr) == (1, True), "its state is that one's too"
        content = b"".join(backup.unpack(saved).values())
        assert not [s for s in door.secrets.values() if s.encode() in content]
        assert b"sha256:" not in content
        before = door.file
        assert balancer.stop() == 0
        balancer.config_file.write_text("services: {}\n")
        balancer.state_file.unlink()
        restored = balancer.cli("restore", str(saved))
        assert restored.returncode == 0, restored
        assert door.file == before
        balancer.start()
        assert balancer.real_server("smtp", "ex2")["admin"] == "draining"


SECURE = """\
version: 1
workers: 1
user: ""
admin: {{listen: "127.0.0.1:{door}", tokens_file: tokens}}
certificates: {{mail: certs/mail.pem}}   # kept
real_servers: {{ex1: 127.0.0.3, ex2: 127.0.0.2}}
services:
  imap:
    mode: imap
    listen: 127.0.0.1:{smtp}
    client_tls: {{starttls: implicit, certificate: mail, client_ca: staff/authority.pem}}
    server_tls: {{starttls: none}}
    check: {{type: none}}
    persist: {{by: source, timeout_s: 600}}
    real_servers: {{ex1: {echo}, ex2: {echo}}}
  owa:
    mode: http
    listen: 127.0.0.1:{pop}
    check: none
    persist: {{by: cookie, key_file: secrets/cookies.key}}
    real_servers: {{ex1: 9}}
"""


def test_another_machine_takes_over_with_its_keys(tmp_path: Path) -> None:
    """Drained servers, persistence and certificates arrive; tokens do not, and without its keys a backup says so."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in ("certs", "staff", "secrets"):
        (here / folder).mkdir(parents=True)
    there.mkdir()
    authority = Authority(here / "staff")
    authority.issue("mail.example.com").pem.rename(here / "certs" / "mail.pem")
    with (
        Echo("ex1", "127.0.0.3") as ex1,
        Echo("ex2", "127.0.0.2", ex1.port),
        open_door(here, SECURE, echo=ex1.port) as door,
    ):
        door.make_tokens()
        balancer = door.balancer
        balancer.command("drain", real_server="ex2")
        made = ("certificates", "csr", "next", "--name", "next.example.com", "--key-type", "ecdsa-p256")
        assert balancer.cli(*made).returncode == 0
        for options in ((), ("--with-keys",)):
            assert balancer.cli("backup", *options, str(tmp_path / f"backup{len(options)}.tar.gz")).returncode == 0
        without, with_keys = (backup.unpack(tmp_path / f"backup{number}.tar.gz") for number in range(2))
    assert set(without) == {"about.json", "mailbalancer.yaml", "state.json"}
    named = {
        "certs/mail.pem",
        "staff/authority.pem",
        "secrets/cookies.key",
        "certs/next.waiting.key",
        "certs/next.waiting.csr",
    }
    assert set(with_keys) - set(without) == {f"files/{name}" for name in named}
    for secret in door.secrets.values():
        assert secret.encode() not in b"".join(with_keys.values())

    target = there / "mailbalancer.yaml"
    own = (f"state_file: {here}/state.json", f"state_file: {there}/state.json")
    for archive, contents in (("moved0", without), ("moved1", with_keys)):
        text = contents["mailbalancer.yaml"].decode().replace(*own)
        text = re.sub(r"control_socket: .*\n", "", text)  # a path of the first machine's
        (tmp_path / archive).write_bytes(backup.pack({**contents, "mailbalancer.yaml": text.encode()}))
    refused = run_cli("restore", str(tmp_path / "moved0"), "-c", str(target))
    assert (refused.returncode, "certs/mail.pem cannot be read" in refused.stderr) == (1, True), refused
    assert list(there.iterdir()) == []
    restored = run_cli("restore", str(tmp_path / "moved1"), "-c", str(target))
    assert restored.returncode == 0, restored
    for name in named:
        assert (there / name).read_bytes() == (here / name).read_bytes()
        assert stat.S_IMODE((there / name).stat().st_mode) == 0o600
    with Balancer(target.read_text(), there) as after:
        assert after.real_server("imap", "ex2")["admin"] == "draining"
        assert "key waits" in after.cli("certificates", "list").stdout


def test_what_support_gets_has_no_secret(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        door.make_tokens()
        made = tmp_path / "support.tar.gz"
        assert door.balancer.cli("support", str(made)).returncode == 0
        with tarfile.open(made) as archive:
            names = archive.getnames()
            content = b"".join(archive.extractfile(name).read() for name in names)  # type: ignore[union-attr]
    assert set(names) == {"about.json", "status.json", "sessions.json", "events.json", "mailbalancer.yaml"}
    assert door.secrets[Role.ADMIN].encode() not in content
    assert b"tokens_file: tokens" in content or b"<hidden>" in content
    hidden = backup.without_secrets("a:\n  password: geheim\n  'api_token': x y\n  port: 25\n")
    assert hidden == "a:\n  password: <hidden>\n  'api_token': <hidden>\n  port: 25\n"


def archive_of(path: Path, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for entry_name, data in (("about.json", b"{}"), (name, content)):
            entry = tarfile.TarInfo(entry_name)
            entry.size = len(data)
            entry.type = kind if entry_name == name else tarfile.REGTYPE
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../mailbalancer.yaml",
            "/etc/passwd",
            "else.txt",
            "tokens",
            "files/../../x",
            "files//etc/x",
            "files/",
            "files",
        ),
        *("files/./x", "files/a/../x"),
    ],
)
def test_nothing_else_comes_out_of_an_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(MailbalancerError, match="is no backup"):
        backup.restore(archive_of(tmp_path / "x", name, b"x"), tmp_path / "mailbalancer.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_and_broken_archives_are_refused(tmp_path: Path) -> None:
    link = archive_of(tmp_path / "x", backup.CONFIG, b"", tarfile.SYMTYPE)
    broken = tmp_path / "y"
    broken.write_bytes(link.read_bytes()[:-20])
    text = tmp_path / "z"
    text.write_text("hello")
    for path in (link, broken, text, tmp_path / "none"):
        with pytest.raises(MailbalancerError):
            backup.unpack(path)


def test_a_configuration_that_does_not_fit_is_not_restored(tmp_path: Path) -> None:
    made = archive_of(tmp_path / "x", backup.CONFIG, b"services: {s: {mode: nonsense}}")
    with pytest.raises(ConfigError):
        backup.restore(made, tmp_path / "mailbalancer.yaml")
    assert not (tmp_path / "mailbalancer.yaml").exists()
    said = run_cli("restore", str(made), "-c", str(tmp_path / "mailbalancer.yaml"))
    assert said.returncode == 1
    assert "nonsense" in said.stderr
