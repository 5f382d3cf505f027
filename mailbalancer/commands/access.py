"""Commands for who may use the page, the API and /metrics: token.

Decides: where the tokens file is. Refuses to know: what a token looks like.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mailbalancer.commands.owners import service_owner
from mailbalancer.commands.terminal import config_option, json_option, load_config, print_json, say
from mailbalancer.errors import MailbalancerError

if TYPE_CHECKING:
    pass


@click.group(short_help="Who may use the page, the API and /metrics.")
def token() -> None:
    """Tokens for the page, the API and /metrics. Only hashes are kept; a running balancer sees changes at once."""


_tokens_option = click.option("--file", metavar="FILE", help="The tokens file, instead of the one that is configured.")


def _tokens_file(config: str, file: str | None) -> Path:
    """Where the tokens are."""
    named = file or load_config(config).admin.tokens_file
    if not named:
        raise MailbalancerError(
            f"{config} names no tokens file", "add `admin: {tokens_file: /etc/mailbalancer/tokens}`, or use --file FILE"
        )
    return Path(named)


@token.command("create", short_help="Make a token; it is shown this once.")
@config_option
@_tokens_option
@click.option(
    "--role",
    type=click.Choice(["metrics", "read", "operate", "admin"]),
    default="read",
    show_default=True,
    help="metrics: /metrics alone; read: look; operate: also drain and reload; admin: also change the configuration.",
)
@click.argument("name")
def token_create(config: str, file: str | None, role: str, name: str) -> None:
    """Make a token and print it. It cannot be shown again.

    \b
    Example:
      mailbalancer token create prometheus --role metrics
      mailbalancer token create jane --role admin
    """
    import datetime

    from mailbalancer.admin import tokens

    path = _tokens_file(config, file)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    click.echo(tokens.create(path, name, tokens.Role(role), today, service_owner(config, file)))


@token.command("list", short_help="Show names and roles.")
@config_option
@_tokens_option
@json_option
def token_list(config: str, file: str | None, as_json: bool) -> None:
    """Show whose tokens there are, and what for.

    \b
    Example:
      mailbalancer token list
    """
    from mailbalancer.admin import tokens

    rows = [
        {"name": one.name, "role": str(one.role), "created": one.created}
        for one in tokens.listed(_tokens_file(config, file))
    ]
    if as_json:
        return print_json(rows)
    for row in rows:
        say(f"{row['name']:<24} {row['role']:<8} {row['created']}")
    return None


@token.command("revoke", short_help="Refuse a token from now on.")
@config_option
@_tokens_option
@click.argument("name")
def token_revoke(config: str, file: str | None, name: str) -> None:
    """Refuse a token from now on; whoever is logged in with it is logged out.

    \b
    Example:
      mailbalancer token revoke jane
    """
    from mailbalancer.admin import tokens

    tokens.revoke(_tokens_file(config, file), name)
    click.echo(f"{name} revoked")
