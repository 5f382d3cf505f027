"""The facts of `status` in Prometheus' text format (version 0.0.4).

Decides: names and labels. A label is a service, a route, a real server, a worker or an address of ours, never anything
that a client sent, so the number of series is bounded by the configuration; and where a large configuration would make
too many, real servers keep count and sum of their times and lose the buckets.
Refuses to know: HTTP. PURE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from mailbalancer.admin.words import Facts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: More places of real servers than this are told without buckets: 16 lines each for 4 phases are most of a scrape.
MOST_DETAILED = 200
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
Sample = tuple[str, float]
Read = Callable[[Facts], Any]


def _of(key: str) -> Read:
    return lambda facts: facts.get(key)


def _connects_ok(server: Facts) -> Any:
    return server["connect_ok"]


def _last_check(key: str) -> Read:
    return lambda server: server["check"] and server["check"][key]


def _handshakes(key: str) -> Read:
    return lambda service: (service.get("handshakes") or {}).get(key)


def _way_back(server: Facts) -> Any:
    """Whether answers come back through us, where they must; not there while nobody knows."""
    known = server.get("way_back") or {"verdict": "unknown"}
    return {"good": True, "bad": False}.get(known["verdict"])


def _extended_protection(server: Facts) -> Any:
    known = server.get("extended_protection") or {"binding": "unknown"}
    return {"match": True, "MISMATCH": False}.get(known["binding"])


def _days_in_seconds(days: int | None) -> int | None:
    return None if days is None else days * 86400


#: name, type, help, and where it stands; what is not in the facts of this service or real server is left out.
_SERVICE: tuple[tuple[str, str, str, Read], ...] = (
    ("service_sessions", "gauge", "Open sessions.", _of("sessions")),
    ("service_sessions_started_total", "counter", "Sessions that were given a real server.", _of("total")),
    ("service_sessions_refused_total", "counter", "Sessions refused: limits, lists, or nobody ready.", _of("refused")),
    ("service_sessions_queued", "gauge", "Sessions that wait for a place.", _of("queued")),
    (
        "service_tls_resumed_total",
        "counter",
        "Handshakes with clients that went on with an earlier session.",
        _handshakes("resumed"),
    ),
    ("service_tls_failed_total", "counter", "Handshakes with clients that failed.", _handshakes("failed")),
    ("service_requests_total", "counter", "HTTP requests answered.", _of("requests")),
    ("service_long_polls", "gauge", "HTTP requests that wait for news now.", _of("long_polls")),
    ("service_pinned_connections", "gauge", "Connections to servers that belong to one client.", _of("pinned")),
    (
        "service_connections_reused_total",
        "counter",
        "Times a connection to a server went to another client.",
        _of("reused"),
    ),
    (
        "service_pinned_reused_total",
        "counter",
        "Times that happened to one that belongs to its client; must stay 0.",
        _of("pinned_reused"),
    ),
    (
        "service_largest_source_share_ratio",
        "gauge",
        "Share of the sessions that the largest source address carries, while it is too much.",
        lambda service: service["imbalance"]["share"] if service["imbalance"] else 0.0,
    ),
)
_SERVER: tuple[tuple[str, str, str, Read], ...] = (
    ("real_server_up", "gauge", "Whether the checks find it up; not there while unknown.", _of("up")),
    ("real_server_ready", "gauge", "Whether it may be given new sessions.", lambda s: s["availability"] == "ready"),
    ("real_server_draining", "gauge", "Whether it drains.", lambda s: s["admin"] == "draining"),
    ("real_server_disabled", "gauge", "Whether the operator disabled it.", lambda s: s["admin"] == "disabled"),
    ("real_server_maintenance", "gauge", "Whether it says itself that it is in maintenance.", _of("maintenance")),
    ("real_server_back_pressure", "gauge", "Whether it asks for less.", _of("back_pressure")),
    ("real_server_ramp_ratio", "gauge", "How far its ramp has come; 1: it takes its share.",
     lambda s: s["ramp_percent"] / 100),
    ("real_server_drain_remaining_seconds", "gauge", "Time until its drain ends.", _of("drain_ends_in_s")),
    ("real_server_long_polls", "gauge", "HTTP requests that wait for news there now.", _of("long_polls")),
    ("real_server_way_back_good", "gauge", "Whether its answers come back through us (gateway probe).", _way_back),
    ("real_server_extended_protection_match", "gauge", "Whether its certificate binding fits what clients see.",
     _extended_protection),
    ("real_server_weight", "gauge", "Its weight now.", _of("weight")),
    ("real_server_sessions", "gauge", "Open sessions.", _of("sessions")),
    ("real_server_sessions_started_total", "counter", "Sessions it was selected for.", _of("total")),
    ("real_server_connects_total", "counter", "Connects that succeeded.", _connects_ok),
    ("real_server_connect_errors_total", "counter", "Connects that failed.", _of("connect_failed")),
    ("real_server_received_bytes_total", "counter", "Bytes from clients to it.", _of("bytes_in")),
    ("real_server_sent_bytes_total", "counter", "Bytes from it to clients.", _of("bytes_out")),
    ("real_server_moved_clients_total", "counter", "Returning clients that went elsewhere, as it was not available.",
     _of("moved")),
    ("real_server_retried_sessions_total", "counter", "Sessions that went to the next one after its connect failed.",
     _of("retried")),
    ("real_server_requests_total", "counter", "HTTP requests it answered.", _of("requests")),
    ("real_server_messages_total", "counter", "Messages it took.", _of("messages")),
    ("real_server_messages_refused_total", "counter", "Messages it refused.", _of("messages_refused")),
    ("real_server_check_age_seconds", "gauge", "Time since the last check ended.", _last_check("ago_s")),
    ("real_server_check_duration_seconds", "gauge", "How long the last check took.", _last_check("took_s")),
    ("real_server_certificate_remaining_seconds", "gauge", "Time left of the certificate that the check saw.",
     lambda s: s["check"] and _days_in_seconds(s["check"]["detail"].get("cert_days"))),
)  # fmt: skip
_WORKER: tuple[tuple[str, str, str, Read], ...] = (
    ("worker_alive", "gauge", "Whether the process is there.", _of("alive")),
    ("worker_sessions", "gauge", "Open sessions.", _of("sessions")),
    ("worker_open_files", "gauge", "Open file descriptors.", _of("open_files")),
    ("worker_paused", "gauge", "Whether it accepts nothing, for want of file descriptors.", _of("paused")),
    ("worker_restarts_total", "counter", "Times it was replaced.", _of("restarts")),
    ("worker_heartbeat_age_seconds", "gauge", "Time since its event loop last turned.", _of("beat_age_s")),
)


def exposition(report: Facts, certificates: Iterable[Facts] = (), timings: Facts | None = None) -> str:
    """Everything, as Prometheus reads it."""
    services = [(f'{{service="{_text(one["name"])}"}}', one) for one in report["services"]]
    servers = [
        (_server_labels(one["name"], pool["route"], server["name"]), server)
        for one in report["services"]
        for pool in one["pools"]
        for server in pool["real_servers"]
    ]
    workers = [(f'{{worker="{one["index"]}"}}', one) for one in report["workers"]]
    lines = list(_balancer(report))
    for families, subjects in ((_SERVICE, services), (_SERVER, servers), (_WORKER, workers)):
        for name, kind, text, read in families:
            lines += _family(name, kind, text, ((labels, read(facts)) for labels, facts in subjects))
    days = ((f'{{certificate="{_text(one["name"])}"}}', _days_in_seconds(one["days_left"])) for one in certificates)
    lines += _family("certificate_remaining_seconds", "gauge", "Time until our certificate expires.", days)
    lines += _handshake_versions(services)
    lines += _sources(report)
    if timings is not None:
        lines += _histograms(timings)
    return "\n".join(lines) + "\n"


def _balancer(report: Facts) -> Iterator[str]:
    info = f'{{version="{_text(report["version"])}"}}'
    yield from _family("build_info", "gauge", "The version that runs.", [(info, 1)])
    yield from _family("uptime_seconds", "gauge", "Time since the start.", [("", report["uptime_s"])])
    yield from _family(
        "config_version", "gauge", "Number of the running configuration.", [("", report["config_version"])]
    )
    yield from _family("warnings", "gauge", "Warnings that stand now.", [("", len(report["warnings"]))])


def _handshake_versions(services: Iterable[tuple[str, Facts]]) -> Iterator[str]:
    known = [(labels[:-1], one["handshakes"]) for labels, one in services if one.get("handshakes")]
    samples = ((f'{start},version="{v}"}}', counts[v]) for start, counts in known for v in ("1.3", "1.2", "older"))
    yield from _family("service_tls_handshakes_total", "counter", "Handshakes with clients, by TLS version.", samples)


def _sources(report: Facts) -> Iterator[str]:
    """Addresses of ours that classes of clients leave from: how full they are."""
    rows = [
        (f'{{service="{_text(one["name"])}",class="{_text(row["class"])}",address="{_text(row["address"])}",'
         f'real_server="{_text(row["real_server"])}"}}', row)
        for one in report["services"]
        for row in one.get("sources", ())
    ]  # fmt: skip
    in_use = ((labels, row["sessions"]) for labels, row in rows)
    limits = ((labels, row["limit"] or None) for labels, row in rows)
    yield from _family("source_sessions", "gauge", "Open sessions from this address of ours to this server.", in_use)
    yield from _family("source_sessions_limit", "gauge", "How many the server allows one address.", limits)


# ---------------------------------------------------------------- how long things took

Phases = dict[str, tuple[list[int], float]]


def _histograms(timings: Facts) -> Iterator[str]:
    """By real server, and by service as the sum of all its places. What never happened is left out."""
    bounds = [f'le="{bound:g}"' for bound in timings["bounds_s"]] + ['le="+Inf"']
    services: dict[str, Phases] = {}
    servers: list[tuple[str, Phases]] = []
    for place in timings["places"]:
        phases = {phase: (counts, sum_s) for phase, (counts, sum_s) in place["phases"].items() if any(counts)}
        together = services.setdefault(place["service"], {})
        for phase, (counts, sum_s) in phases.items():
            before, sum_before_s = together.get(phase, ([0] * len(counts), 0.0))
            together[phase] = [a + b for a, b in zip(before, counts, strict=True)], sum_before_s + sum_s
        if place["real_server"] and phases:
            servers.append((_server_labels(place["service"], place["route"], place["real_server"])[1:-1], phases))
    named = [(f'service="{_text(name)}"', phases) for name, phases in services.items()]
    yield from _histogram("service_phase_seconds", "How long sessions and requests took, by phase.", named, bounds)
    least = 0 if len(servers) <= MOST_DETAILED else len(bounds) - 1
    yield from _histogram("real_server_phase_seconds", "The same, by real server.", servers, bounds, least)


def _histogram(
    name: str, text: str, subjects: Sequence[tuple[str, Phases]], bounds: Sequence[str], first: int = 0
) -> Iterator[str]:
    """One family; of the buckets those from `first` on."""
    if not any(phases for _, phases in subjects):
        return
    yield f"# HELP mailbalancer_{name} {text}"
    yield f"# TYPE mailbalancer_{name} histogram"
    for labels, phases in subjects:
        for phase, (counts, sum_s) in phases.items():
            own = f'{labels},phase="{phase}"'
            upto = list(accumulate(counts))
            for bound, count in zip(bounds[first:], upto[first:], strict=True):
                yield f"mailbalancer_{name}_bucket{{{own},{bound}}} {count}"
            yield f"mailbalancer_{name}_sum{{{own}}} {sum_s!r}"
            yield f"mailbalancer_{name}_count{{{own}}} {upto[-1]}"


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[str, Any]]) -> Iterator[str]:
    known = [f"mailbalancer_{name}{labels} {_number(value)}" for labels, value in samples if value is not None]
    if known:
        yield f"# HELP mailbalancer_{name} {text}"
        yield f"# TYPE mailbalancer_{name} {kind}"
        yield from known


def _number(value: Any) -> str:
    if value is True or value is False:
        return "1" if value else "0"
    return repr(value)


def _server_labels(service: str, route: str, server: str) -> str:
    return f'{{service="{_text(service)}",route="{_text(route)}",real_server="{_text(server)}"}}'


def _text(value: str) -> str:
    return str(value).translate(_ESCAPES)
