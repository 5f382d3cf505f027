"""swaks, as a mail administrator types it: one message, and what was said on the way.

Decides: that a message was taken only when swaks says so with exit code 0.
Refuses to know: what is on the port, a balancer or a server.
"""

from __future__ import annotations

import subprocess

from tests.support.tools import require

TIMEOUT_S = 20


def swaks(port: int, *options: str, source: str = "127.0.0.1") -> subprocess.CompletedProcess[str]:
    """Send one message to example.com through `port` of 127.0.0.1, from the local address `source`."""
    command = [require("swaks"), "--server", f"127.0.0.1:{port}", "--local-interface", source]
    envelope = ["--from", "sender@example.org", "--to", "somebody@example.com", "--helo", "client.example.org"]
    return subprocess.run(
        [*command, *envelope, "--timeout", "10", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def deliver(port: int, *options: str, source: str = "127.0.0.1") -> str:
    """The same; a message that is not taken fails the test. Returns the conversation."""
    done = swaks(port, *options, source=source)
    assert done.returncode == 0, f"swaks ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout
