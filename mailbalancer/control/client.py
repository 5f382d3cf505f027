"""Asks the running balancer: one request, one answer.

Decides: what an administrator reads when no balancer answers.
Refuses to know: what the commands mean.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

from mailbalancer.errors import ControlError

TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024


class NobodyAnswers(ControlError):
    """No balancer runs behind this control socket."""


def request(socket_path: str, command: str, **arguments: Any) -> Any:
    """Send a command to the balancer behind this control socket and return its result.

    Raises:
        ControlError: nobody answers there, or the balancer refuses; with what to do about it.
    """
    line = json.dumps({"command": command, **arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(socket_path)
            sock.sendall(line)
            answer = _read_line(sock)
    except OSError as error:
        raise _explain(socket_path, error) from error
    return _result(socket_path, answer)


def _read_line(sock: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        data = sock.recv(262144)
        if not data or len(received) > MAX_ANSWER_BYTES:
            break
        received += data
    return bytes(received)


def _result(socket_path: str, line: bytes) -> Any:
    try:
        answer = json.loads(line)
        if answer["ok"]:
            return answer["result"]
        message, remedy = str(answer["error"]), str(answer.get("remedy", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise ControlError(
            f"the answer on {socket_path} was cut or is not from mailbalancer",
            "see the balancer's log, and check that both are of the same version",
        ) from error
    raise ControlError(message, remedy)


def _explain(socket_path: str, error: OSError) -> ControlError:
    if isinstance(error, TimeoutError):
        return ControlError(
            f"the balancer on {socket_path} did not answer within {TIMEOUT_S:.0f} s",
            "see its log; is the machine busy?",
        )
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK):
        return NobodyAnswers(
            f"no balancer answers on {socket_path}",
            "is it running? (`systemctl status mailbalancer`); if it runs with another file, name that with -c",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ControlError(
            f"{socket_path} may not be used by this user",
            "use sudo, or join the group that owns the socket (`ls -l` shows it)",
        )
    return ControlError(f"the balancer on {socket_path} cannot be asked: {error.strerror or error}")
