"""Whose files are: what root writes for a balancer that runs as somebody else must be readable there.

Decides: user and group. Refuses to know: what is written.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mailbalancer.commands.terminal import load_config

if TYPE_CHECKING:
    pass


def reader_by(text: str) -> tuple[int, int] | None:
    """Who must be able to read what root writes for the balancer: whom its configuration names."""
    from mailbalancer.admin.edit import EditError, value_at

    try:
        user = value_at(text, ("user",))
    except EditError:
        user = "auto"
    return ids_of(user) if isinstance(user, str) and os.geteuid() == 0 else None


def service_owner(config: str, file: str | None) -> tuple[int, int] | None:
    """Who must be able to read a tokens file that root makes: the user that the balancer becomes."""
    if os.geteuid() != 0 or file is not None:
        return None
    return ids_of(load_config(config).user)


def ids_of(user: str) -> tuple[int, int] | None:
    """User and group id of whom the balancer becomes."""
    import pwd

    from mailbalancer.host.privileges import service_user

    try:
        entry = pwd.getpwnam(service_user(user) or "root")
    except KeyError:
        return None
    return entry.pw_uid, entry.pw_gid
