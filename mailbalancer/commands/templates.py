"""Commands for profiles: list, show, checklist, export.

Decides: how parameters are given. Refuses to know: what a profile says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from mailbalancer.commands.terminal import config_option, json_option, new_console, print_json
from mailbalancer.errors import MailbalancerError

if TYPE_CHECKING:
    pass


@click.group(short_help="Service templates and their checklists.")
def profiles() -> None:
    """Service templates: what there is, what is in them, and what the servers need for them."""


@profiles.command("list", short_help="Show every profile.")
@json_option
def profiles_list(as_json: bool) -> None:
    """Show every profile that can be used as `profile: NAME-SERVICE`.

    \b
    Example:
      mailbalancer profiles list
    """
    from mailbalancer.admin import text
    from mailbalancer.config.profiles import list_profiles

    rows = [
        {
            "profile": p.name,
            "title": p.written.title,
            "services": list(p.written.services),
            "not_available": p.not_available(),
            "file": str(p.file),
        }
        for p in list_profiles()
    ]
    if as_json:
        return print_json(rows)
    return new_console().print(text.profiles(rows))


@profiles.command("show", short_help="Print a profile with its comments.")
@click.argument("name")
def profiles_show(name: str) -> None:
    """Print a profile with its comments: the start of one of your own in /etc/mailbalancer/profiles.

    \b
    Example:
      mailbalancer profiles show exchange-2019
    """
    from mailbalancer.config.profiles import load_profile

    click.echo(load_profile(name).file.read_text(encoding="utf-8"), nl=False)


def _assignments(context: click.Context, option: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    """`host=mail.example.com` as name and value."""
    wrong = next((pair for pair in pairs if "=" not in pair), None)
    if wrong is not None:
        raise click.UsageError(f"--set {wrong}: write --set NAME=VALUE", context)
    return dict(pair.split("=", 1) for pair in pairs)


@profiles.command("checklist", short_help="Print what is to be done on servers and in DNS.")
@click.argument("name")
@click.option(
    "--set", "given", multiple=True, metavar="NAME=VALUE", callback=_assignments, help="A parameter of the profile."
)
@click.option("--service", "services", multiple=True, help="Only what this service of the profile needs.")
@click.option("--vip", default="", help="The address clients connect to.")
@json_option
def profiles_checklist(name: str, given: dict[str, str], services: tuple[str, ...], vip: str, as_json: bool) -> None:
    """Print what is to be done on the servers and in DNS, with your names filled in.

    \b
    Example:
      mailbalancer profiles checklist exchange-2019 --set host=mail.example.com --vip 10.0.1.100
    """
    from dataclasses import asdict

    from mailbalancer.admin import text
    from mailbalancer.config.profiles import checklist, load_profile

    profile = load_profile(name)
    unknown = next((service for service in services if service not in profile.written.services), None)
    if unknown is not None:
        raise MailbalancerError(
            f"profile {name} has no service {unknown!r}", f"it has: {', '.join(profile.written.services)}"
        )
    numbers = {key for key, parameter in profile.written.parameters.items() if parameter.type in ("port", "seconds")}
    values = {key: _number(value) if key in numbers else value for key, value in given.items()}
    items = checklist(profile, values, services, vip=vip)
    if as_json:
        return print_json([asdict(item) for item in items])
    return click.echo(text.checklist(items), nl=False)


def _number(text: str) -> int | float | str:
    """A decimal number; text that is none stays text, which the profile then refuses with its reason."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text) else text


@profiles.command("export", short_help="Turn a configured service into a profile.")
@config_option
@click.argument("service")
def profiles_export(config: str, service: str) -> None:
    """Turn a configured service into a profile, with names and addresses as parameters.

    \b
    Example:
      mailbalancer profiles export owa > /etc/mailbalancer/profiles/owa.yaml
    """
    from mailbalancer.config.load import tree
    from mailbalancer.config.profiles import export

    click.echo(export(tree(config), service), nl=False)
