"""The active check of a pool: from what the operator wrote to `model.Check`.

Decides: the check's defaults that follow from its surroundings: the PROXY header it sends, TLS from the first byte, the
name that a certificate must have.
Refuses to know: how a check is run.
"""

from __future__ import annotations

import os

from mailbalancer import model
from mailbalancer.config import defaults, schema, values
from mailbalancer.config.problems import Path, why_unread
from mailbalancer.config.report import Report


def build_check(report: Report, path: Path, check: schema.AnyCheck, member_port: int, send: str) -> model.Check:
    """The check of a pool.

    Args:
        path: where the check is written, or would be.
        member_port: the port of the pool's members, for the defaults that depend on it.
        send: the PROXY header that the service sends: "", "v1" or "v2".
    """
    if isinstance(check, schema.NoCheck):
        return model.Check(type="none")
    if check.timeout_s > check.interval_s:
        report.warning(
            path,
            f"timeout_s {check.timeout_s:g} is longer than interval_s {check.interval_s:g}: "
            "a real server that hangs is checked only that often",
        )
    return model.Check(
        type=check.type,
        interval_s=check.interval_s,
        timeout_s=check.timeout_s,
        rise=check.rise,
        fall=check.fall,
        port=check.port or 0,
        proxy_header=_proxy_header(check, member_port, send),
        options=_options(report, path, check, check.port or member_port),
    )


def _proxy_header(check: schema.CheckBase, member_port: int, send: str) -> str:
    """A server that is sent PROXY headers insists on them, so the check sends one too, except on another port."""
    if check.proxy_header is not None:
        return "" if check.proxy_header == "none" else check.proxy_header
    return send if check.port in (None, member_port) else ""


def _options(report: Report, path: Path, check: schema.AnyCheck, port: int) -> model.CheckOptions:
    match check:
        case schema.TcpCheck():
            return model.TcpCheck(check.send.encode(), check.expect.encode())
        case schema.TlsCheck():
            return model.TlsCheck(build_verify(report, (*path, "verify"), check.verify), check.warn_days)
        case schema.HttpCheck():
            return _http(report, path, check)
        case schema.SmtpCheck():
            return _smtp(report, path, check, port)
        case schema.ImapCheck():
            return model.ImapCheck(check.starttls, *_tls(report, path, check, port))
        case schema.Pop3Check():
            return model.Pop3Check(check.starttls, *_tls(report, path, check, port))
        case schema.DnsCheck():
            return model.DnsCheck(values.dns_name(check.name), check.record, check.protocol, check.rcode)
    raise AssertionError(f"the schema knows a check that is not built: {check}")


def _http(report: Report, path: Path, check: schema.HttpCheck) -> model.HttpCheck:
    secure = isinstance(check, schema.HttpsCheck)
    host = values.host_name(check.host) if check.host else ""
    verify = model.Verify()
    if isinstance(check, schema.HttpsCheck):
        verify = build_verify(report, (*path, "verify"), check.verify, host)
    statuses = dict.fromkeys(status for entry in check.status for status in values.statuses(entry))
    return model.HttpCheck(secure, check.method, check.path, host, tuple(statuses), check.body, verify)


def _smtp(report: Report, path: Path, check: schema.SmtpCheck, port: int) -> model.SmtpCheck:
    if check.mail_from is not None and check.rcpt_to is None:
        report.problem((*path, "mail_from"), "a sender alone asks nothing; write rcpt_to as well")
    if check.rcpt_to == "<>":
        report.problem((*path, "rcpt_to"), "a recipient cannot be <>; write a mail address")
    tls, verify = _tls(report, path, check, port)
    return model.SmtpCheck(
        check.helo,
        check.starttls,
        tls,
        verify,
        mail_from=values.mailbox(check.mail_from or "<>") if check.rcpt_to else "",
        rcpt_to=values.mailbox(check.rcpt_to) if check.rcpt_to else "",
    )


def _tls(report: Report, path: Path, check: schema.MailCheck, port: int) -> tuple[bool, model.Verify]:
    """TLS from the first byte? And how its certificate is verified, in either kind of TLS."""
    implicit = check.tls if check.tls is not None else (port in defaults.IMPLICIT_TLS_PORTS and not check.starttls)
    if implicit and check.starttls:
        report.problem(path, "tls and starttls exclude each other: tls begins encrypted, starttls changes to it later")
    return implicit, build_verify(report, (*path, "verify"), check.verify)


def build_verify(report: Report, path: Path, verify: schema.Verify, name: str = "") -> model.Verify:
    """How a server's certificate is verified; `name` is expected in it when the operator named none."""
    if verify.kind == "none":
        if verify.ca or verify.pin:
            report.problem(path, "none verifies nothing, so it cannot stand beside ca or pin")
        return model.Verify("none", name=_expected(verify, name))
    if verify.ca and verify.pin:
        report.problem(path, "ca and pin exclude each other; a pin accepts one certificate, whoever signed it")
    if verify.pin is not None:
        pins = ",".join(dict.fromkeys(values.sha256(pin) for pin in verify.pin))
        return model.Verify("pin", pin_sha256=pins, name=_expected(verify, name))
    if verify.ca:
        file = report.file(verify.ca)
        reason = unreadable(file, "CERTIFICATE")
        if reason:
            report.problem((*path, "ca"), reason)
        return model.Verify("ca", ca_file=file, name=_expected(verify, name))
    return model.Verify("full", name=_expected(verify, name))


def _expected(verify: schema.Verify, name: str) -> str:
    return values.host_name(verify.name) if verify.name else name


def unreadable(file: str, *kinds: str) -> str:
    """Why a PEM file cannot be used; empty when it can be read and holds a block of each kind.

    `PRIVATE KEY` is found in every form of it (PKCS #8, RSA, EC).
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):
            return f"{file} is not a file"  # opening a pipe would wait for its writer
        with open(file, "rb") as stream:
            text = stream.read(1024 * 1024)
    except (OSError, ValueError) as error:
        return f"{file} cannot be read: {why_unread(error)}"
    for kind in kinds:
        if f"{kind}-----\n" not in text.decode("latin-1").replace("\r\n", "\n"):
            return f"{file} holds no {kind.lower()} in PEM form (-----BEGIN {kind}-----)"
    return ""
