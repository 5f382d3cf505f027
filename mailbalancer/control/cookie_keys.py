"""The key files of persistence cookies: made when they are not there, so that cookies survive a restart.

Decides: when a file is made, what is in it, and who may read it.
Refuses to know: what is sealed with a key. Two balancers that share their clients share the file.
"""

from __future__ import annotations

import os
import secrets

from mailbalancer.errors import MailbalancerError
from mailbalancer.model import Config

KEY_BYTES = 32
_HEAD = "# mailbalancer: keys of persistence cookies. The first line seals, every line opens; remove old ones later.\n"


def make_missing(config: Config) -> list[str]:
    """Make every key file that is named and not there; returns their paths.

    Raises:
        MailbalancerError: one cannot be made, or can be read by others.
    """
    made = []
    for file in dict.fromkeys(p.persist.key_file for p in config.pools() if p.persist and p.persist.key_file):
        try:
            if _make(file):
                made.append(file)
            elif os.stat(file).st_mode & 0o007:
                raise MailbalancerError(f"every user of this machine can read {file}", f"chmod o= {file}")
        except OSError as error:
            raise MailbalancerError(
                f"the key file {file} cannot be made or read: {(error.strerror or str(error)).lower()}",
                "name a file in a folder that mailbalancer's user may write to, as /var/lib/mailbalancer",
            ) from error
    return made


def _make(file: str) -> bool:
    """Make the file, if it is not there, in one step: who reads it sees the whole of it, or nothing."""
    if os.path.exists(file):
        return False
    fresh = f"{file}.{os.getpid()}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, f"{_HEAD}{secrets.token_hex(KEY_BYTES)}\n".encode())
        os.fsync(descriptor)
        os.link(fresh, file)  # unlike rename it does not replace one that was made meanwhile
    finally:
        os.close(descriptor)
        os.unlink(fresh)
    return True
