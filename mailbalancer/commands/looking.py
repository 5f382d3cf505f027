"""Commands that look: status, top, sessions, events, smoke, persistence.

Decides: their options, and which room answers. Refuses to know: what the facts mean; the words are `admin`'s.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mailbalancer.commands.terminal import (
    Ask,
    asks_balancer,
    config_option,
    configured_service,
    is_wide,
    json_option,
    new_console,
    print_json,
)

if TYPE_CHECKING:
    pass


@click.command(short_help="Show services, real servers and workers.")
@asks_balancer
@json_option
def status(ask: Ask, as_json: bool) -> None:
    """Show services, real servers and workers of the running balancer.

    A terminal of 110 columns or more also shows bytes and the last check of every real server.

    \b
    Example:
      mailbalancer status
      mailbalancer status --json
    """
    from mailbalancer.admin import text

    report = ask("status")
    if as_json:
        return print_json(report)
    console = new_console()
    return console.print(text.status(report, wide=is_wide(console)))


@click.command(short_help="Watch sessions per second, shares and the ramp.")
@asks_balancer
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds.")
def top(ask: Ask, interval: float) -> None:
    """Watch new sessions per second, their shares and the ramp; q ends it. In a pipe: one table.

    \b
    Example:
      mailbalancer top --interval 2
    """
    from mailbalancer.admin import live

    try:
        live.show(lambda: ask("status"), new_console(), interval)
    except KeyboardInterrupt:
        return


@click.command(short_help="Show open sessions, and why each went where it went.")
@asks_balancer
@click.argument("service", default="")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most so many.")
@json_option
def sessions(ask: Ask, service: str, limit: int, as_json: bool) -> None:
    """Show open sessions: client, real server, and why that real server.

    \b
    Example:
      mailbalancer sessions smtp --limit 20
    """
    from mailbalancer.admin import text

    result = ask("sessions", service=service, limit=limit)
    if as_json:
        return print_json(result)
    console = new_console()
    return console.print(text.sessions(result, wide=is_wide(console)))


@click.command(short_help="Show what happened lately.")
@asks_balancer
@json_option
def events(ask: Ask, as_json: bool) -> None:
    """Show the newest events: real servers that went down or came up, reloads, replaced workers.

    \b
    Example:
      mailbalancer events
    """
    from mailbalancer.admin import text

    result = ask("events")
    if as_json:
        return print_json(result)
    return new_console().print(text.events(result["events"]))


@click.command(short_help="Talk to a service and to each real server, side by side.")
@config_option
@click.option("--socket", metavar="PATH", help="Use the configuration of the balancer behind this control socket.")
@click.option("--timeout", type=click.FloatRange(0.1, 300), default=10.0, show_default=True, help="Seconds, each talk.")
@click.option("--limit", type=click.IntRange(min=1), default=8, show_default=True, help="Ask at most so many.")
@click.argument("service")
def smoke(config: str, socket: str | None, timeout: float, limit: int, service: str) -> None:
    """Talk to a service as with telnet: through the balancer and to each real server, side by side.

    No mail is sent. The exit code is 1 when a conversation failed.

    \b
    Example:
      mailbalancer smoke smtp
    """
    import asyncio

    from mailbalancer.control import smoke as room

    report = asyncio.run(room.smoke(configured_service(config, socket, service), timeout_s=timeout, limit=limit))
    click.echo(room.render(report), nl=False)
    sys.exit(0 if report.went_well else 1)


@click.group(short_help="Show or forget which client returns to which real server.")
def persistence() -> None:
    """Show or forget which client goes back to which real server."""


@persistence.command("list", short_help="Show which client goes where.")
@asks_balancer
@click.option("--group", default="", help="Only this persistence group.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many per group.")
@json_option
def persistence_list(ask: Ask, group: str, limit: int, as_json: bool) -> None:
    """Show which client goes back to which real server.

    \b
    Example:
      mailbalancer persistence list --group cas
    """
    from mailbalancer.admin import text

    result = ask("persistence", group=group, limit=limit)
    if as_json:
        return print_json(result)
    return new_console().print(text.persistence(result))


@persistence.command("clear", short_help="Forget clients.")
@asks_balancer
@click.option("--group", default="", help="Only this persistence group.")
@click.option("--key", default="", help="Only this client (its address, as `persistence list` shows it).")
def persistence_clear(ask: Ask, group: str, key: str) -> None:
    """Forget clients: their next session is balanced anew. Open sessions stay where they are.

    \b
    Example:
      mailbalancer persistence clear --group cas --key 192.0.2.1
    """
    cleared = ask("persistence_clear", group=group, key=key)["cleared"]
    click.echo(f"{cleared} forgotten")
