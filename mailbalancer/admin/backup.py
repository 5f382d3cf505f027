"""Backup, restore, and what support needs to see: small archives of named texts.

Decides: what is in each. Private keys, tokens and their hashes are in none: a backup brings back what the balancer does
and knows, not who may command it.
Refuses to know: the running balancer; what is to be packed comes from outside.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

from mailbalancer import __version__
from mailbalancer.admin import files
from mailbalancer.config.load import load_text
from mailbalancer.errors import MailbalancerError
from mailbalancer.model import Config

CONFIG, STATE, ABOUT = "mailbalancer.yaml", "state.json", "about.json"
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
                if entry.name not in (CONFIG, STATE, ABOUT) or not entry.isfile() or entry.size > left:
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


def make(config: Config, at: str) -> bytes:
    """A backup: the configuration file, and the state (operator's commands, ramps, persistence) if there is one.

    Raises:
        MailbalancerError: the configuration cannot be read.
    """
    contents = {ABOUT: json.dumps({"version": __version__, "at": at, "config": config.path}).encode()}
    try:
        contents[CONFIG] = Path(config.path).read_bytes()
    except OSError as error:
        raise MailbalancerError(f"{config.path} cannot be read: {error.strerror}") from error
    state = Path(config.state_file) if config.state_file else None
    if state is not None and state.is_file():
        contents[STATE] = state.read_bytes()
    return pack(contents)


def restore(archive: Path, target: Path) -> list[str]:
    """Put a backup's configuration at `target`, and its state where that configuration says; returns what was written.

    Raises:
        ConfigError: the configuration does not fit this machine; nothing was written.
        MailbalancerError: it is no backup, or cannot be written.
    """
    contents = unpack(archive)
    config = load_text(contents[CONFIG].decode("utf-8", "replace"), str(target), folder=target.absolute().parent)
    written = [str(target)]
    if STATE in contents and config.state_file:
        files.replace(Path(config.state_file), contents[STATE], 0o600, _owner(Path(config.state_file).parent))
        written.append(config.state_file)
    files.replace(target, contents[CONFIG])
    return written


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
