"""What only mail services have: from what the operator wrote to the model.

Decides: defaults that follow from ports, what the check is when none is written, and which combinations cannot work.
Refuses to know: pools and listeners (`build_service`).
"""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any

from mailbalancer import model
from mailbalancer.config import defaults, schema, values
from mailbalancer.config.problems import Path
from mailbalancer.config.report import Report

#: A file with more than this is no list of domains.
DOMAINS_BYTES = 16 * 1024 * 1024


def client_starttls(written: schema.MailService, listen_port: int) -> str:
    """When TLS with clients begins: "none", "offer", "require" or "implicit"."""
    tls = written.client_tls
    if tls is None:
        return "none"
    return tls.starttls or ("implicit" if listen_port in defaults.IMPLICIT_TLS_PORTS else "offer")


def server_starttls(written: schema.MailService, server_port: int) -> str:
    """When TLS with servers begins: "none", "opportunistic", "require" or "implicit"."""
    tls = written.server_tls
    if tls is None:
        return "none"
    return tls.starttls or ("implicit" if server_port in defaults.IMPLICIT_TLS_PORTS else "require")


def default_check(written: schema.MailService, server_port: int) -> schema.AnyCheck:
    """The conversation of the service's own protocol, as the service itself would begin it."""
    inner = server_starttls(written, server_port)
    options: dict[str, Any] = {"starttls": inner == "require", "tls": inner == "implicit"}
    if written.server_tls is not None:
        options["verify"] = written.server_tls.verify.model_dump(exclude_none=True)
    match written:
        case schema.ImapService():
            return schema.ImapCheck(type="imap", **options)
        case schema.Pop3Service():
            return schema.Pop3Check(type="pop3", **options)
    return schema.SmtpCheck(type="smtp", **options)


def build_mail(report: Report, path: Path, written: schema.MailService, profile: str) -> model.Mail:
    """Everything of the service that is not a pool or TLS; `path` is the service's."""
    _refuse_combinations(report, path, written, profile)
    client_address = getattr(written, "client_address", "none")
    return model.Mail(
        host=values.host_name(written.hostname) if written.hostname else _own_name(),
        greeting_timeout_s=written.greeting_timeout_s,
        client_address="" if client_address == "none" else client_address,
        hide=tuple(values.keyword(word) for word in written.capabilities.hide),
        keep=tuple(values.keyword(word) for word in written.capabilities.keep),
        login_timeout_s=getattr(written, "login_timeout_s", model.Mail("").login_timeout_s),
        smtp=_smtp(report, path, written) if isinstance(written, schema.SmtpService) else model.Smtp(),
    )


def _own_name() -> str:
    """This machine's name, if it is one that can be said to strangers."""
    try:
        return values.host_name(os.uname().nodename)
    except ValueError:
        return "mailbalancer.invalid"


def _smtp(report: Report, path: Path, written: schema.SmtpService) -> model.Smtp:
    if written.bare_newlines == "pass":
        reason = "bare newlines pass unchanged: servers that end messages at others than CRLF.CRLF can be tricked"
        report.warning((*path, "bare_newlines"), reason)
    return model.Smtp(
        banner=written.banner if written.banner is not None else model.Smtp().banner,
        bare_newlines=written.bare_newlines,
        exchange=written.exchange_to_exchange,
        capabilities=tuple(written.capabilities.stated),
        policy=_policy(report, (*path, "policy"), written.policy),
        log_addresses=written.log_addresses,
        reverse_names=_reverse_names(written),
    )


def _reverse_names(written: schema.SmtpService) -> model.ReverseNames | None:
    if written.reverse_names is None:
        return None
    resolvers = tuple(values.endpoint(text) for text in written.reverse_names.resolvers)
    return model.ReverseNames(written.reverse_names.timeout_s, resolvers)


def _policy(report: Report, path: Path, written: schema.Policy) -> model.MailPolicy:
    return model.MailPolicy(
        recipient_domains=_recipient_domains(report, path, written),
        relay_clients=tuple(values.network(text) for text in written.relay_clients),
        senders_allow=frozenset(values.sender_pattern(text) for text in written.senders_allow),
        senders_deny=frozenset(values.sender_pattern(text) for text in written.senders_deny),
        connections_per_source=written.connections_per_source,
        connections_per_source_minute=written.connections_per_source_minute,
        messages_per_source_minute=written.messages_per_source_minute,
        recipients_per_source_minute=written.recipients_per_source_minute,
        tarpit_s=written.tarpit_s,
        greeting_delay_s=written.greeting_delay_s,
        max_message_bytes=written.max_message_bytes,
    )


def _recipient_domains(report: Report, path: Path, written: schema.Policy) -> frozenset[str] | None:
    if not written.recipient_domains and written.recipient_domains_file is None:
        return None
    found = {values.host_pattern(text) for text in written.recipient_domains}
    if written.recipient_domains_file is not None:
        where = (*path, "recipient_domains_file")
        found |= _domains_in(report, where, report.file(written.recipient_domains_file))
    return frozenset(found)


def _domains_in(report: Report, path: Path, file: str) -> set[str]:
    """One domain a line; `#` begins a comment. Read at each start and reload; workers never open it."""
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            raise OSError(f"{file} is not a file")
        if os.path.getsize(file) > DOMAINS_BYTES:
            raise OSError(f"{file} is larger than {DOMAINS_BYTES} bytes")
        lines = FilePath(file).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        report.problem(path, f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")
        return set()
    found: set[str] = set()
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip(" \t\r")
        try:
            if text:
                found.add(values.host_pattern(text))
        except ValueError as error:
            report.problem(path, f"{file}:{number}: {error}")
    return found


def _refuse_combinations(report: Report, path: Path, written: schema.MailService, profile: str) -> None:
    told = getattr(written, "client_address", "none")
    if profile.startswith("exchange") and (told != "none" or written.proxy_protocol.send != "none"):
        key = "client_address" if told != "none" else "proxy_protocol"
        reason = (
            "Exchange takes neither PROXY headers nor XCLIENT; use source classes, or the kernel's transparent mode"
        )
        report.problem((*path, key), reason)
    if isinstance(written, schema.SmtpService):
        if written.reverse_names is not None and told != "xclient":
            report.problem((*path, "reverse_names"), "names are told with XCLIENT; it needs client_address: xclient")
    else:
        for key in sorted(written.capabilities.model_fields_set & {"keep", "stated"}):
            report.problem((*path, "capabilities", key), f"'{key}' is for mode smtp; hide works in every mail mode")
