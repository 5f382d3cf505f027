"""What the real servers of each `smtp` service offer after EHLO, so that every worker shows clients the same list.

Decides: which lists count. A check's does when it was heard as a session would hear it (same port, same TLS); what
sessions hear is added to it, because a server may offer more to clients that it knows. A check that hears something
else than before makes an end of both: the server has changed.
Refuses to know: what clients are shown of it (`wire.smtp_capabilities`, in the workers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mailbalancer.balance.health import Result, Verdict
from mailbalancer.control.events import Events
from mailbalancer.ipc.messages import Offered, Offers
from mailbalancer.model import Config, MemberKey, Mode, Service, SmtpCheck
from mailbalancer.wire.smtp_capabilities import NEVER, Capabilities, common, either, lines_of, parse_lines

#: A worker that reports more lines, or longer ones, is not believed.
MOST_LINES = 128
LONGEST_LINE = 1000


@dataclass(slots=True)
class _Known:
    """Of one real server in one service. None: nobody has heard it yet."""

    checked: Capabilities | None = None
    heard: Capabilities | None = None

    @property
    def all(self) -> Capabilities | None:
        if self.checked is None or self.heard is None:
            return self.heard if self.checked is None else self.checked
        return either(self.checked, self.heard)


@dataclass(slots=True)
class _List:
    """One service: its servers in their order, and the keywords whose absence has been told."""

    config: Service
    servers: dict[str, _Known]
    told: set[bytes] = field(default_factory=set)

    def known(self) -> dict[str, Capabilities]:
        return {name: known.all for name, known in self.servers.items() if known.all is not None}


class OfferedLists:
    """Of all services.

    Args:
        tell: brings a message to every worker.
    """

    def __init__(self, events: Events, tell: Callable[[Offers], None]) -> None:
        self._events = events
        self._tell = tell
        self._lists: dict[str, _List] = {}

    def follow(self, config: Config) -> None:
        """This configuration runs now. What checks have heard of servers that stay is still true; what sessions have
        heard is asked for again."""
        lists = {}
        for service in config.services:
            if service.mode is not Mode.SMTP:
                continue
            before = self._lists.get(service.name)
            lists[service.name] = _List(
                service,
                {member.real_server: _still(before, service, member.real_server) for member in service.pool.members},
            )
        self._lists = lists
        for name in lists:
            self._publish(name)

    def messages(self) -> list[Offers]:
        """Everything, for a worker that starts."""
        return [_message(name, found) for name, found in self._lists.items()]

    def common(self, service: str) -> list[str]:
        """What all servers of a service that were heard so far offer, for `status`."""
        found = self._lists.get(service)
        lines = lines_of(common(list(found.known().values()))) if found is not None else []
        return [line.decode("ascii") for line in lines]

    def checked(self, key: MemberKey, result: Result) -> None:
        """A check has ended."""
        found = self._lists.get(key.service)
        known = found.servers.get(key.real_server) if found is not None else None
        text = result.detail.get("capabilities")
        if found is None or known is None or not isinstance(text, str) or result.verdict is not Verdict.UP:
            return
        offered = parse_lines([line.encode("ascii", "replace") for line in text.split("\n")])
        if offered != known.checked and _as_sessions_do(found.config, key.real_server, offered):
            known.checked, known.heard = offered, None
            self._publish(key.service)

    def heard(self, message: Offered) -> None:
        """A worker reports what a session has heard.

        Raises:
            ValueError: it does not make sense.
        """
        lines = message.lines
        if not isinstance(lines, list) or len(lines) > MOST_LINES:
            raise ValueError(f"more than {MOST_LINES} capabilities, or none that are a list")
        if not all(isinstance(line, str) and line.isascii() and len(line) <= LONGEST_LINE for line in lines):
            raise ValueError("capabilities that are no lines")
        found = self._lists.get(message.service)
        known = found.servers.get(message.real_server) if found is not None else None
        if known is not None:  # not removed meanwhile
            before = known.all
            known.heard = either(known.heard or {}, parse_lines([line.encode() for line in lines]))
            if known.all != before:
                self._publish(message.service)

    def _publish(self, service: str) -> None:
        found = self._lists[service]
        self._tell(_message(service, found))
        self._say_what_is_missing(service, found)

    def _say_what_is_missing(self, service: str, found: _List) -> None:
        """Once for each keyword that some offer and others do not."""
        mail = found.config.mail
        if mail is None or mail.smtp.capabilities:  # stated: what servers offer does not matter
            return
        known = found.known()
        shared = common(list(known.values()))
        missing = {keyword for offered in known.values() for keyword in offered} - shared.keys()
        missing = {keyword for keyword in missing if keyword != b"STARTTLS" and not NEVER.fullmatch(keyword)}
        for keyword in sorted(missing - found.told):
            without = ", ".join(name for name, offered in known.items() if keyword not in offered)
            if without:
                word = keyword.decode("ascii")
                self._events.info(f"{service}: clients are not shown {word}, because {without} does not offer it")
        found.told = missing


def _still(before: _List | None, service: Service, name: str) -> _Known:
    """What is known of a server that may have been there before, at the same place and asked in the same way."""
    if before is None or name not in before.servers or _asked(before.config, name) != _asked(service, name):
        return _Known()
    return _Known(before.servers[name].checked)


def _asked(service: Service, name: str) -> object:
    endpoint = next((m.endpoint for m in service.pool.members if m.real_server == name), None)
    return endpoint, service.server_tls, service.pool.check


def _as_sessions_do(service: Service, name: str, offered: Capabilities) -> bool:
    """Whether a check hears what a session would: the same port, and TLS from the same moment on."""
    check, options = service.pool.check, service.pool.check.options
    port = next(m.endpoint.port for m in service.pool.members if m.real_server == name)
    if not isinstance(options, SmtpCheck) or check.port not in (0, port):
        return False
    inner = service.server_tls.starttls if service.server_tls is not None else "none"
    if inner == "opportunistic":
        return not options.tls and (options.starttls or b"STARTTLS" not in offered)
    return options.tls == (inner == "implicit") and options.starttls == (inner == "require")


def _message(service: str, found: _List) -> Offers:
    return Offers(service, {name: tuple(lines_of(offered)) for name, offered in found.known().items()})
