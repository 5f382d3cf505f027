"""The door: files that are there and not, the complete example, and two hundred broken ones."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailbalancer import model
from mailbalancer.config.load import load, load_text, tree
from mailbalancer.errors import ConfigError
from tests.support.certs import Authority

PROFILES = Path(__file__).parent / "profiles"
EXAMPLE = (Path(__file__).parent / "complete.yaml").read_text()

SEED = """\
# the whole of it
version: 1
admin: {listen: 127.0.0.1:8404}
workers: 2
log: {to: stderr, format: json, sessions: yes}
real_servers:
  ex1: 10.0.2.11
  ex2: {address: 10.0.2.12, weight: 2, max_sessions: 5000}
  ex6: "2001:db8::6"
profiles:
  little-mail: {vip: 10.0.1.9, real_servers: [ex1, ex6], host: m.example, prefix: p-}
services:
  in: {profile: little-mail-smtp, listen: "10.0.1.8:25", host: mail.example.com, real_servers: [ex1, ex2]}
  smtp:
    mode: tcp
    listen:
      - 10.0.1.100:25
      - "[2001:db8::100]:25"
    schedule: weighted_least_connections
    ramp_s: 300
    check: &check {type: smtp, interval_s: 10, timeout_s: 5, rise: 2, fall: 3}
    proxy_protocol: {accept_from: [10.3.0.0/16], send: v2}
    queue: {size: 10, timeout_s: 3}
    deny: [10.66.0.0/16]
    real_servers: {ex1: 25, ex2: {port: 25, weight: 1, state: draining}}
  submission: {mode: tcp, listen: "10.0.1.100:587", real_servers: [ex1, ex2], check: *check}
  rpc-mapper: {mode: tcp, listen: "10.0.1.100:135", real_servers: [ex1, ex2], persist: {by: source, group: cas}}
  rpc-cas: {mode: tcp, listen: "10.0.1.100:59531", real_servers: [ex1, ex2], persist: {by: source, group: cas}}
  web:
    mode: tls
    listen: "*:443"
    real_servers: [ex1, ex2]
    persist: tls_session_id
    routes:
      owa: {host: [mail.example.com, "*.mail.example.com"], check: {type: https, status: [200, 301-302]}}
"""
TOKENS = [
    "",
    "null",
    "true",
    "-1",
    "0",
    "1e400",
    ".inf",
    "99999999999999999999",
    "''",
    "[]",
    "{}",
    "[[]]",
    "{a: }",
    "*x",
    "&x",
    "<<: *check",
    "!!python/name:os.system",
    "\t",
    "\x00",
    "\x1b[31m",
    "é",
    "\U0001f4ec",
    "\u2028",
    "%",
    "@",
    "`",
    "|",
    ">",
    "---",
    "...",
    "?",
    ":",
    "- ",
    "#",
    "'",
    '"',
    "{",
    "]",
    "${host}",
    "10.0.0.0/33",
    "[::1]:25",
    "*:25",
    "none",
    "http",
    "l4",
    "cookie",
    "profile: little-mail-smtp",
    "mode: smtp",
    "x" * 5000,
    "\r",
    "\r\n",
    "\ufeff",
    "[key]",
    "../../etc/passwd",
]


def mutated(seed: int, text: str = SEED) -> str:
    """One to four small wrongs done to a right file."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        lines = text.split("\n")
        at = chance.randrange(len(lines))
        match chance.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, chance.choice(lines))
            case 2:
                other = chance.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = re.sub(r"(?<=: )[^,{}]+", lambda _: chance.choice(TOKENS), lines[at], count=1)
            case 4:
                lines[at] = re.sub(r"\b\w+(?=:)", lambda _: chance.choice(TOKENS), lines[at], count=1)
            case 5:
                cut = chance.randint(0, len(lines[at]))
                lines[at] = lines[at][:cut] + chance.choice(TOKENS) + lines[at][cut:]
            case 6:
                cut = chance.randint(0, len(lines[at]))
                lines[at] = lines[at][:cut] + lines[at][cut + 1 :]
            case 7:
                lines[at] = " " * chance.randrange(9) + lines[at].lstrip()
        text = "\n".join(lines)
    return text


def test_the_seed_is_right() -> None:
    config = load_text(SEED, "x.yaml", profile_dirs=[PROFILES])
    assert len(config.services) == 8


