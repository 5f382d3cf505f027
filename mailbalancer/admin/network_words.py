"""What `status` says about the way of packets: who is shown with our address, and real servers that cannot answer.

Decides: the words, and how bad each is.
Refuses to know: terminals, rules and probes. PURE: facts of the status report in, words out.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailbalancer.admin.words import Facts, Tone, count, plain


def service_words(service: Facts) -> Iterator[tuple[str, Tone | None]]:
    """Sentences about the clients of a service."""
    own = service.get("own_address") or {"sessions": 0, "networks": []}
    if own["sessions"]:
        networks = "; ".join(_network(one) for one in own["networks"])
        whose = f": {networks}" if networks else ""
        yield f"{count(own['sessions'], 'session')} with the balancer's address instead of the client's{whose}", None


def _network(given: Facts) -> str:
    """`10.0.2.0/24, 12 sessions (real servers would answer them directly)`."""
    sessions = "" if given["sessions"] is None else f", {count(given['sessions'], 'session')}"
    return f"{plain(given['network'])}{sessions} ({plain(given['why'])})"


def server_words(server: Facts) -> Iterator[tuple[str, Tone]]:
    """What the probes found, where it needs somebody's attention."""
    if server.get("out_of_service"):
        return  # its state says it
    way = server.get("way_back")
    if way and way["verdict"] == "bad":
        yield f"{plain(server['name'])} is shown the balancer's address: {plain(way['reason'])}", Tone.BAD
    elif way and way["verdict"] == "unknown":
        yield f"{plain(server['name'])}: whether its answers come back is unknown: {plain(way['reason'])}", Tone.WARNING
