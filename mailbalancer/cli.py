"""The command line: what an administrator types.

Decides: which commands there are, that an error is one line with its remedy and exit code 1, that a reader who leaves
(`| head`) is no error, and the commands of the balancer itself.
Refuses to know: how anything is done; every command asks one room. Rooms are imported by the command that needs them,
because `--help` must not wait for them. Commands for a running balancer are in `commands`, by kind of work.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from mailbalancer import __version__
from mailbalancer.commands import access, acting, certifying, keeping, looking, network, templates
from mailbalancer.commands.terminal import (
    DEFAULT_CONFIG,
    config_option,
    error_lines,
    load_config,
    new_console,
    print_json,
    say,
    warn,
)
from mailbalancer.errors import ConfigError, MailbalancerError


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 an error with a remedy, 2 a command that does not exist like that."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode must not end a command
    try:
        commands.main(prog_name="mailbalancer", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(0)
    except click.exceptions.Exit as asked:
        sys.exit(asked.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MailbalancerError as error:
        for line in error_lines(error):
            click.echo(f"mailbalancer: {line}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # at the last flush; click treats an earlier one in the same way
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mailbalancer", message="%(prog)s %(version)s")
def commands() -> None:
    """A load balancer for mail: Exchange, Postfix and Dovecot, from one YAML file.

    \b
    Try it:           mailbalancer demo
    Check a file:     mailbalancer check /etc/mailbalancer/mailbalancer.yaml
    Run it:           mailbalancer run -c /etc/mailbalancer/mailbalancer.yaml
    Look at it:       mailbalancer status
    """


@commands.command(short_help="Run the balancer in the foreground.")
@config_option
def run(config: str) -> None:
    """Run the balancer in the foreground: SIGHUP reloads, SIGTERM lets sessions finish, then stops.

    \b
    Example:
      mailbalancer run -c /etc/mailbalancer/mailbalancer.yaml
    """
    # A reload that is asked for while the program starts is what it does anyway, and not a reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from mailbalancer import wiring

    sys.exit(wiring.run(Path(config).absolute()))


@commands.command(short_help="Check a configuration file.")
@click.argument("file", envvar="MAILBALANCER_CONFIG", default=DEFAULT_CONFIG)
def check(file: str) -> None:
    """Check a configuration file: print its services, or every problem with file and line (exit code 1).

    \b
    Example:
      mailbalancer check /etc/mailbalancer/mailbalancer.yaml && mailbalancer reload
    """
    from mailbalancer.admin import text, words

    try:
        config = load_config(file)
    except ConfigError as error:
        for problem in error_lines(error):
            click.echo(problem)
        sys.exit(1)
    warn(config.warnings)
    services, servers = (
        words.count(len(config.services), "service"),
        words.count(len(config.real_servers), "real server"),
    )
    say(f"OK: {file}: {services}, {servers}")
    new_console().print(text.configuration(config))


@commands.command(short_help="Print the JSON Schema of the configuration file.")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors that complete and check YAML.

    \b
    Example:
      mailbalancer schema > mailbalancer.schema.json
    """
    from mailbalancer.config.load import json_schema

    print_json(json_schema())


@commands.command(short_help="Run a balancer and mail servers here, to try it.")
@click.option("--seconds", type=click.FloatRange(min=0), default=0, help="End after so many seconds; 0: at Ctrl-C.")
@click.option("--workers", type=click.IntRange(1, 64), default=2, show_default=True, help="Worker processes.")
@click.option("--keep", is_flag=True, help="Keep the folder with configuration and logs.")
def demo(seconds: float, workers: int, keep: bool) -> None:
    """Run a balancer in front of small mail servers on this machine, and say what to try.

    Needs no rights and no configuration: everything listens on free high ports of 127.0.0.1.

    \b
    Example:
      mailbalancer demo --seconds 60
    """
    import datetime

    from mailbalancer.admin import tokens
    from mailbalancer.control.client import request
    from mailbalancer.demo import show

    def make_token(path: Path) -> str:
        return tokens.create(path, "demo", tokens.Role.ADMIN, datetime.datetime.now(datetime.UTC).date().isoformat())

    show.run(show.Settings(seconds, workers, keep, own_command()), request, make_token, click.echo)


def own_command() -> str:
    """How a person in this folder calls the program that runs now."""
    import shlex
    import shutil

    own = Path(sys.argv[0])
    if own.name != "mailbalancer":
        return f"{shlex.quote(sys.executable)} -m mailbalancer"
    if shutil.which("mailbalancer") == str(own.resolve()):
        return "mailbalancer"
    relative = os.path.relpath(own)
    return shlex.quote(str(own) if relative.startswith("..") else relative)


for _command in (
    looking.status,
    looking.top,
    looking.sessions,
    looking.events,
    looking.smoke,
    looking.persistence,
    acting.reload,
    acting.drain,
    acting.disable,
    acting.enable,
    acting.maintenance,
    keeping.backup,
    keeping.restore,
    keeping.support,
    access.token,
    certifying.tls_group,
    certifying.certificates,
    network.explain,
    network.doctor,
    network.realserver,
    network.capture,
    network.host,
    templates.profiles,
):
    commands.add_command(_command)

if __name__ == "__main__":
    main()
