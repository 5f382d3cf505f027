"""What `status` says about TLS: which certificate clients are shown, how servers are verified, Extended Protection.

Decides: the words, and how bad each is: a server that is not verified and a mismatch that locks users out are red.
Refuses to know: terminals and certificates themselves. PURE: facts of the status report in, words out.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailbalancer.admin.words import Facts, Tone, count, plain

#: Days left from which a certificate is shown as a warning, and as bad.
_SOON_DAYS, _NOW_DAYS = 30, 7
#: Days left from which a real server's is told; others renew it, often by a machine, a few weeks before its end.
_SERVER_SOON_DAYS = 14
_VERIFIED = {
    "full": "verified (chain and name)",
    "ca": "verified (own authority and name)",
    "pin": "verified (pinned certificate)",
}


def service_words(service: Facts) -> Iterator[tuple[str, Tone | None]]:
    """Sentences about the two sides of a service and, for Exchange, about Extended Protection."""
    clients, servers = service.get("client_tls"), service.get("server_tls")
    if clients and clients["certificates"]:
        shown = ", ".join(plain(name) for name in clients["certificates"])
        yield f"TLS with clients: certificate {shown}{_handshakes(service)}", None
    if servers:
        verified = _VERIFIED.get(servers["verify"])
        if verified is None:
            yield "TLS with servers: NOT VERIFIED (verify: none), anybody in between can read along", Tone.BAD
        else:
            yield f"TLS with servers: {verified}", None
    found = [
        server for pool in service["pools"] for server in pool["real_servers"] if server.get("extended_protection")
    ]
    if found:
        yield _protection(found)


def _handshakes(service: Facts) -> str:
    """`; 320 handshakes (1.3: 300, 1.2: 20), 100 resumed, 2 failed`; empty before the first one."""
    counts = service.get("handshakes") or {}
    versions = {name: counts.get(name, 0) for name in ("1.3", "1.2", "older")}
    if not sum(versions.values()) and not counts.get("failed"):
        return ""
    each = ", ".join(f"{name}: {number}" for name, number in versions.items() if number)
    words = f"; {count(sum(versions.values()), 'handshake')}" + (f" ({each})" if each else "")
    return words + "".join(f", {counts[key]} {key}" for key in ("resumed", "failed") if counts[key])


def _protection(servers: list[Facts]) -> tuple[str, Tone | None]:
    """One phrase per real server, the worst of all its routes."""
    worst: dict[str, str] = {}
    for server in servers:
        binding = str(server["extended_protection"]["binding"])
        if RANKS[binding] >= RANKS[worst.get(server["name"], "")]:
            worst[server["name"]] = binding
    words = ", ".join(f"{plain(name)} {plain(binding)}" for name, binding in worst.items())
    tone = Tone.BAD if "MISMATCH" in worst.values() else None
    return f"Extended Protection: {words}", tone


#: How bad a finding about Extended Protection is; nothing at all is the least.
RANKS = {"": 0, "match": 1, "unknown": 2, "MISMATCH": 3}


def mismatch(server: Facts) -> str:
    """Why log-ins with Extended Protection fail at this real server; empty when they do not, or nobody knows."""
    found = server.get("extended_protection")
    return plain(found["text"]) if found and found["binding"] == "MISMATCH" else ""


def expiry(server: Facts) -> tuple[str, Tone] | None:
    """What a real server's certificate needs although the server is up; None: nothing.

    One that has expired is up where it is pinned, or where nothing is verified.
    """
    check = server["check"]
    days = check["detail"].get("cert_days") if check and check["verdict"] == "up" else None
    if days is None or days >= _SERVER_SOON_DAYS:
        return None
    if days < 0:
        return f"{plain(server['name'])}: its certificate has expired; renew it there", Tone.BAD
    left = {0: "within a day", 1: "in 1 day"}.get(days, f"in {days} days")
    return f"{plain(server['name'])}: its certificate expires {left}; renew it there", days_tone(days)


def days_tone(days_left: int) -> Tone:
    """How bad it is that a certificate has so many days left."""
    if days_left < _NOW_DAYS:
        return Tone.BAD
    return Tone.WARNING if days_left < _SOON_DAYS else Tone.GOOD
