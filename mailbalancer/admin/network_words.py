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

    for source in service.get("sources", ()):
        yield _leaving(source)
    if service.get("strays"):
        packets = count(service["strays"], "answer")
        yield f"{packets} to clients that reached a real server past the balancer", Tone.WARNING
    if service.get("too_big"):
        packets = count(service["too_big"], "packet")
        yield f"{packets} did not fit somewhere on the way (fragmentation needed); who sent them has been told", None
    for tunnel in service.get("tunnel", ()):
        yield f"tunnel {plain(tunnel['device'])}: MTU {tunnel['mtu']}, real servers need advmss {tunnel['mss']}", None


def _leaving(source: Facts) -> tuple[str, Tone | None]:
    """`relay from 10.0.2.6 to ex1: 17/20`, beside what the server takes from one address."""
    full = source["limit"] and source["sessions"] >= source["limit"]
    of = f"/{source['limit']}" if source["limit"] else ""
    where = f"{plain(source['class'])} from {plain(source['address'])} to {plain(source['real_server'])}"
    return f"{where}: {source['sessions']}{of}", Tone.WARNING if full else None


def report_words(report: Facts) -> Iterator[tuple[str, Tone]]:
    """Sentences about the segments: who else claims our addresses, and frames that should not be there."""
    network = report.get("network") or {"guards": (), "claims": (), "tunnel": {}}
    for claim in network.get("claims", ()):
        yield f"{plain(claim['who'])} ({plain(claim['mac'])}) answers for {plain(claim['address'])}", Tone.BAD
    for guard in network.get("guards", ()):
        where = f"on {plain(guard['device'])} dropped"
        if guard["own_mac"]:
            yield f"{count(guard['own_mac'], 'frame')} of our own {where}: there is a loop in the network", Tone.BAD
        if guard["own_address"]:
            sent = f"{count(guard['own_address'], 'frame')} with an address of our services as sender {where}"
            yield f"{sent}: a real server answers through us", Tone.BAD
    tunnel = network.get("tunnel", {})
    if tunnel.get("strangers"):
        yield f"{count(tunnel['strangers'], 'packet')} of strangers into our tunnel dropped", Tone.WARNING
    if tunnel.get("too_big"):
        told = count(tunnel["too_big"], "packet")
        yield f"{told} did not fit on the way to a tunnel's end: its real server needs a smaller advmss", Tone.WARNING


def _network(given: Facts) -> str:
    """`10.0.2.0/24, 12 sessions (real servers would answer them directly)`."""
    sessions = "" if given["sessions"] is None else f", {count(given['sessions'], 'session')}"
    return f"{plain(given['network'])}{sessions} ({plain(given['why'])})"


def server_words(server: Facts) -> Iterator[tuple[str, Tone]]:
    """What the probes found, where it needs somebody's attention."""
    if server.get("out_of_service"):
        return  # its state says it
    through = server.get("through_vip")
    if through and through["verdict"] == "bad":
        yield f"{plain(server['name'])} does not serve its clients: {plain(through['reason'])}", Tone.BAD
    elif through and through["verdict"] == "unknown":
        yield f"whether {plain(server['name'])} serves its clients is unknown: {plain(through['reason'])}", Tone.WARNING
    if server.get("unanswered"):
        yield f"{plain(server['name'])}: {count(server['unanswered'], 'flow')} without an answer yet", Tone.QUIET
    way = server.get("way_back")
    if way and way["verdict"] == "bad":
        yield f"{plain(server['name'])} is shown the balancer's address: {plain(way['reason'])}", Tone.BAD
    elif way and way["verdict"] == "unknown":
        yield f"{plain(server['name'])}: whether its answers come back is unknown: {plain(way['reason'])}", Tone.WARNING
