"""The control socket: requests in, answers out, one JSON object per line each.

Decides: who may connect (the file's mode), that two balancers never share one socket, and that a client which sends
nonsense, too much, nothing, or never reads harms nobody.
Refuses to know: what the commands do.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mailbalancer.errors import ControlError, MailbalancerError
from mailbalancer.log import Log

MAX_REQUEST_BYTES = 64 * 1024
MAX_CLIENTS = 64
#: A client that neither asks nor reads for so long is disconnected.
IDLE_S = 60.0
#: Owner and group of the socket file may give commands.
MODE = 0o660

Handler = Callable[[str, dict[str, Any]], Awaitable[Any]]


class ControlServer:
    """Serves one socket file."""

    def __init__(self, path: str, handler: Handler, log: Log) -> None:
        self._path = Path(path)
        self._handler = handler
        self._log = log
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self._inode = 0

    async def start(self) -> None:
        """Open the socket.

        Raises:
            ControlError: another balancer answers there, something else is in the way, or it is not permitted.
        """
        sock = _open(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock, limit=MAX_REQUEST_BYTES)

    async def stop(self) -> None:
        """Close, and remove the file if it is still ours."""
        self._server.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(IDLE_S):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                answer = _refusal(ControlError(f"a request has at most {MAX_REQUEST_BYTES} bytes"))
                line = b""
            else:
                answer = await self._answer(line)
            writer.write(json.dumps(answer, default=str).encode() + b"\n")
            async with asyncio.timeout(IDLE_S):
                await writer.drain()
            if not line:
                return

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = request.pop("command")
            if not isinstance(command, str):
                raise ValueError("the command is not a word")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return _refusal(ControlError("not a request", 'send one JSON object per line: {"command": "status"}'))
        try:
            return {"ok": True, "result": await self._handler(command, request)}
        except MailbalancerError as error:
            return _refusal(error)
        except Exception as error:
            self._log.error(f"command {command} failed: {error!r}")
            return _refusal(ControlError(f"command {command} failed: {error!r}", "this is a fault of mailbalancer"))


def _refusal(error: MailbalancerError) -> dict[str, Any]:
    return {"ok": False, "error": error.message if hasattr(error, "message") else str(error), "remedy": error.remedy}


def _open(path: Path) -> socket.socket:
    _clear_the_way(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    before = os.umask(0o777 & ~MODE)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise _explain(path, error) from error
    finally:
        os.umask(before)
    sock.listen(MAX_CLIENTS)
    return sock


def _clear_the_way(path: Path) -> None:
    """A socket file that nobody listens on was left by a balancer that was killed."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise ControlError(f"{path} exists and is no socket", "remove it, or set another `control_socket`")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ECONNREFUSED:
            raise _explain(path, error) from error
        with suppress(FileNotFoundError):
            path.unlink()
        return
    raise ControlError(
        f"another mailbalancer already answers on {path}",
        "stop it first (`systemctl stop mailbalancer`), or give this one its own `control_socket`",
    )


def _explain(path: Path, error: OSError) -> ControlError:
    if error.errno == errno.ENOENT:
        return ControlError(
            f"control socket {path}: its directory does not exist", f"make it: `mkdir -p {path.parent}`"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ControlError(
            f"control socket {path}: this user may not write to {path.parent}",
            "give the directory to the user mailbalancer runs as, or set another `control_socket`",
        )
    if error.errno is None:  # the path does not fit into a sockaddr_un (unix(7)), says Python
        return ControlError(
            f"control socket {path}: the path is too long for a socket", "set a `control_socket` of at most 107 bytes"
        )
    return ControlError(f"control socket {path} cannot be opened: {error.strerror or error}")
