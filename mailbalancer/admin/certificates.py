"""Our certificates as facts: names, dates, who shows them to whom. Never their keys.

Decides: which names a client asks for to be shown a certificate, and who uses it.
Refuses to know: files, and how certificates are served. PURE: facts of the status report in, facts out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from mailbalancer.admin.encryption import RANKS
from mailbalancer.model import Config
from mailbalancer.tls.material import Material
from mailbalancer.tls.names import Names

Facts = Mapping[str, Any]
_DOOR = "the page and the API"
_NOT_SEEN = {"binding": ""}


def listed(report: Facts, config: Config) -> list[dict[str, Any]]:
    """Every certificate that runs, with the services that show it, the names they show it for, and whether Exchange
    shows the same (Extended Protection)."""
    names = {one["name"]: one["names"] for one in report["certificates"]}
    return [
        {
            **one,
            "shown_by": [shown for service in report["services"] if (shown := _shown(one, service, names))],
            "door": config.admin.certificate == one["name"],
            "extended_protection": _protection(one["name"], report),
        }
        for one in report["certificates"]
    ]


def facts(material: Material, now: datetime) -> dict[str, Any]:
    """One certificate by itself."""
    seen = material.seen
    return {
        "name": material.name,
        "names": list(material.names),
        "issuer": seen.issuer,
        "key": seen.key,
        "not_before": f"{seen.not_before:%Y-%m-%dT%H:%M:%SZ}",
        "not_after": f"{seen.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "days_left": seen.days_left(now),
        "sha256": seen.sha256,
    }


def users(config: Config, name: str) -> list[str]:
    """Who needs this certificate."""
    services = [s.name for s in config.services if s.client_tls is not None and name in s.client_tls.certificates]
    found = [f"service {service}" for service in services]
    return [*found, _DOOR] if config.admin.certificate == name else found


def _shown(one: Facts, service: Facts, names: Mapping[str, list[str]]) -> dict[str, Any] | None:
    clients = service.get("client_tls")
    offered = [name for name in clients["certificates"] if name in names] if clients else []
    if one["name"] not in offered:
        return None
    chosen = Names([(name, names[name]) for name in offered])
    sni = [name for name in one["names"] if chosen.choose(name) == one["name"]]
    return {"service": service["name"], "default": chosen.default == one["name"], "sni": sni}


def _protection(name: str, report: Facts) -> list[dict[str, Any]]:
    """What is known of each real server behind the services that show this certificate: the worst of its routes."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for service in report["services"]:
        clients = service.get("client_tls")
        if not clients or name not in clients["certificates"]:
            continue
        for server in (server for pool in service["pools"] for server in pool["real_servers"]):
            found, place = server.get("extended_protection"), (service["name"], server["name"])
            if found and RANKS[found["binding"]] > RANKS[worst.get(place, _NOT_SEEN)["binding"]]:
                worst[place] = {"service": place[0], "real_server": place[1], **found}
    return list(worst.values())
