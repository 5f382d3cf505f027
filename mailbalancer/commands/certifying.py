"""Commands for certificates: those that clients are shown, and the pins of real servers.

Decides: which files are read and sent. Refuses to know: what is in them; keys are never printed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from mailbalancer.commands.owners import reader_by
from mailbalancer.commands.terminal import (
    config_option,
    configured_service,
    control_socket,
    json_option,
    new_console,
    print_json,
    say,
    warn,
)
from mailbalancer.errors import MailbalancerError

if TYPE_CHECKING:
    pass


@click.group("tls", short_help="Certificates of real servers.")
def tls_group() -> None:
    """Certificates of real servers: look at them, and say which are accepted."""


@tls_group.command("pin", short_help="Show a real server's certificate and how to accept it alone.")
@config_option
@click.option("--write", "writes", is_flag=True, help="Put the line into the configuration file.")
@click.option("--timeout", type=click.FloatRange(0.1, 60), default=10.0, show_default=True, help="Seconds.")
@json_option
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

    found = asyncio.run(shown(configured_service(config, None, service), real_server, timeout)).facts()
    if as_json:
        print_json(found)
    else:
        say(pinning.page(found, Path(config)))
    if writes:
        click.echo(pinning.write(found, Path(config)), err=as_json)


@click.group(short_help="Certificates that clients are shown.")
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

    @config_option
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
        return reader_by(Path(config).read_text(errors="replace"))
    except OSError:
        return None  # what is done next says so


@certificates.command("list", short_help="Show certificates, days left and who shows them.")
@_certifying
@json_option
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
        return print_json(result)
    return new_console().print(certificate_text.listed(result))


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
        json_option,
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
        return print_json(told)
    one = told["certificate"]
    say(f"{one['name']}: {', '.join(one['names'])}; {one['key']}; by {one['issuer']}; {one['days_left']} days left")
    say("it is in place" if told["applied"] else f"nothing was changed; the file would be:\n{told['diff']}")
    warn(told["warnings"])
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
@json_option
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
        return print_json(told)
    return click.echo(told["csr"], nl=False)


@certificates.command("self-signed", short_help="Make a certificate for tests.")
@_certifying
@_names_option
@_kind_option
@click.option("--days", type=click.IntRange(1, 398), default=90, show_default=True)
@click.option("--replace", "replaces", is_flag=True, help="In the place of one that is there.")
@json_option
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
    say(f"{name} removed")
