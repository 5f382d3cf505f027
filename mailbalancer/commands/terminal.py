"""What commands have in common: options, how a running balancer is found, and how facts and warnings are printed.

Decides: how wide a line may be, that what others wrote cannot steer a terminal, and where the control socket is.
Refuses to know: which commands there are.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from mailbalancer.errors import ConfigError, MailbalancerError

if TYPE_CHECKING:
    from rich.console import Console

    from mailbalancer.model import Config, Service


DEFAULT_CONFIG = "/etc/mailbalancer/mailbalancer.yaml"
DEFAULT_CONTROL_SOCKET = "/run/mailbalancer/control.sock"
PIPE_COLUMNS = 160  # a line for grep must not be folded at 80


def error_lines(error: MailbalancerError) -> list[str]:
    """One line per error; whatever a foreign text put into it stays on that line."""
    from mailbalancer.admin.words import plain

    return [plain(line) for line in (error.problems if isinstance(error, ConfigError) else [str(error)])]


def new_console() -> Console:
    """Where tables go: as wide as the terminal, wide enough for grep in a pipe."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader left")  # handled as everywhere else

    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return QuietConsole(width=fixed, highlight=False, markup=False, emoji=False)


def is_wide(console: Console) -> bool:
    from mailbalancer.admin.text import WIDE_COLUMNS

    return console.width >= WIDE_COLUMNS


def say(text: str) -> None:
    """Print lines of the balancer's, made harmless."""
    from mailbalancer.admin.words import plain

    for line in text.split("\n"):
        click.echo(plain(line))


def warn(warnings: Iterable[str]) -> None:
    from mailbalancer.admin.words import plain

    for warning in warnings:
        click.echo(f"warning: {plain(warning)}", err=True)


def print_json(result: object) -> None:
    click.echo(json.dumps(result, indent=2))


class Ask(Protocol):
    """Ask the running balancer: the control command and its arguments to its result; ControlError when it refuses."""

    def __call__(self, command: str, **arguments: object) -> Any: ...


config_option = click.option(
    "-c",
    "--config",
    envvar="MAILBALANCER_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="The configuration file; $MAILBALANCER_CONFIG names another default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


def asks_balancer(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that find a running balancer, and `ask` as its first argument."""

    @config_option
    @click.option("--socket", metavar="PATH", help="The control socket, instead of the one the configuration names.")
    @functools.wraps(function)
    def command(config: str, socket: str | None, **options: Any) -> None:
        path = socket or control_socket(config)

        def ask(command: str, **arguments: object) -> Any:
            from mailbalancer.control.client import request

            return request(path, command, **arguments)

        function(ask, **options)

    return command


def control_socket(config: str) -> str:
    """The control socket that a configuration file names, whatever else may be wrong with the file."""
    try:
        text = Path(config).read_text(errors="replace")
    except OSError as error:
        raise MailbalancerError(
            f"{config} cannot be read ({error.strerror})",
            "name the running balancer's configuration with -c FILE or its control socket with --socket PATH",
        ) from None
    return named_socket(text, Path(config).parent)


def named_socket(text: str, folder: Path) -> str:
    named = re.search(
        r"""^["']?control_socket["']?[ \t]*:[ \t]*(?:"([^"\n]+)"|'([^'\n]+)'|([^\s#"'][^#\n]*))""", text, re.M
    )
    path = next(found for found in named.groups() if found).strip() if named else DEFAULT_CONTROL_SOCKET
    return str((folder / path).absolute())


def load_config(file: str) -> Config:
    from mailbalancer.config.load import load

    return load(file)


def configured_service(config: str, socket: str | None, name: str) -> Service:
    """A service as the configuration says it."""
    if socket:
        from mailbalancer.control.client import request

        config = request(socket, "status")["config"]
    loaded = load_config(config)
    found = loaded.service(name)
    if found is None:
        names = ", ".join(service.name for service in loaded.services)
        raise MailbalancerError(f"there is no service {name!r} in {config}", f"there are: {names}")
    return found
