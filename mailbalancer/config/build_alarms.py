"""Alarms: from checked settings to `model.Alarms`.

Decides: what cannot work is refused now, and not when something happens and nobody is told.
Refuses to know: which events become alarms, and how they are sent.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.build_check import unreadable
from mailbalancer.config.problems import Path
from mailbalancer.config.report import Report


def build_alarms(report: Report, written: schema.Alarms) -> model.Alarms:
    """Who is told; what is wrong with it is in the report."""
    mail = written.mail
    return model.Alarms(
        level=written.level,
        group_s=written.group_s,
        most_per_hour=written.most_per_hour,
        mail=model.AlarmMail(values.endpoint(mail.server), mail.sender, tuple(mail.recipients)) if mail else None,
        webhook=_webhook(report, written.webhook) if written.webhook else None,
        syslog=report.file(written.syslog) if written.syslog else "",
    )


def _webhook(report: Report, written: schema.AlarmWebhook) -> model.AlarmWebhook:
    path: Path = ("alarms", "webhook")
    if (written.url is None) == (written.url_file is None):
        report.problem(path, "name either url or url_file")
    elif written.address is None and (written.url is None or not _is_address(urlsplit(written.url).hostname or "")):
        text = "alarms must not depend on DNS: name the IP address behind the name as `address`"
        report.problem((*path, "url") if written.url else path, text)
    for key, file in (("url_file", written.url_file), ("ca", written.ca)):
        if file and (reason := unreadable(report.file(file))):
            report.problem((*path, key), reason)
    return model.AlarmWebhook(
        url=written.url or "",
        url_file=report.file(written.url_file) if written.url_file else "",
        address=str(ipaddress.ip_address(written.address)) if written.address else "",
        ca_file=report.file(written.ca) if written.ca else "",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
