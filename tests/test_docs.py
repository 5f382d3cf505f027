"""The operator's documents are true: their keys and defaults are the schema's, their configurations load, their links
lead somewhere, and the commands they name exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from mailbalancer.cli import commands
from mailbalancer.config.load import json_schema, load_text
from mailbalancer.model import AVAILABLE_MODES, Mode, Schedule
from mailbalancer.wire import imap_greeting, pop3_greeting
from mailbalancer.wire.smtp_answers import Answer
from tests.support.certs import Authority

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Keys may stand in `configuration.md` or in pages beside it (`configuration-….md`).
REFERENCE = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("configuration*.md")))
TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
DEFINITIONS: dict[str, Any] = json_schema()["$defs"]

_TABLE = re.compile(r"<!-- keys: (\w+)(?: beyond (\w+))? -->\n\n((?:\|.*\n)+)")
_COMPLETE = re.compile(r"<!-- complete -->\n```yaml\n(.*?)```", re.DOTALL)
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"`(mailbalancer [^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


# keys


def definition(name: str) -> dict[str, Any]:
    return json_schema() if name == "Document" else DEFINITIONS[name]


def tables() -> list[tuple[str, str, dict[str, str]]]:
    """Every table of keys: its model, the model whose keys it leaves out, and its keys with their defaults."""
    found = []
    for name, beyond, rows in _TABLE.findall(REFERENCE):
        cells = [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows.splitlines()[2:]]
        found.append((name, beyond, {row[0].strip("`"): row[1] for row in cells}))
    return found


TABLES = tables()


def reachable() -> set[str]:
    """The models of the schema that a file in the available modes can use."""
    seen: set[str] = set()
    waiting = [json_schema() | {"$defs": {}}]
    while waiting:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(waiting.pop())):
            mode = DEFINITIONS[name].get("properties", {}).get("mode", {}).get("const")
            if name not in seen and (mode is None or mode in AVAILABLE_MODES):
                seen.add(name)
                waiting.append(DEFINITIONS[name])
    return seen


@pytest.mark.parametrize("name", ["Document", *sorted(reachable())])
def test_every_key_is_documented(name: str) -> None:
    keys = definition(name).get("properties", {})
    assert [key for key in keys if f"| `{key}` |" not in REFERENCE] == []


@pytest.mark.parametrize(("name", "beyond", "rows"), TABLES, ids=[name for name, _, _ in TABLES])
def test_a_table_has_the_keys_and_defaults_of_the_schema(name: str, beyond: str, rows: dict[str, str]) -> None:
    properties = definition(name)["properties"]
    known = set(properties) - (set(definition(beyond)["properties"]) if beyond else set())
    assert set(rows) == known
    for key, cell in rows.items():
        value = properties[key].get("default")
        if isinstance(value, str | int | float) and value != "" and "by port" not in cell:
            word = str(value).lower() if isinstance(value, bool) else str(value)
            assert f"`{word}`" in cell, f"{name}.{key} is {value!r} by default, not {cell}"
        if key in definition(name).get("required", ()) and key != "type":
            assert cell == "required", f"{name}.{key} must be given"


def test_there_are_tables() -> None:
    assert {"Document", "TcpService", "TlsService", "Queue"} <= {name for name, _, _ in TABLES}


# configurations


def complete() -> list[tuple[str, str]]:
    return [
        (f"{shown(path)}#{at}", text) for path in PAGES for at, text in enumerate(_COMPLETE.findall(path.read_text()))
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the certificates lie that pages name."""
    folder = tmp_path_factory.mktemp("etc")
    (folder / "certs").mkdir()
    issued = Authority(folder).issue("mail.example.com", "a.example.com", "b.example.com")
    issued.pem.rename(folder / "certs" / "mail.example.com.pem")
    return folder


@pytest.mark.parametrize(("where", "text"), complete(), ids=[where for where, _ in complete()])
def test_a_complete_configuration_can_be_run(
    where: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert load_text(text, where.replace("/", " ")).services


def test_pages_have_complete_configurations() -> None:
    pages = {where.partition("#")[0] for where, _ in complete()}
    assert {"README.md", "docs/configuration.md", "docs/tls.md", "docs/balancing.md"} <= pages


# links


def headings(path: Path) -> set[str]:
    """The anchors of a page: its headings in lower case, punctuation gone, spaces as dashes."""
    text = _FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_to_a_page_and_a_heading(page: Path) -> None:
    broken = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in headings(path)):
            broken.append(target)
    assert broken == []


# commands


