"""Commands that keep things: backup, restore, support.

Decides: where a file goes and who may read it. Refuses to know: what belongs into it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailbalancer import __version__
from mailbalancer.commands.owners import reader_by
from mailbalancer.commands.terminal import (
    Ask,
    asks_balancer,
    config_option,
    control_socket,
    load_config,
    named_socket,
    say,
)
from mailbalancer.errors import MailbalancerError

if TYPE_CHECKING:
    pass


def _now() -> str:
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write_new(file: str, content: bytes) -> None:
    """A file of ours alone; one that is there stays."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MailbalancerError(f"{file} cannot be made: {error.strerror}", "name another file") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


@click.command(short_help="Keep configuration and state in a file.")
@config_option
@click.option("--with-keys", is_flag=True, help="Private keys too: whoever has the file can pretend to be you.")
@click.argument("file")
def backup(config: str, with_keys: bool, file: str) -> None:
    """Keep the configuration and the state (drained servers, ramps, persistence) in one file.

    Private keys are not in it, unless --with-keys is given; then so are certificates and every other file that the
    configuration names in its own folder. Tokens never are.

    \b
    Example:
      mailbalancer backup /root/mailbalancer-$(date +%F).tar.gz
      mailbalancer backup --with-keys /root/move-to-another-machine.tar.gz
    """
    from mailbalancer.admin import backup as room
    from mailbalancer.control.client import NobodyAnswers, request

    loaded = load_config(config)
    with contextlib.suppress(NobodyAnswers):  # what it saved when it stopped is the state
        request(loaded.control_socket, "save")
    _write_new(file, room.make(loaded, _now(), with_keys))
    say(f"{file} written" + ("; it has private keys in it" if with_keys else ""))


@click.command(short_help="Bring back what `backup` kept.")
@config_option
@click.argument("file")
def restore(config: str, file: str) -> None:
    """Bring back configuration and state from a file that `backup` wrote. Refused while the balancer runs.

    \b
    Example:
      systemctl stop mailbalancer && mailbalancer restore backup.tar.gz && systemctl start mailbalancer
    """
    from mailbalancer.admin import backup as room
    from mailbalancer.control.client import request

    text = room.unpack(Path(file))[room.CONFIG].decode("utf-8", "replace")
    sockets = {named_socket(text, Path(config).parent)} | ({control_socket(config)} if Path(config).exists() else set())
    running = False
    for socket in sockets:
        with contextlib.suppress(MailbalancerError):
            request(socket, "status")
            running = True
    if running:
        raise MailbalancerError("the balancer runs, and would write its own state over the old one", "stop it first")
    for written in room.restore(Path(file), Path(config), reader_by(text)):
        say(f"{written} restored")


@click.command(short_help="Put together what somebody who helps has to see.")
@asks_balancer
@click.argument("file")
def support(ask: Ask, file: str) -> None:
    """Put status, events, sessions and the configuration without secrets into one file, for somebody who helps.

    Addresses of clients and servers are in it; private keys, tokens and mail are not.

    \b
    Example:
      mailbalancer support /tmp/mailbalancer-support.tar.gz
    """
    import platform

    from mailbalancer.admin import backup as room

    report = ask("status")
    about = {"version": __version__, "at": _now(), "python": sys.version, "system": platform.platform()}
    text = Path(report["config"]).read_text(encoding="utf-8", errors="replace")
    facts = {"about": about, "status": report, "sessions": ask("sessions", limit=1000), "events": ask("events")}
    contents = {f"{name}.json": json.dumps(fact, indent=1).encode() for name, fact in facts.items()}
    _write_new(file, room.pack({**contents, "mailbalancer.yaml": room.without_secrets(text).encode()}))
    say(f"{file} written; look at it before you send it")
