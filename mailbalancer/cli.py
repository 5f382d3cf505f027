"""The command line: what an administrator types.

Decides: names of commands and options, where the control socket of a running balancer is found, that an error is one
line with its remedy and exit code 1, and that a reader who leaves (`| head`) is no error.
Refuses to know: how anything is done; every command asks one room. Rooms are imported by the command that needs them,
because `--help` must not wait for them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from mailbalancer import __version__
from mailbalancer.errors import ConfigError, MailbalancerError

if TYPE_CHECKING:
    from rich.console import Console

    from mailbalancer.model import Config, Service

DEFAULT_CONFIG = "/etc/mailbalancer/mailbalancer.yaml"
DEFAULT_CONTROL_SOCKET = "/run/mailbalancer/control.sock"
PIPE_COLUMNS = 160  # a line for grep must not be folded at 80


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
        for line in _error_lines(error):
            click.echo(f"mailbalancer: {line}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # at the last flush; click treats an earlier one in the same way
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _error_lines(error: MailbalancerError) -> list[str]:
    """One line per error; whatever a foreign text put into it stays on that line."""
    from mailbalancer.admin.words import plain

    return [plain(line) for line in (error.problems if isinstance(error, ConfigError) else [str(error)])]


def _console() -> Console:
    """Where tables go: as wide as the terminal, wide enough for grep in a pipe."""
    from rich.console import Console

    class QuietConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, "the reader left")  # handled as everywhere else

    fixed = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return QuietConsole(width=fixed, highlight=False, markup=False, emoji=False)


def _is_wide(console: Console) -> bool:
    from mailbalancer.admin.text import WIDE_COLUMNS

    return console.width >= WIDE_COLUMNS


def _say(text: str) -> None:
    """Print lines of the balancer's, made harmless."""
    from mailbalancer.admin.words import plain

    for line in text.split("\n"):
        click.echo(plain(line))


def _warn(warnings: Iterable[str]) -> None:
    from mailbalancer.admin.words import plain

    for warning in warnings:
        click.echo(f"warning: {plain(warning)}", err=True)


def _print_json(result: object) -> None:
    click.echo(json.dumps(result, indent=2))


# ---------------------------------------------------------------- options that several commands have


class Ask(Protocol):
    """Ask the running balancer: the control command and its arguments to its result; ControlError when it refuses."""

    def __call__(self, command: str, **arguments: object) -> Any: ...


_config_option = click.option(
    "-c",
    "--config",
    envvar="MAILBALANCER_CONFIG",
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="The configuration file; $MAILBALANCER_CONFIG names another default.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")


