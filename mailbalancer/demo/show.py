"""The demo as it runs: mail servers, RPC stand-ins and a balancer on loopback, and a voice that says what happens.

Decides: the order of starting and ending, that a killed server is announced and comes back by itself, and that
nothing is left behind: no process, no folder.
Refuses to know: how the balancer is asked (the caller passes that in) and how the text reaches the screen.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailbalancer.demo import authority, recipe
from mailbalancer.demo.child import Child, Program
from mailbalancer.demo.ports import NAMES, Ports, reserved
from mailbalancer.errors import MailbalancerError
from mailbalancer.log import one_line

#: Asks the balancer behind a control socket: (socket path, command) to the command's result.
Request = Callable[[str, str], Any]
#: Makes a tokens file and returns the token in it.
MakeToken = Callable[[Path], str]
Say = Callable[[str], None]
START_S = 20.0
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Settings:
    """How long (0: until Ctrl-C), how many workers, whether the folder stays, and how a shell calls mailbalancer."""

    seconds: float
    workers: int
    keep: bool
    command: str


def run(settings: Settings, request: Request, make_token: MakeToken, say: Say) -> None:
    """Run the demo until its time is over or SIGINT, SIGTERM or SIGHUP comes.

    Raises:
        MailbalancerError: a part did not start, or the balancer ended by itself.
    """
    asyncio.run(_run(settings, request, make_token, say))


async def _run(settings: Settings, request: Request, make_token: MakeToken, say: Say) -> None:
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    folder = _new_folder()
    with reserved() as ports:
        demo = Demo(folder, ports, settings, request, say, make_token(folder / "tokens"))
        try:
            await _until_first(interrupted.wait(), demo.play())
            say("The demo ends.")
        finally:
            await demo.stop()
            if settings.keep:
                say(f"Configuration and logs stay in {folder}")
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    """A folder for one demo, in the usual place unless that has too long a name for a socket in it (107 bytes)."""
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) < 64 else "/tmp"  # noqa: S108  # mkdtemp makes a private folder in it
    return Path(tempfile.mkdtemp(prefix="mailbalancer-demo-", dir=place))


async def _until_first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run all until the first one ends, end the others, and raise what the first one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:  # also when this one is cancelled
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


class Demo:
    """All processes of one demo."""

    def __init__(self, folder: Path, ports: Ports, settings: Settings, request: Request, say: Say, token: str) -> None:
        self._folder = folder
        self._ports = ports
        self._settings = settings
        self._request = request
        self._say = say
        self._token = token
        self._children: dict[str, Child] = {}  # by the program's name; a restarted server replaces its entry
        self._heard: list[Mapping[str, Any]] = []

    async def play(self) -> None:
        """Start everything, say what to try, keep it running; returns when the time is over."""
        authority.make(self._folder)
        servers = [self._program(name, *parts) for name, *parts in self._casting()]
        await asyncio.gather(*(self._start(program) for program in servers))
        balancer = await self._start_balancer()
        self._heard = (await self._status())["events"]
        for line in recipe.what_to_try(self._scene()):
            self._say(line)
        await _until_first(
            self._time_is_over(),
            self._report_death_of(balancer),
            self._tell_events(),
            *(self._keep_alive(program) for program in servers),
        )

    async def stop(self) -> None:
        """End every process; the balancer first, so that it does not report the servers' end."""
        for child in reversed(self._children.values()):
            await child.stop()

    # ------------------------------------------------------------ starting

    def _casting(self) -> Iterator[Sequence[str]]:
        """Name, module and arguments of every embedded server."""
        for name in NAMES:
            papers = str(authority.papers(self._folder).server)
            port = str(self._ports.mail_servers[name])
            yield f"{name}'s mail server", "mailbalancer.demo.mail_server", name, port, papers
            rpc_ports = map(str, self._ports.rpc_servers[name])
            yield f"{name}'s RPC stand-in", "mailbalancer.demo.rpc_server", name, *rpc_ports
            web_ports = map(str, self._ports.web_servers[name])
            mailbox_ports = map(str, self._ports.mailbox_servers[name])
            yield f"{name}'s mailboxes", "mailbalancer.demo.mailbox_server", name, *mailbox_ports, papers
            yield f"{name}'s web server", "mailbalancer.demo.web_server", name, *web_ports, papers

    def _program(self, name: str, module: str, *arguments: str) -> Program:
        log = "mailbalancer.log" if module == "mailbalancer.cli" else "servers.log"
        return Program(name, module, arguments, self._folder / log)

    async def _start(self, program: Program) -> None:
        child = self._children[program.name] = await program.start()
        await child.ready()

    async def _start_balancer(self) -> Child:
        """The real program as a user starts it; returns when it says that every real server is up."""
        path = self._folder / "mailbalancer.yaml"
        path.write_text(recipe.configuration(self._ports, str(self._folder), self._settings.workers))
        program = self._program("the balancer", "mailbalancer.cli", "run", "-c", str(path))
        child = self._children[program.name] = await program.start()
        try:
            await asyncio.wait_for(_until_first(self._report_death_of(child), self._until_all_up()), START_S)
        except TimeoutError:
            raise MailbalancerError(
                f"the balancer did not report every real server up within {START_S:.0f} s: {program.last_words()}"
            ) from None
        return child

    async def _until_all_up(self) -> None:
        while True:
            with suppress(MailbalancerError):  # it does not listen yet
                report = await self._status()
                pools = [pool for service in report["services"] for pool in service["pools"]]
                if all(server["up"] for pool in pools for server in pool["real_servers"]):
                    return
            await asyncio.sleep(_POLL_S)

    def _scene(self) -> recipe.Scene:
        return recipe.Scene(
            ports=self._ports,
            mail_pids={name: self._children[f"{name}'s mail server"].pid for name in NAMES},
            command=self._settings.command,
            folder=str(self._folder),
            tools=frozenset(tool for tool in ("swaks", "telnet") if shutil.which(tool)),
            token=self._token,
        )

    # ------------------------------------------------------------ running

    async def _time_is_over(self) -> None:
        if self._settings.seconds:
            await asyncio.sleep(self._settings.seconds)
        else:
            await asyncio.get_running_loop().create_future()

    async def _report_death_of(self, balancer: Child) -> None:
        code = await balancer.ended()
        raise MailbalancerError(f"the balancer ended with code {code}: {balancer.program.last_words()}")

    async def _keep_alive(self, program: Program) -> None:
        """Announce the end of an embedded server and start it again after a while, as often as needed."""
        while True:
            child = self._children[program.name]
            await child.ended()
            self._say(f"[demo] {program.name} (pid {child.pid}) is gone; it starts again in {recipe.RETURN_S} s")
            await asyncio.sleep(recipe.RETURN_S)
            try:
                await self._start(program)
            except MailbalancerError as error:  # killed again before it was ready: next round
                self._say(f"[demo] {one_line(str(error))}")
                continue
            back = self._children[program.name]
            self._say(f"[demo] {program.name} is back as pid {back.pid}: watch its share grow in `top`")

    async def _tell_events(self) -> None:
        """Say what the balancer says: servers that go down and come up."""
        while True:
            await asyncio.sleep(_POLL_S)
            with suppress(MailbalancerError):  # too busy to answer this once; its death is reported elsewhere
                events = (await self._status())["events"]
                for event in new_events(self._heard, events):
                    self._say(f"[balancer] {one_line(event['text'])}")
                self._heard = events

    async def _status(self) -> Any:
        """The balancer's status report, fetched without stopping this loop."""
        return await asyncio.to_thread(self._request, str(self._folder / "control.sock"), "status")


def new_events(heard: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events of `now` that came after those heard before; both are the newest of one growing list."""
    known = next((k for k in range(min(len(heard), len(now)), 0, -1) if heard[-k:] == now[:k]), 0)
    return list(now[known:])
