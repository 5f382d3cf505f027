"""Limits of the process that the kernel sets.

Decides: that we use as many file descriptors as we are allowed.
Refuses to know: how many connections that is.
"""

from __future__ import annotations

import resource


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one (getrlimit(2)) and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
