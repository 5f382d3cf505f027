"""Backup, restore, and what support needs to see: small archives of named texts.

Decides: what is in each. Private keys are in a backup only when that is asked for in so many words, and then every file
that the configuration names inside its own folder is; tokens and their hashes never are: a backup brings back what the
balancer does and knows, not who may command it.
Refuses to know: the running balancer; what is to be packed comes from outside.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mailbalancer import __version__
from mailbalancer.admin import files
from mailbalancer.config.load import load_text
from mailbalancer.errors import MailbalancerError
from mailbalancer.model import Config

CONFIG, STATE, ABOUT = "mailbalancer.yaml", "state.json", "about.json"
#: Before the name of a file that the configuration names, relative to the configuration's folder.
FILES = "files/"
#: What other people's rights depend on, and what belongs to this machine.
_STAYS = frozenset({"tokens_file", "state_file"})
MAX_BYTES = 64 * 1024 * 1024
_SECRET = re.compile(
    r"^(\s*-?\s*[\"']?[\w-]*(?:password|secret|token|authorization)[\w-]*[\"']?\s*:\s*)\S.*$", re.I | re.M
)


def pack(contents: Mapping[str, bytes]) -> bytes:
    """A compressed tar archive; the same contents are the same bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=6) as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def unpack(archive: Path) -> dict[str, bytes]:
    """What is in an archive that `pack` made; nothing is written anywhere.

    Raises:
        MailbalancerError: it cannot be read, or is something else.
    """
    contents: dict[str, bytes] = {}
    left = MAX_BYTES
    try:
        with tarfile.open(archive, mode="r:gz") as opened:
            for entry in opened:
                known = entry.name in (CONFIG, STATE, ABOUT) or _is_beside(entry.name)
                if not known or not entry.isfile() or entry.size > left:
                    raise MailbalancerError(f"{archive} is no backup of mailbalancer: it has {entry.name[:100]!r}")
                stream = opened.extractfile(entry)
                assert stream is not None
                contents[entry.name] = stream.read(left)
                left -= entry.size
    except (OSError, tarfile.TarError, EOFError) as error:
        raise MailbalancerError(f"{archive} cannot be read: {error}", "name a file that `backup` wrote") from error
    if CONFIG not in contents or ABOUT not in contents:
        raise MailbalancerError(f"{archive} is no backup of mailbalancer", "name a file that `backup` wrote")
    return contents


def _is_beside(name: str) -> bool:
    """Whether this is the name of a file in the configuration's folder, and of none anywhere else."""
    return name.startswith(FILES) and not {"", ".", ".."} & set(name.removeprefix(FILES).split("/"))


def make(config: Config, at: str, with_keys: bool = False) -> bytes:
    """A backup: the configuration file, and the state (operator's commands, ramps, persistence) if there is one.

    Args:
        with_keys: also certificates with their keys, keys that wait, and whatever else the configuration names in its
            own folder.

    Raises:
        MailbalancerError: a file of them cannot be read.
    """
    contents = {ABOUT: json.dumps({"version": __version__, "at": at, "config": config.path}).encode()}
    contents[CONFIG] = _read(Path(config.path))
    state = Path(config.state_file) if config.state_file else None
    if state is not None and state.is_file():
        contents[STATE] = state.read_bytes()
    if with_keys:
        folder = Path(config.path).absolute().parent
        for file in sorted(_named_files(config, folder)):
            contents[f"{FILES}{file.relative_to(folder)}"] = _read(file)
    return pack(contents)


def restore(archive: Path, target: Path, owner: tuple[int, int] | None = None) -> list[str]:
    """Put a backup's configuration at `target`, its files beside it, and its state where that configuration says.

    Args:
        owner: user and group id of who will run the balancer; None: who does this.

    Returns:
        What was written.

    Raises:
        ConfigError: the configuration does not fit this machine, as when a certificate is missing; nothing was written.
        MailbalancerError: it is no backup, or cannot be written.
    """
    contents = unpack(archive)
    folder = target.absolute().parent
    written = [str(target)]
    with ExitStack() as taken_back:
        for name in (name for name in contents if name.startswith(FILES)):
            file = folder / name.removeprefix(FILES)
            _make_folders(file.parent, folder, owner)
            taken_back.enter_context(files.replaced(file, contents[name], 0o600, owner))
            written.append(str(file))
        text = contents[CONFIG].decode("utf-8", "replace")
        config = load_text(text, str(target), folder=folder)
        if STATE in contents and config.state_file:
            state = Path(config.state_file)
            taken_back.enter_context(files.replaced(state, contents[STATE], 0o600, _owner(state.parent)))
            written.append(config.state_file)
        files.replace(target, contents[CONFIG], owner=owner and (os.geteuid(), owner[1]))
    return written


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise MailbalancerError(f"{file} cannot be read: {error.strerror}", "try it as root") from error


def _named_files(config: Config, folder: Path) -> set[Path]:
    """Every file in the configuration's own folder that it names, and the keys that wait for a certificate."""
    named = {Path(name) for name in _names(config) if name}
    named |= set(Path(config.certificates_dir).glob("*.waiting.*"))
    return {file for file in named if file.is_relative_to(folder) and ".." not in file.parts and file.is_file()}


def _names(thing: Any) -> Iterator[str]:
    """The values of all fields that name a file, at any depth."""
    if isinstance(thing, tuple):
        for entry in thing:
            yield from _names(entry)
    elif dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            if field.name.endswith("_file") and field.name not in _STAYS:
                yield str(value)
            else:
                yield from _names(value)


def _make_folders(wanted: Path, top: Path, owner: tuple[int, int] | None) -> None:
    """The folders between `top` and `wanted`, for nobody else to look into."""
    if wanted == top or wanted.is_dir():
        return
    _make_folders(wanted.parent, top, owner)
    try:
        wanted.mkdir(mode=0o750)
        if owner is not None:
            os.chown(wanted, *owner)
    except OSError as error:
        raise MailbalancerError(f"{wanted} cannot be made: {error.strerror}", "make it, or try it as root") from error


def _owner(folder: Path) -> tuple[int, int] | None:
    """The state belongs to whom its folder belongs: the user that the balancer runs as."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_uid, status.st_gid


def without_secrets(text: str) -> str:
    """A configuration for other eyes: the value of every key that sounds like a secret is hidden."""
    return _SECRET.sub(r"\1<hidden>", text)
