"""What `tls pin` prints and writes: a certificate in words, and the setting that accepts it and no other.

Decides: which pins a service has afterwards (those it had stay, so that a renewed certificate can be announced before
it is used), that comments stay in the file, and that a file which would not be valid then is not written.
Refuses to know: how the certificate was seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mailbalancer.admin import edit, files
from mailbalancer.admin.words import Facts, count, plain
from mailbalancer.config.load import load_text


def setting(found: Facts, written: object) -> dict[str, Any]:
    """The value of `server_tls.verify` that accepts this certificate besides those pinned already.

    Args:
        written: what the file says there now; a name in it stays, because it is what the server is asked for.
    """
    together = list(dict.fromkeys((*found["pinned"], found["sha256"])))
    name = {"name": written["name"]} if isinstance(written, Mapping) and "name" in written else {}
    return {"pin": together[0] if len(together) == 1 else together, **name}


def page(found: Facts, file: Path) -> str:
    """The certificate, what to compare it with, and the line to write."""
    return "\n".join(_lines(found, setting(found, _written(file.read_text(encoding="utf-8"), found))))


def _lines(found: Facts, wanted: Mapping[str, Any]) -> Iterator[str]:
    yield f"{plain(found['real_server'])} ({found['endpoint']}) of {plain(found['service'])} shows this certificate:"
    yield f"  for      {', '.join(plain(name) for name in found['names'])}"
    yield f"  issuer   {plain(found['issuer'])}"
    yield f"  valid    {found['not_before']} to {found['not_after']} ({count(found['days_left'], 'day')} left)"
    yield f"  sha256   {found['sha256']}"
    yield ""
    if found["sha256"] in found["pinned"]:
        yield "It is pinned already."
        return
    yield "Compare the fingerprint with the one on the server itself. Then this accepts it and no other:"
    yield f"  services.{plain(found['service'])}.server_tls.verify: {_flow(wanted)}"
    if found["others"]:
        yield f"A pin is for all real servers of the service; look at the others, too: {', '.join(found['others'])}"


def write(found: Facts, file: Path) -> str:
    """Put the setting into the file; what was done, in a sentence.

    Raises:
        ConfigError: the file would not be valid with it; it is as it was.
        MailbalancerError: it cannot be changed or written.
    """
    if found["sha256"] in found["pinned"]:
        return f"{file} is as it was: the certificate is pinned already"
    text = file.read_text(encoding="utf-8")
    changed = edit.with_value(text, _path(found), setting(found, _written(text, found)))
    load_text(changed, str(file), folder=file.absolute().parent)
    files.replace(file, changed.encode())
    return f"{file} is changed; `mailbalancer reload` applies it"


def _path(found: Facts) -> edit.Path:
    return ("services", found["service"], "server_tls", "verify")


def _written(text: str, found: Facts) -> object:
    return edit.value_at(text, _path(found)) if edit.has(text, _path(found)) else None


def _flow(value: Mapping[str, Any]) -> str:
    """On one line, as YAML reads it; JSON's strings are YAML's, and a fingerprint is no number in quotes."""
    return "{" + ", ".join(f"{key}: {json.dumps(entry)}" for key, entry in value.items()) + "}"
