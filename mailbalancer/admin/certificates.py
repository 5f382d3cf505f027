"""Our certificates as facts: names, dates, who uses them. Never their keys.

Decides: that they are looked at once for each configuration, as the workers got them.
Refuses to know: how they are served.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from mailbalancer.model import Config
from mailbalancer.tls.certificate import today
from mailbalancer.tls.material import CertificateError, Material, read_material


class Certificates:
    """The certificates of one configuration at a time."""

    def __init__(self) -> None:
        self._config: Config | None = None
        self._read: dict[str, Material | CertificateError] = {}

    def listed(self, config: Config) -> list[dict[str, Any]]:
        """Every certificate of this configuration."""
        if config is not self._config:
            self._config, self._read = config, {}
            for listed in config.certificates:
                try:
                    self._read[listed.name] = read_material(listed)
                except CertificateError as error:
                    self._read[listed.name] = error
        now = today()
        return [_facts(name, found, config, now) for name, found in self._read.items()]


def _facts(name: str, found: Material | CertificateError, config: Config, now: datetime) -> dict[str, Any]:
    services = [s.name for s in config.services if s.client_tls is not None and name in s.client_tls.certificates]
    used = {"name": name, "services": services}
    if isinstance(found, CertificateError):
        return {**used, "names": [], "days_left": None, "warnings": [str(found)]}
    seen = found.seen
    return {
        **used,
        "names": list(seen.names),
        "issuer": seen.issuer,
        "not_before": f"{seen.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{seen.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": seen.days_left(now),
        "sha256": seen.sha256,
        "warnings": list(found.warnings),
    }
