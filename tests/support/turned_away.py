"""A client that is to be refused: a reset, whenever it comes.

Decides: that a reset counts wherever it is seen. A balancer that refuses at once may do so before the client's own
connect(2) has returned, or while it still speaks.
"""

from __future__ import annotations

import socket


def is_turned_away(port: int, said: bytes = b"", source: str = "127.0.0.1") -> bool:
    """Connect to `port` of 127.0.0.1 from `source`, say something, and listen: was it ended by a reset?"""
    try:
        with socket.create_connection(("127.0.0.1", port), 10, (source, 0)) as client:
            client.sendall(said)
            client.recv(1)
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False