def named_commands(page: Path) -> list[str]:
    """Every `mailbalancer …` of a page, in a line of a block or inside a sentence."""
    text = page.read_text().replace("\\\n", " ")  # a command over several lines
    lines = [line for kind, block in _FENCE.findall(text) if kind in ("sh", "") for line in block.splitlines()]
    typed = [match[1] for line in lines if (match := re.search(r"(?:^|&& |/bin/|sudo )(mailbalancer [a-z-].*)$", line))]
    return [*typed, *_SPAN.findall(_FENCE.sub("", text))]


def wrong_command(line: str) -> str:
    """What of this command line does not exist; empty when all of it does."""
    words = shlex.split(re.split(r" [>|&]", line.partition(" #")[0])[0])[1:]
    found: click.Command = commands
    for at, word in enumerate(words):
        if isinstance(found, click.Group) and word in found.commands:
            found = found.commands[word]
        elif isinstance(found, click.Group) and not word.startswith("-") and not at:
            return f"there is no command {word}"
        elif word.startswith("-") and word.partition("=")[0] not in options(found):
            return f"{found.name} has no option {word}"
    return ""


def options(command: click.Command) -> set[str]:
    with click.Context(command) as context:
        return {option for parameter in command.get_params(context) for option in parameter.opts}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_named_commands_exist(page: Path) -> None:
    wrong = {line: reason for line in named_commands(page) if (reason := wrong_command(line))}
    assert wrong == {}


def test_every_command_has_its_place_in_the_reference() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    names = [
        f"{name} {below}" if below else name
        for name, command in commands.commands.items()
        for below in (command.commands if isinstance(command, click.Group) else [""])
    ]
    assert [name for name in names if f"## {name}\n" not in text] == []


# words of the log


def end_words() -> set[str]:
    """The `end=` words of the modes that pass bytes on and of the mail modes, as their sources spell them."""
    names = ("session", "engine", "main", "arrival", "mail_session", "mailbox_session", "smtp_session")
    sources = [ROOT / "mailbalancer" / "worker" / f"{name}.py" for name in names]
    text = "\n".join(path.read_text() for path in sources)
    relayed = {f"{side}_{how}" for side in ("client", "server") for how in ("closed", "reset")}
    dismissed = set(re.findall(r"\.dismiss\(.*\"(\w+)\"[,)]", text))
    dismissed |= {answer.name.lower() for answer in Answer if answer.closes and answer.code >= 500}
    return (
        relayed
        | dismissed
        | set(re.findall(r"\.end\(\"(\w+)\"", text))
        | {"denied", "service_full", "idle_timeout", "drained"}
    )


def test_every_end_is_explained() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert len(end_words()) > 15
    first_cells = " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))
    assert [word for word in sorted(end_words()) if f"`{word}`" not in first_cells] == []


def test_every_reason_for_a_choice_is_explained() -> None:
    section = (ROOT / "docs" / "troubleshooting.md").read_text().partition("### Every `why=`")[2].partition("\n### ")[0]
    assert [word for word in (*Schedule, "ramp", "persistence") if f"`{word}`" not in section] == []


# modes


def test_the_readme_says_which_modes_run() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| (works|not in this version) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert {Mode(mode): state == "works" for mode, state in rows} == {mode: mode in AVAILABLE_MODES for mode in Mode}


# what clients are told


@pytest.mark.parametrize("answer", [one for one in Answer if one not in (Answer.TLS_READY, Answer.GOODBYE)], ids=str)
def test_every_answer_of_ours_is_explained(answer: Answer) -> None:
    code, enhanced, words = answer.render().decode().strip().split(" ", 2)
    known = (f"{code} {enhanced} {words[:20]}", f"`{code} {enhanced}`", f"`{code} …`")
    assert any(text in TROUBLESHOOTING for text in known), known


@pytest.mark.parametrize("own", [*imap_greeting.Own, *pop3_greeting.Own], ids=str)
def test_what_mail_programs_are_told_is_explained(own: imap_greeting.Own | pop3_greeting.Own) -> None:
    """What explains itself (`BAD Not a command`) and what only `policy` could say is left out."""
    plain = {"STOPPING", "BAD", "BAD_LINE", "UNKNOWN", "TLS_READY", "TLS_ALREADY", "TLS_UNAVAILABLE", "ID_IGNORED"}
    plain |= {"NOT_ALLOWED", "OUT_OF_STEP", "TOO_MANY_CONNECTIONS", "BAD_LITERAL"}
    if own.name not in plain:
        assert " ".join(own.value.decode().removeprefix("BYE ").split()[:3])[:20] in TROUBLESHOOTING