def _points_into(problem: str, text: str) -> bool:
    """Whether a problem is one line that names a line of the file."""
    found = re.match(r"x\.yaml:([0-9]+): ", problem)
    lines = len(re.split(r"\r\n|\r|\n", text))
    return found is not None and 1 <= int(found[1]) <= lines and problem.isprintable()


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_mutated_files_are_right_or_told_line_by_line(first: int) -> None:
    """Nothing but a configuration or a ConfigError comes out, and every line of it has a file and a line."""
    refused = 0
    for seed in range(first, first + 50):
        text = mutated(seed)
        try:
            config = load_text(text, "x.yaml", profile_dirs=[PROFILES])
        except ConfigError as error:
            refused += 1
            wrong = [line for line in error.problems or [""] if not _points_into(line, text)]
        else:
            wrong = [] if isinstance(config, model.Config) else [str(config)]
        assert wrong == [], f"seed {seed}"
    assert refused > 20


@pytest.mark.parametrize("first", range(0, 100, 50))
def test_mutated_profiles_are_right_or_told_line_by_line(first: int, tmp_path: Path) -> None:
    right = (PROFILES / "little-mail.yaml").read_text()
    file = tmp_path / "little-mail.yaml"
    for seed in range(first, first + 50):
        text = mutated(seed, right)
        file.write_bytes(text.encode())
        wrong: list[str] = []
        try:
            load_text(SEED, "x.yaml", profile_dirs=[tmp_path])
        except ConfigError as error:
            wrong = [
                line
                for line in error.problems
                if not _points_into(line, SEED) and not _points_into(line.replace(str(file), "x.yaml"), text)
            ]
        assert wrong == [], f"seed {seed}"


def test_the_complete_example_lacks_only_what_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "certs").mkdir()
    pem = Authority(tmp_path).issue("mail.example.com").pem
    (tmp_path / "certs/mail.example.com.pem").write_bytes(pem.read_bytes())
    (tmp_path / "exchange-2019.yaml").write_text(
        "profile: exchange-2019\ntitle: t\nparameters:\n"
        "  host: {description: name, type: host}\n  certificate: {description: c, type: certificate}\n"
        "services:\n  https: {port: 443, mode: http, client_tls: {certificate: '${certificate}'},"
        " server_tls: {verify: full}, routes:"
        " {owa: {host: '${host}'}}}\n"
    )
    load_text(EXAMPLE, "x.yaml", folder=tmp_path, profile_dirs=[tmp_path])
    later = {model.Mode.HTTP, model.Mode.SMTP, model.Mode.L4}
    monkeypatch.setattr(model, "AVAILABLE_MODES", model.AVAILABLE_MODES - later)
    with pytest.raises(ConfigError) as refused:
        load_text(EXAMPLE, "x.yaml", folder=tmp_path, profile_dirs=[tmp_path])
    assert len(refused.value.problems) == len(later)
    assert all("is not available in this version (available: " in problem for problem in refused.value.problems)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "no.yaml")
    assert caught.value.problems == [
        f"{tmp_path}/no.yaml:1: the file cannot be read: No such file or directory; "
        "correct the path, or put the file there"
    ]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.problems == [f"{tmp_path}:1: the file cannot be read: Is a directory; name a file in it"]


def test_a_file_and_its_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "control_socket: c.sock\nreal_servers: {a: 10.0.0.1}\n"
    text += "services: {s: {mode: tcp, listen: ':25', real_servers: a}}\n"
    (tmp_path / "m.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    config = load(Path("m.yaml"))
    assert config.path == "m.yaml"
    assert config.control_socket == str(tmp_path / "c.sock")


def test_text_with_a_broken_character() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("a: \ud800\n", "x.yaml")
    assert caught.value.problems == ["x.yaml:1: byte 0xed is not UTF-8; save the file as UTF-8"]


def test_a_tree_is_refused_with_its_profiles_problems(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("services: {s: {profile: nothing}}\n")
    with pytest.raises(ConfigError) as caught:
        tree(tmp_path / "m.yaml", profile_dirs=[tmp_path])
    assert "there is no profile 'nothing'; no profile was found in" in caught.value.problems[0]


def test_the_nouns_alone_do_not_load_the_schema() -> None:
    """Whoever only reads a configuration does not pay for validating one."""
    code = "import sys, mailbalancer.model; sys.exit('pydantic' in sys.modules or 'yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
