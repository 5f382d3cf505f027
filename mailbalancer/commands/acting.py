"""Commands that change what runs: reload, drain, disable, enable, maintenance.

Decides: how real servers are named, and what is told while one waits.
Refuses to know: how a server is taken out; the running balancer does it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mailbalancer.commands.terminal import Ask, asks_balancer, json_option, new_console, print_json, say, warn

if TYPE_CHECKING:
    pass


@click.command(short_help="Apply the changed configuration file.")
@asks_balancer
def reload(ask: Ask) -> None:
    """Apply the changed configuration file. Sessions stay; a wrong file changes nothing.

    \b
    Example:
      mailbalancer check /etc/mailbalancer/mailbalancer.yaml && mailbalancer reload
    """
    result = ask("reload")
    say("\n".join(result["changes"]) or "nothing has changed")
    warn(result["warnings"])


def _names(context: click.Context, argument: click.Parameter, parts: tuple[str, ...]) -> dict[str, str]:
    """`SERVICE REAL_SERVER`, or `REAL_SERVER` alone for every service."""
    if not 1 <= len(parts) <= 2:
        raise click.UsageError("give SERVICE REAL_SERVER, or REAL_SERVER alone for every service", context)
    return {"real_server": parts[-1], "service": parts[0] if len(parts) == 2 else ""}


_server_argument = click.argument("names", nargs=-1, metavar="[SERVICE] REAL_SERVER", callback=_names)


def _operate(ask: Ask, command: str, names: dict[str, str]) -> None:
    """Ask for a state, and say which members have it now."""
    result = ask(command, **names)
    for member in result["members"]:
        say(f"{member}: {result['state']}")
    warn(result["warnings"])


@click.command(short_help="Give a real server no new clients.")
@asks_balancer
@_server_argument
def drain(ask: Ask, names: dict[str, str]) -> None:
    """Give a real server no new clients; its sessions and returning clients stay until the drain time ends.

    \b
    Example:
      mailbalancer drain smtp ex2
      mailbalancer drain ex2  # in every service
    """
    _operate(ask, "drain", names)


@click.command(short_help="Give a real server no new sessions.")
@asks_balancer
@_server_argument
def disable(ask: Ask, names: dict[str, str]) -> None:
    """Give a real server no new sessions at all, not even of returning clients. Open sessions stay.

    \b
    Example:
      mailbalancer disable smtp ex2
      mailbalancer disable ex2  # in every service
    """
    _operate(ask, "disable", names)


@click.command(short_help="Let a real server take part again.")
@asks_balancer
@_server_argument
def enable(ask: Ask, names: dict[str, str]) -> None:
    """Let a real server take part again; it ramps up to its share.

    \b
    Example:
      mailbalancer enable smtp ex2
      mailbalancer enable ex2  # in every service
    """
    _operate(ask, "enable", names)


@click.group(short_help="Take a real server out for patching, and bring it back.")
def maintenance() -> None:
    """Take a real server out of every service for patching, and bring it back."""


_patience_option = click.option(
    "--patience", type=click.FloatRange(min=0), default=3600, show_default=True, help="Seconds to wait at most."
)


def _waiting(patience_s: float) -> Callable[[], bool]:
    """A second at a time, until patience ends."""
    import time

    ends_at = time.monotonic() + patience_s

    def wait() -> bool:
        left_s = ends_at - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(1.0, left_s))
        return True

    return wait


@maintenance.command("start", short_help="Drain it everywhere and wait until it is empty.")
@asks_balancer
@click.option("--until", "end", default="", metavar="TIME", help="Bring it back then: 02:00, or '2026-11-28 02:00'.")
@click.option("--all-services", is_flag=True, help="In every service; so it is unless --service says otherwise.")
@click.option(
    "--service", "services", multiple=True, metavar="NAME", help="Only in this service; several times if need be."
)
@click.option("--force", is_flag=True, help="Also when a service keeps fewer than its minimum_ready.")
@_patience_option
@click.argument("real_server")
def maintenance_start(
    ask: Ask, end: str, all_services: bool, services: tuple[str, ...], force: bool, patience: float, real_server: str
) -> None:
    """Drain a real server, watch it empty, and say when it is safe to reboot.

    Refused when a service would be left with fewer ready real servers than its `minimum_ready`. The balancer goes on
    with it when this command ends, and after a restart. The exit code is 1 while it is not empty.

    \b
    Example:
      mailbalancer maintenance start ex2 --until 02:00
      mailbalancer maintenance start ex2 && ssh ex2 reboot
    """
    from mailbalancer.admin import maintenance as room

    if all_services and services:
        raise click.UsageError("give --all-services or --service, not both")
    ask("maintenance_start", real_server=real_server, services=list(services), until=end, force=force)
    sys.exit(0 if room.until_empty(ask, say, _waiting(patience), real_server) else 1)


@maintenance.command("stop", short_help="Bring it back, and wait until it has its share.")
@asks_balancer
@_patience_option
@click.argument("real_server")
def maintenance_stop(ask: Ask, patience: float, real_server: str) -> None:
    """Let a real server take part again: through its checks and the ramp, until it has its full share.

    \b
    Example:
      mailbalancer maintenance stop ex2
    """
    from mailbalancer.admin import maintenance as room

    ask("maintenance_stop", real_server=real_server)
    sys.exit(0 if room.until_back(ask, say, _waiting(patience), real_server) else 1)


@maintenance.command("status", short_help="Show what is in maintenance, and what is planned.")
@asks_balancer
@json_option
def maintenance_status(ask: Ask, as_json: bool) -> None:
    """Show how far each maintenance is, what Exchange says of its components, and the planned windows.

    \b
    Example:
      mailbalancer maintenance status
    """
    from mailbalancer.admin import maintenance as room
    from mailbalancer.admin import text

    facts = room.overview(ask("status"))
    if as_json:
        return print_json(facts)
    return new_console().print(text.maintenance(facts))
