"""Certificates while no balancer runs: the operations of the running one, on the files alone.

Decides: that a configuration which cannot be applied yet is no obstacle: the certificate that it lacks may be the very
one that is brought now. Its problems are told as warnings.
Refuses to know: which operation it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailbalancer.admin import certificates, edit
from mailbalancer.admin.api import commanded
from mailbalancer.admin.archive import Archive
from mailbalancer.admin.certificate_folder import listed_in, paths_of
from mailbalancer.admin.certifying import Certifying
from mailbalancer.admin.configuration import Configuration
from mailbalancer.admin.desk import Event
from mailbalancer.config.load import load
from mailbalancer.errors import ConfigError, MailbalancerError
from mailbalancer.l4.paths import Path as Way
from mailbalancer.model import Certificate, Config
from mailbalancer.tls.certificate import today
from mailbalancer.tls.material import read_all


def obey(config_file: Path, command: str, arguments: dict[str, Any], owner: tuple[int, int] | None) -> Any:
    """Do what the running balancer would, but for the reload.

    Args:
        owner: user and group id of who will run the balancer; None: who does this.

    Raises:
        MailbalancerError: it is refused.
    """
    desk = _Desk(_config(config_file))
    operations = Certifying(desk, _Unchecked(desk, Archive(None)), owner).operations()
    operation = next(one for one in operations if one.name == command)
    return asyncio.run(_handled(operation.handler(commanded(operation, arguments))))


async def _handled(work: Any) -> Any:
    return await work


def _config(file: Path) -> Config:
    try:
        return load(file)
    except ConfigError:
        return _poor_config(file)


def _poor_config(file: Path) -> Config:
    """The certificates of a file that is not good enough to be loaded, and where they are written."""
    try:
        text = file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise MailbalancerError(f"{file} cannot be read: {error.strerror}", "name it with -c FILE") from None
    folder = file.absolute().parent
    place = ("certificates_dir",)
    named = edit.value_at(text, place) if edit.has(text, place) else "certs"
    found = {name: paths_of(entry) for name, entry in listed_in(text).items()}
    listed = (
        Certificate(name, *(str(folder / part) if part else "" for part in parts)) for name, parts in found.items()
    )
    return Config(
        str(file), (), (), 1, "", "", "", certificates=tuple(listed), certificates_dir=str(folder / str(named))
    )


@dataclass
class _Desk:
    """A desk nobody sits at."""

    config: Config

    @property
    def report(self) -> Callable[[], dict[str, Any]]:
        return self._report

    @property
    def obey(self) -> Callable[[str, dict[str, Any]], Any]:
        return self._obey

    @property
    def explain(self) -> Callable[[str, str, str], list[Way]]:
        return lambda client, service, real_server: []

    @property
    def timings(self) -> Callable[[str], dict[str, Any]]:
        return lambda service: {}

    def watch(self, told: Callable[[Event], None]) -> list[Event]:
        return []

    async def _obey(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"changes": [], "warnings": []}

    def _report(self) -> dict[str, Any]:
        usable, _ = read_all(self.config.certificates)
        services = [
            {"name": one.name, "client_tls": {"certificates": one.client_tls.certificates}, "pools": []}
            for one in self.config.services
            if one.client_tls is not None
        ]
        found = [{**certificates.facts(one, today()), "warnings": list(one.warnings)} for one in usable.values()]
        return {"certificates": found, "services": services}


class _Unchecked(Configuration):
    """The file as it is, problems and all."""

    def check(self, text: str) -> list[str]:
        try:
            return super().check(text)
        except ConfigError as error:
            return error.problems
