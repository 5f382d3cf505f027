"""The facts of `status` as people ask for them: by real server, as one line per service, as a plan before an action.

Decides: what belongs together, and what an action would mean.
Refuses to know: HTTP, and how facts were fetched. PURE: facts in, facts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from mailbalancer.admin import encryption, network_words, words
from mailbalancer.admin.words import Facts, Tone, count

_WORST = (Tone.BAD, Tone.WARNING, Tone.QUIET, Tone.GOOD)
_TRAFFIC = ("sessions", "total", "connect_failed", "bytes_in", "bytes_out")
#: What the operator can want, and in which words it is announced.
ACTIONS = ("drain", "disable", "enable", "maintenance")


def members(service: Facts) -> Iterator[tuple[Facts, Facts]]:
    """Each pool with each of its real servers."""
    for pool in service["pools"]:
        for server in pool["real_servers"]:
            yield pool, server


def find(report: Facts, service: str) -> Facts | None:
    """One service of the report."""
    return next((one for one in report["services"] if one["name"] == service), None)


def described(service: Facts) -> dict[str, Any]:
    """A service with every real server's state in words beside its facts."""
    pools = [
        {**pool, "real_servers": [{**server, **_in_words(server)} for server in pool["real_servers"]]}
        for pool in service["pools"]
    ]
    said = [*encryption.service_words(service), *network_words.service_words(service)]
    said += [sentence for _, server in members(service) for sentence in network_words.server_words(server)]
    remarks = [{"says": says, "tone": str(tone or Tone.QUIET)} for says, tone in said]
    return {
        **service,
        **_health(service),
        "imbalance_words": words.imbalance(service),
        "remarks": remarks,
        "pools": pools,
    }


def _in_words(server: Facts) -> dict[str, Any]:
    state, tone = words.server_state(server)
    protection = server.get("extended_protection")
    return {
        "state": state,
        "tone": str(tone),
        "check_words": words.last_check(server),
        "protection": protection and f"Extended Protection: {words.plain(protection['text'])}",
        "protection_tone": str(Tone.BAD if encryption.mismatch(server) else Tone.QUIET),
    }


def line(service: Facts) -> dict[str, Any]:
    """A service in one line."""
    behind = [server for _, server in members(service)]
    return {
        **{key: service[key] for key in ("name", "mode", "listen", "profile", "sessions", "total", "refused")},
        **{key: service[key] for key in ("queued", "bytes_in", "bytes_out")},
        "failed": sum(server["connect_failed"] for server in behind),
        "real_servers": _each_once(behind),
        **_health(service),
    }


def _each_once(behind: Iterable[Facts]) -> list[dict[str, str]]:
    """Every real server of a service, as bad as it is in any of its routes."""
    worst: dict[str, tuple[Tone, str]] = {}
    for server in behind:
        state, tone = words.server_state(server)
        before = worst.get(server["name"])
        if before is None or _WORST.index(tone) < _WORST.index(before[0]):
            worst[server["name"]] = tone, state
    return [{"name": name, "tone": str(tone), "state": state} for name, (tone, state) in worst.items()]


def _health(service: Facts) -> dict[str, Any]:
    """How a service is: as bad as it gets for a client."""
    behind = [server for _, server in members(service)]
    ready = sum(server["availability"] == "ready" for server in behind)
    says = f"{ready} of {len(behind)} ready"
    if not ready and behind:
        tone = Tone.BAD
        says += ": new sessions are refused"
    else:
        tones = [words.server_state(server)[1] for server in behind]
        tone = next((tone for tone in _WORST if tone in tones), Tone.QUIET)
        tone = Tone.WARNING if tone is Tone.BAD else tone
    return {"ready": ready, "of": len(behind), "tone": str(tone), "says": says}


def real_servers(report: Facts) -> list[dict[str, Any]]:
    """Every real server with all its places, and what it carries together."""
    together: dict[str, list[dict[str, Any]]] = {}
    for service in report["services"]:
        for pool, server in members(service):
            place = {"service": service["name"], "route": pool["route"], **server, **_in_words(server)}
            together.setdefault(server["name"], []).append(place)
    return [_real_server(name, places) for name, places in sorted(together.items())]


def _real_server(name: str, places: Sequence[Facts]) -> dict[str, Any]:
    tones = {Tone(place["tone"]) for place in places}
    states = sorted({place["admin"] for place in places})
    return {
        "name": name,
        "tone": str(next(tone for tone in _WORST if tone in tones)),
        "admin": states[0] if len(states) == 1 else "mixed",
        **{key: sum(place[key] for place in places) for key in _TRAFFIC},
        "services": list(places),
    }


# ---------------------------------------------------------------- before an action


def plan(
    report: Facts, action: str, real_server: str, service: str, drain_s: Mapping[str, float], now: datetime
) -> dict[str, Any]:
    """What an action would do, in a sentence and in facts.

    Args:
        service: only there; empty: everywhere.
        drain_s: the longest drain time of each service.
    """
    places = [
        (one, pool, server)
        for one in report["services"]
        if service in ("", one["name"])
        for pool, server in members(one)
        if server["name"] == real_server
    ]
    services = list(dict.fromkeys(one["name"] for one, _, _ in places))
    sessions = sum(server["sessions"] for _, _, server in places)
    polls = sum(server.get("long_polls") or 0 for _, _, server in places)
    ends = now + timedelta(seconds=max((drain_s.get(name, 0.0) for name in services), default=0.0))
    where = services[0] if len(services) == 1 else count(len(services), "service")
    warnings = _left_without(places) if action != "enable" else []
    return {
        "says": _sentence(action, real_server, where, _open(sessions, polls), ends),
        "services": services,
        "sessions": sessions,
        "long_polls": polls,
        "ends_at": ends.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if action in ("drain", "maintenance") else None,
        "warnings": warnings,
    }


def _open(sessions: int, polls: int) -> str:
    words = count(sessions, "session")
    return f"{words}, {count(polls, 'long poll')}" if polls else words


def _sentence(action: str, real_server: str, where: str, open_now: str, ends: datetime) -> str:
    by = f"ends by {ends.astimezone():%H:%M %Z}"
    match action:
        case "drain":
            return f"drain {real_server} from {where}: {open_now}, {by}"
        case "maintenance":
            return (
                f"drain {real_server} from {where}: {open_now}, {by}; closed once it is empty, until it is brought back"
            )
        case "disable":
            return f"disable {real_server} in {where}: nobody is sent there any more; {open_now} stay until they end"
    return f"enable {real_server} in {where}: it takes part again and ramps up to its share"


def _left_without(places: Iterable[tuple[Facts, Facts, Facts]]) -> list[str]:
    """The pools in which nobody else is ready."""
    warnings = []
    for service, pool, server in places:
        others = [o for o in pool["real_servers"] if o is not server and o["availability"] == "ready"]
        if not others:
            place = f"{service['name']}/{pool['route']}" if pool["route"] else service["name"]
            warnings.append(f"{place}: no other real server is ready, new sessions will be refused")
    return warnings
