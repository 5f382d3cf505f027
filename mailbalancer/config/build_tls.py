"""TLS of a service, on either side: from what the operator wrote to the model.

Decides: that certificates are among those listed, and what of a choice must be said aloud.
Refuses to know: what is in the files; whoever reads them says so.
"""

from __future__ import annotations

from collections.abc import Collection

from mailbalancer import model
from mailbalancer.config import schema
from mailbalancer.config.build_check import build_verify, unreadable
from mailbalancer.config.problems import Path, hint, quoted
from mailbalancer.config.report import Report


def build_client_tls(
    report: Report, path: Path, written: schema.ClientTls, certificates: Collection[str], starttls: str = "implicit"
) -> model.ClientTls:
    """What clients are shown.

    Args:
        path: of `client_tls`.
        certificates: the names that are listed under `certificates`.
        starttls: when TLS begins.
    """
    if not written.certificate and starttls != "none":
        report.problem(path, "'certificate' is missing; name one of those under certificates:")
    for name in written.certificate:
        if name not in certificates:
            guess = hint(name, certificates)
            report.problem((*path, "certificate"), f"{quoted(name)} is not in certificates{guess}")
    authorities = ""
    if written.client_ca:
        authorities = report.file(written.client_ca)
        reason = unreadable(authorities, "CERTIFICATE")
        if reason:
            report.problem((*path, "client_ca"), reason)
    must_show = written.client_certificate == "required"
    if must_show and not authorities:
        reason = "certificates of clients cannot be required without client_ca, the authorities that issue them"
        report.problem((*path, "client_certificate"), reason)
    names = tuple(dict.fromkeys(written.certificate))
    return model.ClientTls(names, starttls, written.min_version, authorities, must_show)


def build_server_tls(
    report: Report, path: Path, written: schema.ServerTls, starttls: str = "implicit"
) -> model.ServerTls:
    """How servers are verified; `path` is that of `server_tls`."""
    verify = build_verify(report, (*path, "verify"), written.verify)
    if verify.kind == "none":
        report.warning(
            (*path, "verify"), "the servers' certificates are not verified: anybody in between can read along"
        )
    return model.ServerTls(verify, starttls, written.min_version)
