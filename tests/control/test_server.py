"""Control socket and its client, against each other and against clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mailbalancer.control import server as module
from mailbalancer.control.client import request
from mailbalancer.control.server import MAX_REQUEST_BYTES, ControlServer
from mailbalancer.errors import ControlError
from mailbalancer.log import Log
from tests.support.waiting import eventually_async


@pytest.fixture
def path() -> Iterator[Path]:
    """A path short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        yield Path(folder) / "control"


async def handler(command: str, arguments: dict[str, Any]) -> Any:
    match command:
        case "echo":
            return arguments
        case "large":
            return "x" * 5_000_000
        case "refuse":
            raise ControlError("no", "ask later")
    raise ZeroDivisionError("a fault")


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[ControlServer]:
    log = Log()
    server = ControlServer(str(path), handler, log)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        log._close()


async def ask(path: Path, command: str, **arguments: Any) -> Any:
    return await asyncio.to_thread(request, str(path), command, **arguments)


async def raw(path: Path, data: bytes) -> list[dict[str, Any]]:
    """Every answer to these bytes, until the server closes or has nothing to say to a finished client."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**24)
    writer.write(data)
    writer.write_eof()
    answers = [json.loads(line) async for line in reader]
    writer.close()
    return answers


def test_question_and_answer(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path):
            assert await ask(path, "echo", a=1, b="ü") == {"a": 1, "b": "ü"}
            assert len(await ask(path, "large")) == 5_000_000
            with pytest.raises(ControlError) as refused:
                await ask(path, "refuse")
            assert (refused.value.message, refused.value.remedy) == ("no", "ask later")
            with pytest.raises(ControlError, match=r"broken failed: ZeroDivisionError.*fault of mailbalancer"):
                await ask(path, "broken")

    asyncio.run(scenario())


def test_several_requests_on_one_connection(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path):
            lines = b"".join(b'{"command": "echo", "n": %d}\n' % n for n in range(3))
            assert [answer["result"] for answer in await raw(path, lines)] == [{"n": 0}, {"n": 1}, {"n": 2}]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "line", [b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"command": 5}\n', b"\xff\n", b"null\n", b"[" * 50_000 + b"\n"]
)
def test_what_is_no_request(path: Path, line: bytes) -> None:
    async def scenario() -> None:
        async with serving(path):
            (answer,) = await raw(path, line)
            assert answer["ok"] is False
            assert answer["error"] == "not a request"
            assert await ask(path, "echo") == {}

    asyncio.run(scenario())


def test_a_request_without_end(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b"x" * (MAX_REQUEST_BYTES + 10))
            answer = json.loads(await reader.readline())
            assert answer["error"] == f"a request has at most {MAX_REQUEST_BYTES} bytes"
            assert await reader.read() == b""
            writer.close()

    asyncio.run(scenario())


def test_clients_that_stop_in_the_middle_or_never_read_harm_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.3)

    async def scenario() -> None:
        async with serving(path) as server:
            silent = await asyncio.open_unix_connection(str(path))
            halfway = await asyncio.open_unix_connection(str(path))
            halfway[1].write(b'{"command": ')
            deaf = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            deaf.connect(str(path))
            deaf.sendall(b'{"command": "large"}\n' * 3)
            assert await ask(path, "echo") == {}
            assert await silent[0].read() == b""
            assert await halfway[0].read() == b""
            await eventually_async(lambda: not server._clients, what="all three are disconnected")
            deaf.close()
            silent[1].close()
            halfway[1].close()

    asyncio.run(scenario())


def test_too_many_clients_are_turned_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLIENTS", 2)

    async def scenario() -> None:
        async with serving(path):
            held = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
            for reader, writer in held:  # both are being served
                writer.write(b'{"command": "echo"}\n')
                await reader.readline()
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read() == b""
            for _, each in [*held, (reader, writer)]:
                each.close()

    asyncio.run(scenario())


def test_owner_and_group_may_use_the_socket_and_it_is_removed(path: Path) -> None:
    async def scenario() -> int:
        async with serving(path):
            return mode_of(path)

    mode = asyncio.run(scenario())
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o660
    assert not path.exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode


def test_a_stale_socket_is_replaced(path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dead.bind(str(path))
    dead.close()

    async def scenario() -> None:
        async with serving(path):
            assert await ask(path, "echo") == {}

    asyncio.run(scenario())


def test_two_balancers_never_share_one_socket(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path):
            with pytest.raises(ControlError, match="another mailbalancer already answers"):
                await ControlServer(str(path), handler, Log()).start()
            assert await ask(path, "echo") == {}

    asyncio.run(scenario())


def test_a_socket_that_became_somebody_elses_is_left(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path):
            replace_by_file(path)

    asyncio.run(scenario())
    assert path.read_text() == "not ours"


def replace_by_file(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.write_text("not ours")


def test_what_stands_in_the_way(path: Path) -> None:
    path.write_text("important")
    start = ControlServer(str(path), handler, Log()).start()
    with pytest.raises(ControlError, match="is no socket"):
        asyncio.run(start)
    assert path.read_text() == "important"


def test_a_missing_directory(path: Path) -> None:
    start = ControlServer(str(path.parent / "no" / "where"), handler, Log()).start()
    with pytest.raises(ControlError, match="mkdir -p"):
        asyncio.run(start)


# ---------------------------------------------------------------- the client alone


def test_nobody_answers(path: Path) -> None:
    for make in (lambda: None, lambda: path.write_text("a file")):
        make()
        with pytest.raises(ControlError, match=r"no balancer answers on .*systemctl status mailbalancer.*-c"):
            request(str(path), "status")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try what another user may not")
def test_a_socket_of_somebody_else(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o600)
        path.parent.chmod(0o755)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            try:
                request(str(path), "status")
            except ControlError as error:
                os.write(writing, str(error).encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(pid, 0)
        with os.fdopen(reading) as said:
            assert "may not be used by this user; use sudo" in said.read()


@pytest.mark.parametrize("answer", [b"", b'{"ok": true, "res', b"[]\n", b'{"ok": false}\n', b"\xff\n"])
def test_an_answer_that_is_cut_or_not_ours(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(answer)
            connection.close()

        other = threading.Thread(target=reply)
        other.start()
        with pytest.raises(ControlError, match="cut or is not from mailbalancer"):
            request(str(path), "status")
        other.join()
