"""Certificates while they are in use: when they expire, and whether Exchange shows the one that clients see.

Decides: when somebody is told, once each, and what `status` shows of it.
Refuses to know: how certificates are read (`certificates`) or compared (`tls.binding`, `tls.expiry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mailbalancer.balance.health import Result
from mailbalancer.control.events import Events
from mailbalancer.model import Config, MemberKey, Pool, Service
from mailbalancer.tls.binding import Binding, Comparison, compare
from mailbalancer.tls.certificate import today
from mailbalancer.tls.expiry import Dated, due
from mailbalancer.tls.material import Material
from mailbalancer.tls.names import Names

#: Expiry is a matter of days.
LOOK_EVERY_S = 3600.0


class CertificateWatch:
    """Follows the running configuration; `observe` is told of every check's result."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._said: dict[str, int] = {}
        self._config: Config | None = None
        self._materials: Mapping[str, Material] = {}
        self._found: dict[MemberKey, Comparison] = {}

    def follow(self, config: Config, materials: Mapping[str, Material]) -> None:
        """This configuration runs now, with these certificates."""
        self._config, self._materials = config, materials
        keys = {pool.key(member) for pool in config.pools() for member in pool.members}
        self._found = {key: found for key, found in self._found.items() if key in keys}
        self.look()

    def look(self, now: datetime | None = None) -> None:
        """Say which certificates expire soon, each once at 30, 14, 7 and 1 days, and when one has expired."""
        dated = [Dated(m.name, m.seen.sha256, m.seen.not_after) for m in self._materials.values()]
        sentences, self._said = due(dated, now or today(), self._said)
        for sentence in sentences:
            self._events.warning(sentence)

    def observe(self, key: MemberKey, result: Result) -> None:
        """A check of a real server has ended; with TLS it has seen the server's certificate."""
        service = self._config.service(key.service) if self._config is not None else None
        shown = str(result.detail.get("cert_sha256", ""))
        if service is None or not shown or not binds_to_certificate(service):
            return
        before = self._found.get(key)
        found = self._found[key] = compare(key.real_server, self._served(service, key), shown)
        if found.alarming and (before is None or not before.alarming):
            self._events.error(f"{service.name}: Extended Protection: {found.text}")
        elif before is not None and before.alarming and found.binding is Binding.MATCH:
            self._events.info(f"{service.name}: Extended Protection: {found.text} again")

    def finding(self, service: Service, key: MemberKey) -> dict[str, Any] | None:
        """For `status`: None where Extended Protection has nothing to compare."""
        if not binds_to_certificate(service):
            return None
        found = self._found.get(key) or compare(key.real_server, self._served(service, key), "")
        return {"binding": str(found.binding), "text": found.text}

    def listed(self) -> list[dict[str, Any]]:
        """Every certificate in use, for `status`."""
        now, config = today(), self._config
        services = config.services if config is not None else ()
        return [
            {
                "name": material.name,
                "names": list(material.names),
                "issuer": material.seen.issuer,
                "key": material.seen.key,
                "not_before": f"{material.seen.not_before:%Y-%m-%dT%H:%M:%SZ}",
                "not_after": f"{material.seen.not_after:%Y-%m-%dT%H:%M:%SZ}",
                "days_left": material.seen.days_left(now),
                "sha256": material.seen.sha256,
                "services": [s.name for s in services if s.client_tls and material.name in s.client_tls.certificates],
                "warnings": list(material.warnings),
            }
            for material in self._materials.values()
        ]

    def _served(self, service: Service, key: MemberKey) -> str:
        """The fingerprint that a client is shown who asks for the name under which this server is known."""
        assert service.client_tls is not None
        listed = [self._materials[name] for name in service.client_tls.certificates if name in self._materials]
        if not listed:
            return ""
        return Names([(m, m.names) for m in listed]).choose(_name_of(service, key)).seen.sha256


def binds_to_certificate(service: Service) -> bool:
    """Whether Windows clients bind their log-in to a certificate here: TLS ends here and begins anew to Exchange."""
    return service.client_tls is not None and service.server_tls is not None and service.profile.startswith("exchange-")


def _name_of(service: Service, key: MemberKey) -> str:
    pool: Pool | None = next((p for p in service.pools() if p.route == key.route), None)
    host = next((h for r in service.routes if pool is r.pool for h in r.hosts), "")
    return host or (service.server_tls.verify.name if service.server_tls is not None else "")
