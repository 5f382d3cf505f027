"""The repository keeps its own rules: what lies in it, what its files may name, and that its documents are complete."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import mailbalancer
from tests.support.tools import require

ROOT = Path(__file__).resolve().parent.parent

#: What may lie at the top. Whoever adds to it explains here what it is that has no place below.
TOP_LEVEL = {
    *(".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "Dockerfile", "LICENSE", "Makefile", "README.md"),
    *("certs", "constraints.txt", "docs", "mailbalancer", "profiles", "pyproject.toml", "tests"),
}
#: Folders of whoever worked on it, which mean nothing on another machine.
FOREIGN_PATH = re.compile(r"(?<![\w./~-])/(?:home|work|mnt|workspace|Users)/[\w.-]+")
#: Where packages come from is the business of the machine that installs them.
REGISTRY = re.compile(r"(?:pypi\.|pythonhosted\.|registry\.npm|index-url|/simple/|files\.python)", re.IGNORECASE)
NOT_MODULES = {"utils", "helpers", "common", "manager", "misc"}


def committed() -> list[Path]:
    """Files under version control, or all of them where this is not a clone."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        names = [name for name in listed.stdout.decode().split("\0") if name]
        return [ROOT / name for name in names if (ROOT / name).exists()]
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()} | {".git"}
    everything = (path for path in ROOT.rglob("*") if path.is_file() or path.is_symlink())
    return [p for p in everything if not any(fnmatch(part, i) for part in p.relative_to(ROOT).parts for i in ignored)]


FILES = committed()
THIS = Path(__file__).resolve()
TEXTS = [path for path in FILES if path.is_file() and not path.is_symlink() and path != THIS]
MODULES = sorted(path for path in TEXTS if path.suffix == ".py")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_top_level_holds_only_what_belongs_there() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} <= TOP_LEVEL


def test_no_file_names_a_package_registry() -> None:
    assert found(REGISTRY, TEXTS) == []


def test_no_file_names_a_folder_of_somebody_s_machine() -> None:
    assert found(FOREIGN_PATH, TEXTS) == []


def test_no_private_key_is_committed() -> None:
    key = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}")  # a header alone is not one
    assert [shown(path) for path in TEXTS if key.search(path.read_text(errors="replace"))] == []


# a test module's name says what it tests, and its tests say the rest
@pytest.mark.parametrize("path", [path for path in MODULES if not path.name.startswith("test_")], ids=shown)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert len(docstring) > 20 or not text.strip(), f"{shown(path)} opens without saying what it decides"


def test_no_module_is_a_drawer_for_everything() -> None:
    assert [shown(path) for path in MODULES if path.stem in NOT_MODULES] == []


def test_links_stay_inside() -> None:
    links = [path for path in FILES if path.is_symlink()]
    assert [shown(path) for path in links if ROOT not in path.resolve().parents] == []


def test_the_changelog_knows_the_version() -> None:
    assert PROJECT["version"] == mailbalancer.__version__
    assert re.search(rf"^## .*{re.escape(mailbalancer.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_dependency_is_explained_and_pinned() -> None:
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    pinned = {bare(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        assert f"| `{name.group()}` |" in explained, f"docs/dependencies.md does not say what {name.group()} is for"
        assert bare(requirement) in pinned, f"constraints.txt does not pin {name.group()}"


def test_every_pin_is_exact() -> None:
    pins = [ROOT / "constraints.txt", ROOT / "tests" / "support" / "sslyze.txt"]
    lines = [line for file in pins for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_local_links_of_the_documents_lead_somewhere() -> None:
    broken = []
    for path in TEXTS:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{shown(path)}: {target}")
    assert broken == []


def test_the_systemd_unit_is_valid(tmp_path: Path) -> None:
    verify = require("systemd-analyze")
    text = (ROOT / "docs" / "mailbalancer.service").read_text()
    assert "ExecStart=/usr/local/bin/mailbalancer run" in text
    unit = tmp_path / "mailbalancer.service"
    # the unit is checked, not whether this machine has the program installed
    unit.write_text(text.replace("/usr/local/bin/mailbalancer", shutil.which("true") or "/bin/true"))
    said = subprocess.run([verify, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, "mailbalancer.service:" in said.stderr) == (0, False), said.stderr


def test_the_drop_in_for_the_network_is_valid_and_gives_what_is_needed(tmp_path: Path) -> None:
    verify = require("systemd-analyze")
    text = (ROOT / "docs" / "mailbalancer.service").read_text()
    unit = tmp_path / "mailbalancer.service"
    unit.write_text(text.replace("/usr/local/bin/mailbalancer", shutil.which("true") or "/bin/true"))
    extra = (ROOT / "docs" / "mailbalancer-network.conf").read_text()
    folder = tmp_path / "mailbalancer.service.d"
    folder.mkdir()
    (folder / "network.conf").write_text(extra)
    said = subprocess.run([verify, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, "mailbalancer.service" in said.stderr) == (0, False), said.stderr
    (folder / "network.conf").write_text(extra + "NoSuchSetting=yes\n")  # the drop-in was looked at
    said = subprocess.run([verify, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "NoSuchSetting" in said.stderr
    allowed = [line.partition("=")[2].split() for line in extra.splitlines() if "Capabilit" in line and "=CAP" in line]
    assert allowed == [["CAP_NET_ADMIN", "CAP_NET_RAW"]] * 2


def test_the_wheel_has_every_module_and_every_profile(tmp_path: Path) -> None:
    pip = [sys.executable, *["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"], str(tmp_path)]
    copy = tmp_path / "source"
    for path in FILES:  # a copy, because building leaves folders behind
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target, follow_symlinks=False)
    said = subprocess.run([*pip, str(copy)], check=False, timeout=100, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    modules = {shown(path) for path in MODULES if shown(path).startswith("mailbalancer/")}
    profiles = {f"mailbalancer/shipped_{name}" for name in map(shown, FILES) if fnmatch(name, "profiles/*.yaml")}
    assert modules | profiles <= packed


def found(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Where it stands: file, line, and what was found."""
    hits = []
    for path in paths:
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := pattern.search(line):
                hits.append(f"{shown(path)}:{number}: {match.group()}")
    return hits


def bare(requirement: str) -> str:
    """A requirement's package as registries compare names: lower case, dashes."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>~!\[; ]", requirement)[0]).lower()
