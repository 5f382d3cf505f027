"""The components of an Exchange server, as far as the checks see them.

Decides: which check tells which component's state. A healthcheck page is there only while its component is active, and
SMTP answers 421 4.3.2 when HubTransport is inactive or drains; so every check that ran is a reading.
Refuses to know: the server itself; nothing here asks it. PURE.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from mailbalancer.admin.words import Facts, plain

_PAGE = re.compile(r"/([a-z-]+)/healthcheck\.htm\Z", re.IGNORECASE)
#: By the virtual directory of the page (Get-ServerComponentState).
_PROXIES = {
    "owa": "OwaProxy",
    "ecp": "EcpProxy",
    "ews": "EwsProxy",
    "mapi": "MapiProxy",
    "rpc": "RpcProxy",
    "oab": "OabProxy",
    "autodiscover": "AutoDiscoverProxy",
    "microsoft-server-activesync": "ActiveSyncProxy",
    "powershell": "RpsProxy",
}
_ORDER = ("inactive", "unknown", "active")


def components(servers: Iterable[Facts]) -> list[dict[str, Any]]:
    """The readings of one real server's places, one for each component, the worst of several."""
    found: dict[str, dict[str, Any]] = {}
    for server in servers:
        reading = _reading(server)
        if reading is None:
            continue
        before = found.get(reading["component"])
        if before is None or _ORDER.index(reading["state"]) < _ORDER.index(before["state"]):
            found[reading["component"]] = reading
    return [found[name] for name in sorted(found)]


def _transport(server: Facts, check: Facts) -> dict[str, Any] | None:
    """HubTransport, from the answers of SMTP; an `up` says something only of a server that calls itself Exchange."""
    if check["verdict"] == "maintenance" or server["maintenance"]:
        return {"component": "HubTransport", "state": "inactive", "why": plain(check["reason"])}
    if check["verdict"] == "up" and "Microsoft ESMTP" in str(check["detail"].get("banner", "")):
        return {"component": "HubTransport", "state": "active", "why": plain(check["reason"])}
    return None


def _reading(server: Facts) -> dict[str, Any] | None:
    check = server["check"]
    if check is None:
        return None
    if check["type"] == "smtp":
        return _transport(server, check)
    page = _PAGE.search(check.get("asks") or "")
    if page is None:
        return None
    name = _PROXIES.get(page[1].lower())
    if name is None:
        return None
    status = check["detail"].get("status")
    state = "active" if check["verdict"] == "up" else "unknown" if status is None else "inactive"
    return {"component": name, "state": state, "why": plain(check["reason"])}
