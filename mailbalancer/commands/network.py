"""Commands for the network path: explain, doctor, realserver, capture, host.

Decides: their options and exit codes. Refuses to know: networks.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from mailbalancer.commands.terminal import (
    config_option,
    configured_service,
    json_option,
    load_config,
    print_json,
    say,
    warn,
)
from mailbalancer.errors import MailbalancerError

if TYPE_CHECKING:
    from mailbalancer.model import Config


@click.command(short_help="Show which way a client's connection goes.")
@config_option
@click.option("--client", required=True, metavar="ADDRESS", help="The client's address.")
@click.option("--service", "name", required=True, metavar="NAME", help="The service.")
@click.option("--server", default="", metavar="NAME", help="Only this real server.")
@click.option("--svg", is_flag=True, help="Print a picture.")
@json_option
def explain(config: str, client: str, name: str, server: str, svg: bool, as_json: bool) -> None:
    """Show hop by hop which way a client's connection goes, which address the real server sees, and whether it works.

    \b
    Example:
      mailbalancer explain --client 10.9.0.5 --service smtp
    """
    from mailbalancer.control.explaining import explained
    from mailbalancer.l4 import path_picture, paths

    loaded = load_config(config)
    ways = explained(loaded, client, name, server, _status_if_running(loaded))
    if as_json:
        print_json([dataclasses.asdict(way) for way in ways])
    else:
        for way in ways:
            say(path_picture.svg(way) if svg else paths.text(way))
        if not svg:
            say(paths.together(ways))


@click.command(short_help="Examine everything, and say what is wrong, the worst first.")
@config_option
@json_option
def doctor(config: str, as_json: bool) -> None:
    """Examine the way of every kind of client to every real server, the balancer, its certificates and this machine.

    The worst is said first, each with its remedy. The exit code is 1 when something is broken or a risk. Root sees
    more than others.

    \b
    Example:
      mailbalancer doctor -c /etc/mailbalancer/mailbalancer.yaml
    """
    from mailbalancer.control import doctor as room

    loaded = load_config(config)
    found = room.visit(loaded, _status_if_running(loaded))
    if as_json:
        print_json([{**dataclasses.asdict(one), "severity": one.severity.name.lower()} for one in found])
    else:
        say(room.text(found))
    sys.exit(0 if all(one.severity is room.Severity.NOTE for one in found) else 1)


def _status_if_running(config: Config) -> Any:
    """None when no balancer runs: what the configuration and the network tell is still worth showing."""
    from mailbalancer.control.client import request

    try:
        return request(config.control_socket, "status")
    except MailbalancerError:
        return None


@click.command(short_help="Print what is to be set up on real servers, or verify it.")
@config_option
@click.option("--os", "system", type=click.Choice(["debian", "rhel", "windows"]), default="debian", show_default=True)
@click.option("--verify", is_flag=True, help="Look from here whether it is set up; needs root.")
@json_option
@click.argument("service")
@click.argument("real_server", default="")
def realserver(config: str, system: str, verify: bool, as_json: bool, service: str, real_server: str) -> None:
    """Print what every real server of a service (or one of them) needs: gateway, loopback address, tunnel.

    With --verify it is seen from here whether that is so; the exit code is 1 when something is not.

    \b
    Example:
      mailbalancer realserver dns --os windows
      mailbalancer realserver dns ns1 --verify
    """
    from mailbalancer.control import verifying
    from mailbalancer.control.explaining import real_server_lines

    loaded = load_config(config)
    if not verify:
        lines = real_server_lines(loaded, service, system, real_server)
        return print_json(lines) if as_json else say("\n".join(lines))
    found = verifying.verified(configured_service(config, None, service), real_server)
    if as_json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        say(verifying.text(found))
    sys.exit(0 if all(one.verdict != "bad" for one in found) else 1)


@click.command(short_help="Capture both sides of a client's connections, and say what was seen.")
@config_option
@click.option("--client", required=True, metavar="ADDRESS", help="The client's address.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="For so long.")
@click.option("--write", "file", default="", metavar="FILE", help="Keep the packets, for Wireshark and its like.")
@click.option("--whole", is_flag=True, help="Capture what packets carry, and not their headers alone.")
@json_option
@click.argument("service")
def capture(config: str, client: str, seconds: float, file: str, whole: bool, as_json: bool, service: str) -> None:
    """Capture both sides of a client's connections on this machine, and say in words what was seen.

    Needs tcpdump, and root or CAP_NET_RAW. Ctrl-C ends it early.

    \b
    Example:
      mailbalancer capture smtp --client 10.9.0.5 --seconds 20 --write client.pcap
    """
    from mailbalancer.control import capturing
    from mailbalancer.control.client import request

    loaded = load_config(config)
    found = configured_service(config, None, service)

    def sessions() -> list[dict[str, Any]]:
        if found.l4 is not None:
            return []
        try:
            listed = request(loaded.control_socket, "sessions", service=service, limit=capturing.MOST_SESSIONS)
        except MailbalancerError:
            return []
        return list(listed["sessions"])

    wanted = capturing.Wanted(client, seconds, file, whole)
    seen = capturing.capture(found, wanted, sessions, lambda line: click.echo(line, err=True))
    if as_json:
        return print_json(dataclasses.asdict(seen))
    for sentence in seen.sentences:
        say(sentence)
    if file:
        say(f"{seen.packets} packets in {file}")
    return None


@click.group(short_help="What is changed on this machine.")
def host() -> None:
    """What mailbalancer changes on this machine: addresses, forwarding, routes, nftables rules."""


@host.command("plan", short_help="Show what would be changed; change nothing.")
@config_option
@json_option
def host_plan(config: str, as_json: bool) -> None:
    """Show what this configuration would change on this machine.

    \b
    Example:
      mailbalancer host plan -c /etc/mailbalancer/mailbalancer.yaml
    """
    from mailbalancer.control import host_commands

    facts = host_commands.planned(load_config(config))
    if as_json:
        print_json(dataclasses.asdict(facts))
        return
    _print_changes(facts.steps, facts.rules, "nothing is changed on this machine")
    warn(facts.warnings)


@host.command("show", short_help="Show what is changed now.")
@config_option
@json_option
def host_show(config: str, as_json: bool) -> None:
    """Show what mailbalancer has changed on this machine.

    \b
    Example:
      mailbalancer host show
    """
    from mailbalancer.control import host_commands

    facts = host_commands.shown(load_config(config))
    if as_json:
        print_json(dataclasses.asdict(facts))
    else:
        _print_changes(facts.steps, facts.rules, "nothing is changed on this machine now")


@host.command("clean", short_help="Undo what a crashed balancer has left.")
@config_option
def host_clean(config: str) -> None:
    """Undo everything that a balancer which was killed has changed on this machine; refused while one runs.

    \b
    Example:
      mailbalancer host clean
    """
    from mailbalancer.control import host_commands

    undone = host_commands.clean(load_config(config))
    for line in undone:
        say(f"undone: {line}")
    if not undone:
        say("there was nothing to undo")


def _print_changes(steps: Iterable[str], rules: str, nothing: str) -> None:
    for step in steps:
        say(step)
    if rules:
        say(f"\n{rules.rstrip()}")
    elif not steps:
        say(nothing)
