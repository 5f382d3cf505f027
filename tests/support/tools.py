"""Programs from Debian that tests drive: found, or the test says why it did not run.

Decides: what a missing program means. On a developer's machine the test is skipped with its reason; where
`MAILBALANCER_CI=1` is set nothing may be skipped for want of a tool, so it fails.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

#: Programs whose Debian package has another name.
PACKAGES = {
    "dovecot": "dovecot-imapd dovecot-pop3d",
    "doveconf": "dovecot-imapd dovecot-pop3d",
    "ip": "iproute2",
    "nft": "nftables",
    "postconf": "postfix",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"


def require(tool: str) -> str:
    """The path of a program; a test that cannot have it ends here (skipped, or failed under `MAILBALANCER_CI=1`)."""
    path = find(tool)
    if path is None:
        cannot_run(f"{tool} is not installed (Debian: apt-get install {PACKAGES.get(tool, tool)})")
    return path


def find(tool: str) -> str | None:
    """The path of a program, also in the folders that only root has in its PATH."""
    return shutil.which(tool) or shutil.which(tool, path=SYSTEM_FOLDERS)


def require_root(why: str) -> None:
    """The test needs root for `why`: as another user it is skipped, or fails under `MAILBALANCER_CI=1`."""
    if os.geteuid() != 0:
        cannot_run(f"needs root: {why}")


def cannot_run(reason: str) -> NoReturn:
    """End this test: it cannot run here, for a reason that is the machine's and not the program's."""
    if os.environ.get("MAILBALANCER_CI") == "1":
        pytest.fail(f"{reason}; MAILBALANCER_CI=1 allows no skipped test", pytrace=False)
    pytest.skip(reason)
