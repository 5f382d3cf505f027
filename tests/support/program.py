"""The real program, started as an operator starts it, and asked through its control socket.

Decides: when it counts as ready (every worker runs the newest configuration), and that nothing of it outlives a test.
Refuses to know: what is in the configuration, beyond the control socket and the state file it needs for itself.

    with Balancer(config, tmp_path) as balancer:
        balancer.status()["services"][0]["sessions"]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.waiting import eventually

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 10.0


class Refused(AssertionError):
    """The balancer answered a command with `ok: false`."""

    def __init__(self, error: str, remedy: str) -> None:
        super().__init__(f"{error}; {remedy}" if remedy else error)
        self.error = error
        self.remedy = remedy


#: What the program says about a fault of its own. A test that provokes one says `expect_trouble`.
FAULTS = ("Traceback (most recent call last)", "internal error")


class Balancer:
    """One running mailbalancer with a control socket and a state file of its own.

    Args:
        config: a mapping, or YAML text where the test is about lines; what the program needs for itself is added.
        folder: usually `tmp_path`; configuration, state and log lie there.
        expect_trouble: False: a traceback in the log fails the test when the balancer stops.
        under: a command that runs the command given to it, in its own place.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str,
        folder: Path,
        expect_trouble: bool = False,
        under: Sequence[str] = (),
    ) -> None:
        # a socket's path may have 107 bytes, and tmp_path alone can be longer
        self._short = tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp", ignore_cleanup_errors=True)
        self.control_socket = Path(self._short.name) / "control"
        self.folder = folder
        self.config_file = folder / "mailbalancer.yaml"
        self.state_file = folder / "state.json"
        self.log_file = folder / "mailbalancer.log"
        self.expect_trouble = expect_trouble
        self._under = list(under)
        self._process: subprocess.Popen[bytes] | None = None
        self.write_config(config)

    # its life

    def start(self) -> None:
        """Start it and wait until every worker serves. Also after `stop`: the state file is still there.

        Raises:
            AssertionError: it ended, or was not ready in time; with its log.
        """
        command = [*self._under, sys.executable, "-m", "mailbalancer.cli", "run", "-c", str(self.config_file)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(self._ready, START_TIMEOUT_S, "mailbalancer is ready")
        except BaseException as error:
            self.kill()
            if isinstance(error, AssertionError):
                raise AssertionError(f"mailbalancer did not start: {error}\n{self.log_text()}") from None
            raise

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """Ask it to stop and wait; None when it was still there after `timeout_s` and had to be killed."""
        if self._process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(with_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def kill(self) -> None:
        """End the supervisor and every worker now: they share the session it was started in."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._short.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.kill()
            self._short.cleanup()
        if kind is not None:
            sys.stderr.write(f"--- log of mailbalancer ---\n{self.log_text()[-20000:]}\n")  # pytest shows it
        elif not self.expect_trouble:
            faults = [words for words in FAULTS if words in self.log_text()]
            assert not faults, self.log_text()

    # what it says

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are alive, by index."""
        return [worker["pid"] for worker in self.status()["workers"] if worker["alive"]]

    def status(self) -> dict[str, Any]:
        """The answer to `status`."""
        result: dict[str, Any] = self.command("status")
        return result

    def service(self, name: str) -> dict[str, Any]:
        """One service of `status`."""
        return _named(self.status()["services"], name)

    def real_server(self, service: str, name: str, route: str = "") -> dict[str, Any]:
        """One real server of one pool of `status`; `route` is empty for the service's own pool."""
        pool = next(p for p in self.service(service)["pools"] if p["route"] == route)
        return _named(pool["real_servers"], name)

    def command(self, name: str, /, **arguments: Any) -> Any:
        """One command on the control socket: the result.

        Raises:
            Refused: the answer was `ok: false`.
            OSError: nobody listens on the socket.
        """
        answer = _ask(self.control_socket, {"command": name, **arguments})
        if not answer["ok"]:
            raise Refused(answer["error"], answer.get("remedy", ""))
        return answer["result"]

    def cli(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """A command as the operator types it, with `-c` and this balancer's configuration at the end."""
        return run_cli(*arguments, "-c", str(self.config_file), timeout_s=timeout_s)

    def reload(self, config: Mapping[str, Any] | str | None = None) -> dict[str, Any]:
        """Reload, with a new configuration if one is given; returns when every worker runs it, with the status.

        Raises:
            Refused: the configuration was not accepted.
        """
        if config is not None:
            self.write_config(config)
        before = self.status()["config_version"]
        self.command("reload")
        return eventually(lambda: self._reloaded(before), what="every worker runs the new configuration")

    def write_config(self, config: Mapping[str, Any] | str) -> None:
        """Write the configuration file, without telling the program."""
        self.config_file.write_text(self._complete(config))

    def log_text(self) -> str:
        """All that it has written to stdout and stderr."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # inside

    def _complete(self, config: Mapping[str, Any] | str) -> str:
        own = {"control_socket": str(self.control_socket), "state_file": str(self.state_file)}
        if isinstance(config, str):
            added = {key: value for key, value in own.items() if f"{key}:" not in config}
            return config + ("\n" if added else "") + "".join(f"{k}: {v}\n" for k, v in added.items())
        return yaml.safe_dump({"version": 1, "workers": 2, "user": "", **own, **config}, sort_keys=False)

    def _ready(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise RuntimeError(f"mailbalancer ended with exit code {code}:\n{self.log_text()}")
        status = self.status()
        return all(w["alive"] and w["config_version"] == status["config_version"] for w in status["workers"])

    def _reloaded(self, before: int) -> dict[str, Any] | None:
        status = self.status()
        version = status["config_version"]
        # an unchanged file may keep its version: then nothing has to reach the workers
        done = version >= before and all(w["config_version"] == version for w in status["workers"] if w["alive"])
        return status if done else None


def run_cli(*arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """`mailbalancer ARGUMENTS` as the operator types it; the result, whatever its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "mailbalancer.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _ask(path: Path, request: Mapping[str, Any]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(ANSWER_TIMEOUT_S)
        control.connect(str(path))
        control.sendall(json.dumps(request).encode() + b"\n")
        with control.makefile("rb") as answers:
            line = answers.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError(f"the control socket closed without an answer to {request['command']}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    found = next((entry for entry in entries if entry["name"] == name), None)
    assert found is not None, f"no {name!r} among {[entry['name'] for entry in entries]}"
    return found
