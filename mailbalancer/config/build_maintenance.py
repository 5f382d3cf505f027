"""Planned maintenance: from checked windows to `model.Window`.

Decides: that a window ends after it begins, and that what it names exists.
Refuses to know: what happens in a window.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from mailbalancer import model
from mailbalancer.config import schema, values
from mailbalancer.config.problems import hint
from mailbalancer.config.report import Report

_WEEK = timedelta(weeks=1)


def build_windows(
    report: Report, written: schema.Maintenance, real_servers: Collection[str]
) -> tuple[model.Window, ...]:
    """The windows; what is wrong with them is in the report."""
    return tuple(_window(report, at, window, real_servers) for at, window in enumerate(written.windows))


def _window(report: Report, at: int, written: schema.Window, real_servers: Collection[str]) -> model.Window:
    path = ("maintenance", "windows", at)
    if written.real_server not in real_servers:
        known = hint(written.real_server, real_servers)
        report.problem((*path, "real_server"), f"there is no real server '{written.real_server}'{known}")
    begins, until = values.moment(written.begins), values.moment(written.until)
    weekly = _is_weekly(written.begins)
    if weekly != _is_weekly(written.until):
        report.problem((*path, "until"), "write both as dates or both as weekdays")
    elif weekly and until <= begins:
        until += _WEEK  # from sunday 22:00 until monday 02:00
    elif until <= begins:
        report.problem((*path, "until"), f"{written.until} is not after {written.begins}")
    return model.Window(written.real_server, begins, until - begins, weekly)


def _is_weekly(text: str) -> bool:
    return text[0].isalpha()
