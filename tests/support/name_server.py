"""A name server for tests in namespaces: any question has no answer (NOERROR), in a process of its own.

python -m tests.support.name_server ADDRESS
"""

from __future__ import annotations

import socket
import sys

_RESPONSE = bytes((0x81, 0x80))  # RFC 1035 section 4.1.1: an answer, recursion available, no error


def main(address: str) -> None:
    """Serve until killed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, 53))
        while True:
            asked, client = sock.recvfrom(512)
            sock.sendto(asked[:2] + _RESPONSE + asked[4:], client)


if __name__ == "__main__":
    main(sys.argv[1])