def _running(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that find a running balancer, and `ask` as its first argument."""

    @_config_option
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
    return _named_socket(text, Path(config).parent)


def _named_socket(text: str, folder: Path) -> str:
    named = re.search(
        r"""^["']?control_socket["']?[ \t]*:[ \t]*(?:"([^"\n]+)"|'([^'\n]+)'|([^\s#"'][^#\n]*))""", text, re.M
    )
    path = next(found for found in named.groups() if found).strip() if named else DEFAULT_CONTROL_SOCKET
    return str((folder / path).absolute())


# ---------------------------------------------------------------- the balancer itself


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
@_config_option
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
        config = _load(file)
    except ConfigError as error:
        for problem in _error_lines(error):
            click.echo(problem)
        sys.exit(1)
    _warn(config.warnings)
    services, servers = (
        words.count(len(config.services), "service"),
        words.count(len(config.real_servers), "real server"),
    )
    _say(f"OK: {file}: {services}, {servers}")
    _console().print(text.configuration(config))


def _load(file: str) -> Config:
    from mailbalancer.config.load import load

    return load(file)


@commands.command(short_help="Print the JSON Schema of the configuration file.")
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors that complete and check YAML.

    \b
    Example:
      mailbalancer schema > mailbalancer.schema.json
    """
    from mailbalancer.config.load import json_schema

    _print_json(json_schema())


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


# ---------------------------------------------------------------- looking


@commands.command(short_help="Show services, real servers and workers.")
@_running
@_json_option
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
        return _print_json(report)
    console = _console()
    return console.print(text.status(report, wide=_is_wide(console)))


@commands.command(short_help="Watch sessions per second, shares and the ramp.")
@_running
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds.")
def top(ask: Ask, interval: float) -> None:
    """Watch new sessions per second, their shares and the ramp; q ends it. In a pipe: one table.

    \b
    Example:
      mailbalancer top --interval 2
    """
    from mailbalancer.admin import live

    try:
        live.show(lambda: ask("status"), _console(), interval)
    except KeyboardInterrupt:
        return


@commands.command(short_help="Show open sessions, and why each went where it went.")
@_running
@click.argument("service", default="")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Show at most so many.")
@_json_option
def sessions(ask: Ask, service: str, limit: int, as_json: bool) -> None:
    """Show open sessions: client, real server, and why that real server.

    \b
    Example:
      mailbalancer sessions smtp --limit 20
    """
    from mailbalancer.admin import text

    result = ask("sessions", service=service, limit=limit)
    if as_json:
        return _print_json(result)
    console = _console()
    return console.print(text.sessions(result, wide=_is_wide(console)))


@commands.command(short_help="Show what happened lately.")
@_running
@_json_option
def events(ask: Ask, as_json: bool) -> None:
    """Show the newest events: real servers that went down or came up, reloads, replaced workers.

    \b
    Example:
      mailbalancer events
    """
    from mailbalancer.admin import text

    result = ask("events")
    if as_json:
        return _print_json(result)
    return _console().print(text.events(result["events"]))


@commands.command(short_help="Talk to a service and to each real server, side by side.")
@_config_option
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

    report = asyncio.run(room.smoke(_service(config, socket, service), timeout_s=timeout, limit=limit))
    click.echo(room.render(report), nl=False)
    sys.exit(0 if report.went_well else 1)


def _service(config: str, socket: str | None, name: str) -> Service:
    """A service as the configuration says it."""
    if socket:
        from mailbalancer.control.client import request

        config = request(socket, "status")["config"]
    loaded = _load(config)
    found = loaded.service(name)
    if found is None:
        names = ", ".join(service.name for service in loaded.services)
        raise MailbalancerError(f"there is no service {name!r} in {config}", f"there are: {names}")
    return found


@commands.group(short_help="Show or forget which client returns to which real server.")
def persistence() -> None:
    """Show or forget which client goes back to which real server."""


@persistence.command("list", short_help="Show which client goes where.")
@_running
@click.option("--group", default="", help="Only this persistence group.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many per group.")
@_json_option
def persistence_list(ask: Ask, group: str, limit: int, as_json: bool) -> None:
    """Show which client goes back to which real server.

    \b
    Example:
      mailbalancer persistence list --group cas
    """
    from mailbalancer.admin import text

    result = ask("persistence", group=group, limit=limit)
    if as_json:
        return _print_json(result)
    return _console().print(text.persistence(result))


@persistence.command("clear", short_help="Forget clients.")
@_running
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


# ---------------------------------------------------------------- acting


@commands.command(short_help="Apply the changed configuration file.")
@_running
def reload(ask: Ask) -> None:
    """Apply the changed configuration file. Sessions stay; a wrong file changes nothing.

    \b
    Example:
      mailbalancer check /etc/mailbalancer/mailbalancer.yaml && mailbalancer reload
    """
    result = ask("reload")
    _say("\n".join(result["changes"]) or "nothing has changed")
    _warn(result["warnings"])


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
        _say(f"{member}: {result['state']}")
    _warn(result["warnings"])


@commands.command(short_help="Give a real server no new clients.")
@_running
@_server_argument
def drain(ask: Ask, names: dict[str, str]) -> None:
    """Give a real server no new clients; its sessions and returning clients stay until the drain time ends.

    \b
    Example:
      mailbalancer drain smtp ex2
      mailbalancer drain ex2  # in every service
    """
    _operate(ask, "drain", names)


@commands.command(short_help="Give a real server no new sessions.")
@_running
@_server_argument
def disable(ask: Ask, names: dict[str, str]) -> None:
    """Give a real server no new sessions at all, not even of returning clients. Open sessions stay.

    \b
    Example:
      mailbalancer disable smtp ex2
      mailbalancer disable ex2  # in every service
    """
    _operate(ask, "disable", names)


@commands.command(short_help="Let a real server take part again.")
@_running
@_server_argument
def enable(ask: Ask, names: dict[str, str]) -> None:
    """Let a real server take part again; it ramps up to its share.

    \b
    Example:
      mailbalancer enable smtp ex2
      mailbalancer enable ex2  # in every service
    """
    _operate(ask, "enable", names)


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


@commands.command(short_help="Keep configuration and state in a file.")
@_config_option
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

    loaded = _load(config)
    with contextlib.suppress(NobodyAnswers):  # what it saved when it stopped is the state
        request(loaded.control_socket, "save")
    _write_new(file, room.make(loaded, _now(), with_keys))
    _say(f"{file} written" + ("; it has private keys in it" if with_keys else ""))


@commands.command(short_help="Bring back what `backup` kept.")
@_config_option
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
    sockets = {_named_socket(text, Path(config).parent)} | (
        {control_socket(config)} if Path(config).exists() else set()
    )
    running = False
    for socket in sockets:
        with contextlib.suppress(MailbalancerError):
            request(socket, "status")
            running = True
    if running:
        raise MailbalancerError("the balancer runs, and would write its own state over the old one", "stop it first")
    for written in room.restore(Path(file), Path(config), _reader_by(text)):
        _say(f"{written} restored")


def _reader_by(text: str) -> tuple[int, int] | None:
    """Who must be able to read what root writes for the balancer: whom its configuration names."""
    from mailbalancer.admin.edit import EditError, value_at

    try:
        user = value_at(text, ("user",))
    except EditError:
        user = "auto"
    return _ids(user) if isinstance(user, str) and os.geteuid() == 0 else None


@commands.command(short_help="Put together what somebody who helps has to see.")
@_running
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
    _say(f"{file} written; look at it before you send it")


@commands.group(short_help="Take a real server out for patching, and bring it back.")
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
@_running
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
    sys.exit(0 if room.until_empty(ask, _say, _waiting(patience), real_server) else 1)


@maintenance.command("stop", short_help="Bring it back, and wait until it has its share.")
@_running
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
    sys.exit(0 if room.until_back(ask, _say, _waiting(patience), real_server) else 1)


@maintenance.command("status", short_help="Show what is in maintenance, and what is planned.")
@_running
@_json_option
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
        return _print_json(facts)
    return _console().print(text.maintenance(facts))


# ---------------------------------------------------------------- the page and the API


@commands.group(short_help="Who may use the page, the API and /metrics.")
def token() -> None:
    """Tokens for the page, the API and /metrics. Only hashes are kept; a running balancer sees changes at once."""


_tokens_option = click.option("--file", metavar="FILE", help="The tokens file, instead of the one that is configured.")


def _tokens_file(config: str, file: str | None) -> Path:
    """Where the tokens are."""
    named = file or _load(config).admin.tokens_file
    if not named:
        raise MailbalancerError(
            f"{config} names no tokens file", "add `admin: {tokens_file: /etc/mailbalancer/tokens}`, or use --file FILE"
        )
    return Path(named)


@token.command("create", short_help="Make a token; it is shown this once.")
@_config_option
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
    click.echo(tokens.create(path, name, tokens.Role(role), today, _service_owner(config, file)))


def _service_owner(config: str, file: str | None) -> tuple[int, int] | None:
    """Who must be able to read a tokens file that root makes: the user that the balancer becomes."""
    if os.geteuid() != 0 or file is not None:
        return None
    return _ids(_load(config).user)


def _ids(user: str) -> tuple[int, int] | None:
    """User and group id of whom the balancer becomes."""
    import pwd

    from mailbalancer.host.privileges import service_user

    try:
        entry = pwd.getpwnam(service_user(user) or "root")
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid


@token.command("list", short_help="Show names and roles.")
@_config_option
@_tokens_option
@_json_option
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
        return _print_json(rows)
    for row in rows:
        _say(f"{row['name']:<24} {row['role']:<8} {row['created']}")
    return None


@token.command("revoke", short_help="Refuse a token from now on.")
@_config_option
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


# ---------------------------------------------------------------- TLS


@commands.group("tls", short_help="Certificates of real servers.")
def tls_group() -> None:
    """Certificates of real servers: look at them, and say which are accepted."""


@tls_group.command("pin", short_help="Show a real server's certificate and how to accept it alone.")
@_config_option
@click.option("--write", "writes", is_flag=True, help="Put the line into the configuration file.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=10.0, show_default=True, help="Seconds.")
@_json_option
@click.argument("service")
@click.argument("real_server")
def tls_pin(config: str, writes: bool, timeout: float, as_json: bool, service: str, real_server: str) -> None:
    """Show the certificate of a real server, and the setting that accepts it and no other.

    The running balancer is neither asked nor changed. Compare the fingerprint with the one on the server itself
    before you trust it: what is shown here is what this network shows.

    \b
    Example:
      mailbalancer tls pin owa ex1
      mailbalancer tls pin owa ex1 --write && mailbalancer reload
    """
    import asyncio

    from mailbalancer.admin import pinning
    from mailbalancer.control.pin import shown

    found = asyncio.run(shown(_service(config, None, service), real_server, timeout)).facts()
    if as_json:
        _print_json(found)
    else:
        _say(pinning.page(found, Path(config)))
    if writes:
        click.echo(pinning.write(found, Path(config)), err=as_json)


# ---------------------------------------------------------------- certificates


@commands.group(short_help="Certificates that clients are shown.")
def certificates() -> None:
    """Certificates that clients are shown: look at them, renew them, have them signed.

    Keys are made on this machine or brought along once, and never come out again. What is changed here is applied at
    once where the balancer runs, without dropping a session; where it does not, only the files are written.
    """


class Certify(Protocol):
    """An operation on a certificate: its name, and what belongs to it."""

    def __call__(self, command: str, **arguments: object) -> Any: ...


def _certifying(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `certify` as its first argument: the running balancer does it, or the files alone."""

    @_config_option
    @functools.wraps(function)
    def command(config: str, **options: Any) -> None:
        def certify(command: str, **arguments: object) -> Any:
            from mailbalancer.control.client import NobodyAnswers, request

            try:
                return request(control_socket(config), command, **arguments)
            except NobodyAnswers:
                from mailbalancer.admin import at_rest

                return at_rest.obey(Path(config), command, arguments, _reader_of_keys(config))

        function(certify, **options)

    return command


def _reader_of_keys(config: str) -> tuple[int, int] | None:
    """Who must be able to read a key that root writes, whatever else may be wrong with the configuration."""
    try:
        return _reader_by(Path(config).read_text(errors="replace"))
    except OSError:
        return None  # what is done next says so


@certificates.command("list", short_help="Show certificates, days left and who shows them.")
@_certifying
@_json_option
def certificates_list(certify: Certify, as_json: bool) -> None:
    """Show every certificate: names, issuer, days left, the services that show it, and Extended Protection.

    \b
    Example:
      mailbalancer certificates list
      mailbalancer certificates list --json
    """
    from mailbalancer.admin import certificate_text

    result = certify("certificates")
    if as_json:
        return _print_json(result)
    return _console().print(certificate_text.listed(result))


def _sent(chain: str | None, key: str | None, pfx: str | None, password_file: str | None) -> dict[str, str]:
    """The files as the operation wants them. A password comes from a file or the terminal, never from the arguments,
    which every user of the machine can see."""
    import base64

    if bool(chain) == bool(pfx) or (key and pfx):
        raise click.UsageError("give --chain FILE (and --key FILE), or --pfx FILE")
    content = _bytes_of(str(pfx or chain))
    is_text = b"-----BEGIN " in content and content.isascii()
    sent = {"pem": content.decode()} if is_text else {"pfx": base64.b64encode(content).decode()}
    if key:
        sent["key"] = _text_of(key)
    if password_file:
        sent["password"] = _text_of(password_file).rstrip("\r\n")
    elif (pfx or "ENCRYPTED" in sent.get("key", sent.get("pem", ""))) and sys.stdin.isatty():
        sent["password"] = click.prompt("Password", hide_input=True, default="", show_default=False, err=True)
    return sent


def _bytes_of(file: str) -> bytes:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(1024 * 1024)
    except OSError as error:
        raise MailbalancerError(f"{file} cannot be read: {error.strerror}") from None


def _text_of(file: str) -> str:
    try:
        return _bytes_of(file).decode("ascii")
    except UnicodeDecodeError:
        raise MailbalancerError(f"{file} is no text", "the key must be PEM, and the password a line") from None


def _upload_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("name"),
        _json_option,
        click.option("--dry-run", is_flag=True, help="Say what would happen, and do nothing."),
        click.option("--password-file", metavar="FILE", help="Password of the PFX or the key; else it is asked for."),
        click.option("--pfx", metavar="FILE", help="Certificate and key as Windows exports them (PKCS #12)."),
        click.option("--key", metavar="FILE", help="The key, PEM, where it is in a file of its own."),
        click.option(
            "--chain", metavar="FILE", help="The certificate and its issuers: PEM, perhaps with the key; .cer, .p7b."
        ),
    ):
        function = option(function)
    return function


def _put(certify: Certify, name: str, only: str, dry_run: bool, as_json: bool, **files: str | None) -> None:
    sent = _sent(files["chain"], files["key"], files["pfx"], files["password_file"])
    told = certify("certificate_upload", certificate=name, query={"only": only, "dry_run": dry_run}, body=sent)
    _tell_installed(told, as_json)


def _tell_installed(told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return _print_json(told)
    one = told["certificate"]
    _say(f"{one['name']}: {', '.join(one['names'])}; {one['key']}; by {one['issuer']}; {one['days_left']} days left")
    _say("it is in place" if told["applied"] else f"nothing was changed; the file would be:\n{told['diff']}")
    _warn(told["warnings"])
    return None


@certificates.command("upload", short_help="Add a certificate.")
@_certifying
@_upload_options
def certificates_upload(certify: Certify, name: str, dry_run: bool, as_json: bool, **files: str | None) -> None:
    """Add a certificate, from PEM files or a PFX. Its key comes along, or waits here since `certificates csr`.

    It is written to `certificates_dir`, listed in the configuration file, and refused when it cannot be used.

    \b
    Example:
      mailbalancer certificates upload mail --chain mail.crt --key mail.key
      mailbalancer certificates upload mail --pfx exchange.pfx --password-file password.txt
      mailbalancer certificates upload mail --chain signed.crt     # the key was made here
    """
    _put(certify, name, "new", dry_run, as_json, **files)


@certificates.command("replace", short_help="Renew a certificate.")
@_certifying
@_upload_options
def certificates_replace(certify: Certify, name: str, dry_run: bool, as_json: bool, **files: str | None) -> None:
    """Put a new certificate in the place of one that is there. Handshakes that run are not dropped.

    Without a key, the one that waits since `certificates csr` is used, or the old one if it belongs to it.

    \b
    Example:
      mailbalancer certificates replace mail --chain signed.crt
      mailbalancer certificates replace mail --pfx exchange.pfx --dry-run
    """
    _put(certify, name, "existing", dry_run, as_json, **files)


_names_option = click.option(
    "--name",
    "hosts",
    multiple=True,
    required=True,
    metavar="HOST",
    help="A name or address it is for; several times.",
)
_kind_option = click.option(
    "--key-type",
    "kind",
    type=click.Choice(["rsa-2048", "rsa-3072", "ecdsa-p256"]),
    default="rsa-2048",
    show_default=True,
)


@certificates.command("csr", short_help="Make a key here, and a signing request for it.")
@_certifying
@_names_option
@_kind_option
@_json_option
@click.argument("name")
def certificates_csr(certify: Certify, hosts: tuple[str, ...], kind: str, as_json: bool, name: str) -> None:
    """Make a key, which never leaves this machine, and print the signing request for your authority.

    When the certificate comes, `certificates upload` (or `replace`) puts the two together.

    \b
    Example:
      mailbalancer certificates csr mail --name mail.example.com --name autodiscover.example.com > mail.csr
    """
    body = {"names": list(hosts), "key": kind}
    told = certify("certificate_request", certificate=name, body=body)
    if as_json:
        return _print_json(told)
    return click.echo(told["csr"], nl=False)


@certificates.command("self-signed", short_help="Make a certificate for tests.")
@_certifying
@_names_option
@_kind_option
@click.option("--days", type=click.IntRange(1, 398), default=90, show_default=True)
@click.option("--replace", "replaces", is_flag=True, help="In the place of one that is there.")
@_json_option
@click.argument("name")
def certificates_self_signed(
    certify: Certify, hosts: tuple[str, ...], kind: str, days: int, replaces: bool, as_json: bool, name: str
) -> None:
    """Make a key and a certificate that nobody vouches for, for tests: clients warn of it or refuse it.

    \b
    Example:
      mailbalancer certificates self-signed test --name mail.example.com --days 30
    """
    query = {"only": "existing" if replaces else "new"}
    body = {"names": list(hosts), "key": kind, "days": days}
    _tell_installed(certify("certificate_self_signed", certificate=name, query=query, body=body), as_json)


@certificates.command("remove", short_help="Remove a certificate, or a key that waits.")
@_certifying
@click.option("--request", "only_request", is_flag=True, help="Only the key that waits, with its request.")
@click.argument("name")
def certificates_remove(certify: Certify, only_request: bool, name: str) -> None:
    """Remove a certificate with its key. Refused while a service, or the page, shows it.

    \b
    Example:
      mailbalancer certificates remove old
      mailbalancer certificates remove mail --request
    """
    certify("certificate_forget" if only_request else "certificate_remove", certificate=name)
    _say(f"{name} removed")


# ---------------------------------------------------------------- profiles


@commands.command(short_help="Show which way a client's connection goes.")
@_config_option
@click.option("--client", required=True, metavar="ADDRESS", help="The client's address.")
@click.option("--service", "name", required=True, metavar="NAME", help="The service.")
@click.option("--server", default="", metavar="NAME", help="Only this real server.")
@click.option("--svg", is_flag=True, help="Print a picture.")
@_json_option
def explain(config: str, client: str, name: str, server: str, svg: bool, as_json: bool) -> None:
    """Show hop by hop which way a client's connection goes, which address the real server sees, and whether it works.

    \b
    Example:
      mailbalancer explain --client 10.9.0.5 --service smtp
    """
    from mailbalancer.control.explaining import explained
    from mailbalancer.l4 import path_picture, paths

    loaded = _load(config)
    ways = explained(loaded, client, name, server, _status_if_running(loaded))
    if as_json:
        _print_json([dataclasses.asdict(way) for way in ways])
    else:
        for way in ways:
            _say(path_picture.svg(way) if svg else paths.text(way))
        if not svg:
            _say(paths.together(ways))


@commands.command(short_help="Examine everything, and say what is wrong, the worst first.")
@_config_option
@_json_option
def doctor(config: str, as_json: bool) -> None:
    """Examine the way of every kind of client to every real server, the balancer, its certificates and this machine.

    The worst is said first, each with its remedy. The exit code is 1 when something is broken or a risk. Root sees
    more than others.

    \b
    Example:
      mailbalancer doctor -c /etc/mailbalancer/mailbalancer.yaml
    """
    from mailbalancer.control import doctor as room

    loaded = _load(config)
    found = room.visit(loaded, _status_if_running(loaded))
    if as_json:
        _print_json([{**dataclasses.asdict(one), "severity": one.severity.name.lower()} for one in found])
    else:
        _say(room.text(found))
    sys.exit(0 if all(one.severity is room.Severity.NOTE for one in found) else 1)


def _status_if_running(config: Config) -> Any:
    """None when no balancer runs: what the configuration and the network tell is still worth showing."""
    from mailbalancer.control.client import request

    try:
        return request(config.control_socket, "status")
    except MailbalancerError:
        return None


@commands.command(short_help="Print what is to be set up on real servers, or verify it.")
@_config_option
@click.option("--os", "system", type=click.Choice(["debian", "rhel", "windows"]), default="debian", show_default=True)
@click.option("--verify", is_flag=True, help="Look from here whether it is set up; needs root.")
@_json_option
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

    loaded = _load(config)
    if not verify:
        lines = real_server_lines(loaded, service, system, real_server)
        return _print_json(lines) if as_json else _say("\n".join(lines))
    found = verifying.verified(_service(config, None, service), real_server)
    if as_json:
        _print_json([dataclasses.asdict(one) for one in found])
    else:
        _say(verifying.text(found))
    sys.exit(0 if all(one.verdict != "bad" for one in found) else 1)


@commands.command(short_help="Capture both sides of a client's connections, and say what was seen.")
@_config_option
@click.option("--client", required=True, metavar="ADDRESS", help="The client's address.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="For so long.")
@click.option("--write", "file", default="", metavar="FILE", help="Keep the packets, for Wireshark and its like.")
@click.option("--whole", is_flag=True, help="Capture what packets carry, and not their headers alone.")
@_json_option
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

    loaded = _load(config)
    found = _service(config, None, service)

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
        return _print_json(dataclasses.asdict(seen))
    for sentence in seen.sentences:
        _say(sentence)
    if file:
        _say(f"{seen.packets} packets in {file}")
    return None


@commands.group(short_help="What is changed on this machine.")
def host() -> None:
    """What mailbalancer changes on this machine: addresses, forwarding, routes, nftables rules."""


@host.command("plan", short_help="Show what would be changed; change nothing.")
@_config_option
@_json_option
def host_plan(config: str, as_json: bool) -> None:
    """Show what this configuration would change on this machine.

    \b
    Example:
      mailbalancer host plan -c /etc/mailbalancer/mailbalancer.yaml
    """
    from mailbalancer.control import host_commands

    facts = host_commands.planned(_load(config))
    if as_json:
        _print_json(dataclasses.asdict(facts))
        return
    _print_changes(facts.steps, facts.rules, "nothing is changed on this machine")
    _warn(facts.warnings)


@host.command("show", short_help="Show what is changed now.")
@_config_option
@_json_option
def host_show(config: str, as_json: bool) -> None:
    """Show what mailbalancer has changed on this machine.

    \b
    Example:
      mailbalancer host show
    """
    from mailbalancer.control import host_commands

    facts = host_commands.shown(_load(config))
    if as_json:
        _print_json(dataclasses.asdict(facts))
    else:
        _print_changes(facts.steps, facts.rules, "nothing is changed on this machine now")


@host.command("clean", short_help="Undo what a crashed balancer has left.")
@_config_option
def host_clean(config: str) -> None:
    """Undo everything that a balancer which was killed has changed on this machine; refused while one runs.

    \b
    Example:
      mailbalancer host clean
    """
    from mailbalancer.control import host_commands

    undone = host_commands.clean(_load(config))
    for line in undone:
        _say(f"undone: {line}")
    if not undone:
        _say("there was nothing to undo")


def _print_changes(steps: Iterable[str], rules: str, nothing: str) -> None:
    for step in steps:
        _say(step)
    if rules:
        _say(f"\n{rules.rstrip()}")
    elif not steps:
        _say(nothing)


@commands.group(short_help="Service templates and their checklists.")
def profiles() -> None:
    """Service templates: what there is, what is in them, and what the servers need for them."""


@profiles.command("list", short_help="Show every profile.")
@_json_option
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
        return _print_json(rows)
    return _console().print(text.profiles(rows))


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
@_json_option
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
        return _print_json([asdict(item) for item in items])
    return click.echo(text.checklist(items), nl=False)


def _number(text: str) -> int | float | str:
    """A decimal number; text that is none stays text, which the profile then refuses with its reason."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[0-9]{1,9}\.[0-9]{1,9}", text) else text


@profiles.command("export", short_help="Turn a configured service into a profile.")
@_config_option
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


if __name__ == "__main__":
    main()
