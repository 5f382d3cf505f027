"""Tells systemd where we are (sd_notify(3)), when it asked to be told.

Decides: how a notification is sent.
Refuses to know: what the states mean to anybody.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send lines such as `READY=1`; nothing happens outside systemd, and a service manager that is gone is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # abstract namespace
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), socket.MSG_DONTWAIT, address)
